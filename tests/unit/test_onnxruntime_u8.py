"""S8 activations retyped to U8 for x86: the same numbers, the same weights, and nothing touched that is not understood."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends.onnxruntime import Onnxruntime
from edgeopt.backends.onnxruntime_u8 import retype, round_biases
from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats import saturation
from edgeopt.formats.onnx import Onnx
from edgeopt.formats.onnx_narrow import narrow


def pair(name, scale, zero=0, kind=np.int8, **attributes):
    """Nodes Q and DQ from `name` to `name`_q, and their tensors."""
    stored = [numpy_helper.from_array(np.array(scale, np.float32), f"{name}_s"), numpy_helper.from_array(np.array(zero, kind), f"{name}_z")]
    nodes = [
        helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_i"], **attributes),
        helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], [f"{name}_q"], **attributes),
    ]
    return nodes, stored


def chain(scale=0.001):
    """x → Q/DQ → Conv of S8 weights → Relu → Q/DQ → MaxPool → Q/DQ, and a pair with a zero point of its own."""
    weights = np.random.default_rng(0).integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)
    pairs = [pair("x", 0.03), pair("r", 0.05), pair("m", 0.05), pair("t", 0.02, 7)]
    stored = [one for _, more in pairs for one in more] + [
        numpy_helper.from_array(weights, "w_i"),
        numpy_helper.from_array(np.full(4, scale, np.float32), "w_s"),
        numpy_helper.from_array(np.zeros(4, np.int8), "w_z"),
    ]
    nodes = [
        *pairs[0][0],
        helper.make_node("DequantizeLinear", ["w_i", "w_s", "w_z"], ["w"], axis=0),
        helper.make_node("Conv", ["x_q", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        *pairs[1][0],
        helper.make_node("MaxPool", ["r_q"], ["m"], kernel_shape=[2, 2]),
        *pairs[2][0],
        helper.make_node("Tanh", ["m_q"], ["t"]),
        *pairs[3][0],
        helper.make_node("Identity", ["t_q"], ["y"]),
        helper.make_node("Identity", ["m_q"], ["pooled"]),
    ]
    return small.model(
        nodes, [small.value("x", [1, 2, 8, 8])], [small.value(name, ["N", "C", "H", "W"]) for name in ("pooled", "y")], stored
    )


def run(proto, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def zeros(proto):
    """The zero point of each Q by its input, with its type."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found = {node.input[0]: stored[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    return {name: (array.dtype.name, int(array.reshape(-1)[0])) for name, array in found.items()}


def test_every_value_stays_and_what_never_falls_below_0_keeps_a_zero_point_of_0():
    before, after = chain(), onnx.shape_inference.infer_shapes(chain())  # which notes types of what lies between
    assert retype(after.graph) == 4
    onnx.checker.check_model(after, full_check=True)
    assert zeros(after) == {"x": ("uint8", 128), "r": ("uint8", 0), "m": ("uint8", 0), "t": ("uint8", 135)}
    assert next(tensor for tensor in after.graph.initializer if tensor.name == "w_i").data_type == TensorProto.INT8
    x = np.random.default_rng(1).uniform(-9, 9, (1, 2, 8, 8)).astype(np.float32)
    pooled, y = run(before, {"x": x})
    assert 1 < pooled.max() < 127 * 0.05
    for one, other in zip((pooled, y), run(after, {"x": x}), strict=True):
        np.testing.assert_array_equal(one, other)
    assert retype(after.graph) == 0


def test_values_beyond_the_range_pass_where_nothing_is_negative():
    before, after = chain(0.02), chain(0.02)
    retype(after.graph)
    x = np.random.default_rng(1).uniform(-3.8, 3.8, (1, 2, 8, 8)).astype(np.float32)
    cut, whole = run(before, {"x": x})[0], run(after, {"x": x})[0]
    assert cut.max() == pytest.approx(127 * 0.05)
    assert cut.max() < whole.max() <= 255 * 0.05
    np.testing.assert_allclose(np.minimum(whole, np.float32(127 * 0.05)), cut, rtol=1e-6)


