"""8-bit weights where a CPU adds up products in 16 bits: none saturates, and less is rounded than with 7 bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import small_onnx as small
from onnx import helper, numpy_helper
from test_quantize_int8 import OPENVINO, X86, imported, in_openvino

from edgeopt.core.protocols import Context, Sample, Split
from edgeopt.formats import openvino as openvino_format
from edgeopt.formats import saturation
from edgeopt.formats.onnx import Onnx
from edgeopt.formats.openvino import Openvino
from edgeopt.passes.quantize_int8 import QuantizeInt8

# Inputs, outputs, size of the kernel, groups.
CONVOLUTIONS = {
    "1x1": (32, 16, 1, 1),
    "odd": (5, 8, 3, 1),
    "first": (3, 8, 3, 1),
    "gray": (1, 8, 5, 1),
    "groups": (16, 16, 3, 2),
    "depthwise": (16, 16, 3, 16),
    "depthwise-odd": (17, 17, 5, 17),
}


@pytest.mark.parametrize("axes", [(1,), (2, 1), (2, 3, 1), (3,)])
def test_what_is_rounded_to_the_reach_never_leaves_16_bits(axes):
    weights = np.random.default_rng(0).standard_t(2, (5, 7, 3, 4))
    reach = saturation.reach(weights, axes)
    assert reach.shape == tuple(1 if axis in axes else size for axis, size in enumerate(weights.shape))
    largest = np.abs(weights).max(axis=axes, keepdims=True)
    assert (reach >= largest).all() and (reach <= 2 * largest).all() and (reach < 1.9 * largest).any()
    whole = np.rint(weights / reach * 127)
    others = [axis for axis in range(4) if axis not in axes]
    for row in whole.transpose(*others, *axes).reshape(-1, int(np.prod([weights.shape[axis] for axis in axes]))):
        for one, other in pairwise(row):
            assert 255 * (max(one, 0) + max(other, 0)) < 2**15 and 255 * (min(one, 0) + min(other, 0)) >= -(2**15)


def test_the_reach_of_one_weight_of_zeros_and_of_nothing():
    assert saturation.reach(np.array([[3.0], [-2.0]]), (1,)).tolist() == [[3.0], [2.0]]
    assert saturation.reach(np.zeros((2, 4)), (1,)).tolist() == [[0.0], [0.0]]
    assert saturation.reach(np.zeros((2, 0)), (1,)).tolist() == [[0.0], [0.0]]


def layer(kind):
    """One layer whose weights are large here and there; every sum over them is one of products at full range."""
    rng = np.random.default_rng(1)

    def weights(*shape):
        values = rng.uniform(0.05, 0.2, shape)
        values[rng.uniform(size=shape) < 0.2] *= 5
        return values.astype(np.float32)

    if kind in ("MatMul", "Gemm"):
        stored = numpy_helper.from_array(weights(8, 33) if kind == "Gemm" else weights(33, 8), "w")
        node = helper.make_node(kind, ["x", "w"], ["y"], name="layer", **({"transB": 1} if kind == "Gemm" else {}))
        return small.model([node], [small.value("x", ["N", 33])], [small.value("y", ["N", 8])], [stored]), (33,)
    inputs, outputs, size, group = CONVOLUTIONS[kind]
    stored = numpy_helper.from_array(weights(outputs, inputs // group, size, size), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", group=group, pads=[size // 2] * 4)
    return small.model([node], [small.value("x", ["N", inputs, 8, 8])], [small.value("y", ["N", outputs, 8, 8])], [stored]), (inputs, 8, 8)


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "MatMul", "Gemm"])
def test_layers_at_full_range_do_not_saturate_on_this_cpu(tmp_path, kind, target):
    """Inputs at their largest, positive weights: without VNNI, 8 bits that are not kept from it saturate in every sum."""
    proto, shape = layer(kind)
    made = imported(tmp_path, proto)
    exact = Onnx().runner(made.path)
    made = in_openvino(tmp_path, made) if target["backend"] == "openvino" else made
    rng = np.random.default_rng(2)
    pictures = [np.minimum(rng.uniform(0, 1.6, shape), 1).astype(np.float32) for _ in range(40)]
    split = Split("calibrate", lambda: (Sample({"x": one}) for one in pictures), made.signature)
    (tmp_path / "result").mkdir()
    context = Context(tmp_path / "result", data={"calibrate": split}, target=target)
    path = QuantizeInt8(calibration="minmax", model_type="plain", reduce_range=True).run(made, context)
    feeds = {"x": np.stack(pictures[:1])}
    wanted = exact(feeds)["y"]
    if target["backend"] == "openvino":
        got = Openvino().runner(path)(feeds)["y"]
    else:  # as it is measured and shipped: with the kernels of 8 bits
        got = onnxruntime.InferenceSession(path).run(["y"], feeds)[0]
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 43


def test_rows_that_are_looked_up_keep_8_bits_in_openvino(tmp_path):
    """Nothing is added up there: all of a table's range is for its numbers. ONNX Runtime leaves tables in float."""
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="rows"),
        helper.make_node("Tanh", ["rows"], ["h"], name="bent"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="layer"),
    ]
    stored = [small.weight("table", 50, 16), small.weight("w", 16, 8, seed=1)]
    proto = small.model(nodes, [small.value("x", ["N", 5], small.INT64)], [small.value("y", ["N", 5, 8])], stored)
    made = in_openvino(tmp_path, imported(tmp_path, proto))
    numbers = np.random.default_rng(3).integers(0, 50, (40, 5))
    split = Split("calibrate", lambda: (Sample({"x": one}) for one in numbers), made.signature)
    (tmp_path / "result").mkdir()
    context = Context(tmp_path / "result", data={"calibrate": split}, target=OPENVINO)
    path = QuantizeInt8(calibration="minmax", model_type="plain", reduce_range=True).run(made, context)
    constants = [one.data for one in openvino_format.load(path).get_ordered_ops() if one.get_type_name() == "Constant"]
    [table] = [one for one in constants if one.shape == (50, 16)]
    assert table.dtype.itemsize == 1 and np.abs(table.astype(int)).max() > 120
