"""quantize-int8 with `engine: nncf` on ONNX models: in the flavour of the target, and never U8 for TensorRT."""

from __future__ import annotations

import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper
from test_quantize_int8 import OPENVINO, TENSORRT, X86, decibels, imported, prepared, quantize
from test_tensorrt_check import target as gpu

from edgeopt.backends import tensorrt_check
from edgeopt.backends.onnxruntime_u8 import retype
from edgeopt.core.errors import StepError, UsageError
from edgeopt.formats.onnx import Onnx, load, runner_of
from edgeopt.passes.quantize_int8_onnx import refuse_unsigned


def depthwise():
    made = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "p"], ["y"], name="pointwise"),
    ]
    weights = [small.weight("w", 8, 1, 3, 3), small.weight("b", 8, seed=1), small.weight("p", 4, 8, 1, 1, seed=2)]
    return small.model(made, [small.value("x", ["N", 8, 8, 8])], [small.value("y", ["N", 4, 8, 8])], weights)


def old_cnn():
    return small.cnn(opset=11, constants=True)


def recommender():
    """Two embeddings through layers, and a third one that is added to the last product: onnxruntime makes it the bias of a Gemm."""
    made = [
        helper.make_node("Gather", ["users", "u"], ["ue"], name="user"),
        helper.make_node("Gather", ["items", "i"], ["ie"], name="item"),
        helper.make_node("Gather", ["wide", "u"], ["we"], name="wide"),
        helper.make_node("Concat", ["ue", "ie"], ["c"], name="join", axis=1),
        helper.make_node("MatMul", ["c", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["d"], name="second"),
        helper.make_node("Add", ["d", "we"], ["y"], name="sum"),
    ]
    sizes = {"users": (20, 8), "items": (30, 8), "wide": (20, 1), "w1": (16, 16), "w2": (16, 1)}
    weights = [small.weight(name, *size, seed=seed) for seed, (name, size) in enumerate(sizes.items())]
    inputs = [small.value(name, ["N"], TensorProto.INT64) for name in "ui"]
    return small.model(made, inputs, [small.value("y", ["N", 1])], weights)


def computed(weight=False):
    """A convolution whose bias, or whose weights, are made by another layer."""
    size = (4, 3, 3, 3) if weight else (4,)
    made = [
        helper.make_node("Gemm", ["s", "g"], ["made"], name="hyper"),
        helper.make_node("Reshape", ["made", "size"], ["m"], name="shape"),
        helper.make_node("Conv", ["x", *(["m"] if weight else ["w", "m"])], ["y"], name="conv"),
    ]
    weights = [small.weight("g", 5, 108 if weight else 4), small.ints("size", *size), small.weight("w", 4, 3, 3, 3, seed=1)]
    inputs = [small.value("x", [1, 3, 8, 8]), small.value("s", [1, 5])]
    return small.model(made, inputs, [small.value("y", [1, 4, 6, 6])], weights)


def halves():
    """A convolution in float16, its input and its output too."""
    w = numpy_helper.from_array(numpy_helper.to_array(small.weight("w", 4, 3, 3, 3)).astype("float16"), "w")
    ends = ([small.value(name, ["N", *size], TensorProto.FLOAT16)] for name, size in (("x", (3, 8, 8)), ("y", (4, 6, 6))))
    return small.model([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], *ends, [w], opset=19)


def zeros(path):
    """The zero points of all Q/DQ pairs."""
    proto = load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [stored[node.input[2]] for node in proto.graph.node if node.op_type.endswith("Linear")]


@pytest.mark.parametrize("make", [small.mlp, small.cnn, old_cnn, depthwise, small.attention, small.branches, small.recurrent])
@pytest.mark.parametrize("target", [X86, TENSORRT], ids=lambda target: target["backend"])
def test_the_function_and_the_flavour_are_kept(tmp_path, make, target):
    made = imported(tmp_path, make())
    path, notes = quantize(tmp_path, made, target, engine="nncf", calibration="minmax")
    assert notes["engine"] == "nncf" and notes["quantized_layers"] and notes["flavour"] == ("u8s8" if target is X86 else "s8s8")
    assert Onnx().signature(path) == made.signature and decibels(made, path) > 10
    onnx.checker.check_model(load(path))
    if target is X86:  # what the backend makes of it runs too
        proto = load(path)
        retype(proto.graph)
        runner_of(proto.SerializeToString())
    else:
        refuse_unsigned(load(path))
        if make in (small.mlp, depthwise):
            assert not [one for one in tensorrt_check.check(path, gpu()) if one.level == "error"]


@pytest.mark.parametrize("make", [recommender, computed, halves, small.half_inside])
def test_what_nncf_cannot_read_is_written_otherwise_for_it(tmp_path, make):
    made = imported(tmp_path, make())
    path, notes = quantize(tmp_path, made, X86, engine="nncf", calibration="minmax", model_type="plain")
    assert notes["quantized_layers"] and Onnx().signature(path) == made.signature and decibels(made, path) > 25


def test_computed_weights_of_a_convolution_are_told(tmp_path):
    with pytest.raises(StepError, match="NNCF reads no convolution whose weights are computed, as those of 'conv' are"):
        quantize(tmp_path, imported(tmp_path, computed(weight=True)), X86, engine="nncf", calibration="minmax")


def test_what_nncf_makes_unsigned_reaches_as_far_when_it_is_signed(tmp_path):
    """The trap: behind a ReLU NNCF writes U8 around 0, which TensorRT reads as S8 with the same scale."""
    made = imported(tmp_path, depthwise())
    found = {}
    for target in (X86, TENSORRT):
        (tmp_path / target["backend"]).mkdir()
        path, _ = quantize(tmp_path / target["backend"], made, target, engine="nncf", calibration="minmax", model_type="plain")
        found[target["backend"]] = decibels(made, path), {str(zero.dtype) for zero in zeros(path)}
    assert found["onnxruntime"][1] == {"int8", "uint8"} and found["tensorrt"][1] == {"int8"}
    assert found["tensorrt"][0] > found["onnxruntime"][0] - 5  # one bit fewer behind the ReLU, not half the range


def test_what_the_engine_offers(tmp_path):
    made = imported(tmp_path, small.attention())
    _, notes = quantize(
        tmp_path,
        made,
        X86,
        engine="nncf",
        calibration="mse",
        smooth=0.5,
        bias_correction="none",
        model_type="transformer",
        reduce_range=False,
    )
    assert notes["chosen"] == "transformer, mse, no bias correction, SmoothQuant 0.5"
    (tmp_path / "ov").mkdir()
    for refused, target, told in [
        ({"engine": "nncf", "calibration": "entropy"}, X86, "not offered for onnx models by nncf"),
        ({"engine": "nncf", "bias_correction": "full"}, X86, "full bias correction is not offered for onnx models"),
        ({"engine": "onnxruntime"}, OPENVINO, "onnxruntime quantizes no openvino models"),
    ]:
        model = made if target is X86 else prepared(tmp_path / "ov", small.mlp(), target)
        with pytest.raises(UsageError, match=told):
            quantize(tmp_path, model, target, **refused)


def test_layers_are_kept_and_nothing_left_is_said(tmp_path):
    made = imported(tmp_path, small.cnn())
    path, notes = quantize(tmp_path, made, X86, engine="nncf", calibration="minmax", keep=["conv2"])
    assert notes["quantized_layers"]["Conv"] == 1
    assert [tensor.name for tensor in load(path).graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1] == [
        "w2"
    ]
    with pytest.raises(StepError, match="nothing was quantized"):
        quantize(tmp_path, made, X86, engine="nncf", keep=["*"])