@pytest.mark.parametrize("what", ["output", "operator", "computed", "default", "unsigned"])
def test_pairs_that_something_else_reads_are_left_alone(what):
    nodes, stored = pair("x", 0.1, 0, np.uint8 if what == "unsigned" else np.int8)
    outputs = [small.value("y", [1, 4])]
    if what == "output":
        outputs.append(helper.make_tensor_value_info("x_i", TensorProto.INT8, [1, 4]))
    elif what == "operator":
        nodes.append(helper.make_node("Transpose", ["x_i"], ["other"]))
    elif what == "computed":
        nodes.insert(0, helper.make_node("Identity", ["x_z"], ["zero"]))
        nodes[1].input[2] = nodes[2].input[2] = "zero"
    elif what == "default":
        del nodes[0].input[2], nodes[1].input[2]
    nodes.append(helper.make_node("Relu", ["x_q"], ["y"]))
    proto = small.model(nodes, [small.value("x", [1, 4])], outputs, stored)
    before = proto.SerializeToString()
    assert retype(proto.graph) == 0
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    ("target", "kind"),
    [({"arch": "x86_64", "int8": "any"}, "uint8"), ({"arch": "x86_64", "int8": "s8s8"}, "int8"), ({"arch": "aarch64"}, "int8")],
)
def test_the_backend_retypes_for_x86_unless_the_target_wants_s8(tmp_path, target, kind):
    (tmp_path / "model" / "files").mkdir(parents=True)
    path = small.write(chain(), tmp_path / "model" / "files")
    model = Artifact(tmp_path / "model", "onnx", path.name, "", "", 0, Onnx().signature(path))
    (tmp_path / "out").mkdir()
    made = onnx.load(Onnxruntime().compile(model, Context(folder=tmp_path / "out", target=target)))
    assert {name for name, _ in zeros(made).values()} == {kind}
    if kind == "int8":
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def sums(weights):
    """The largest sums of two neighbours of one sign in a convolution's weights, inputs at each place of the kernel."""
    return saturation.reach(weights.astype(int), (2, 3, 1))


def test_weights_are_smaller_where_sums_of_two_overflow(tmp_path, monkeypatch):
    before, after = chain(), chain()
    retype(after.graph)
    assert narrow(after.graph) == 1
    onnx.checker.check_model(after, full_check=True)
    [weights] = [numpy_helper.to_array(one) for one in after.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1]
    assert np.abs(weights.astype(int)).max() > 64 and 120 < sums(weights).max() <= 128
    x = np.random.default_rng(1).uniform(-3.8, 3.8, (1, 2, 8, 8)).astype(np.float32)
    for one, other in zip(run(before, {"x": x}), run(after, {"x": x}), strict=True):
        assert 10 * np.log10((one**2).sum() / ((one - other) ** 2).sum()) > 25
    assert narrow(after.graph) == 0


@pytest.mark.parametrize("lacks", ["this CPU has no VNNI", ""])
def test_a_target_without_vnni_gets_them_and_its_key_says_so(tmp_path, monkeypatch, lacks):
    monkeypatch.setattr(machine, "lacks_vnni", lambda: lacks)
    files = tmp_path / "at-rest" / "files"
    files.mkdir(parents=True)
    path = small.write(chain(), files)
    model = Artifact(tmp_path / "at-rest", "onnx", path.name, "", "", 0, Onnx().signature(path))
    (tmp_path / "out").mkdir()
    fields = {"arch": "x86_64", "int8": "any", "options": {}}
    made = onnx.load(Onnxruntime().compile(model, Context(tmp_path / "out", target=fields)))
    [weights] = [numpy_helper.to_array(one) for one in made.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1]
    assert (sums(weights).max() <= 128) == bool(lacks)
    assert Onnxruntime().here(fields) == lacks
    assert Onnxruntime().here({**fields, "int8": "s8s8"}) == Onnxruntime().here({**fields, "arch": "aarch64"}) == ""


