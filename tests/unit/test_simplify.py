"""simplify: batch normalizations that layers beside them take up, and those that must stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx, examples, load
from edgeopt.passes.simplify import Simplify


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
