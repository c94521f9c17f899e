"""statistics: figures with intervals out of raw samples. All intervals are at 95 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from edgeopt.core.session import NEEDED, Interval, Latency, Speedup, Verdict

Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 1000
TRIMMED = 0.2  # share of the figures that is cut off at each end


def percentile(samples: Array, at: float) -> float | None:
    """A percentile, or None when there are too few samples to tell it."""
    return float(np.percentile(samples, at)) if len(samples) >= NEEDED[at] else None


def percentile_interval(samples: Array, at: float) -> Interval | None:
    """Distribution-free interval of a percentile by order statistics (Conover, Practical Nonparametric Statistics, 3.2)."""
    count = len(samples)
    if count < NEEDED[at]:
        return None
    ordered, share = np.sort(samples), at / 100
    ranks = np.arange(count + 1)
    below = special.bdtr(ranks, count, share)
    low = max(int(np.searchsorted(below, 0.025)) - 1, 0)
    high = min(int(np.searchsorted(below, 0.975)), count - 1)
    return float(ordered[low]), float(ordered[high])


def interval(rounds: list[Array]) -> tuple[float, Interval]:
    """Trimmed mean of all figures and its interval, from the figures of each round; unbounded for a single round.

    A block or a round in which something else had the processor may be off by a multiple of what is measured,
    and a plain mean would drown in it: the outermost figures are cut off at both ends (TRIMMED), and the spread is
    that of the rest with the cut ones drawn in (Tukey and McLaughlin, Sankhya A 25, 1963). The figures of a round
    resemble each other, as those of one process do: only rounds count as independent, by the sums of their
    deviations (Liang and Zeger, Biometrika 73, 1986), with as many degrees of freedom as there are rounds, less one and
    less those that the cut is worth. One figure in each of fewer than five rounds makes it Student's interval.
    """
    values, count = np.sort(np.concatenate(rounds)), len(rounds)
    cut = int(TRIMMED * len(values))
    kept = values[cut : len(values) - cut]
    mean = float(kept.mean())
    if count < 2:
        return mean, (-np.inf, np.inf)
    drawn_in = [np.clip(one, kept[0], kept[-1]) for one in rounds]
    middle = np.concatenate(drawn_in).mean()
    sums = np.array([(one - middle).sum() for one in drawn_in])
    error = np.sqrt(count / (count - 1) * float((sums**2).sum())) / len(kept)
    half = float(special.stdtrit(count - 1 - int(TRIMMED * count), 0.975)) * error
    return mean, (mean - half, mean + half)


def of_pairs(reference: list[Array], own: list[Array]) -> list[Array]:
    """How far two variants are apart in each round, block by block, so that what moves both drops out.

    Blocks that were not taken side by side (of different number) are not paired: the round has one figure then.
    """
    return [
        one - other if len(one) == len(other) else np.array([np.median(one) - np.median(other)])
        for one, other in zip(reference, own, strict=True)
    ]


def latency(rounds: list[list[Array]], copy_in_ms: Array, copy_out_ms: Array) -> Latency:
    """Percentiles of all samples, by round and block; the intervals of p50 and p90 rest on rounds, which processes move apart."""
    blocks = [block for one in rounds for block in one]
    samples = np.concatenate(blocks)
    p50, p90 = float(np.median(samples)), percentile(samples, 90.0)
    return Latency(
        p50=p50,
        p50_ci95=_around(p50, [np.log([np.median(block) for block in one]) for one in rounds]),
        p90=p90,
        p90_ci95=None if p90 is None else _around(p90, _tails(rounds), percentile_interval(samples, 90.0)),
        p95=percentile(samples, 95.0),
        p99=percentile(samples, 99.0),
        p99_9=percentile(samples, 99.9),
        mean=float(samples.mean()),
        samples=len(samples),
        blocks=len(blocks),
        rounds=len(rounds),
        copy_in_p50=float(np.median(copy_in_ms)),
        copy_out_p50=float(np.median(copy_out_ms)),
    )


def _tails(rounds: list[list[Array]]) -> list[Array]:
    """The logarithm of each round's p90; none where a round is too short to have one."""
    pooled = [np.concatenate(one) for one in rounds]
    return [np.log([np.percentile(one, 90.0)]) for one in pooled] if min(map(len, pooled)) >= 20 else []


def _around(value: float, logs: list[Array], least: Interval | None = None) -> Interval:
    """An interval over rounds, laid around the figure of all samples together, and no narrower than `least`."""
    low, high = least or (value, value)
    if len(logs) > 1:
        mean, (below, above) = interval(logs)
        low, high = min(low, value * float(np.exp(below - mean))), max(high, value * float(np.exp(above - mean)))
    return min(low, value), max(high, value)


