"""findings: what a pipeline should point at, each with its place in the recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgeopt.core.comparison import Comparison
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.gate import Gate
from edgeopt.core.places import Document, read_yaml
from edgeopt.core.report import GateResult, Report
from edgeopt.stages.changes import sentence
from edgeopt.stages.words import Words

Level = Literal["error", "warning", "notice"]
LEVELS: tuple[Level, ...] = ("error", "warning", "notice")


@dataclass(frozen=True)
class Finding:
    """One thing to point at. `check` and `subject` name it from run to run, whatever the figures."""

    level: Level
    check: str
    subject: str
    message: str
    file: str | None = None
    line: int | None = None


def of_report(report: Report, folder: Path) -> list[Finding]:
    """The findings of a report, errors first. `folder` holds the recipe that was run.

    A gate filters candidates: a row that falls short is an error only where the target is left with
    nothing to take, or where the gate names the row's variant.
    """
    words, lines = Words(report), _Lines(report, folder)
    found = []
    for row in report.rows:
        if row.status == "failed":
            why = (row.reason or "no reason was given").splitlines()[0]
            subject = f"{row.variant} on {row.target}"
            found.append(Finding("error", "failed", subject, f"{subject} failed: {why}", lines.file, lines.of("variants", row.variant)))
    for result in report.gates:
        if result.verdict in ("fail", "inconclusive"):
            subject = f"{result.variant} on {result.target}"
            message = f"{subject}: {words.judged(result)}"
            found.append(Finding(_level(words, result), words.wants(result.gate), subject, message, lines.file, lines.of_gate(result.gate)))
    return ordered(found + (of_comparison(report.baseline) if report.baseline else []))


def of_comparison(comparison: Comparison) -> list[Finding]:
    """The figures that became worse; errors where the comparison fails on them."""
    found = []
    for row, change in comparison.of("worse", "not comparable"):
        judged = change.kind in comparison.fail_on
        if change.verdict == "worse" or judged:
            level: Level = "error" if judged and change.verdict == "worse" else "warning"
            found.append(
                Finding(level, f"{change.figure} against {comparison.old.name}", f"{row.variant} on {row.target}", sentence(row, change))
            )
    return ordered(found)


def ordered(found: list[Finding]) -> list[Finding]:
    """Errors first."""
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def _level(words: Words, result: GateResult) -> Level:
    if result.verdict == "inconclusive" and result.gate.get("inconclusive") == "pass":
        return "notice"
    if words.picked(result.target) and result.variant not in (result.gate.get("variants") or []):
        return "notice"
    return "error" if result.verdict == "fail" else "warning"


class _Lines:
    """Where in a report's recipe its gates and variants stand, as far as the recipe is here."""

    def __init__(self, report: Report, folder: Path) -> None:
        self.file = _from_here(report.recipe.file)
        self._document: Document | None = None
        self._gates: list[dict[str, Any]] = []
        try:
            self._document = read_yaml(folder / "recipe.yaml")
            given = self._document.value.get("gates") if isinstance(self._document.value, dict) else None
            self._gates = [Gate.model_validate(one).model_dump(exclude_none=True, exclude_defaults=True) for one in given or []]
        except (EdgeoptError, ValidationError, TypeError):
            self._gates = []

    def of(self, *path: str | int) -> int | None:
        """The line of a key or item, or of its nearest parent."""
        return self._document.place(path).line if self._document else None

    def of_gate(self, gate: dict[str, Any]) -> int | None:
        return self.of("gates", self._gates.index(gate)) if gate in self._gates else self.of("gates")


def _from_here(file: str) -> str:
    """A recipe's path as a pipeline knows it: relative to the checkout, where it lies below."""
    for root in (os.environ.get("GITHUB_WORKSPACE"), os.environ.get("CI_PROJECT_DIR"), str(Path.cwd())):
        if root and Path(file).is_absolute() and Path(file).is_relative_to(root):
            return str(Path(file).relative_to(root))
    return file
