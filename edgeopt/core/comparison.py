"""A comparison: two reports held against each other, row by row, figure by figure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeopt.core.protocols import Options
from edgeopt.core.session import Interval

Verdict = Literal["better", "worse", "same", "not comparable"]
# What a pipeline may fail on: the gates' own names.
FIGURES = ("score", "latency", "throughput", "speedup", "size", "memory")


class Baseline(Options):
    """A committed report that a run is held against."""

    report: str = Field(description="a report.json beside the recipe")
    fail_on: list[Literal["score", "latency", "throughput", "speedup", "size", "memory"]] = Field(
        default=["score", "latency", "throughput", "size", "memory"], description="what must not become worse"
    )


class Side(Options):
    """One of the two reports."""

    path: str
    name: str
    recipe_digest: str
    edgeopt: str
    created_at: str


class Difference(Options):
    """One circumstance that is not the same on both sides."""

    what: str
    target: str | None = None
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.what}{f' on {self.target}' if self.target else ''}: {self.old} → {self.new}"


class Change(Options):
    """One figure of one row on both sides.

    `change` is new minus old for a score, in its own unit, and the relative change (0.03: 3 % more) for all else.
    `ci95` holds for all rows of the same figure together; for times it includes the noise of both sessions.
    """

    figure: str = Field(description="latency, throughput, speedup, size, memory, or the label of a score")
    kind: str = Field(description="the gate that would judge it")
    unit: str
    higher_is_better: bool
    old: float | None
    new: float | None
    change: float | None
    ci95: Interval | None
    verdict: Verdict
    paired: bool = Field(default=False, description="the same samples on both sides")
    reason: str | None = None


class RowChange(Options):
    """One variant on one target, on both sides or on one."""

    variant: str
    target: str
    found: Literal["both", "old", "new"]
    changes: list[Change]


class Comparison(Options):
    """What became better, worse, or stayed the same."""

    edgeopt_comparison: Literal[1] = 1
    old: Side
    new: Side
    differences: list[Difference]
    notes: list[str]
    rows: list[RowChange]
    fail_on: list[str]
    exit_code: int
    exit_reasons: list[str]

    def of(self, *verdicts: Verdict) -> list[tuple[RowChange, Change]]:
        """The changes with one of these verdicts, each with its row."""
        return [(row, change) for row in self.rows for change in row.changes if change.verdict in verdicts]
