"""against: where a model lost the function of another, on the console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli.answer import coloured, rendered, shown, width

if TYPE_CHECKING:
    from edgeopt.stages.against import Against, LayerNoise

MOST = 20  # layers, beside the outputs; --all shows every one


def differences(model: Path, other: Path, found: Against, everything: bool) -> str:
    """The layers that lost most, in order of execution, and the outputs."""
    from rich.markup import escape
    from rich.table import Table

    from edgeopt.stages.against import MAX_DB, decibel
    from edgeopt.stages.numbers import NONE, count, number

    layers = [layer for layer in found.layers if not layer.output]
    listed = {id(layer) for layer in (layers if everything else sorted(layers, key=_lost, reverse=True)[:MOST])}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis", max_width=max(20, width() - 50))
    table.add_column("type", no_wrap=True, overflow="ellipsis", min_width=8, max_width=18)
    for title in ("before", "SQNR", "drop"):
        table.add_column(title, justify="right", no_wrap=True, min_width=6)
    table.add_column("", no_wrap=True)

    def row(layer: LayerNoise) -> None:
        level = f"{100 * layer.equal:.1f} % equal" if layer.equal is not None else decibel(layer.sqnr_db)
        partial = layer.drop_db is not None and layer.before_db is not None and layer.before_db < MAX_DB
        cells = [layer.name, layer.type, decibel(layer.before_db), level, number(layer.drop_db, 1) if partial else NONE]
        mark = "◄" if layer.place else ""
        table.add_row(*map(escape, cells), mark, style="red" if layer.place and coloured() else None)

    for layer in found.layers:
        if id(layer) in listed:
            row(layer)
    for layer in found.layers:
        if layer.output:
            row(layer.model_copy(update={"name": f"output {layer.output}"}))
    parts = [
        f"[bold]{escape(shown(other))}[/] against {escape(shown(model))}",
        f"{count(found.samples, 'sample')}: {escape(found.fed)}",
        "",
        f"[bold]{escape(found.summary)}[/]",
        "",
        table,
    ]
    left = len(layers) - len(listed)
    if left:
        parts.append(f"… and {count(left, 'layer')} that lost less; --all shows every one")
    if found.unmatched:
        parts.append(f"{count(found.unmatched, 'tensor')} of {escape(model.name)} found no counterpart by name")
    return rendered(*parts)


def _lost(layer: LayerNoise) -> tuple[bool, float]:
    """What a layer lost, as a share of the signal's power; the place comes first."""
    from edgeopt.stages.against import kept

    if layer.before_db is None or layer.sqnr_db is None:
        return layer.place, 0.0
    return layer.place, kept(layer.before_db) - kept(layer.sqnr_db)
