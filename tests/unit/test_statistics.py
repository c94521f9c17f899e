"""Figures with intervals: percentiles, series of blocks, paired right/wrong values, bootstraps, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from edgeopt.stages import statistics

ARRAY = np.ndarray


def mean(values: ARRAY) -> float:
    return float(values.mean())


# ---- percentiles


@pytest.mark.parametrize(("at", "needed"), [(90.0, 64), (95.0, 130), (99.0, 662), (99.9, 6636)])
def test_a_percentile_is_told_from_enough_samples_only(at: float, needed: int) -> None:
    few, enough = np.arange(needed - 1.0), np.arange(float(needed))
    assert statistics.percentile(few, at) is None and statistics.percentile_interval(few, at) is None
    assert statistics.percentile(enough, at) == pytest.approx(np.percentile(enough, at))
    low, high = statistics.percentile_interval(enough, at) or (math.nan, math.nan)
    assert low < np.percentile(enough, at) <= high


def test_intervals_of_percentiles_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = statistics.percentile_interval(rng.exponential(size=300), 90.0) or (math.nan, math.nan)
        held += low <= -math.log(0.1) <= high
    assert 0.92 <= held / 400 <= 0.99


def test_latency_leaves_out_percentiles_of_few_samples() -> None:
    rounds = [[np.full(5, 2.0) + np.arange(5) * 0.01 for _ in range(4)] for _ in range(4)]
    found = statistics.latency(rounds, np.ones(80), np.ones(80))
    assert (found.samples, found.blocks, found.rounds) == (80, 16, 4)
    assert found.p90 is not None and found.p90_ci95 is not None
    assert (found.p95, found.p99, found.p99_9) == (None, None, None)
    assert found.p50_ci95[0] <= found.p50 <= found.p50_ci95[1] and found.p50 == pytest.approx(2.02)


# ---- rounds


def rounds(rng: np.random.Generator, count: int, offset: float, level: float = 0.0) -> list[ARRAY]:
    """Log levels of six blocks in each round; every round's process has an offset of its own."""
    return [level + rng.normal(0, offset) + rng.normal(0, 0.005, 6) for _ in range(count)]


def test_intervals_hold_the_truth_though_every_process_has_an_offset_of_its_own() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        low, high = statistics.interval(statistics.of_pairs(rounds(rng, 8, 0.02), rounds(rng, 8, 0.02, 0.05)))[1]
        held += low <= -0.05 <= high
    assert 0.92 <= held / 400 <= 0.98


def singles(*values: float) -> list[ARRAY]:
    """One figure in each round."""
    return [np.array([value]) for value in values]


def test_one_disturbed_round_neither_moves_nor_hides_what_the_others_show() -> None:
    calm = (0.021, 0.018, 0.02, 0.019, 0.022, 0.02, 0.021)
    mean, (low, high) = statistics.interval(singles(*calm, 0.4))
    assert mean == pytest.approx(0.02, abs=0.001) and 0.015 < low < 0.02 < high < 0.025
    wanted = stats.mstats.trimmed_mean_ci(np.array([*calm, 0.4]), limits=(0.125, 0.125), alpha=0.05)
    assert (low, high) == pytest.approx(tuple(wanted), rel=0.03)


def test_few_rounds_have_students_interval() -> None:
    values = (0.01, 0.03, 0.02, 0.05)
    wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert statistics.interval(singles(*values))[1] == pytest.approx(wanted)


def test_disturbed_blocks_are_cut_off_in_whichever_round_they_are() -> None:
    rng = np.random.default_rng(5)
    calm = [rng.normal(0.02, 0.005, 6) for _ in range(12)]
    spoilt = [np.where(rng.uniform(size=6) < 0.15, one + 0.3, one) for one in calm]
    (mean, (low, high)), (_, (least, most)) = statistics.interval(spoilt), statistics.interval(calm)
    assert mean == pytest.approx(0.02, abs=0.002) and low < 0.02 < high and high - low < 2 * (most - least)


def test_blocks_of_one_process_are_no_evidence_about_the_next() -> None:
    """However many blocks there are, the interval is as wide as the rounds are apart."""
    rng = np.random.default_rng(6)
    levels = rng.normal(0, 0.02, 10)
    few, many = (statistics.interval([np.full(count, level) for level in levels])[1] for count in (2, 200))
    assert few == pytest.approx(many, rel=1e-6)


def test_pairing_takes_out_what_disturbs_both() -> None:
    """Drift of 30 % and spikes that both see; the ratio of 1.04 is found to a hundredth."""
    rng = np.random.default_rng(4)
    both = [np.linspace(0, 0.3, 6) + (rng.uniform(size=6) < 0.1) * 0.5 for _ in range(8)]
    reference, own = ([blocks + rng.normal(math.log(ratio), 0.005, 6) for blocks in both] for ratio in (1.04, 1.0))
    found = statistics.speedup(statistics.of_pairs(reference, own), 0.0)
    assert found.verdict == "faster" and found.ci95[0] < 1.04 < found.ci95[1] and found.ci95[1] - found.ci95[0] < 0.02


