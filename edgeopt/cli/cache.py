"""The command `cache` and its own commands: list, why, prune, path."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.answer import Answer, rendered
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.core.store import Entry
    from edgeopt.stages.explain import Explained

SHOWN = 10


@click.group(invoke_without_command=True)
@click.pass_context
@json_option
def cache(context: click.Context) -> Answer | None:
    """List what is in the store of finished work: totals per kind, the largest entries."""
    if context.invoked_subcommand:
        return None
    from edgeopt.core.store import Store

    store = Store()
    entries = store.entries()
    totals = {
        kind: [entry.size_bytes for entry in entries if entry.kind == kind] for kind in dict.fromkeys(entry.kind for entry in entries)
    }
    value = {
        "path": str(store.root),
        "size_bytes": sum(entry.size_bytes for entry in entries),
        "kinds": {kind: {"entries": len(sizes), "size_bytes": sum(sizes)} for kind, sizes in totals.items()},
        "entries": [_told(entry) for entry in sorted(entries, key=lambda entry: -entry.size_bytes)],
    }
    return Answer(value, lambda: _listing(value))


@cache.command()
@json_option
def path() -> Answer:
    """Print the store's folder (EDGEOPT_CACHE chooses another)."""
    from edgeopt.core.store import default_root

    return Answer({"path": str(default_root())}, str(default_root()))


@cache.command()
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE")
@json_option
def why(recipe: Path) -> Answer:
    """Say for each step of a recipe whether it is in the store, and if not, what is new about it."""
    from edgeopt.core.recipe import load
    from edgeopt.stages.explain import explain
    from edgeopt.stages.plan import plan

    steps = explain(plan(load(recipe)))
    return Answer([asdict(step) for step in steps], lambda: _causes(steps))


@cache.command()
@click.option(
    "--max-gb", type=click.FloatRange(min=0), metavar="N", help="Drop what was not used longest until the rest fits (GB are 10⁹ bytes)."
)
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Drop what was not used for so many days.")
@click.option("--all", "everything", is_flag=True, help="Drop everything.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def prune(max_gb: float | None, older_than: float | None, everything: bool, dry_run: bool) -> Answer:
    """Drop entries from the store. Run folders keep copies of their own."""
    from edgeopt.core.errors import UsageError
    from edgeopt.core.store import Store

    if not everything and max_gb is None and older_than is None:
        raise UsageError("prune needs to be told what to drop", remedy="edgeopt cache prune --max-gb 5, --older-than 30 or --all")
    store = Store()
    max_bytes = 0 if everything else None if max_gb is None else round(max_gb * 1e9)
    dropped = store.prune(max_bytes, older_than, dry_run=dry_run)
    size = sum(entry.size_bytes for entry in dropped)
    text = f"{len(dropped)} entries, {_size(size)} {'would be dropped' if dry_run else 'dropped'}"
    return Answer({"dry_run": dry_run, "size_bytes": size, "entries": [_told(entry) for entry in dropped]}, text)


def _told(entry: Entry) -> dict[str, Any]:
    """An entry as plain JSON; an artifact also says which step made it, and from what."""
    from datetime import UTC, datetime

    used = datetime.fromtimestamp(entry.used_at, UTC).isoformat(timespec="seconds")
    return {
        "kind": entry.kind,
        "key": entry.key,
        "what": _what(entry),
        "size_bytes": entry.size_bytes,
        "used_at": used,
        "path": str(entry.path),
    }


def _what(entry: Entry) -> str:
    if entry.kind != "artifacts":
        return entry.kind.removesuffix("s")
    from edgeopt.core.artifact import Artifact

    try:
        artifact = Artifact.read(entry.path)
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"
    return " → ".join(event.step for event in artifact.history)


def _listing(value: dict[str, Any]) -> str:
    from rich.markup import escape
    from rich.table import Table

    if not value["entries"]:
        return f"{value['path']} is empty"
    totals = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("kind", "entries", "size"):
        totals.add_column(title, justify="left" if title == "kind" else "right")
    for kind, one in value["kinds"].items():
        totals.add_row(kind, f"{one['entries']:,}", _size(one["size_bytes"]))
    top = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    top.add_column("size", justify="right", no_wrap=True)
    top.add_column("last used", no_wrap=True)
    top.add_column("what", overflow="fold")
    for entry in value["entries"][:SHOWN]:
        top.add_row(_size(entry["size_bytes"]), entry["used_at"][:16].replace("T", " "), escape(entry["what"]))
    rest = len(value["entries"]) - SHOWN
    more = [f"and {rest:,} more (--json lists all)"] if rest > 0 else []
    return rendered(f"[bold]{escape(value['path'])}[/]: {_size(value['size_bytes'])}\n", totals, "", top, *more)


def _causes(steps: list[Explained]) -> str:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column("of", overflow="fold")
    table.add_column("why", overflow="fold")
    for step in steps:
        name = step.plug if step.kind == "pass" else f"compile ({step.plug})"
        rows = step.rows[0] + (f" and {len(step.rows) - 1} more" if len(step.rows) > 1 else "")
        mark = "[green]hit[/]" if step.stored else "[yellow]miss[/]"
        table.add_row(mark, escape(name), escape(rows), escape("; ".join(step.differs)))
    hits = sum(step.stored for step in steps)
    return rendered(table, f"\n{hits} of {len(steps)} steps are in the store")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
