"""cast-fp16 follows ONNX's schemas: what may be float16 is, what may not stays float32, and casts stand between, in bodies too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from halves_onnx import CASES, after_product, quantized, stored
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends.tensorrt import Tensorrt, TensorrtOptions
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx, examples, graphs, nodes, tensors
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.runner import tensorrt_library as library

no_rtx = library.why_not_build("rtx")
node, value = helper.make_node, small.value


def artifact(proto, folder: Path) -> Artifact:
    (folder / "files").mkdir(parents=True)
    path = small.write(proto, folder / "files")
    return Artifact(folder, "onnx", path.name, "key", "", path.stat().st_size, Onnx().signature(path))


def halved(proto, folder: Path, **options) -> tuple[Artifact, Artifact]:
    """The model and what the pass makes of it, at rest."""
    made = artifact(proto, folder / "full")
    (folder / "cast").mkdir()
    return made, artifact(onnx.load(CastFp16(**options).run(made, Context(folder / "cast"))), folder / "half")


def in_full(proto) -> set[str]:
    """Operators that read or make float32, casts to and from it aside."""
    found: set[str] = set()
    kinds: dict[str, int] = {}
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False)
    for graph in graphs(inferred.graph):
        kinds |= {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.value_info, *graph.output)}
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for one in graph.node:
            types = [kinds.get(name, 0) for name in (*one.input, *one.output)]
            between = one.op_type == "Cast" and {*types} <= {0, small.FLOAT, TensorProto.FLOAT16}  # 0: nobody infers it
            if small.FLOAT in types and not between:
                found.add(one.op_type)
    return found


def worst(before: Artifact, after: Artifact) -> float:
    """The largest error as a share of the largest value."""
    feeds = examples(before.signature, sizes={"H": 31, "W": 22, "h": 5, "v": 7})
    wanted, found = Onnx().runner(before.path)(feeds), Onnx().runner(after.path)(feeds)
    assert [(name, one.dtype, one.shape) for name, one in found.items()] == [(name, one.dtype, one.shape) for name, one in wanted.items()]
    return max(float(np.abs(one - found[name]).max() / np.abs(one).max()) for name, one in wanted.items())


@pytest.mark.parametrize("name", CASES)
def test_types_follow_the_schemas(name, tmp_path):
    before, after = halved(CASES[name].model, tmp_path)
    onnx.checker.check_model(after.path, full_check=True)
    assert after.signature == before.signature
    assert worst(before, after) < 2e-3
    assert in_full(onnx.load(after.path)) == CASES[name].full


@pytest.mark.skipif(bool(no_rtx), reason=no_rtx)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.engine])
def test_rtx_builds_what_is_cast(name, tmp_path):
    _, half = halved(CASES[name].model, tmp_path)
    axes = {axis: (1, 8, 32) for axis in "HW" if axis in half.signature.inputs[0].shape}
    options = TensorrtOptions(product="rtx", compute_capabilities=("8.9",), profiles=axes)
    target = {"batch": 2, "compile_on": "host", "int8": "s8s8", "options": options.model_dump(mode="json")}
    (tmp_path / "engine").mkdir()
    assert Tensorrt().compile(half, Context(tmp_path / "engine", target=target)).stat().st_size > 1_000


def test_a_layer_that_is_kept_keeps_its_body(tmp_path):
    before, after = halved(small.loop(), tmp_path, keep=["rounds"])
    made = onnx.load(after.path)
    onnx.checker.check_model(made, full_check=True)
    assert {tensor.name for tensor in tensors(made) if tensor.data_type == small.FLOAT} == {"lw"}
    assert worst(before, after) < 2e-3


def test_a_weight_that_is_read_both_ways_is_stored_both_ways(tmp_path):
    proto = small.model(
        [node("MatMul", ["x", "w"], ["h"], name="first"), node("MatMul", ["h", "w"], ["y"], name="second")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        [small.weight("w", 8, 8)],
    )
    before, after = halved(proto, tmp_path, keep=["second"])
    made = onnx.load(after.path)
    assert {(tensor.name, tensor.data_type) for tensor in made.graph.initializer} == {("w", small.FLOAT), ("w_fp16", TensorProto.FLOAT16)}
    assert [one.op_type for one in nodes(made)] == ["Cast", "MatMul", "Cast", "MatMul"] and worst(before, after) < 2e-3


def test_between_layers_that_stay_float_nothing_is_cast(tmp_path):
    _, after = halved(quantized(19), tmp_path, keep=["MatMul"])
    assert [one.op_type for one in nodes(onnx.load(after.path))] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_numbers_that_float16_lacks_stay_finite_and_off_zero(tmp_path):
    """A mask of the lowest float32, and what saves a division from 0."""
    made = [
        node("Add", ["m", "mask"], ["a"]),
        node("Softmax", ["a"], ["p"]),
        node("Add", ["p", "saves"], ["q"]),
        node("Div", ["p", "q"], ["y"]),
    ]
    lowest = np.finfo(np.float32).min
    before, after = halved(after_product(made, [stored("mask", [0, 0, 0, 0, *[lowest] * 4]), stored("saves", 1e-12)]), tmp_path)
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(after.path).graph.initializer}
    assert numbers["mask"].min() == -65504 and numbers["saves"] == np.float16(2**-24)
    assert worst(before, after) < 2e-3
