"""Which axis counts samples: of outputs that count something else, of states, of models without an open axis."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from test_quantize_int8 import X86, calibration, imported, quantize

import edgeopt
from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.outputs import apart
from edgeopt.core.protocols import Context, Split
from edgeopt.passes.mixed_precision_judge import Budget, Judge
from edgeopt.scores.sqnr import Sqnr
from tests.unit import small_onnx as small

RECIPE = """\
edgeopt: 1
name: axes
model: {onnx: model.onnx}
data:
  calibrate: {npz: calibrate.npz}
  evaluate: {npz: evaluate.npz}
scores: [SCORES]
variants: {fp32: [], int8: [quantize-int8]}
targets: [x86-onnxruntime]
measure: {budget_s: 0.5, precision_percent: 50}
"""


def detector(batch: int | str = 1) -> onnx.ModelProto:
    """Ten boxes, of which those with a positive score are given: how many is for the values to say."""
    made = [
        helper.make_node("Gemm", ["x", "w", "b"], ["m"], name="layer"),
        helper.make_node("Reshape", ["m", "to"], ["boxes"]),
        helper.make_node("Gather", ["boxes", "four"], ["score"], axis=1),
        helper.make_node("Greater", ["score", "zero"], ["strong"]),
        helper.make_node("Compress", ["boxes", "strong"], ["rows"], axis=0),
    ]
    weights = [small.weight("w", 8, 60), small.weight("b", 60, seed=1), small.ints("to", -1, 6), small.scalar_int("four", 4)]
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    return small.model(made, [small.value("x", [batch, 8])], [small.value("rows", ["D", 6])], [*weights, zero])


def found(x: np.ndarray) -> int:
    """How many boxes the detector gives for one sample."""
    weights = [onnx.numpy_helper.to_array(small.weight("w", 8, 60)), onnx.numpy_helper.to_array(small.weight("b", 60, seed=1))]
    return int(((x @ weights[0] + weights[1]).reshape(10, 6)[:, 4] > 0).sum())


def signature(*outputs: tuple[int | str, ...], inputs: tuple[int | str, ...] = ("N", 3)) -> Signature:
    specs = tuple(TensorSpec(f"y{index}", "float32", shape) for index, shape in enumerate(outputs))
    return Signature((TensorSpec("x", "float32", inputs),), specs)


@pytest.mark.parametrize(
    ("inputs", "shape", "given", "count", "share"),
    [
        (("N", 3), ("N", 5), (2, 5), 2, (5,)),
        (("N", 3), (4, "N"), (4, 2), 2, (4,)),
        (("N", 3), ("unk__1", 5), (2, 5), 2, (5,)),
        (("N", 3), ("D", 4), (9, 4), 1, (9, 4)),
        (("N", 3), ("D", 4), (0, 4), 1, (0, 4)),
        ((1, 3), ("D", 4), (9, 4), 1, (9, 4)),
        ((1, 3), (100, 4), (100, 4), 1, (100, 4)),
        ((1, 3), (1, 4), (1, 4), 1, (4,)),
        ((4, 3), (4, 5), (4, 5), 3, (5,)),
        ((4, 3), (100, 4), (100, 4), 3, (100, 4)),
    ],
)
def test_only_an_axis_as_long_as_the_batch_counts_samples(
    inputs: tuple[int | str, ...], shape: tuple[int | str, ...], given: tuple[int, ...], count: int, share: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    shares = apart({"y0": array}, count, signature(shape, inputs=inputs))
    assert [one["y0"].shape for one in shares] == [share] * count


def written(folder: Path, proto: onnx.ModelProto, scores: str, **data: np.ndarray) -> Path:
    """A recipe beside its model and data: 40 samples of each input to calibrate with, 30 to judge by."""
    onnx.save(proto, folder / "model.onnx")
    np.savez(folder / "calibrate.npz", **{name: array[:40] for name, array in data.items()})
    np.savez(folder / "evaluate.npz", **{name: array[40:70] for name, array in data.items()})
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SCORES", scores))
    return path


@pytest.mark.parametrize("batch", [1, "N"])
def test_every_box_is_judged_and_one_score_that_cannot_be_had_fails_its_own_row(tmp_path: Path, own_store: Path, batch: int | str) -> None:
    """Quantization moves some boxes over the threshold: their number is another then, and noise against the reference means nothing."""
    x = np.random.default_rng(3).standard_normal((70, 8)).astype(np.float32)
    (tmp_path / "score.py").write_text("def boxes(outputs, label, reference):\n    return float(outputs['rows'].reshape(-1, 6).shape[0])\n")
    path = written(tmp_path, detector(batch), "{python: {source: 'score.py:boxes', label: boxes}}, sqnr", x=x)
    report = edgeopt.run(path, tmp_path / "out")
    fp32, int8 = report.rows
    assert fp32.status == "measured", fp32.reason
    assert fp32.scores["boxes"].value == pytest.approx(np.mean([found(one) for one in x[40:]]), abs=0.05)
    assert (int8.status, int8.exit_code) == ("failed", 2)
    assert "score 'sqnr', evaluation sample" in (int8.reason or "") and "output 'rows' has the shape" in (int8.reason or "")
    assert "→ choose an output of one shape" in (int8.reason or "")


def heard(result: tuple[int | str, ...]) -> onnx.ModelProto:
    """A net on a waveform [L] as it comes, of any length: features in time, or their mean."""
    made = [
        helper.make_node("Unsqueeze", ["wave", "ahead"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["c"], name="layer", strides=[4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[0, 2] if len(result) == 1 else [0], keepdims=0),
    ]
    made.append(helper.make_node("Identity" if len(result) == 1 else "Transpose", ["m"], ["y"]))
    weights = [small.weight("w", 5, 1, 9), small.ints("ahead", 0, 1)]
    return small.model(made, [small.value("wave", ["L"])], [small.value("y", result)], weights)


@pytest.mark.parametrize("result", [(5,), ("frames", 5)])
def test_a_waveform_of_any_length_is_one_sample(tmp_path: Path, own_store: Path, result: tuple[int | str, ...]) -> None:
    path = written(tmp_path, heard(result), "sqnr", wave=np.random.default_rng(3).standard_normal((70, 400)).astype(np.float32))
    report = edgeopt.run(path, tmp_path / "out")
    for row in report.rows:
        assert row.status == "measured", row.reason
        assert row.scores["sqnr"].samples == 30 and row.scores["sqnr"].value > 25


@pytest.mark.parametrize(
    ("inputs", "output", "symbol"),
    [
        (("L",), (5,), None),
        (("T", 8), (5,), None),
        (("T", 8), (1, 5), "T"),  # exporters note the size that they traced
        (("T", 8), (), "T"),
        (("N", 3, 8, 8), (8, 5), "N"),  # traced with eight
        (("N", 8), ("N", 5), "N"),
        (("N", 8), ("unk__1", 5), "N"),
    ],
)
def test_an_axis_that_no_result_has_counts_no_samples(
    inputs: tuple[int | str, ...], output: tuple[int | str, ...], symbol: str | None
) -> None:
    found = signature(output, inputs=inputs)
    assert found.batch_symbol == symbol
    assert found.fixed_batch == (None if symbol else 1)
    assert found.batch_axis(found.inputs[0]) == (0 if symbol else None)


def test_nothing_is_held_against_a_reference_that_fails_on_the_way(tmp_path: Path, own_store: Path) -> None:
    """Its first 64 samples are no score of all of them. A sample beyond float32 fails the reference, and it alone."""
    x = np.random.default_rng(3).standard_normal((110, 8)).astype(np.float32)
    x[106] = 3e38
    path = written(tmp_path, small.mlp(), "{python: {source: 'score.py:first', label: first}}, sqnr", x=x)
    np.savez(tmp_path / "evaluate.npz", x=x[40:])
    (tmp_path / "score.py").write_text("def first(outputs, label, reference):\n    return float(next(iter(outputs.values())).flat[0])\n")
    report = edgeopt.run(path, tmp_path / "out")
    rows = {row.variant: row for row in report.rows}
    assert rows["fp32"].status == "failed" and "evaluation sample 66" in (rows["fp32"].reason or "")
    assert {label: score.samples for label, score in rows["int8"].scores.items()} == {"first": 70}


def test_a_detector_is_quantized_whatever_number_of_boxes_it_gives(tmp_path: Path) -> None:
    made = imported(tmp_path, detector("N"))
    path, notes = quantize(tmp_path, made, X86)
    assert path.is_file() and notes["quantized_layers"]


def test_outputs_of_another_number_do_not_count_and_never_stretch(tmp_path: Path) -> None:
    made = imported(tmp_path, small.mlp())
    held = calibration(made.signature)
    exact = {"boxes": np.ones((9, 4), np.float32), "y": np.ones((1, 2), np.float32)}
    assert held._decibels(lambda _: exact, lambda _: {"boxes": np.ones((1, 4), np.float32), "y": exact["y"] * 1.1}, 4) == pytest.approx(
        20, abs=0.1
    )
    blurred = {"boxes": exact["boxes"] * 1.001, "y": exact["y"] * 2}
    assert held._decibels(lambda _: exact, lambda _: blurred, 4) == pytest.approx(0, abs=0.1), "the worst output counts"
    empty = {"boxes": np.zeros((9, 4), np.float32), "y": exact["y"]}
    noisy = {"boxes": np.full((9, 4), 0.01, np.float32), "y": exact["y"]}
    assert held._decibels(lambda _: empty, lambda _: noisy, 4) == pytest.approx(10 * np.log10(2 / 36e-4), abs=0.1)
    assert held._decibels(lambda _: {"boxes": exact["boxes"]}, lambda _: {"boxes": np.ones((2, 4), np.float32)}, 4) == 0


class Odd(Exception):
    """As a runtime raises them: of no kin."""


def test_a_candidate_that_fails_in_its_own_way_is_passed_over(tmp_path: Path) -> None:
    made = imported(tmp_path, small.mlp())
    held = calibration(made.signature)
    exact = {"y": np.ones((1, 2), np.float32)}

    def refuses() -> str:
        raise Odd("no kernel")

    def misfed() -> str:
        raise UsageError("the data are wrong")

    choice = held.choose({"bad": refuses, "good": lambda: "made"}, lambda: lambda _: exact, lambda _: lambda _: exact)
    assert choice.settings == "good" and choice.reached == {"good": 150.0}
    with pytest.raises(Odd):
        held.choose({"bad": refuses}, lambda: lambda _: exact, lambda _: lambda _: exact)
    with pytest.raises(UsageError):
        held.choose({"bad": misfed, "good": lambda: "made"}, lambda: lambda _: exact, lambda _: lambda _: exact)


def test_a_mix_whose_outputs_cannot_be_judged_does_not_fit() -> None:
    given = signature(("D", 4))
    split = Split("tune", lambda: iter(()), given)
    feeds = [({"x": np.full((1, 3), index, np.float32)}, [None]) for index in range(10)]

    def exact(one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y0": np.ones((5, 4), np.float32)}

    def fewer(one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y0": np.ones((5 if one["x"][0, 0] else 4, 4), np.float32)}

    def last_off(one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y0": np.concatenate([np.ones((4, 4)), np.full((1, 4), 1.5)]).astype(np.float32)}

    ctx = Context(Path(), data={"tune": split}, scores={"sqnr": Sqnr()})
    judge = Judge(ctx, Budget(min=20), given, lambda: iter(feeds), exact)
    assert judge(exact).fits and not judge(fewer).fits
    assert judge(last_off).got == pytest.approx(10 * np.log10(20 / 1)), "every box is judged, not the first alone"
    assert judge.noise(fewer, 4) == pytest.approx(1 / 4)


def test_a_quantizer_that_fails_on_all_is_a_failed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.passes import quantize_int8_onnx

    def refuses(*given: object) -> None:
        raise Odd("no kernel")

    monkeypatch.setattr(quantize_int8_onnx.Quantizer, "runner", refuses)
    with pytest.raises(StepError, match="onnxruntime cannot quantize this model: Odd: no kernel"):
        quantize(tmp_path, imported(tmp_path, small.mlp()), X86)


def rnn(kind: str, batch: int | str, time: int | str, time_major: bool = False) -> onnx.ModelProto:
    """Both directions of a recurrent layer, its state coming in and going out: [2, batch, 6] each."""
    gates, states = (4, ["h", "c"]) if kind == "LSTM" else (3, ["h"])
    made = [
        helper.make_node("Identity" if time_major else "Transpose", ["x"], ["t"], **({} if time_major else {"perm": [1, 0, 2]})),
        helper.make_node(
            kind,
            ["t", "w", "r", "", "", *states],
            ["all", *(f"{one}n" for one in states)],
            name="rnn",
            hidden_size=6,
            direction="bidirectional",
        ),
        helper.make_node("Transpose", ["all"], ["turned"], perm=[0, 2, 1, 3] if time_major else [2, 0, 1, 3]),
        helper.make_node("Reshape", ["turned", "to"], ["y"]),
    ]
    weights = [small.weight("w", 2, gates * 6, 3), small.weight("r", 2, gates * 6, 6, seed=1), small.ints("to", 0, 0, 12)]
    rows = [time, batch] if time_major else [batch, time]
    inputs = [small.value("x", [*rows, 3]), *(small.value(one, [2, batch, 6]) for one in states)]
    outputs = [small.value("y", [*rows, 12]), *(small.value(f"{one}n", [2, batch, 6]) for one in states)]
    return small.model(made, inputs, outputs, weights)


def recurrent_data(kind: str, x: tuple[int, ...], state: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {"x": rng.standard_normal((70, *x), np.float32)} | {
        one: rng.standard_normal((70, *state), np.float32) for one in (("h", "c") if kind == "LSTM" else ("h",))
    }


def walked(path: Path, folder: Path, variants: str, batch: int = 1) -> dict[tuple[str, str], edgeopt.core.report.Row]:
    text = path.read_text().replace("{fp32: [], int8: [quantize-int8]}", variants)
    targets = ", ".join(f"{{extends: x86-{name}, batch: {batch}, name: {name}}}" for name in ("onnxruntime", "openvino"))
    path.write_text(text.replace("[x86-onnxruntime]", f"[{targets}]"))
    report = edgeopt.run(path, folder)
    assert report.exit_code == 0, [(row.variant, row.target, row.reason) for row in report.rows]
    rows = {(row.variant, row.target): row for row in report.rows}
    for row in rows.values():
        assert row.status == "measured", row.reason
        assert row.scores["sqnr"].samples == 30 and row.scores["sqnr"].value > 60
    return rows


@pytest.mark.parametrize(("kind", "batch", "reference"), [("LSTM", 1, "fp32"), ("GRU", 4, "fixed")])
def test_states_of_an_open_model_and_behind_fix_shapes(tmp_path: Path, own_store: Path, kind: str, batch: int, reference: str) -> None:
    path = written(tmp_path, rnn(kind, "N", "T"), "sqnr", **recurrent_data(kind, (7, 3), (2, 6)))
    path.write_text(path.read_text() + f"reference: {reference}\n")
    walked(path, tmp_path / "out", "{fp32: [], fixed: [fix-shapes]}", batch)


@pytest.mark.parametrize(("kind", "x", "time_major"), [("GRU", (7, 3), False), ("LSTM", (7, 1, 3), True)])
def test_states_of_a_model_without_an_open_axis(tmp_path: Path, own_store: Path, kind: str, x: tuple[int, ...], time_major: bool) -> None:
    path = written(tmp_path, rnn(kind, 1, 7, time_major), "sqnr", **recurrent_data(kind, x, (2, 1, 6)))
    walked(path, tmp_path / "out", "{fp32: [], slim: [simplify]}")


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch", "axes"),
    [
        ([("N", 3)], [("N", 2)], None, [0]),
        ([(4, 3)], [(4, 2)], 4, [0]),
        ([(4, 3), (4,), ()], [(4, 2)], 4, [0, 0, None]),
        ([(4, 3)], [("unk__1", 2)], 4, [0]),
        ([(4, 3)], [], 4, [0]),
        ([(8, 1, 28, 28)], [(8, 1, 28, 28)], 8, [0]),
        ([(1, 512), (2, 1, 128), ()], [(1, 1), (2, 1, 128)], 1, [0, None, None]),
        ([(2, 1, 128), (1, 512)], [(1, 1), (2, 1, 128)], 1, [None, 0]),
        ([(50, 1, 8)], [(1, 4)], 1, [None]),
        ([(50, 1, 8)], [(50, 1, 4)], 1, [None]),
        ([(50, 1, 8), (2, 1, 6)], [(50, 1, 6), (2, 1, 6)], 1, [None, None]),
    ],
)
def test_what_counts_samples_is_told_by_names_else_by_sizes(
    inputs: list[tuple[int | str, ...]], outputs: list[tuple[int | str, ...]], batch: int | None, axes: list[int | None]
) -> None:
    found = Signature(
        tuple(TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(inputs)),
        tuple(TensorSpec(f"y{index}", "float32", shape) for index, shape in enumerate(outputs)),
    )
    assert found.fixed_batch == batch and [found.batch_axis(spec) for spec in found.inputs] == axes


def test_an_axis_that_was_given_a_size_counts_what_it_counted() -> None:
    def made(batch: int | str, time: int | str) -> Signature:
        shapes = {"x": (batch, time, 3), "places": (time,), "state": (2, batch, 6), "table": (1, 3)}
        return Signature(
            tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items()), (TensorSpec("y", "float32", (2, batch)),)
        )

    before = made("N", "T")
    for time in ("T", 9):
        after = made(4, time).after(before)
        assert after.fixed_batch == 4 and after.batch_symbol is None
        assert [after.batch_axis(spec) for spec in (*after.inputs, *after.outputs)] == [0, None, 1, None, 1]
        again = Signature.from_json({kind: [dataclasses.asdict(spec) for spec in getattr(after, kind)] for kind in ("inputs", "outputs")})
        assert [again.batch_axis(spec) for spec in again.inputs] == [0, None, 1, None]
    assert made("N", 9).after(before).batch_symbol == "N"
    assert before.batch_axis(before.inputs[1]) is None, "it is the time of another input"
