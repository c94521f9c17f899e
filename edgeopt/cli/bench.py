"""The command `bench`."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.answer import Answer, rendered, shown
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.core.report import Report, Row, TargetInfo

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=_PATH, metavar="MODEL")
@click.option("-t", "--target", "targets", multiple=True, required=True, metavar="NAME", help="A target or its file; may be repeated.")
@click.option("--data", type=_PATH, metavar="NPZ", help="Inputs from a file: arrays named like the inputs. Default: random numbers.")
@click.option("--size", "sizes", multiple=True, metavar="AXIS=N", help="The size of an axis that may vary; may be repeated.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Samples per inference. Default: the target's.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Longest time to measure each target.")
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Keep the run folder here.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only warnings.")
@click.option("-v", "--verbose", is_flag=True, help="A line for reused steps too.")
@json_option
def bench(
    model: Path,
    targets: tuple[str, ...],
    data: Path | None,
    sizes: tuple[str, ...],
    batch: int | None,
    seconds: float | None,
    output: Path | None,
    quiet: bool,
    verbose: bool,
) -> Answer:
    """Time an .onnx, .pt2, .keras or .h5 model in full precision on targets. No recipe is needed."""
    from edgeopt.cli.progress import listen
    from edgeopt.stages.bench import bench as stage

    with contextlib.ExitStack() as held:
        folder = output or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="edgeopt-bench-")))
        progress = held.enter_context(listen(quiet, verbose))
        report = stage(model, targets, folder, data=data, sizes=axes(sizes), batch=batch, seconds=seconds, progress=progress)
    return Answer(report, lambda: _words(report, model, output), report.exit_code)


def axes(given: tuple[str, ...]) -> dict[str, int]:
    """Sizes of axes as they are given on the command line."""
    from edgeopt.core.errors import UsageError

    found = {}
    for text in given:
        axis, _, size = text.rpartition("=")
        if not axis or not size.isdigit() or int(size) == 0:
            raise UsageError(f"--size {text}: not a size", remedy="write AXIS=N, as T=20")
        found[axis] = int(size)
    return found


def _words(report: Report, model: Path, output: Path | None) -> str:
    from rich.markup import escape

    from edgeopt.stages.numbers import threads

    gpus = report.machine.get("gpus") if all(target.on_gpu for target in report.targets) else None
    machine = ", ".join(gpus) if gpus else str(report.machine.get("cpu", "this machine"))
    parts = [f"[bold]{escape(model.name)}[/] on {escape(machine)}"]
    for target in report.targets:
        row = next((row for row in report.rows if row.target == target.name), None)
        if row is not None:
            on = threads(target.threads, target.on_gpu)
            parts += [
                "",
                f"[bold]{escape(target.name)}[/] ({target.backend}, {on}batch {target.batch}, {target.scenario})",
                *_row(row, target),
            ]
    parts += ["", *(f"exit {report.exit_code}: {escape(reason)}" for reason in report.exit_reasons)]
    return rendered(*parts, *([f"report: {shown(output / 'report.html')}"] if output else []))


def _row(row: Row, target: TargetInfo) -> list[str]:
    from rich.markup import escape

    from edgeopt.stages.numbers import count, measured, megabytes, number
    from edgeopt.stages.words import loadgen

    if row.status != "measured" or row.latency_ms is None:
        return [f"  [yellow]{row.status}: {escape(row.reason or 'not measured')}[/]"]
    latency = row.latency_ms
    copies = latency.copy_in_p50 + latency.copy_out_p50
    lines = {
        "p50": measured(latency.p50, latency.p50_ci95, "ms"),
        "p90": measured(latency.p90, latency.p90_ci95, "ms"),
        "p99": measured(latency.p99, None, "ms") if latency.p99 is not None else None,
        "throughput": measured(row.throughput_per_s, row.throughput_ci95, "per s"),
        "MLPerf": loadgen(row) or None,
        "load": measured(row.load_ms, None, "ms"),
        "first run": measured(row.first_ms, None, "ms"),
        "copies": f"{number(copies)} ms in and out, not part of the above",
        "peak memory": f"{number(row.peak_rss_mb)} MB" if row.peak_rss_mb is not None else None,
        "size": megabytes(row.artifact.size_bytes) if row.artifact else None,
        "layers": ", ".join(f"{layers} {kind}" for kind, layers in (row.precision or {}).items() if layers) or None,
        "evidence": f"{count(latency.samples, 'timing')} in {count(latency.blocks, 'block')}, intervals of 95 %",
        "noise": f"two copies read {number(target.noise_percent, 1)} % apart" if target.noise_percent is not None else None,
        "flags": ", ".join(row.flags) or None,
    }
    return [f"  {name:<12} {escape(text)}" for name, text in lines.items() if text is not None]
