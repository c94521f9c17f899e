"""Simulations for honesty.py: do intervals and verdicts keep their promise where the truth is known?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from edgeopt.stages import statistics

BLOCKS = (16, 24, 40, 80, 160, 400)
RESEMBLANCE = (0.0, 0.2, 0.4, 0.6, 0.8)  # how much of a block's deviation the next block inherits
SPIKES = (0.0, 0.02, 0.1)  # share of blocks that something disturbs


@dataclass(frozen=True)
class Trace:
    """Log block medians of a reference and of a variant that is slower by `truth`."""

    reference: np.ndarray
    own: np.ndarray
    truth: float
    blocks: int
    resemblance: float
    spikes: float


def trace(rng: np.random.Generator) -> Trace:
    """A session as machines make them: drift that both share, noise of 0.5 to 3 % in each that neighbours inherit, spikes of 20 %."""
    blocks, resemblance, spikes = int(rng.choice(BLOCKS)), float(rng.choice(RESEMBLANCE)), float(rng.choice(SPIKES))
    drift = rng.uniform(-0.1, 0.1) * np.linspace(0, 1, blocks) + np.cumsum(rng.normal(0, 0.005, blocks))
    truth = float(np.log(rng.choice([1.0, 1.02, 1.05])))

    def lane() -> np.ndarray:
        spread = rng.uniform(0.005, 0.03)
        steps, noise = rng.normal(0, spread * np.sqrt(1 - resemblance**2), blocks), np.empty(blocks)
        noise[0] = rng.normal(0, spread)
        for index in range(1, blocks):
            noise[index] = resemblance * noise[index - 1] + steps[index]
        return drift + noise + (rng.uniform(size=blocks) < spikes) * rng.exponential(0.2, blocks)

    return Trace(lane(), truth + lane(), truth, blocks, resemblance, spikes)


def coverage(count: int, seed: int = 1) -> dict[str, float]:
    """Share of traces whose 95 % interval holds the truth: of all, and by blocks, resemblance and spikes."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {}
    for _ in range(count):
        one = trace(rng)
        _, (low, high) = statistics.t_interval(one.own - one.reference)
        for name in ("all", f"{one.blocks} blocks", f"resemblance {one.resemblance:g}", f"spikes {one.spikes:g}"):
            held.setdefault(name, []).append(low <= one.truth <= high)
    order = ["all", *(f"{n} blocks" for n in BLOCKS), *(f"resemblance {r:g}" for r in RESEMBLANCE), *(f"spikes {s:g}" for s in SPIKES)]
    return {name: float(np.mean(held[name])) for name in order if name in held}


@dataclass(frozen=True)
class Pairs:
    """How verdicts on simulated accuracy pairs came out, and what theory says."""

    what: str
    false_alarms: float
    power: float
    formula: float


def right_or_wrong(samples: int, flips: float, drop: float, count: int, seed: int = 2) -> Pairs:
    """Pairs of right/wrong values: `flips` of the samples change, evenly for false alarms, unevenly by `drop` for power.

    The verdict is that of gates: the interval of the drop lies on one side of zero. Formula: Connor, Sample
    size for testing differences in proportions for the paired-sample design, 1987.
    """
    rng = np.random.default_rng(seed)
    alarms = np.mean([_proved(rng, samples, flips / 2, flips / 2) != 0 for _ in range(count)])
    found = np.mean([_proved(rng, samples, (flips + drop) / 2, (flips - drop) / 2) > 0 for _ in range(count)])
    z = special.ndtri(0.975)
    formula = special.ndtr((drop * np.sqrt(samples) - z * np.sqrt(flips)) / np.sqrt(flips - drop**2))
    return Pairs(
        f"right/wrong, {samples} samples, {100 * flips:g} % flips, drop {100 * drop:g} points", float(alarms), float(found), float(formula)
    )


def _proved(rng: np.random.Generator, samples: int, lost: float, won: float) -> int:
    """1 for a proved drop, −1 for a proved gain, 0 for neither."""
    kinds = rng.choice(3, samples, p=[lost, won, 1 - lost - won])
    reference, own = (kinds != 1).astype(float), (kinds != 0).astype(float)
    low, high = statistics.score(own, reference, np.ndarray.mean, True, True, 0)["drop_ci95"]
    return 1 if low > 0 else -1 if high < 0 else 0


def measured(samples: int, drop: float, count: int, seed: int = 3) -> Pairs:
    """Pairs of a real-valued score, skewed as losses are; the difference has a standard deviation of 1. Formula: that of the z test."""
    rng = np.random.default_rng(seed)

    def proved(shift: float) -> int:
        base = rng.exponential(1.0, samples)
        low, high = statistics.score(
            base + rng.normal(shift, 1.0, samples), base, np.ndarray.mean, False, False, int(rng.integers(1 << 30))
        )["drop_ci95"]
        return 1 if low > 0 else -1 if high < 0 else 0

    alarms = np.mean([proved(0.0) != 0 for _ in range(count)])
    found = np.mean([proved(drop) > 0 for _ in range(count)])
    formula = stats.norm.cdf(drop * np.sqrt(samples) - special.ndtri(0.975))
    return Pairs(f"real-valued, {samples} samples, drop {drop:g} standard deviations", float(alarms), float(found), float(formula))