def speedup(apart: list[Array], noise: float) -> Speedup:
    """How many times faster a variant is than the reference, from log ratios by round and block.

    `noise` is the log ratio that two copies of the reference showed: a difference below it proves
    nothing, whatever its interval says.
    """
    mean, (low, high) = interval(apart)
    verdict: Verdict = "indistinguishable"
    if low > 0 and mean > noise:
        verdict = "faster"
    elif high < 0 and mean < -noise:
        verdict = "slower"
    return Speedup(value=float(np.exp(mean)), ci95=(float(np.exp(low)), float(np.exp(high))), verdict=verdict)


def score(
    own: Array,
    reference: Array | None,
    finish: Callable[[Array], float],
    higher_is_better: bool,
    binary: bool,
    seed: int,
    drawn: Array | None = None,
) -> dict[str, Any]:
    """A score's value with interval, and its drop against the reference on the same samples.

    Right/wrong values have Wilson's interval, all others a percentile bootstrap, paired for the drop: both are read
    off the same resamples. `drawn`: the reference's, where they are `resampled` already.
    """
    value = float(finish(own))
    if drawn is None and reference is not None and not binary:
        drawn = resampled(reference, finish, seed)
    draws = np.empty(0) if binary else drawn if own is reference and drawn is not None else resampled(own, finish, seed)
    result: dict[str, Any] = {
        "value": value,
        "ci95": _wilson(own) if binary else _middle(draws),
        "drop": None,
        "drop_ci95": None,
        "changed": None,
        "p_value": None,
    }
    if reference is None or reference.shape != own.shape:
        return result
    sign = 1.0 if higher_is_better else -1.0
    result["drop"] = sign * (float(finish(reference)) - value)
    different = own != reference if own.ndim == 1 else (own != reference).any(axis=1)
    result["changed"] = float(different.mean())
    if binary:
        result["drop_ci95"], result["p_value"] = _paired_binary(reference, own)
    else:
        assert drawn is not None
        with np.errstate(invalid="ignore"):  # infinity less infinity is no figure
            result["drop_ci95"] = _middle(sign * (drawn - draws))
    return result


def resampled(values: Array, finish: Callable[[Array], float], seed: int) -> Array:
    """The score over RESAMPLES draws of the samples with replacement, the same for all arrays of one length and seed (one: empty)."""
    rng, count = np.random.default_rng(seed), len(values)
    if count < 2:
        return np.empty(0)
    return np.array([finish(values[rng.integers(0, count, count)]) for _ in range(RESAMPLES)], dtype=np.float64)


def _wilson(own: Array) -> Interval | None:
    """Wilson's interval of a share."""
    if len(own) < 2:
        return None
    n, share, z = len(own), float(own.mean()), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _paired_binary(reference: Array, own: Array) -> tuple[Interval, float]:
    """Agresti and Min's interval of a paired difference of proportions (2005), and exact McNemar's p."""
    n = len(own) + 2.0
    lost, won = float((reference > own).sum()), float((own > reference).sum())
    b, c = lost + 0.5, won + 0.5
    difference = (b - c) / n
    half = 1.959964 * np.sqrt(max((b + c) - (b - c) ** 2 / n, 0.0)) / n
    discordant = int(lost + won)
    p = min(1.0, 2 * float(special.bdtr(min(lost, won), discordant, 0.5))) if discordant else 1.0
    return (float(difference - half), float(difference + half)), p


def _middle(draws: Array) -> Interval | None:
    """The middle 95 % of the resamples that tell a score at all (one may lack a class)."""
    known = draws[~np.isnan(draws)]
    return (float(np.percentile(known, 2.5)), float(np.percentile(known, 97.5))) if len(known) else None


def holm(scores: dict[str, dict[str, Any]], reference: str) -> dict[str, dict[str, Any]]:
    """The p-values of a session's variants, adjusted for their number, score by score (Holm, 1979)."""
    for label in {label for row in scores.values() for label in row}:
        tested = [
            row[label] for variant, row in scores.items() if variant != reference and label in row and row[label]["p_value"] is not None
        ]
        floor = 0.0
        for rank, value in enumerate(sorted(tested, key=lambda one: float(one["p_value"]))):
            floor = max(floor, min(1.0, (len(tested) - rank) * value["p_value"]))
            value["p_value"] = floor
    return scores
