"""simplify: batch normalizations that layers beside them take up, those that must stay, and outputs that go on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx, examples, load
from edgeopt.passes.simplify import Simplify
from tests import walks


def norm(source: str, result: str, name: str = "bn", **more: int) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, *(f"{name}_{part}" for part in "sbmv")], [result], name=name, **more)


def statistics(channels: int, name: str = "bn", seed: int = 9) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    values = rng.normal(1, 0.2, channels), rng.normal(0, 0.5, channels), rng.normal(0, 0.5, channels), rng.uniform(0.5, 2, channels)
    return [numpy_helper.from_array(value.astype(np.float32), f"{name}_{part}") for part, value in zip("sbmv", values, strict=True)]


def node(kind: str, *names: str, **more: object) -> onnx.NodeProto:
    """A node with the inputs and, last, the output named."""
    return helper.make_node(kind, names[:-1], names[-1:], name=f"{kind}_{names[-1]}", **more)


ROW, WIDE, IMAGE = ["N", 8], ["N", 4], ["N", 4, 6, 6]
W, C, KERNEL = small.weight("w", 8, 4), small.weight("c", 4, seed=3), small.weight("w", 6, 2, 3, 3)
TURNED = small.weight("w", 4, 8)
ON_8, ON_4 = statistics(8), statistics(4)
FOLDED = {
    "behind gemm": ([node("Gemm", "x", "w", "c", "h"), norm("h", "y")], ROW, WIDE, [W, C, *ON_4], ["Gemm"]),
    "behind gemm, every attribute": (
        [node("Gemm", "x", "w", "c", "h", transB=1, alpha=0.5, beta=2.0), norm("h", "y", epsilon=0.1)],
        ROW, WIDE, [TURNED, C, *ON_4], ["Gemm"],
    ),
    "behind gemm and addition": ([node("Gemm", "x", "w", "c", "g"), node("Add", "d", "g", "h"), norm("h", "y")],
        ROW, WIDE, [W, C, small.weight("d", 1, seed=5), *ON_4], ["Gemm", "Add"],
    ),
    "behind matmul": ([node("MatMul", "x", "w", "h"), norm("h", "y")], ROW, WIDE, [W, *ON_4], ["MatMul", "Add"]),
    "behind matmul and addition": ([node("MatMul", "x", "w", "g"), node("Add", "g", "c", "h"), norm("h", "y")], ROW, WIDE, [W, C, *ON_4],
        ["MatMul", "Add"]),
    "before gemm": ([norm("x", "h"), node("Gemm", "h", "w", "c", "y", alpha=2.0, beta=0.5)], ROW, WIDE, [W, C, *ON_8], ["Gemm"]),
    "before matmul": ([norm("x", "h"), node("MatMul", "h", "w", "g"), node("Tanh", "g", "y")], ROW, WIDE, [W, *ON_8],
        ["MatMul", "Add", "Tanh"]),
    "before matmul and addition": ([norm("x", "h"), node("MatMul", "h", "w", "g"), node("Add", "g", "c", "y")], ROW, WIDE, [W, C, *ON_8],
        ["MatMul", "Add"]),
    "before a convolution in groups": (
        [norm("x", "h"), node("Conv", "h", "w", "y", group=2)], IMAGE, ["N", 6, 4, 4], [KERNEL, *ON_4], ["Conv"],
    ),
    "one weight, two layers": (
        [node("MatMul", "x", "w", "g"), norm("g", "h"), node("Tanh", "x", "t"), node("MatMul", "t", "w", "k"), node("Sub", "h", "k", "y")],
        ROW, WIDE, [W, *ON_4], ["MatMul", "Add", "Tanh", "MatMul", "Sub"],
    ),
    "both sides": ([norm("x", "a", "in"), node("Gemm", "a", "w", "h"), norm("h", "y")], ROW, WIDE, [W, *statistics(8, "in"), *ON_4],
        ["Gemm"]),
}  # fmt: skip
LEFT = {
    "padded": ([norm("x", "h"), node("Conv", "h", "w", "y", group=2, pads=[1, 1, 1, 1])], IMAGE, ["N", 6, 6, 6], [KERNEL, *ON_4]),
    "read by another": ([node("Gemm", "x", "w", "h"), norm("h", "n"), node("Add", "n", "h", "y")], ROW, WIDE, [W, *ON_4]),
    "channels not last": ([node("MatMul", "x", "w", "h"), norm("h", "y")], ["N", 4, 8], ["N", 4, 4], [W, *ON_4]),
    "what is added differs by row": (
        [node("Gemm", "x", "w", "g"), node("Add", "g", "d", "h"), norm("h", "y")], [3, 8], [3, 4], [W, small.weight("d", 3, 1), *ON_4],
    ),
    "nothing near": ([node("Relu", "x", "h"), norm("h", "y")], ROW, ROW, ON_8),
}  # fmt: skip


def simplified(folder: Path, proto: onnx.ModelProto, **options: object) -> tuple[Artifact, Path, dict[str, object]]:
    """The model, the result and what was noted."""
    (folder / "files").mkdir()
    (folder / "result").mkdir()
    onnx.checker.check_model(proto)
    made = Artifact(folder, "onnx", "model.onnx", "", "", 0, Onnx().signature(small.write(proto, folder / "files")))
    notes: dict[str, object] = {}
    return made, Simplify(**options).run(made, Context(folder / "result", note=notes.__setitem__)), notes


def same(made: Artifact, path: Path) -> bool:
    feeds = examples(made.signature, sizes={"N": 3})
    before, after = Onnx().runner(made.path)(feeds), Onnx().runner(path)(feeds)
    return all(np.allclose(before[name], array, rtol=1e-4, atol=1e-5) for name, array in after.items())


@pytest.mark.parametrize("case", FOLDED)
def test_normalizations_are_folded(tmp_path: Path, case: str) -> None:
    nodes, takes, gives, stored, left = FOLDED[case]
    made, path, notes = simplified(tmp_path, small.model(nodes, [small.value("x", takes)], [small.value("y", gives)], stored))
    slim = load(path)
    onnx.checker.check_model(slim, full_check=True)
    assert sorted(one.op_type for one in slim.graph.node) == sorted(left) and same(made, path) and Onnx().signature(path) == made.signature
    assert notes["batch_norms_folded"] == sum(one.op_type == "BatchNormalization" for one in nodes)
    assert {tensor.name for tensor in slim.graph.initializer} <= {name for one in slim.graph.node for name in one.input}


@pytest.mark.parametrize("case", LEFT)
def test_normalizations_that_no_layer_takes_up_stay(tmp_path: Path, case: str) -> None:
    nodes, takes, gives, stored = LEFT[case]
    made, path, notes = simplified(tmp_path, small.model(nodes, [small.value("x", takes)], [small.value("y", gives)], stored))
    assert "BatchNormalization" in [one.op_type for one in load(path).graph.node] and same(made, path)
    assert "batch_norms_folded" not in notes


def test_weights_of_another_type_than_the_normalization_are_left_alone(tmp_path: Path) -> None:
    half = [numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name) for one in (W, C)]
    made = [
        node("Cast", "x", "x16", to=TensorProto.FLOAT16),
        node("Gemm", "x16", "w", "c", "h"),
        norm("h", "n"),
        node("Cast", "n", "y", to=1),
    ]
    proto = small.model(made, [small.value("x", ROW)], [small.value("y", WIDE)], [*half, *ON_4])
    made, path, notes = simplified(tmp_path, proto)
    assert same(made, path) and "batch_norms_folded" not in notes


@pytest.mark.parametrize("written", [{"value_float": 0.5}, {"value_floats": [0.5] * 8}, {"value_ints": [2] * 8}, {"value_int": 2}])
def test_constants_that_are_written_as_numbers_keep_their_type(tmp_path: Path, written: dict[str, object]) -> None:
    """onnxslim makes doubles of floats, and then the model does not load."""
    made = [helper.make_node("Constant", [], ["k"], name="k", **written), node("Cast", "k", "f", to=1), node("Mul", "x", "f", "y")]
    if "value_float" in str(written):
        made = [made[0], node("Mul", "x", "k", "y")]
    made, path, _ = simplified(tmp_path, small.model(made, [small.value("x", ROW)], [small.value("y", ROW)]))
    assert same(made, path)


def three_outputs() -> onnx.ModelProto:
    """Three linear heads of one width on one trunk; the first is large, so that a mix-up by position shows."""
    made = [node("Gemm", "x", "w", "h"), *(node("Gemm", "h", f"w{index}", name) for index, name in enumerate("abc"))]
    stored = [
        small.weight("w", 16, 8),
        *(small.weight(f"w{index}", 8, 4, seed=index, scale=scale) for index, scale in enumerate((9, 0.3, 1))),
    ]
    return small.model(made, [small.value("x", ["N", 16])], [small.value(name, WIDE) for name in "abc"], stored)


def test_outputs_go_on_request_with_all_that_only_they_need(tmp_path: Path) -> None:
    made, path, notes = simplified(tmp_path, three_outputs(), outputs=["c", "b"])
    assert [spec.name for spec in Onnx().signature(path).outputs] == ["b", "c"] and same(made, path)
    assert notes["outputs_removed"] == ["a"] and notes["nodes"] == [4, 3]
    assert len(load(path).graph.initializer) == 3


def test_an_output_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no output 'd'") as caught:
        simplified(tmp_path, three_outputs(), outputs=["d"])
    assert "a, b, c" in (caught.value.remedy or "")


@pytest.mark.parametrize("reference, target", [("all", "x86-onnxruntime"), ("some", "x86-openvino")])
def test_the_walk_goes_by_the_names_of_outputs(tmp_path: Path, own_store: Path, reference: str, target: str) -> None:
    variants = "\n  all: []\n  some: [{simplify: {outputs: [c]}}, cast-fp16]"
    recipe = walks.RECIPE.replace("\n  fp32: []", variants).replace('"null"', target)
    path = walks.write(
        tmp_path, recipe.replace("targets:", f"reference: {reference}\ntargets:").replace("0.5}", "0.2, precision_percent: 50}")
    )
    onnx.save(three_outputs(), tmp_path / "model.onnx")
    report = edgeopt.run(path, tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    rows = {row.variant: row for row in report.rows}
    assert {row.status for row in report.rows} == {"measured"} and len(rows) == 2
    for row in report.rows:  # all of output c: what is scored is the same thing in every row
        assert row.scores["sqnr"].value > 55 and row.scores["agreement"].value > 0.95
        assert row.scores["top1"].value == pytest.approx(rows["all"].scores["top1"].value, abs=0.05)


def test_variants_with_no_output_in_common_cannot_be_compared(tmp_path: Path, own_store: Path) -> None:
    variants = "\n  one: [{simplify: {outputs: [a]}}]\n  two: [{simplify: {outputs: [b]}}]"
    recipe = walks.RECIPE.replace("\n  fp32: []", variants).replace("targets:", "reference: one\ntargets:")
    path = walks.write(tmp_path, recipe.replace('"null"', "x86-onnxruntime"))
    onnx.save(three_outputs(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"given by all variants \(one: a; two: b\)"):
        edgeopt.run(path, tmp_path / "out")
