"""table: a report on the console: a table per target, what falls short and why, then what to take.

Laid out by hand, because all targets share one set of column widths, and fitted to the terminal by
leaving out first what is least missed: intervals of p50, then further scores, then intervals at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeopt.core.report import Report, Row
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages.decision import decide
from edgeopt.stages.numbers import NONE, factor, number
from edgeopt.stages.words import Words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

ROWS = 40  # of one target; the pages hold all
NAMES = 4  # told in one line of what falls short
LINES = 2  # of one footnote; the pages tell it whole
GAP = 2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
STYLES = {
    "take": "bold green",
    "qualifies": "green",
    "gate failed": "red",
    "failed": "bold red",
    "slower": "red",
    "larger": "red",
    "inconclusive": "yellow",
    "unstable": "yellow",
    "unavailable": "yellow",
}


def table(report: Report, width: int = 80, coloured: bool = False) -> str:
    """A report in so many columns. Every mark is a word; colour only underlines it."""
    from rich.console import Console

    words = Words(report)
    console = Console(
        width=width,
        force_terminal=coloured,
        color_system="standard" if coloured else None,
        no_color=not coloured,
        highlight=False,
        emoji=False,
    )
    with console.capture() as capture:
        for line in _tables(words, width):
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        for head, text in _footnotes(words):
            for line in _wrapped(console, text, head, width, LINES):
                console.print(line, no_wrap=True)
        console.print()
        for one in (decide(words, target.name) for target in words.report.targets):
            doubt = f" ({one.doubts[0]})" if one.doubts else ""
            for line in _wrapped(
                console, one.sentence + doubt, one.target, width, None, one.answer, "bold green" if one.row else "bold red"
            ):
                console.print(line, no_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _tables(words: Words, width: int) -> list[Text]:
    from rich.cells import cell_len
    from rich.text import Text

    shown = {target.name: words.foremost(target.name, ROWS) for target in words.report.targets}
    for detail in range(len(words.scores) + 3):
        columns = {
            target.name: _columns(words, shown[target.name], target.scenario in UNDER_LOAD, detail) for target in words.report.targets
        }
        grids = [list(zip(*columns[name], strict=True)) for name in columns]
        widths = [max(cell_len(cell) for cell in cells) for cells in zip(*(row for grid in grids for row in grid), strict=True)]
        if sum(widths) + GAP * (len(widths) - 1) <= width:
            break
    else:
        widths[0] -= min(sum(widths) + GAP * (len(widths) - 1) - width, widths[0] - 8)
    lines: list[Text] = []
    head = None
    for target, grid in zip(words.report.targets, grids, strict=True):
        title = Text(_clean(target.name), style="bold").append(_clean(f"  {words.title(target)}"), style="not bold dim")
        if target.noise_percent is not None:
            title.append(f", noise {number(target.noise_percent, 1)} %", style="not bold dim")
        lines.append(title)
        if grid[0] != head:
            head = grid[0]
            lines.append(_line(grid[0], widths, "dim"))
        styles = [STYLES.get(words.standing(row), "") for row in shown[target.name]]
        lines += [_line(cells, widths, style) for cells, style in zip(grid[1:], styles, strict=True)]
        if hidden := len(words.rows[target.name]) - len(shown[target.name]):
            lines.append(Text(f"  … and {hidden} more rows, all of them in report.html", style="dim"))
    return lines


def _columns(words: Words, rows: list[Row], throughput: bool, detail: int) -> list[list[str]]:
    """The columns, head first; each step of `detail` (0: everything) leaves one thing out."""
    scores = words.scores[: max(1, len(words.scores) - max(0, detail - 1))]
    bare_p50, bare_speedup = detail >= 1, detail >= len(words.scores) + 1

    def cost(row: Row) -> str:
        text = words.cost(row).replace(" ms", "").replace(" per s", "")
        return text.split(" ")[0] if bare_p50 else text

    columns = [
        ["variant", *(row.variant for row in rows)],
        ["per s" if throughput else "p50 ms", *map(cost, rows)],
        ["speed-up", *(factor(row.speedup.value, None if bare_speedup else row.speedup.ci95) if row.speedup else NONE for row in rows)],
        [
            "MB",
            *(
                number(row.artifact.size_bytes / 1e6, 3 if row.artifact.size_bytes < 1e6 else None) if row.artifact else NONE
                for row in rows
            ),
        ],
    ]
    columns += [[name, *(words.of(row, name) for row in rows)] for name in scores]
    columns.append(["gates", *(_standing(words, row) for row in rows)])
    return [[_clean(cell) for cell in column] for column in columns]


def _line(cells: tuple[str, ...], widths: list[int], style: str) -> Text:
    from rich.cells import set_cell_size
    from rich.text import Text

    line = Text()
    last = len(cells) - 1
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if index == 0 and len(cell) > width:
            cell = cell[: width - 1] + "…"
        left = index in (0, 2, last)
        text = set_cell_size(cell, width) if left else " " * (width - len(cell)) + cell
        emphasized = index == last or style == "dim" or (style == STYLES["take"] and index == 0)
        line.append((" " * GAP if index else "") + text, style=style if emphasized else "")
    return line


def _standing(words: Words, row: Row) -> str:
    """Gates passed of gates judged, and the row's place or the gates that it misses."""
    standing = words.standing(row)
    if standing in ("gate failed", "inconclusive"):
        verdict = "fail" if standing == "gate failed" else "inconclusive"
        missed = [words.short(gate.gate) for gate in words.gates(row) if gate.verdict == verdict] or [""]
        standing = f"{'fails' if verdict == 'fail' else 'open:'} {', '.join(missed[:2])}{', …' if len(missed) > 2 else ''}"
    return standing if words.passed(row) == NONE else f"{words.passed(row)} {standing}"


def _footnotes(words: Words) -> list[tuple[str, str]]:
    """What the gates demand, why some stay open, and why rows are missing: each told once."""
    lines = [("gates", f"gates: {'; '.join(limits)}")] if (limits := words.limits()) else []
    told: dict[str, list[str]] = defaultdict(list)
    for row in words.report.rows:
        if row.status in ("failed", "unavailable"):  # the table says which of the two
            told[(row.reason or "no reason was given").splitlines()[0]].append(f"{row.variant} on {row.target}")
    for why, names in told.items():
        more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
        names_told = f"{', '.join(names[:NAMES])}{more}"
        lines.append((names_told, f"{names_told}: {why}"))
    reasons = dict.fromkeys(
        gate.reason for row in words.report.rows for gate in words.shortfalls(row) if gate.reason and gate.verdict != "fail"
    )
    return lines + [("open", f"open: {reason}") for reason in list(reasons)[:NAMES]]


def _wrapped(console: Console, text: str, head: str, width: int, most: int | None, answer: str = "", style: str = "") -> Iterator[Text]:
    """A paragraph with its head in bold and its answer in a style, later lines set in; cut after so many lines."""
    from rich.text import Text

    whole = Text(_clean(text))
    whole.stylize("bold", 0, len(_clean(head)))
    if answer and (at := whole.plain.find(_clean(answer), len(_clean(head)))) >= 0:
        whole.stylize(style, at, at + len(_clean(answer)))
    lines = whole.wrap(console, max(width - 2, 20))
    for index, line in enumerate(lines[:most]):
        if most is not None and index == most - 1 and len(lines) > most:
            line.rstrip()
            line.truncate(max(width - 4, 18))
            line.append(" …")
        yield Text("  " if index else "") + line


def _clean(text: str) -> str:
    """Text that cannot command the terminal."""
    return _CONTROL.sub("", text)