def test_a_bias_of_whole_numbers_keeps_its_value():
    """Its scale is no longer that of data times weight: onnxruntime minds it where it fuses (1.32)."""
    proto = chain()
    bias = np.array([90000, -70000, 50000, -30000], np.int32)
    scale = np.full(4, 0.03 * 0.001, np.float32)
    proto.graph.initializer.extend([numpy_helper.from_array(bias, "b_i"), numpy_helper.from_array(scale, "b_s")])
    place = next(index for index, node in enumerate(proto.graph.node) if node.op_type == "Conv")
    proto.graph.node[place].input.append("b")
    proto.graph.node.insert(place, helper.make_node("DequantizeLinear", ["b_i", "b_s"], ["b"], axis=0))
    x = np.random.default_rng(1).uniform(-3.8, 3.8, (1, 2, 8, 8)).astype(np.float32)
    wanted = run(proto, {"x": x})
    retype(proto.graph)
    assert narrow(proto.graph) == 1
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for one, other in zip(wanted, session.run(None, {"x": x}), strict=True):
        assert 10 * np.log10((one**2).sum() / ((one - other) ** 2).sum()) > 22


def test_tables_that_are_looked_up_keep_8_bits():
    nodes = [helper.make_node("DequantizeLinear", ["t_i", "t_s"], ["t"]), helper.make_node("Gather", ["t", "x"], ["y"])]
    stored = [numpy_helper.from_array(np.full((4, 4), 127, np.int8), "t_i"), numpy_helper.from_array(np.float32(0.1), "t_s")]
    proto = small.model(nodes, [small.value("x", [2], small.INT64)], [small.value("y", [2, 4])], stored)
    assert narrow(proto.graph) == 0


@pytest.mark.parametrize("scale", [np.float32(0.002), np.linspace(0.001, 0.004, 5, dtype=np.float32)], ids=["one", "each"])
def test_a_layer_whose_result_stays_float_computes_in_8_bits_too(tmp_path, scale):
    """onnxruntime wants a bias of 32-bit integers for that (1.32), TensorRT a float one: it is rounded here, and no earlier."""
    numbers = np.random.default_rng(0)
    pairs, stored = pair("x", 0.03)
    stored = [
        *stored,
        numpy_helper.from_array(numbers.integers(-63, 64, (5, 6)).astype(np.int8), "w_i"),
        numpy_helper.from_array(np.asarray(scale), "w_s"),
        numpy_helper.from_array(np.zeros(np.shape(scale), np.int8), "w_z"),
        numpy_helper.from_array(numbers.normal(size=5).astype(np.float32), "b"),
    ]
    nodes = [
        *pairs,
        helper.make_node("DequantizeLinear", ["w_i", "w_s", "w_z"], ["w"], **({"axis": 0} if np.ndim(scale) else {})),
        helper.make_node("Gemm", ["x_q", "w", "b"], ["y"], transB=1),
    ]
    before = small.model(nodes, [small.value("x", ["N", 6])], [small.value("y", ["N", 5])], stored)
    files = tmp_path / "at-rest" / "files"
    files.mkdir(parents=True)
    model = Artifact(tmp_path / "at-rest", "onnx", small.write(before, files).name, "", "", 0, Onnx().signature(files / "model.onnx"))
    (tmp_path / "out").mkdir()
    path = Onnxruntime().compile(model, Context(tmp_path / "out", target={"arch": "x86_64", "int8": "any", "options": {}}))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    session = onnxruntime.InferenceSession(str(path), options)
    assert [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node] == ["QuantizeLinear", "QGemm"]
    x = numbers.uniform(-4, 4, (3, 6)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], run(before, {"x": x})[0], atol=0.03 * 0.004)
    assert round_biases(onnx.load(path).graph) == 0
    far = onnx.ModelProto()
    far.CopyFrom(before)
    next(one for one in far.graph.initializer if one.name == "b").CopyFrom(numpy_helper.from_array(np.full(5, 1e6, np.float32), "b"))
    assert round_biases(far.graph) == 0
