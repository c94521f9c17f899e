"""The command `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeopt.cli.answer import Answer, rendered
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.stages.doctor import Health


@click.command()
@json_option
def doctor() -> Answer:
    """Say what is usable on this machine, and how to get the rest.

    Exits 0; 5 when not one runtime can be used.
    """
    from edgeopt.stages.doctor import doctor as stage

    health = stage()
    return Answer(health, lambda: _words(health), health.exit_code)


def _words(health: Health) -> str:
    from rich.markup import escape
    from rich.table import Table

    def table() -> Table:
        made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        made.add_column(no_wrap=True)
        made.add_column(no_wrap=True)
        made.add_column(overflow="fold")
        return made

    here = health.machine
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    facts.add_row("edgeopt", f"{health.edgeopt}, Python {health.python}, {here['system']} {here['kernel']}")
    facts.add_row(
        "processor", escape(f"{here['cpu']} ({here['arch']}; {', '.join(here['isa']) or 'no vector extensions that matter here'})")
    )
    cores = f"{here['cores_allowed']} allowed of {here['cores_visible']} visible" + (", in a virtual machine" if here["virtual"] else "")
    facts.add_row("cores", cores + (f", governor {here['governor']}" if here["governor"] else ""))
    facts.add_row("memory", f"{here['memory_mb'] / 1000:.1f} GB")
    store = health.store
    facts.add_row(
        "store",
        escape(f"{store['path']}: {store['entries']} entries, {store['size_bytes'] / 1e6:.1f} MB; {store['free_bytes'] / 1e9:.1f} GB free"),
    )
    if not store["writable"]:
        facts.add_row("", "[red]the store cannot be written: point EDGEOPT_CACHE at a folder that can[/]")

    runtimes = table()
    for one in health.backends:
        versions = ", ".join(f"{name} {version}" for name, version in one.versions.items()) or "nothing to install"
        runtimes.add_row(_mark(one.usable), one.name, escape(versions if one.usable else one.reason or ""))

    extras = table()
    for extra in health.extras:
        missing = [name for name, version in extra.packages.items() if version is None]
        if extra.usable:
            text = ", ".join(f"{name} {version}" for name, version in extra.packages.items())
        else:
            text = f"{extra.remedy} (missing: {', '.join(missing)})"
        extras.add_row(_mark(extra.usable), extra.name, escape(text))
    missing = [name for name, version in health.packages.items() if version is None]
    broken = [f"[red]needed and missing: {', '.join(missing)}: pip install edgeopt[/]"] if missing else []
    return rendered(facts, *broken, "\n[bold]Runtimes[/]", runtimes, "\n[bold]Extras[/]", extras)


def _mark(usable: bool) -> str:
    return "[green]yes[/]" if usable else "[yellow]no[/]"
