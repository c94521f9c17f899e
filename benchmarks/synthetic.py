"""Simulations for honesty.py: do intervals and verdicts keep their promise where the truth is known?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from edgeopt.stages import statistics

ROUNDS = (3, 6, 8, 12, 20)
RESEMBLANCE = (0.0, 0.2, 0.4, 0.6, 0.8)  # how much of a block's deviation the next block inherits
PAUSE = 3  # opening a round takes as long as so many blocks of it, at least
SPIKES = (0.0, 0.02, 0.1)  # share of blocks that something disturbs
OFFSETS = (0.0, 0.003, 0.01, 0.03)  # how far processes of the same model are apart


@dataclass(frozen=True)
class Trace:
    """Log levels, by round and block, of a reference and of a variant that is slower by `truth`."""

    reference: list[np.ndarray]
    own: list[np.ndarray]
    truth: float
    kinds: tuple[str, ...]


def trace(rng: np.random.Generator) -> Trace:
    """A session as machines make them.

    Drift that both share; an offset for each process; noise of 0.5 to 3 % in each lane that the next
    block inherits in part, across the pause between rounds too; spikes of 20 %.
    """
    rounds, resemblance, spikes, offset = (rng.choice(one) for one in (ROUNDS, RESEMBLANCE, SPIKES, OFFSETS))
    size = int(rng.integers(2, 13))
    blocks = int(rounds) * size
    drift = rng.uniform(-0.1, 0.1) * np.linspace(0, 1, blocks) + np.cumsum(rng.normal(0, 0.005, blocks))
    truth = float(np.log(rng.choice([1.0, 1.02, 1.05])))

    def lane() -> np.ndarray:
        spread = rng.uniform(0.005, 0.03)
        noise = np.empty(blocks)
        noise[0] = rng.normal(0, spread)
        for index in range(1, blocks):
            kept = resemblance ** (1 if index % size else PAUSE)
            noise[index] = kept * noise[index - 1] + rng.normal(0, spread * np.sqrt(1 - kept**2))
        spiked = (rng.uniform(size=blocks) < spikes) * rng.exponential(0.2, blocks)
        return drift + noise + spiked + np.repeat(rng.normal(0, offset, int(rounds)), size)

    kinds = (f"{rounds} rounds", f"resemblance {resemblance:g}", f"spikes {spikes:g}", f"offsets {100 * offset:g} %")
    return Trace(np.split(lane(), rounds), np.split(truth + lane(), rounds), truth, kinds)


def coverage(count: int, seed: int = 1) -> dict[str, float]:
    """Share of traces whose 95 % interval holds the truth: of all, and of each kind."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {}
    for _ in range(count):
        one = trace(rng)
        _, (low, high) = statistics.interval(statistics.of_pairs(one.own, one.reference))
        for name in ("all", *one.kinds):
            held.setdefault(name, []).append(low <= one.truth <= high)
    order = ["all", *(f"{n} rounds" for n in ROUNDS), *(f"resemblance {r:g}" for r in RESEMBLANCE)]
    order += [*(f"spikes {s:g}" for s in SPIKES), *(f"offsets {100 * one:g} %" for one in OFFSETS)]
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
