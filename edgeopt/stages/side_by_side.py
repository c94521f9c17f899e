"""side_by_side: two reports and their comparison as one self-contained page, in the look of a report's."""

from __future__ import annotations

import shlex
from typing import Any

from edgeopt.core.comparison import Comparison
from edgeopt.core.report import Report, Row
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import facts
from edgeopt.stages.decision import Decision, decide
from edgeopt.stages.figures import short
from edgeopt.stages.html import page
from edgeopt.stages.moves import moves
from edgeopt.stages.words import EXITS, Words


def side_by_side(comparison: Comparison, old: Report, new: Report) -> str:
    """What moved between two reports as one HTML document: the decisions first, then each change with its interval."""
    both = (Words(old), Words(new))
    planes, figures = _planes(*both)
    moved, marks = moves(comparison, len(figures))
    return page(
        "compare.html.j2",
        ("frame.js", "compare.js"),
        figures + marks,
        comparison=comparison,
        moved=moved,
        planes=planes,
        decisions=_decisions(*both),
        sides=_sides(comparison, old, new),
        commands=_commands(comparison),
    )


def _decisions(old: Words, new: Words) -> list[dict[str, Any]]:
    """For each target what either run says to take."""
    titles = {target.name: words.title(target) for words in (old, new) for target in words.report.targets}

    def told(words: Words, target: str) -> Decision | None:
        return decide(words, target) if any(one.name == target for one in words.report.targets) else None

    order = dict.fromkeys([*(target.name for target in new.report.targets), *titles])
    return [{"name": name, "title": titles[name], "sides": [("old", told(old, name)), ("new", told(new, name))]} for name in order]


def _planes(old: Words, new: Words) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cost and first score of every variant in both runs, target by target: parts of the page, and the figures of their charts."""
    parts: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for target in new.report.targets:
        rows = {row.variant: row for row in new.rows[target.name]}
        pairs = [(row, rows[row.variant]) for row in old.rows.get(target.name, []) if row.variant in rows]
        name = next((name for name in new.scores if any(name in row.scores for pair in pairs for row in pair)), None)
        pairs = [pair for pair in pairs if name and all(row.latency_ms and name in row.scores for row in pair)]
        if not pairs or name is None:
            continue
        throughput = target.scenario in UNDER_LOAD
        cells = [
            [
                one.variant,
                *(words.cost(row) for words, row in zip((old, new), (one, other), strict=True)),
                old.of(one, name),
                new.of(other, name),
            ]
            for one, other in pairs
        ]
        head = ["variant", "throughput before" if throughput else "p50 before", "after", f"{name} before", "after"]
        part = {"id": f"plane-{len(figures)}", "name": target.name, "index": len(figures), "score": name, "throughput": throughput}
        parts.append(part | {"tables": {"plane": ("Before and after", (head, cells))}})
        unit = new.unit(name)
        figures.append(
            {
                "name": target.name,
                "cost": "throughput (per second)" if throughput else "p50 latency (ms)",
                "score": f"{name} ({unit})" if unit else name,
                "rises": new.rises(name),
                "pairs": [
                    {
                        "variant": one.variant,
                        "picked": [one.picked, other.picked],
                        "old": [short(cost(one, throughput)), short(old.scaled(name, one.scores[name].value))],
                        "new": [short(cost(other, throughput)), short(new.scaled(name, other.scores[name].value))],
                        "told": f"{one.variant}\n{old.cost(one)} → {new.cost(other)}\n{name} {old.of(one, name)} → {new.of(other, name)}",
                    }
                    for one, other in pairs
                ],
            }
        )
    return parts, figures


def cost(row: Row, throughput: bool) -> float:
    """What a row is placed by: its rate, or its p50 in ms."""
    assert row.latency_ms
    return row.throughput_per_s if throughput and row.throughput_per_s is not None else row.latency_ms.p50


def _sides(comparison: Comparison, old: Report, new: Report) -> list[list[str]]:
    """What the two runs were, line by line."""
    rows = [
        ["report", comparison.old.path, comparison.new.path],
        ["outcome", *(EXITS.get(one.exit_code, "unfinished") for one in (old, new))],
    ]
    rows += _beside(dict(facts.origin(old)), dict(facts.origin(new)))
    rows += _beside(dict(facts.machine(old)), dict(facts.machine(new)))
    return rows + _beside(old.versions or {}, new.versions or {})


def _beside(old: dict[str, str], new: dict[str, str]) -> list[list[str]]:
    return [[name, old.get(name, "–"), new.get(name, "–")] for name in dict.fromkeys([*old, *new])]


def _commands(comparison: Comparison) -> list[tuple[str, str]]:
    sides = f"{shlex.quote(comparison.old.path)} {shlex.quote(comparison.new.path)}"
    fail = f" --fail-on {','.join(comparison.fail_on)}" if comparison.fail_on else ""
    force = " --force" if comparison.differences else ""
    return [
        (f"edgeopt compare {sides}{fail}{force}", "the same on the console"),
        (f"edgeopt compare {sides}{fail}{force} --format html > moved.html", "this page"),
    ]
