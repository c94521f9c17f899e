"""Gates: verdicts by interval, how much evidence would decide, and what is taken on a restless machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports

import edgeopt
from edgeopt.core.gate import Gate
from edgeopt.core.report import Row
from edgeopt.core.session import ScoreValue, Session
from edgeopt.stages import decision, gates, report, statistics
from edgeopt.stages.words import Words
from tests import walks


def row(samples: int, lost: int, won: int) -> Row:
    """A row whose top1 loses and wins so many samples against the reference."""
    reference, own = np.ones(samples), np.ones(samples)
    own[:lost], reference[lost : lost + won] = 0.0, 0.0
    found = statistics.score(own, reference, lambda values: float(values.mean()), True, True, 0)
    some = next(one for one in reports.plain().rows if one.variant == "int8" and one.status == "measured")
    return some.model_copy(update={"scores": {"top1": ScoreValue(samples=samples, **found)}})


def judged(one: Row, **gate: Any) -> Any:
    return gates.judge(Gate(**gate), one, "fp32")


def test_an_inconclusive_gate_tells_how_many_samples_would_decide_it_and_they_do() -> None:
    first = judged(row(500, 4, 1), score="top1", max_drop=0.01)
    assert first.verdict == "inconclusive"
    told = re.search(r"about ([0-9,]+) samples would decide it if the figure stays \(500 so far\)", first.reason or "")
    assert told, first.reason
    needed = int(told[1].replace(",", ""))
    share = needed / 500
    assert judged(row(needed, round(4 * share), round(share)), score="top1", max_drop=0.01).verdict == "pass"
    fewer = 0.7 * share
    assert judged(row(round(0.7 * needed), round(4 * fewer), round(fewer)), score="top1", max_drop=0.01).verdict == "inconclusive"


def test_a_drop_beyond_the_limit_counts_the_other_end() -> None:
    found = judged(row(500, 9, 1), score="top1", max_drop=0.01)
    assert found.verdict == "inconclusive"
    needed = int(re.search(r"about ([0-9,]+) samples", found.reason or "")[1].replace(",", ""))  # type: ignore[index]
    assert judged(row(needed, round(9 * needed / 500), round(needed / 500)), score="top1", max_drop=0.01).verdict == "fail"


def test_a_figure_on_the_limit_is_never_decided() -> None:
    found = judged(row(500, 6, 1), score="top1", max_drop=0.01)
    assert found.verdict == "inconclusive" and "not even 1,000 times the 500 samples would decide it" in (found.reason or "")


def test_a_latency_gate_asks_for_time_not_samples() -> None:
    some = row(500, 0, 0)
    assert some.latency_ms
    edge = some.model_copy(update={"latency_ms": some.latency_ms.model_copy(update={"p50": 5.0, "p50_ci95": (4.9, 5.1)})})
    found = judged(edge, latency="p50", max_ms=5.05)
    assert found.verdict == "inconclusive" and "a longer measurement would decide it" in (found.reason or "")


@pytest.mark.parametrize(("lenient", "code"), [(False, 4), (True, 0)])
def test_an_inconclusive_gate_exits_4_unless_it_says_pass(lenient: bool, code: int, tmp_path: Path, own_store: Path) -> None:
    """Two hundred samples cannot tell whether the only variant has a top1 of its own value."""
    first = edgeopt.run(walks.write(tmp_path / "r"), tmp_path / "one")
    value = first.rows[0].scores["top1"].value
    says = ", inconclusive: pass" if lenient else ""
    recipe = walks.write(tmp_path / "r", walks.RECIPE + f"gates: [{{score: top1, min: {value + 0.001}{says}}}]\n")
    found = edgeopt.run(recipe, tmp_path / "two")
    assert found.gates[0].verdict == "inconclusive" and found.exit_code == code
    assert found.rows[0].qualifies is lenient


# ---- on a restless machine


def restless(folder: Path, *variants: str) -> Any:
    """The report of a walk on null, with sessions of these variants flagged unstable afterwards."""
    path = folder / "sessions" / "null"
    session = Session.read(path)
    flagged = [one.model_copy(update={"flags": ["unstable"] if one.variant in variants else []}) for one in session.variants]
    session.model_copy(update={"variants": flagged}).write(path)
    return report.report(edgeopt.Plan.read(folder), folder)


def test_an_unstable_row_is_taken_only_where_no_steady_one_is_left_and_says_so(tmp_path: Path, own_store: Path) -> None:
    edgeopt.run(walks.write(tmp_path / "r"), tmp_path / "one")
    steady = restless(tmp_path / "one").picked("null")
    assert steady and steady.pick_basis == "latency"
    found = restless(tmp_path / "one", "fp32")
    picked = found.picked("null")
    assert picked and picked.pick_basis == "latency, measured while the machine was unstable"
    assert any("measure again on a quiet machine" in doubt for doubt in decision.decide(Words(found), "null").doubts)
