"""The command `inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.answer import Answer, rendered
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.stages.inspect import Inspection

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("path", type=_PATH, metavar="MODEL|ARTIFACT|RUN-FOLDER")
@click.option("--target", metavar="NAME", help="say what keeps the model from this target, and what mends it")
@click.option("--profile", is_flag=True, help="run it on the target, by default the artifact's own, and time each layer")
@click.option(
    "--against",
    "other",
    type=_PATH,
    metavar="OTHER",
    help="run a quantized or otherwise changed form of it as well, and show where the function was lost",
)
@click.option("--recipe", type=_PATH, metavar="FILE", help="with --against, samples of a recipe's tune, calibrate or train data")
@click.option(
    "--data", type=_PATH, metavar="NPZ", help="with --against, samples from a file: arrays named like the inputs; default: random numbers"
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="with --against, how many at most; default: 16")
@click.option("--all", "everything", is_flag=True, help="with --against, show every layer")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="AXIS=N",
    help="with --profile or --against, the size of an axis that may vary; may be repeated",
)
@json_option
def inspect(
    path: Path,
    target: str | None,
    profile: bool,
    other: Path | None,
    recipe: Path | None,
    data: Path | None,
    samples: int | None,
    everything: bool,
    sizes: tuple[str, ...],
) -> Answer:
    """Look into a model file (.onnx, .xml, .pt2, .keras, .h5, .safetensors), an artifact or a run folder.

    Nothing is run but with two options, for .onnx and .xml files and artifacts. --profile times each layer, with
    the precision that executes, and holds it against what this machine can do. --against runs another form of the
    same model (quantized, cast, optimized) on the same samples and tells the error of each layer. --target exits
    with 8 where a finding is an error.
    """
    from edgeopt.cli.bench import axes
    from edgeopt.core.errors import EXIT_OK, EXIT_STEP, UsageError
    from edgeopt.stages.inspect import inspect as stage

    if sizes and not profile and not other:
        raise UsageError("--size says nothing without --profile or --against", remedy="add --profile, or leave --size out")
    given = {"--recipe": recipe, "--data": data, "--samples": samples, "--all": everything}
    alone = [name for name, value in given.items() if value]
    if alone and not other:
        raise UsageError(f"{alone[0]} says nothing without --against", remedy=f"add --against OTHER, or leave {alone[0]} out")
    if other:
        for name, value in (("--profile", profile), ("--target", target)):
            if value:
                raise UsageError(f"--against and {name} exclude each other", remedy="ask one after the other")
        if sum(map(bool, (recipe, data, sizes))) > 1:
            raise UsageError("--recipe, --data and --size exclude each other", remedy="give samples of one origin")
        return _against(path, other, recipe, data, axes(sizes), samples, everything)
    if not profile:
        found = stage(path, target)
        wrong = any(one["level"] == "error" for one in found.findings or ())
        return Answer(found, lambda: _words(found), EXIT_STEP if wrong else EXIT_OK)
    from edgeopt.cli.layers import layers
    from edgeopt.stages.dissect import dissect

    found, told = stage(path), dissect(path, target, axes(sizes))
    return Answer(found.model_copy(update={"profile": told.model_dump(mode="json")}), lambda: layers(path, told))


def _against(
    path: Path, other: Path, recipe: Path | None, data: Path | None, sizes: dict[str, int], samples: int | None, everything: bool
) -> Answer:
    from edgeopt.cli.against import differences
    from edgeopt.cli.progress import listen
    from edgeopt.stages.against import SAMPLES, against
    from edgeopt.stages.inspect import inspect as stage

    found = stage(path)
    with listen() as progress:
        told = against(path, other, recipe=recipe, data=data, sizes=sizes, samples=samples or SAMPLES, progress=progress)
    return Answer(found.model_copy(update={"against": told.model_dump(mode="json")}), lambda: differences(path, other, told, everything))


def _words(found: Inspection) -> str:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, text: Any) -> None:
        if text not in (None, "", [], {}):
            table.add_row(name, escape(str(text)))

    row("format", found.format)
    row("size", f"{found.size_bytes:,} bytes" + (f" ({found.size_bytes / 1e6:.2f} MB)" if found.size_bytes >= 1e5 else ""))
    for side in ("inputs", "outputs"):
        for index, spec in enumerate((found.signature or {}).get(side, [])):
            row(side if index == 0 else "", f"{spec['name']}: {spec['dtype'] or '?'}[{', '.join(map(str, spec['shape']))}]")
    row("parameters", f"{found.parameters:,}" if found.parameters is not None else None)
    row("MACs", f"{found.macs:,} per sample" if found.macs else None)
    row("stored", ", ".join(f"{count:,} {dtype}" for dtype, count in found.stored.items()))
    row("operators", ", ".join(f"{name} × {count}" for name, count in found.operators.items()))
    for name, value in found.facts.items():
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        row(name.replace("_", " "), ", ".join(shown) if isinstance(shown, list) else shown)
    parts: list[Any] = [f"[bold]{escape(found.path)}[/]", table]
    if found.findings is not None:
        parts += ["\n[bold]findings[/]", *(map(_finding, found.findings) if found.findings else ["  none"])]
    if found.history:
        parts += ["\n[bold]made by[/]", *(_event(event) for event in found.history)]
    if found.rows:
        parts += ["", _rows(found.rows)]
    return rendered(*parts)


def _finding(one: dict[str, Any]) -> str:
    from rich.markup import escape

    return f"  {one['layer']} {one['level']:<8} {escape(one['node'])}: {escape(one['cause'])}\n      → {escape(one['remedy'])}"


def _event(event: dict[str, Any]) -> str:
    from rich.markup import escape

    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in event["options"].items() if value not in (None, {}, []))
    return f"  {escape(event['step'])}  {event['seconds']:.1f} s" + (f"  [dim]{escape(options)}[/]" if options else "")


def _rows(rows: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("variant", "target", "status", "artifact or reason"):
        table.add_column(title, overflow="fold")
    for row in rows:
        artifact = row["artifact"]["path"] if isinstance(row["artifact"], dict) else row["artifact"]
        table.add_row(
            row["variant"],
            row["target"],
            row["status"] + (", picked" if row["picked"] else ""),
            escape(str(artifact or row["reason"] or "")),
        )
    return table
