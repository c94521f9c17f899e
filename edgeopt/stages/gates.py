"""gates: one demand judged on one row, by interval: pass, fail, inconclusive or not measured."""

from __future__ import annotations

import math
from typing import Any

from edgeopt.core.gate import Gate
from edgeopt.core.report import GateResult, GateVerdict, Row
from edgeopt.core.session import Interval

MOST_TIMES = 1000  # nobody labels so many times the samples


def concerns(gate: Gate, row: Row) -> bool:
    """Whether a gate is on a row."""
    return row.target in (gate.targets or [row.target]) and row.variant in (gate.variants or [row.variant])


def judge(gate: Gate, row: Row, reference: str) -> GateResult:
    """The verdict of a gate on a row; the reference is exempt from `speedup`."""
    wanted, got, interval, at_most = _figures(gate, row, reference)
    verdict, reason = _verdict(wanted, got, interval, at_most)
    found = row.scores.get(gate.score or "")
    if verdict == "inconclusive" and found and got is not None and interval:
        reason = f"the 95 % interval holds the limit: {_would_decide(wanted, got, interval, found.samples)}"
    if got is None:
        reason = row.reason or f"{row.variant} has no such figure on {row.target}"
    return GateResult(
        gate=gate.model_dump(exclude_none=True, exclude_defaults=True),
        variant=row.variant,
        target=row.target,
        verdict=verdict,
        wanted=wanted,
        got=got,
        ci95=interval,
        reason=reason,
    )


def _figures(gate: Gate, row: Row, reference: str) -> tuple[float, float | None, Interval | None, bool]:
    """What is wanted, what was found with its interval, and whether less is better."""
    if gate.score is not None:
        return _score(gate, row)
    if gate.latency is not None:
        return _latency(gate, row)
    if gate.speedup is not None:
        if row.variant == reference and row.status == "measured":
            return gate.speedup.min, gate.speedup.min, None, False
        return (gate.speedup.min, row.speedup.value, row.speedup.ci95, False) if row.speedup else (gate.speedup.min, None, None, False)
    if gate.size is not None:
        return gate.size.max_mb, row.artifact.size_bytes / 1e6 if row.artifact else None, None, True
    if gate.memory is not None:
        return gate.memory.max_mb, row.peak_rss_mb, None, True
    assert gate.throughput is not None
    return gate.throughput.min_per_s, row.throughput_per_s, row.throughput_ci95, False


def _score(gate: Gate, row: Row) -> tuple[float, float | None, Interval | None, bool]:
    found = row.scores.get(gate.score or "")
    if gate.max_drop is not None:
        return gate.max_drop, found.drop if found else None, found.drop_ci95 if found else None, True
    wanted = gate.min if gate.min is not None else gate.max
    assert wanted is not None
    return wanted, found.value if found else None, found.ci95 if found else None, gate.max is not None


def _latency(gate: Gate, row: Row) -> tuple[float, float | None, Interval | None, bool]:
    assert gate.latency and gate.max_ms is not None
    if not row.latency_ms:
        return gate.max_ms, None, None, True
    value = getattr(row.latency_ms, gate.latency.replace(".", "_"))
    interval = getattr(row.latency_ms, f"{gate.latency}_ci95", None)
    return gate.max_ms, value, interval, True


def _verdict(wanted: float, got: float | None, interval: Interval | None, at_most: bool) -> tuple[GateVerdict, str | None]:
    if got is None:
        return "not_measured", None
    low, high = interval or (got, got)
    if at_most:
        low, high, limit = -high, -low, -wanted
    else:
        limit = wanted
    if low >= limit:
        return "pass", None
    if high < limit:
        return "fail", None
    return "inconclusive", "the 95 % interval holds the limit: more samples or a longer measurement would decide it"


def _would_decide(wanted: float, got: float, interval: Interval, samples: int) -> str:
    """How many samples would decide a score's gate if its figure stayed: an interval shrinks with the root of their number."""
    reach, distance = (interval[1] - got if wanted > got else got - interval[0]), abs(got - wanted)
    if distance * MOST_TIMES**0.5 <= reach:
        return f"the figure lies so near to it that not even {MOST_TIMES:,} times the {samples:,} samples would decide it"
    needed = samples * (reach / distance) ** 2
    rounded = math.ceil(needed / 10 ** (digits := max(math.floor(math.log10(needed)) - 1, 0))) * 10**digits
    return f"about {max(rounded, samples + 1):,} samples would decide it if the figure stays ({samples:,} so far)"


def name(gate: dict[str, Any]) -> str:
    """A gate in one word: its score or percentile, else speedup, size, memory or throughput."""
    kinds = ("speedup", "size", "memory", "throughput")
    return str(gate.get("score") or gate.get("latency") or next(kind for kind in kinds if gate.get(kind)))
