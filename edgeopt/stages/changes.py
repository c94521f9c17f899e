"""changes: a comparison in words, once for console and Markdown.

A change is told by its sign, the interval after it: "+3.1 % [+2.0, +4.2]"; scores that are shares change in points.
"""

from __future__ import annotations

from collections import Counter

from edgeopt.core.comparison import Change, Comparison, RowChange, Verdict
from edgeopt.stages.gfm import escaped, grid
from edgeopt.stages.numbers import NONE, count, decimals, interval, number

ORDER: tuple[Verdict, ...] = ("worse", "better", "not comparable", "same")
READ_ME = (
    "Intervals hold at 95 % for all rows of a figure together; for times they include what two copies of one artifact read apart. "
    "“same” means that the interval holds no change: too small a change to be shown here, not none."
)


def values(change: Change) -> str:
    """ "2.71 → 3.10 ms"."""
    scale = 100 if is_share(change) else 1
    unit = "%" if is_share(change) else change.unit
    known = [abs(value * scale) for value in (change.old, change.new) if value]
    places = 1 if is_share(change) else max((decimals(value) for value in known), default=0)
    told = [NONE if value is None else number(value * scale, places) for value in (change.old, change.new)]
    return f"{told[0]} → {told[1]} {unit}".strip()


def moved(change: Change) -> str:
    """ "+14.4 % [+12.9, +15.9]", "−0.2 points [−0.7, +0.3]"; empty where nothing can be held against each other."""
    if change.change is None:
        return ""
    if change.kind == "score" and not is_share(change):
        largest = max(map(abs, change.ci95 or (change.change,)))
        places = 1 if change.unit == "dB" else decimals(largest)
        return f"{number(change.change, places, signed=True)} {change.unit} {interval(change.ci95, places, signed=True)}".replace(
            "  ", " "
        ).strip()
    unit = "points" if change.kind == "score" else "%"
    ends = (100 * change.ci95[0], 100 * change.ci95[1]) if change.ci95 else None
    shown = ends if change.kind != "size" else None  # a size has no interval
    places = 2 if 0 < abs(100 * change.change) < 0.095 else 1
    return f"{number(100 * change.change, places, signed=True)} {unit} {interval(shown, places, signed=True)}".strip()


def sentence(row: RowChange, change: Change) -> str:
    """ "latency of int8 on x86-openvino is worse: 2.71 → 3.10 ms, +14.4 % [+12.9, +15.9]"."""
    told = ", ".join(filter(None, (values(change), moved(change), change.reason)))
    return f"{change.figure} of {row.variant} on {row.target} is {change.verdict}: {told}"


def tally(comparison: Comparison) -> str:
    """ "1 worse, 3 better, 12 the same; 1 row only in the new report"."""
    counts = Counter(change.verdict for row in comparison.rows for change in row.changes)
    names: dict[Verdict, str] = {"same": "the same"}
    told = ", ".join(f"{counts[verdict]} {names.get(verdict, verdict)}" for verdict in ORDER if counts[verdict])
    sides = Counter(row.found for row in comparison.rows)
    rows = [f"{count(sides[side], 'row')} only in the {side} report" for side in ("old", "new") if sides[side]]
    return "; ".join([told or "nothing to compare", *rows])


def markdown(comparison: Comparison) -> str:
    """A comparison as one Markdown document, what became worse first."""
    parts = [f"# {escaped(comparison.new.name)}: {escaped(tally(comparison))}"]
    parts += [f"**exit {comparison.exit_code}**: {escaped(reason)}" for reason in comparison.exit_reasons]
    return "\n\n".join([*parts, *sections(comparison, "##")]) + "\n"


def sections(comparison: Comparison, heading: str) -> list[str]:
    """The paragraphs of a comparison below headings of a level."""
    sides = (("old", comparison.old), ("new", comparison.new))
    told = [f"{name}: {side.path}, written {side.created_at} by edgeopt {side.edgeopt}" for name, side in sides]
    parts = ["\n".join(f"- {escaped(line)}" for line in told)]
    if comparison.differences:
        parts += [f"{heading} Measured differently", "\n".join(f"- {escaped(str(one))}" for one in comparison.differences)]
    if comparison.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in comparison.notes))
    head = ["variant", "target", "figure", "old → new", "change", "verdict"]
    for verdict in ORDER:
        if found := comparison.of(verdict):
            parts += [f"{heading} {verdict.capitalize()}", grid(head, (_cells(row, change) for row, change in found), head[3:5])]
    apart = [row for row in comparison.rows if row.found != "both"]
    if apart:
        lines = (f"- {escaped(f'{row.variant} on {row.target}')}: only in the {row.found} report" for row in apart)
        parts += [f"{heading} On one side only", "\n".join(lines)]
    return [*parts, READ_ME]


def _cells(row: RowChange, change: Change) -> list[str]:
    told = f"{change.verdict}: {change.reason}" if change.reason else change.verdict
    return [escaped(text) for text in (row.variant, row.target, change.figure, values(change), moved(change), told)]


def is_share(change: Change) -> bool:
    """Whether a score is told in percent, by the rule of `words`."""
    known = [value for value in (change.old, change.new) if value is not None]
    return change.kind == "score" and not change.unit and change.higher_is_better and all(0 <= value <= 1 for value in known)