def test_rounds_that_tell_nothing() -> None:
    assert statistics.interval(singles(2.0)) == (2.0, (-math.inf, math.inf))
    assert statistics.interval(singles(*[2.0] * 9)) == (2.0, (2.0, 2.0))
    one = statistics.latency([[np.full(100, 2.0)]], np.ones(1), np.ones(1))
    assert one.p50_ci95 == (2.0, 2.0) and one.rounds == 1


def test_blocks_of_unlike_number_are_not_paired() -> None:
    [apart] = statistics.of_pairs([np.array([1.0, 3.0, 2.0])], [np.array([1.0])])
    assert apart == pytest.approx([1.0])


@pytest.mark.parametrize(("ratio", "noise", "verdict"), [
    (1.05, 0.0, "faster"), (0.95, 0.0, "slower"), (1.0, 0.0, "indistinguishable"),
    (1.05, 0.06, "indistinguishable"), (0.95, 0.06, "indistinguishable"), (1.2, 0.06, "faster"), (0.8, 0.06, "slower"),
])  # fmt: skip
def test_verdicts_have_the_right_sign_and_stay_silent_below_the_noise(ratio: float, noise: float, verdict: str) -> None:
    found = statistics.speedup(singles(*np.log(ratio) + np.tile([-0.01, 0.01, 0.005, -0.005], 2)), noise)
    assert found.verdict == verdict and found.value == pytest.approx(ratio, rel=1e-3)
    assert found.ci95[0] < found.value < found.ci95[1]


# ---- right or wrong


def pair(both: int, lost: int, won: int, neither: int) -> tuple[ARRAY, ARRAY]:
    """(reference, own) with so many samples right in both, lost, won, wrong in both."""
    kinds = np.repeat([0, 1, 2, 3], [both, lost, won, neither])
    return np.isin(kinds, (0, 1)).astype(float), np.isin(kinds, (0, 2)).astype(float)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (7, 0), (12, 4), (4, 12), (9, 9), (60, 31)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    reference, own = pair(300, lost, won, 80)
    found = statistics.score(own, reference, mean, True, True, 0)
    wanted = stats.binomtest(min(lost, won), lost + won, 0.5).pvalue if lost + won else 1.0
    assert found["p_value"] == pytest.approx(wanted)
    assert found["drop"] == pytest.approx((lost - won) / (380 + lost + won))
    assert found["changed"] == pytest.approx((lost + won) / (380 + lost + won))


def test_the_drop_has_agresti_and_mins_interval() -> None:
    """Their adjusted Wald interval: half a sample added to each of the four kinds (Statistics in Medicine 24, 2005, section 3)."""
    reference, own = pair(100, 12, 4, 20)
    low, high = statistics.score(own, reference, mean, True, True, 0)["drop_ci95"]
    n, b, c = 138.0, 12.5, 4.5
    half = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert (low, high) == pytest.approx(((b - c) / n - half, (b - c) / n + half))


def test_a_share_has_wilsons_interval() -> None:
    own = np.repeat([1.0, 0.0], [45, 5])
    wanted = stats.binomtest(45, 50).proportion_ci(method="wilson")
    assert statistics.score(own, None, mean, True, True, 0)["ci95"] == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_gain_is_a_negative_drop_and_the_direction_of_a_score_counts() -> None:
    reference, own = pair(50, 2, 20, 28)
    assert statistics.score(own, reference, mean, True, True, 0)["drop"] < 0
    errors = np.array([0.1, 0.4, 0.2, 0.3] * 25)
    found = statistics.score(errors * 1.5, errors, mean, False, False, 0)
    assert found["drop"] == pytest.approx(0.125) and found["drop_ci95"][0] > 0


# ---- bootstraps


@pytest.mark.parametrize("finish", [mean, lambda values: float(np.sqrt((values**2).mean()))])
def test_bootstraps_agree_with_scipys(finish: Callable[[ARRAY], float]) -> None:
    rng = np.random.default_rng(5)
    reference = rng.exponential(size=150)
    own = reference + rng.normal(0.1, 0.2, 150)
    found = statistics.score(own, reference, finish, False, False, 0)

    def change(one: ARRAY, other: ARRAY) -> float:
        return finish(one) - finish(other)

    wanted = stats.bootstrap(
        (own, reference), change, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found["drop_ci95"] == pytest.approx((wanted.low, wanted.high), abs=0.015)
    assert found["ci95"][0] < found["value"] < found["ci95"][1]


def test_the_same_seed_draws_the_same_interval() -> None:
    own = np.random.default_rng(6).normal(size=50)
    first, again, other = (statistics.score(own, own + 1, mean, True, False, seed)["ci95"] for seed in (1, 1, 2))
    assert first == again != other


def test_unlike_samples_have_no_drop_and_one_sample_no_interval() -> None:
    assert statistics.score(np.ones(3), np.ones(4), mean, True, False, 0)["drop"] is None
    assert statistics.score(np.ones(1), np.ones(1), mean, True, False, 0)["drop_ci95"] is None
