"""How numbers, verdicts and decisions are said."""

from __future__ import annotations

import pytest
import reports

from edgeopt.core.report import Report
from edgeopt.core.session import Speedup
from edgeopt.stages import facts
from edgeopt.stages.decision import decide
from edgeopt.stages.html import html
from edgeopt.stages.markdown import markdown
from edgeopt.stages.numbers import factor, measured, megabytes, number, plain, seconds
from edgeopt.stages.words import EXITS, Words


@pytest.fixture
def words() -> Words:
    return Words(reports.troubled())


def row_of(words: Words, target: str, variant: str) -> reports.Row:
    return next(row for row in words.rows[target] if row.variant == variant)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.7123, "2.71"),
        (9.999, "10.0"),
        (12345.6, "12,346"),
        (0.01234, "0.0123"),
        (0, "0"),
        (-0.002, "−0.00200"),
        (3.1e-6, "3.1e−06"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (-1e-9, "−1.0e−09"),
    ],
)
def test_a_number_has_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_no_number_is_minus_zero() -> None:
    assert number(-0.0001, 1) == "0.0"
    assert number(0.0001, 1, signed=True) == "0.0"


def test_an_interval_has_the_decimals_of_its_number() -> None:
    assert measured(2.71, (2.69, 2.7449), "ms") == "2.71 ms [2.69, 2.74]"
    assert measured(9.98, (9.91, 10.049), "ms") == "9.98 ms [9.91, 10.05]"
    assert measured(None, None, "ms") == "–"
    assert factor(2.1, (2.05, 2.16), "faster") == "2.10× faster [2.05, 2.16]"


def test_mb_are_a_million_bytes() -> None:
    assert megabytes(5_049_972) == "5.05 MB"
    assert megabytes(328_000) == "0.328 MB"
    assert megabytes(900) == "900 bytes"
    assert megabytes(None) == "–"


def test_seconds_grow_into_minutes() -> None:
    assert [seconds(value) for value in (0.421, 31.52, 185.0)] == ["0.42 s", "31.5 s", "3 min 5 s"]


def test_a_number_that_a_person_wrote_keeps_its_digits() -> None:
    assert [number(value, plain(value)) for value in (5, 1.5, 0.01, 12.25)] == ["5", "1.5", "0.01", "12.25"]


def test_shares_are_told_in_percent_and_points(words: Words) -> None:
    one = row_of(words, "x86-openvino", "int8")
    assert words.of(one, "top1") == "98.10 %"
    assert words.of(one, "top1", ci=True) == "98.10 % [97.46, 98.74]"
    assert words.score("top1", 0.981, samples=20) == "98.1 %"
    assert words.of(one, "sqnr") == "37.4 dB"


def test_a_score_that_leaves_the_unit_range_is_no_percentage() -> None:
    first = reports.plain()
    worse = first.rows[0].scores["top1"].model_copy(update={"value": -0.4})
    rows = [first.rows[0].model_copy(update={"scores": {"top1": worse}}), *first.rows[1:]]
    assert not Words(first.model_copy(update={"rows": rows})).percent("top1")


def test_a_drop_and_its_interval_point_the_same_way(words: Words) -> None:
    assert words.drop("top1", 0.002, (-0.003, 0.007)) == "0.2 points lower [−0.3, +0.7]"
    assert words.drop("top1", -0.002, (-0.007, 0.003)) == "0.2 points higher [−0.3, +0.7]"
    assert words.drop("top1", 0.01, None) == "1.0 point lower"
    assert words.drop("top1", 0.0, (-0.003, 0.003)) == "unchanged [−0.3, +0.3]"
    assert words.drop("top1", 0.0004, (-0.001, 0.002)) == "0.04 points lower [−0.10, +0.20]"


def test_an_error_that_grows_is_said_to_be_higher() -> None:
    first = reports.plain()
    error = first.rows[0].scores["top1"].model_copy(update={"value": 0.0123, "higher_is_better": False})
    words = Words(first.model_copy(update={"rows": [first.rows[0].model_copy(update={"scores": {"mse": error}})]}))
    assert words.drop("mse", 0.00123, (0.001, 0.0015)) == "0.00123 higher [+0.00100, +0.00150]"
    assert words.score("mse", 0.0123) == "0.0123"


def test_the_decision_is_one_sentence(words: Words) -> None:
    assert decide(words, "x86-openvino").sentence.startswith(
        "x86-openvino: take int8: 2.10× faster than fp32 [2.05, 2.16], 3.9× smaller, top1 0.2 points lower [−0.3, +0.7]"
    )


