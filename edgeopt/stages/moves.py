"""moves: a comparison as the parts of a page: for each target what moved, with intervals, charts and the tables behind them."""

from __future__ import annotations

from typing import Any

from edgeopt.core.comparison import Change, Comparison, RowChange
from edgeopt.stages import changes
from edgeopt.stages.figures import short

DRAWN = 40  # changes in one chart: those that moved come first; the table holds all
HEAD = ["variant", "figure", "old → new", "change", "verdict"]
_CAPTIONS = {
    "%": "Change of times, throughput, size and memory in percent",
    "points": "Change of scores in points",
}


def moves(comparison: Comparison, first: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The page's part, and the figures of its charts, whose indices begin at `first`."""
    figures: list[dict[str, Any]] = []
    targets = []
    for index, name in enumerate(dict.fromkeys(row.target for row in comparison.rows)):
        rows = [row for row in comparison.rows if row.target == name]
        groups: dict[str, list[tuple[RowChange, Change]]] = {}
        uncharted = []
        for row in rows:
            for change in row.changes:
                if change.change is None:
                    uncharted.append(_cells(row, change))
                else:
                    groups.setdefault(_unit(change), []).append((row, change))
        charts = []
        for unit, held in groups.items():
            figure_order = list(dict.fromkeys(change.figure for _, change in held))
            ordered = sorted(held, key=lambda pair: (changes.ORDER.index(pair[1].verdict), figure_order.index(pair[1].figure)))
            caption = _CAPTIONS.get(unit) or f"Change of scores{f' in {unit}' if unit else ''}"
            charts.append({"index": first + len(figures), "caption": caption, "rows": [_cells(*pair) for pair in ordered]})
            drawn = [pair for pair in ordered if pair[1].change or any(pair[1].ci95 or ())] or ordered
            figures.append(
                {
                    "name": name,
                    "unit": unit,
                    "moves": [_mark(*pair) for pair in drawn[:DRAWN]],
                    "more": max(len(drawn) - DRAWN, 0),
                    "still": len(ordered) - len(drawn),
                }
            )
        apart = [f"{row.variant}: only in the {row.found} report" for row in rows if row.found != "both"]
        targets.append({"id": f"moved-{index}", "name": name, "charts": charts, "uncharted": uncharted, "apart": apart})
    part = {
        "tally": changes.tally(comparison),
        "worse": bool(comparison.of("worse")),
        "outcome": _outcome(comparison),
        "differences": [str(one) for one in comparison.differences],
        "notes": comparison.notes,
        "targets": targets,
        "head": HEAD,
        "read_me": changes.READ_ME,
    }
    return part, figures


def _outcome(comparison: Comparison) -> str:
    if comparison.exit_code:
        return "What was not to become worse did." if comparison.exit_code == 3 else "The evidence does not carry a judgement."
    worse = comparison.of("worse")
    return "Something became worse, nothing that this comparison fails on." if worse else "Nothing became worse."


def _unit(change: Change) -> str:
    """The unit that a change is told in."""
    return "%" if change.kind != "score" else "points" if changes.is_share(change) else change.unit


def _cells(row: RowChange, change: Change) -> list[str]:
    told = f"{change.verdict}: {change.reason}" if change.reason else change.verdict
    return [row.variant, change.figure, changes.values(change), changes.moved(change), told]


def _mark(row: RowChange, change: Change) -> dict[str, Any]:
    scale = 1 if _unit(change) not in ("%", "points") else 100
    ends = change.ci95 or (change.change, change.change)
    return {
        "label": f"{row.variant} · {change.figure}",
        "verdict": change.verdict,
        "x": [short(scale * (end or 0.0)) for end in (change.change, *ends)],
        "told": changes.sentence(row, change),
        "moved": changes.moved(change),
    }
