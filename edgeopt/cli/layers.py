"""layers: where the time of one model goes, on the console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli.answer import coloured, rendered, shown, width

if TYPE_CHECKING:
    from edgeopt.stages.dissect import Dissection

STYLES = {"INT8": "blue", "BF16": "cyan", "FP16": "magenta", "conversions": "red", "moving data": "yellow"}
MOST = 60  # layers; --json holds all


def layers(path: Path, found: Dissection) -> str:
    """The layers in order of execution, what they come to, and what the machine could do."""
    from rich.markup import escape
    from rich.table import Table

    from edgeopt.stages import breakdown
    from edgeopt.stages.numbers import NONE, count, number, threads

    wide = width() >= 100
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide:
        table.add_column("type", no_wrap=True, overflow="ellipsis", max_width=18)
    table.add_column("precision", no_wrap=True)
    for title in ("time", "share", "MACs", "possible" if wide else "", "reached"):
        if title:
            table.add_column(title, justify="right", no_wrap=True)
    total = found.profile.total_us or 1.0
    kept = {id(layer) for layer in sorted(found.layers, key=lambda layer: -layer.us)[:MOST]}
    for layer in (layer for layer in found.layers if id(layer) in kept):
        named = breakdown.TITLES.get(breakdown.category(layer), breakdown.category(layer))
        style = STYLES.get(named) if coloured() else None
        cells = [escape(breakdown.label(layer)), *([escape(layer.type)] if wide else []), f"[{style}]{named}[/]" if style else named]
        cells += [breakdown.micro(layer.us), breakdown.percent(layer.us / total), breakdown.macs(layer.macs) if layer.macs else NONE]
        cells += [breakdown.micro(layer.attainable_us) if layer.attainable_us else NONE] if wide else []
        cells.append(breakdown.percent(layer.attainable_us / layer.us) if layer.attainable_us and layer.us else NONE)
        table.add_row(*cells)
    left = [layer for layer in found.layers if id(layer) not in kept]
    ran = f"{found.target} ({threads(found.threads, found.on_gpu)}{found.runtime}; {found.fed})"
    parts = [f"[bold]{escape(shown(path))}[/] on {escape(ran)}", "", table]
    if left:
        parts.append(f"… and {count(len(left), 'faster layer')}, {breakdown.micro(sum(layer.us for layer in left))}; --json tells all")
    timed = f"{number(found.p50_ms)} ms without the profiler ({count(found.samples, 'timing')})"
    parts += [
        "",
        f"p50 {timed}, {breakdown.micro(found.profile.total_us)} under it",
        f"time: {breakdown.split(found.profile)}",
        *(escape(line) for line in breakdown.costs(found.profile)),
    ]
    if found.profile.roofline:
        parts.append(f"[bold]it {breakdown.reached(found.profile.roofline)}[/]")
    if found.peaks:
        parts.append(f"measured peaks: {breakdown.peaks(found.peaks)}")
    return rendered(*parts)