def test_the_decision_says_what_it_rests_on(words: Words) -> None:
    found = decide(words, "x86-openvino")
    assert found.evidence == ["960 timings in 20 blocks", "two copies of fp32 read 0.4 % apart", "1,500 samples scored", "4/4 gates passed"]
    assert found.doubts == []
    assert [part.good for part in found.parts] == [True, True, None, None, None]


def test_a_pick_that_was_never_measured_is_doubted(words: Words) -> None:
    found = decide(words, "rtx-ada")
    assert found.answer == "take int8"
    assert found.doubts == ["not measured here: chosen as the last variant listed whose accuracy gates pass"]


def test_a_pick_that_rests_on_noise_is_doubted() -> None:
    first = reports.plain()
    same = Speedup(value=1.01, ci95=(0.3, 3.1), verdict="indistinguishable")
    rows = [one.model_copy(update={"speedup": same}) if one.picked else one for one in first.rows]
    restless = [one.model_copy(update={"noise_percent": 22.5}) for one in first.targets]
    doubts = decide(Words(first.model_copy(update={"rows": rows, "targets": restless})), "x86-openvino").doubts
    assert doubts[0] == "no gain in speed over fp32 is proved"
    assert doubts[1].startswith("two copies of fp32 read 22.5 % apart")


def test_where_nothing_is_taken_the_reasons_are_told(words: Words) -> None:
    found = decide(words, "x86-openvino-throughput")
    assert found.row is None
    assert "int8 (1.29× [1.26, 1.33]): fails “at least 1.5× the reference's speed”" in found.sentence
    assert "pruned: failed: fine-tune: ValueError: NaN in the loss" in found.sentence
    assert "fp32, int8: not available here: the package 'tensorrt' is not installed" in decide(words, "jetson-orin").sentence


def test_taking_the_reference_is_said_to_be_so() -> None:
    first = reports.plain()
    rows = [one.model_copy(update={"picked": one.variant == "fp32"}) for one in first.rows]
    found = decide(Words(first.model_copy(update={"rows": rows})), "x86-openvino")
    assert found.sentence == "x86-openvino: take fp32, the reference: nothing that qualifies beats it"


@pytest.mark.parametrize(
    ("value", "ci", "verdict", "text", "good"),
    [
        (2.1, (2.05, 2.16), "faster", "2.10× faster than fp32 [2.05, 2.16]", True),
        (0.8, (0.76, 0.85), "slower", "1.25× slower than fp32 [1.18, 1.32]", False),
        (1.01, (0.98, 1.03), "indistinguishable", "the speed of fp32 within noise (1.01× [0.98, 1.03])", None),
        (1.01, (0.98, 1.03), "not comparable", "the speed is not comparable with fp32", None),
    ],
)
def test_speed_in_words(words: Words, value: float, ci: tuple[float, float], verdict: str, text: str, good: bool | None) -> None:
    one = row_of(words, "x86-openvino", "int8").model_copy(update={"speedup": Speedup(value=value, ci95=ci, verdict=verdict)})  # type: ignore[arg-type]
    part = words.speed(one)
    assert part is not None
    assert (part.text, part.good) == (text, good)


def test_every_row_has_a_standing_and_a_reason(words: Words) -> None:
    standings = {(row.target, row.variant): words.standing(row) for rows in words.rows.values() for row in rows}
    assert standings["x86-openvino", "int8"] == "take"
    assert standings["x86-openvino", "bf16"] == "qualifies"
    assert standings["x86-openvino", "pruned"] == "inconclusive"
    assert standings["x86-openvino-throughput", "pruned"] == "failed"
    assert standings["x86-onnxruntime", "bf16"] == "unavailable"
    assert standings["jetson-orin", "pruned-int8"] == "bundled"
    assert all(bool(words.why_not(row)) != row.picked for rows in words.rows.values() for row in rows)


