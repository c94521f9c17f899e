"""The commands `passes` and `targets`: what recipes may name."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import click

from edgeopt.cli.answer import Answer, rendered
from edgeopt.cli.commands import json_option


@click.command()
@click.argument("name", required=False)
@json_option
def passes(name: str | None) -> Answer:
    """List the passes, or explain one: its options, formats, data and packages."""
    from edgeopt.core import registry
    from edgeopt.core.errors import UsageError, did_you_mean

    known = list(dict.fromkeys([*registry.names("passes"), *(entry.name for entry in metadata.entry_points(group="edgeopt.passes"))]))
    if name is not None and name not in known:
        raise UsageError(f"unknown pass '{name}'", remedy=did_you_mean(name, known))
    if name is not None:
        facts = _pass(name, full=True)
        return Answer(facts, lambda: _explained(facts))
    found = [_pass(one) for one in known]
    return Answer(found, lambda: _listed(found))


def _pass(name: str, full: bool = False) -> dict[str, Any]:
    """The facts of a pass; one that cannot be loaded says why."""
    from edgeopt.core import registry

    try:
        cls = registry.load("passes", name)
    except Exception as error:  # noqa: BLE001 (a broken plug stays in the list and says why)
        reason = f"cannot be loaded: {error}"
        return {"name": name, "summary": None, "accepts": [], "produces": None, "usable": False, "reason": reason}
    missing = [package for package in cls.needs if registry.version(package) == "absent"]
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    facts: dict[str, Any] = {
        "name": name,
        "summary": text,
        "accepts": list(cls.accepts),
        "produces": cls.produces or None,
        "usable": not missing,
        "reason": f"needs {', '.join(missing)}: pip install 'edgeopt[{cls.extra}]'" if missing else None,
    }
    if full:
        facts |= {
            "description": _paragraphs(cls.__doc__ or ""),
            "options": cls.model_json_schema(),
            "data": list(cls.data),
            "needs": {package: registry.version(package) for package in cls.needs},
            "target_fields": list(cls.target_fields),
            "uses": list(cls.uses),
            "changes_function": cls.changes_function,
        }
    return facts


def _paragraphs(text: str) -> str:
    """A docstring whose lines may be broken anew; what is indented in it stays as it is."""
    import inspect

    found = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if "\n " in part or part.startswith(" ") else " ".join(part.split()) for part in found)


def _formats(facts: dict[str, Any]) -> str:
    """`onnx → openvino`; a pass that gives back the format it got is named by that format alone."""
    if not facts["accepts"]:
        return f"→ {facts['produces']}" if facts["produces"] else ""
    takes = ", ".join(facts["accepts"])
    return (
        takes
        if facts["produces"] in (None, *(facts["accepts"] if len(facts["accepts"]) == 1 else ()))
        else f"{takes} → {facts['produces']}"
    )


def _listed(found: list[dict[str, Any]]) -> str:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("pass", no_wrap=True)
    table.add_column("works on", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for facts in found:
        about = escape(facts["summary"] or "")
        if facts["reason"]:
            about += ("\n" if about else "") + f"[yellow]{escape(facts['reason'])}[/]"
        table.add_row(escape(facts["name"]), _formats(facts), about)
    return rendered(table, "\nOptions of one: edgeopt passes NAME. Imports (→) and conversions are put in by edgeopt.")


def _explained(facts: dict[str, Any]) -> str:
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    if "options" not in facts:
        return rendered(f"[bold]{escape(facts['name'])}[/]: [yellow]{escape(facts['reason'])}[/]")
    parts: list[Any] = [f"[bold]{escape(facts['name'])}[/]", Padding(escape(facts["description"]), (0, 0, 1, 2))]
    about = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    about.add_column(no_wrap=True)
    about.add_column(overflow="fold")
    about.add_row("works on", _formats(facts))
    about.add_row("data", ", ".join(name.replace("?", " (if there)") for name in facts["data"]) or "none")
    about.add_row("packages", ", ".join(f"{name} {version}" for name, version in facts["needs"].items()) or "none")
    if facts["target_fields"]:
        about.add_row("sees", f"of the target: {', '.join(facts['target_fields'])}")
    if facts["changes_function"]:
        about.add_row("parity", "not demanded: it changes what the model computes")
    if facts["reason"]:
        about.add_row("", f"[yellow]{escape(facts['reason'])}[/]")
    parts.append(about)
    options = facts["options"].get("properties", {})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="bold")
    for title in ("option", "type", "default", ""):
        table.add_column(title, overflow="fold", no_wrap=title == "option")
    required = facts["options"].get("required", [])
    for name, schema in options.items():
        default = "(needed)" if name in required else _value(schema.get("default"))
        table.add_row(
            name, escape(type_words(schema, facts["options"].get("$defs", {}))), escape(default), escape(schema.get("description", ""))
        )
    parts += ["", table] if options else ["\n  It has no options."]
    return rendered(*parts)


def _value(value: Any) -> str:
    import json

    return "none" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def type_words(schema: dict[str, Any], named: dict[str, Any]) -> str:
    """A JSON Schema type in words: `number above 0, at most 1`, `entropy or minmax`, `list of text`."""
    if "$ref" in schema:
        return type_words(named.get(schema["$ref"].rpartition("/")[2], {}), named)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(type_words(one, named) for one in schema[several]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = {"integer": "whole number", "boolean": "true or false", "string": "text", "null": "none", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "anything")
    )
    if schema.get("type") == "array":
        kind = f"list of {type_words(schema.get('items', {}), named)}"
    limits = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    return ", ".join([kind, *(f"{word} {schema[limit]:g}" for limit, word in limits.items() if limit in schema)]).replace(", ", " ", 1)


@click.command()
@json_option
def targets() -> Answer:
    """List the shipped targets, and whether they can be measured here.

    A target of your own is a YAML file beside the recipe, or written inline: {extends: NAME, threads: 1}.
    """
    from edgeopt.core import target

    found = [_target(name) for name in target.shipped()]
    return Answer(found, lambda: _targets(found))


def _target(name: str) -> dict[str, Any]:
    from pathlib import Path

    from edgeopt.core import registry, target

    loaded = target.load(name, Path())
    try:
        reason = loaded.refuses_machine() or registry.load("backends", loaded.backend)().can_measure(loaded.model_dump(mode="json"))
    except Exception as error:  # noqa: BLE001 (a broken plug stays in the list and says why)
        reason = f"the backend cannot be loaded: {error}"
    return {**loaded.model_dump(mode="json"), "thread_count": loaded.thread_count, "usable": not reason, "reason": reason or None}


def _targets(found: list[dict[str, Any]]) -> str:
    """The table; why some cannot be measured here stands below it, each reason once."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("target", "backend", "arch", "threads", "batch", "scenario", "here"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("threads", "batch") else "left")
    reasons: dict[str, list[str]] = {}
    for one in found:
        if not one["usable"]:
            reasons.setdefault(one["reason"], []).append(one["name"])
        here = "[green]yes[/]" if one["usable"] else "[yellow]no[/]"
        threads = f"{one['thread_count']} (auto)" if one["threads"] == "auto" else str(one["threads"])
        table.add_row(escape(one["name"]), one["backend"], one["arch"], threads, str(one["batch"]), one["scenario"], here)
    parts: list[Any] = [table]
    for reason, names in reasons.items():
        parts += [f"\nNot to be measured here: [bold]{escape(', '.join(names))}[/]", Padding(f"[yellow]{escape(reason)}[/]", (0, 0, 0, 2))]
    return rendered(*parts)
