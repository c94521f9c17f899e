"""One figure of a row on both sides: how it changed, the interval of the change, and the verdict.

Times and rates are compared by their ratio, scores by their difference, sizes exactly, memory beyond what two
processes of the same artifact differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgeopt.core.comparison import Change, Verdict
from edgeopt.core.report import Row
from edgeopt.core.session import Interval

MEMORY_NOISE, MEMORY_NOISE_MB = 0.05, 2.0  # peaks of the same artifact in two processes differ by less


@dataclass(frozen=True)
class Found:
    """A change before it is judged: its place in units that add up (logs of ratios, differences of scores)."""

    change: Change
    centre: float
    low: float
    high: float
    margin: float = 0.0
    is_ratio: bool = True

    def judged(self, together: int) -> Change:
        """The verdict by an interval that holds for so many rows together (Bonferroni), beyond the margin."""
        wider = _wider(together)
        low = self.centre - wider * (self.centre - self.low) - self.margin
        high = self.centre + wider * (self.high - self.centre) + self.margin
        verdict: Verdict = "same"
        if low > 0 or high < 0:
            verdict = "better" if (low > 0) == self.change.higher_is_better else "worse"
        ends = (math.expm1(low), math.expm1(high)) if self.is_ratio else (low, high)
        value = math.expm1(self.centre) if self.is_ratio else self.centre
        return self.change.model_copy(update={"change": value, "ci95": ends, "verdict": verdict})


def _wider(together: int) -> float:
    from scipy import special

    return float(special.ndtri(1 - 0.025 / together) / special.ndtri(0.975))


_Figure = tuple[float, Interval | None]


def latency(row: Row) -> _Figure | None:
    return (row.latency_ms.p50, row.latency_ms.p50_ci95) if row.latency_ms else None


def rate(row: Row) -> _Figure | None:
    return (row.throughput_per_s, row.throughput_ci95) if row.throughput_per_s else None


def gain(row: Row) -> _Figure | None:
    return (row.speedup.value, row.speedup.ci95) if row.speedup else None


def times(figure: str, unit: str, old: Row, new: Row, read: Callable[[Row], _Figure | None], margin: float) -> Change | Found | None:
    """A figure that is compared by its ratio."""
    before, after = read(old), read(new)
    if before is None and after is None:
        return None
    change = change_of(figure, figure, unit, figure != "latency", before and before[0], after and after[0])
    if before is None or after is None:
        return apart(change, absent(old, new))
    restless = [name for name, row in (("old", old), ("new", new)) if "unstable" in row.flags]
    if restless:
        return apart(change, f"the {' and the '.join(restless)} session is flagged unstable")
    ends = (before[0], after[0], *(before[1] or (0.0,)), *(after[1] or (0.0,)))
    if not all(0 < end < math.inf for end in ends):
        return apart(change, "there is no interval to judge it by")
    assert before[1] and after[1]
    return Found(change, *apart_by(_logs(before[0], before[1]), _logs(after[0], after[1])), margin)


def size(old: Row, new: Row) -> Change | None:
    sizes = [row.artifact.size_bytes if row.artifact else None for row in (old, new)]
    if sizes == [None, None]:
        return None
    change = change_of("size", "size", "MB", False, *(size if size is None else size / 1e6 for size in sizes))
    if not sizes[0] or sizes[1] is None:
        return apart(change, absent(old, new))
    ratio = sizes[1] / sizes[0] - 1
    verdict: Verdict = "same" if ratio == 0 else "better" if ratio < 0 else "worse"
    return change.model_copy(update={"change": ratio, "ci95": (ratio, ratio), "verdict": verdict})


def memory(old: Row, new: Row) -> Change | None:
    before, after = old.peak_rss_mb, new.peak_rss_mb
    if before is None and after is None:
        return None
    change = change_of("memory", "memory", "MB", False, before, after)
    if before is None or after is None:
        return apart(change, absent(old, new))
    beyond = abs(after - before) > max(MEMORY_NOISE_MB, MEMORY_NOISE * before)
    verdict: Verdict = "same" if not beyond else "better" if after < before else "worse"
    return change.model_copy(update={"change": after / before - 1 if before else None, "verdict": verdict})


def change_of(figure: str, kind: str, unit: str, higher: bool, old: float | None, new: float | None) -> Change:
    return Change(
        figure=figure, kind=kind, unit=unit, higher_is_better=higher, old=old, new=new, change=None, ci95=None, verdict="not comparable"
    )


def apart(change: Change, reason: str) -> Change:
    return change.model_copy(update={"reason": reason})


def absent(old: Row, new: Row) -> str:
    """Why one of two rows has no figure."""
    for name, row in (("new", new), ("old", old)):
        if row.status != "measured":
            return f"{row.status} in the {name} run" + (f": {row.reason.splitlines()[0]}" if row.reason else "")
    return "only one of the runs has it"


def _logs(value: float, ci: Interval) -> tuple[float, float, float]:
    return math.log(value), math.log(ci[0]), math.log(ci[1])


def apart_by(old: tuple[float, float, float], new: tuple[float, float, float]) -> tuple[float, float, float]:
    """Difference of two independent figures with its interval, from theirs (Zou and Donner's MOVER, 2008)."""
    difference = new[0] - old[0]
    return difference, difference - math.hypot(new[0] - new[1], old[2] - old[0]), difference + math.hypot(new[2] - new[0], old[0] - old[1])