def test_why_a_row_is_not_taken(words: Words) -> None:
    assert words.why_not(row_of(words, "x86-openvino", "bf16")) == ["qualifies, but int8 has the better latency"]
    assert words.why_not(row_of(words, "x86-openvino", "fp32")) == ["p90 at most 5 ms: fail, 5.92 ms [5.86, 5.98]"]
    slow = words.why_not(row_of(words, "x86-openvino-throughput", "bf16"))
    assert slow[-2:] == ["slower than the reference", "larger than the reference"]
    assert "moved while it was measured" in words.why_not(row_of(words, "x86-openvino-throughput", "int8"))[-1]
    (why,) = words.why_not(row_of(words, "x86-openvino", "pruned"))
    assert why.startswith("top1 loses at most 1 point: inconclusive, 1.2 points lower [+0.7, +1.7] (the 95 % interval holds the limit")


def test_what_a_step_warned_of_is_told_with_the_decision_and_in_the_pages() -> None:
    plain = reports.plain()
    warned = reports.step("prune-2-4", warning="2:4 zeros give speed on GPUs only")
    rows = [row.model_copy(update={"history": [*row.history, warned]}) if row.variant == "int8" else row for row in plain.rows]
    report = plain.model_copy(update={"rows": rows})
    told = "prune-2-4: 2:4 zeros give speed on GPUs only"
    assert decide(Words(report), "x86-openvino").doubts == [told]
    for page in (markdown(report), html(report)):
        assert told in page
    assert told not in markdown(plain)


def test_what_a_gpu_told_stands_in_the_report_and_on_the_pages() -> None:
    plain = reports.plain()
    rows = [row.model_copy(update={"device": reports.DEVICE}) if row.variant == "int8" else row for row in plain.rows]
    report = plain.model_copy(update={"rows": rows})
    warned = f"on the GPU: {reports.DEVICE['warnings'][0]}"
    assert decide(Words(report), "x86-openvino").doubts == [warned]
    head, (first, *_) = facts.devices(report)
    cells = dict(zip(head, first, strict=True))
    assert (cells["CUDA graph"], cells["spin-wait"], cells["transfers"]) == ("no", "yes", "timed apart")
    assert "compute: 0.210" in cells["by the GPU's clock (ms)"]
    for page in (markdown(report), html(report)):
        assert warned in page and "NVIDIA H100" in page and "compute: 0.210" in page
    assert facts.devices(plain)[1] == [] and "CUDA" not in markdown(plain) + html(plain)
    assert Report.model_validate_json(report.model_dump_json()).rows == rows


def test_flags_are_told_in_words(words: Words) -> None:
    assert "scored on synthetic data" in words.flags(row_of(words, "x86-openvino-throughput", "bf16"))[-1]


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ({"score": "top1", "max_drop": 0.01}, "top1 loses at most 1 point"),
        ({"score": "top1", "max_drop": 0.005}, "top1 loses at most 0.5 points"),
        ({"score": "top1", "min": 0.97}, "top1 at least 97 %"),
        ({"score": "sqnr", "min": 15}, "sqnr at least 15 dB"),
        ({"score": "mse", "max": 0.01}, "mse at most 0.01"),
        ({"latency": "p99.9", "max_ms": 5}, "p99.9 at most 5 ms"),
        ({"speedup": {"min": 1.5}}, "at least 1.5× the reference's speed"),
        ({"throughput": {"min_per_s": 1000}}, "at least 1,000 per second"),
        ({"size": {"max_mb": 10}}, "size at most 10 MB"),
        ({"memory": {"max_mb": 250}}, "memory at most 250 MB"),
    ],
)
def test_gates_in_words(words: Words, gate: dict[str, object], text: str) -> None:
    assert words.wants(gate) == text


def test_the_reference_is_exempt_from_the_speedup_gate(words: Words) -> None:
    (gate,) = [gate for gate in words.gates(row_of(words, "x86-openvino", "fp32")) if "speedup" in gate.gate]
    assert words.got(gate) == "exempt"


def test_every_exit_code_that_a_report_has_is_told() -> None:
    assert {0, 2, 3, 4, 5, 6, 7, 8} <= EXITS.keys()


def test_parity_and_notes_in_words() -> None:
    one = reports.step("quantize-int8", kept=["a", "b"], exact=True, share=0.123456, nested={"a": [1, {"b": 2}]}, nothing=None)
    assert facts.parity(one) == "118.4 dB, at least 60 dB asked; largest difference 3.1e−06 over 4 samples"
    assert facts.pairs(one.notes) == 'kept: a, b; exact: yes; share: 0.123; nested: {"a": [1, {"b": 2}]}; nothing: unknown'
    assert facts.value("x" * 5000).endswith("(all of it in report.json)")
    assert facts.value({"clock": 0, "steal": 2}) == "clock: 0; steal: 2"
