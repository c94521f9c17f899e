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
