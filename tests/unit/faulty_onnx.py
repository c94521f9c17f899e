"""Small ONNX models with one known fault each for TensorRT, and good ones; `python tests/unit/faulty_onnx.py FOLDER` writes them all.

`parser` is what the parser of TensorRT for RTX 1.7 says of the same model: `refuses` or `accepts`. Where
that differs from layer A, `why` explains the difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

import small_onnx as small
from small_onnx import FLOAT, INT64, ints, model, value, weight

INT8, UINT8, INT16, UINT16, INT32 = TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32
FP16, BF16, FP64, FP8 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN
BOOL, STRING, UINT32, UINT64 = TensorProto.BOOL, TensorProto.STRING, TensorProto.UINT32, TensorProto.UINT64
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Case:
    """One model. `node` and `says` must stand in the finding; `level` is that of layer A, None for a good model."""

    name: str
    make: Callable[[], ModelProto]
    level: str | None = None
    node: str = ""
    says: str = ""
    parser: str = "accepts"
    why: str = ""
    target: dict[str, Any] = field(default_factory=dict)


FAULTY: list[Case] = []
GOOD: list[Case] = []


def fault(level: str, node: str, says: str, parser: str = "refuses", why: str = "", **target: Any) -> Callable[[Any], Any]:
    def keep(make: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        FAULTY.append(Case(make.__name__, make, level, node, says, parser, why, target))
        return make

    return keep


def good(make: Callable[[], ModelProto] | None = None, **target: Any) -> Any:
    def keep(made: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        GOOD.append(Case(made.__name__, made, target=target))
        return made

    return keep(make) if make else keep


def scalar(name: str, number: Any, kind: int = FLOAT) -> TensorProto:
    shape = [len(number)] if isinstance(number, (list, tuple)) else []
    return helper.make_tensor(name, kind, shape, number if shape else [number])


def pair(source: str, name: str, scale: Any = 0.1, zero: Any = 0, kind: int = INT8, axis: int | None = None) -> tuple[list[Any], list[Any]]:
    """Nodes and tensors of `name` = DQ(Q(source)); the nodes are called `name`_q and `name`_dq."""
    extra = {} if axis is None else {"axis": axis}
    tensors = [scalar(f"{name}_s", scale), scalar(f"{name}_z", zero, kind)]
    nodes = [
        helper.make_node("QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [f"{name}_8"], name=f"{name}_q", **extra),
        helper.make_node("DequantizeLinear", [f"{name}_8", f"{name}_s", f"{name}_z"], [name], name=f"{name}_dq", **extra),
    ]
    return nodes, tensors


def stored(name: str, shape: tuple[int, ...], axis: int | None = 0, zero: int = 0, kind: int = INT8, scale: Any = None) -> tuple[Any, list[Any]]:
    """A DQ of stored integers and its tensors; per channel along `axis`, per tensor when that is None."""
    low, high = (0, 255) if kind == UINT8 else (-127, 128)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    numbers = np.random.default_rng(7).integers(low, high, shape).astype(dtype)
    count = 1 if axis is None else shape[axis]
    scales = scale if scale is not None else ([0.01] * count if axis is not None else 0.01)
    zeros = [zero] * count if axis is not None else zero
    tensors = [numpy_helper.from_array(numbers, f"{name}_i"), scalar(f"{name}_s", scales), scalar(f"{name}_z", zeros, kind)]
    extra = {} if axis is None else {"axis": axis}
    return helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], [name], name=f"{name}_dq", **extra), tensors


def conv(x: dict[str, Any] | None = None, w: dict[str, Any] | None = None, bias: tuple[Any, list[Any]] | None = None) -> ModelProto:
    """Q/DQ → Conv(8) with stored INT8 weights and an FP32 bias, on a [1, 3, 8, 8] image."""
    nodes, tensors = pair("x", "a", **(x or {}))
    weights, more = stored("w", (8, 3, 3, 3), **(w or {}))
    if bias:
        nodes.append(bias[0])
    nodes += [weights, helper.make_node("Conv", ["a", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 8, 8])], [*tensors, *more, *(bias[1] if bias else [weight("b", 8)])])


def after(op: str, *, inputs: list[str] | None = None, tensors: Any = (), opset: int = 20, **attributes: Any) -> ModelProto:
    """MatMul → the operator `op`, called `op` → Q/DQ → MatMul: the operator's output is quantized."""
    nodes, scales = pair("o", "a")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node(op, inputs or ["m"], ["o"], name="op", **attributes),
        *nodes,
        helper.make_node("MatMul", ["a", "v"], ["y"], name="last"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [weight("w", 8, 8), weight("v", 8, 8, seed=1), *tensors, *scales], opset)


def one(op: str, inputs: Any, outputs: Any, tensors: Any = (), opset: int = 20, domain: str = "", **attributes: Any) -> ModelProto:
    """A model of a single node called `op`."""
    names = [spec.name for spec in inputs] + [tensor.name for tensor in tensors]
    node = helper.make_node(op, names, [spec.name for spec in outputs], name="op", domain=domain, **attributes)
    return model([node], inputs, outputs, tensors, opset, domains=[domain] if domain else ())


# -- zero points and types of Q/DQ -----------------------------------------------------------------


@fault("error", "a_q", "zero point 5")
def activation_zero_point() -> ModelProto:
    return conv(x={"zero": 5})


@fault("error", "w_dq", "zero point 3")
def weight_zero_point() -> ModelProto:
    return conv(w={"zero": 3})


@fault("error", "a_q", "UINT8", parser="accepts", why="the trap: it builds, with one warning, and computes with the wrong scale")
def uint8_activation() -> ModelProto:
    return conv(x={"kind": UINT8})


@fault("error", "a_q", "UINT8")
def uint8_activation_with_zero_point() -> ModelProto:
    return conv(x={"kind": UINT8, "zero": 128})


@fault("error", "w_dq", "UINT8")
def uint8_weight() -> ModelProto:
    return conv(w={"kind": UINT8, "zero": 128})


@fault("error", "a_q", "UINT8", parser="accepts", why="the trap again: Q without a zero point makes UINT8")
def no_zero_point() -> ModelProto:
    made = conv()
    for node in made.graph.node[:2]:
        del node.input[2]
    return made


@fault("error", "a_q", "UINT8", parser="accepts", why="the trap again, the zero point in a Constant node")
def uint8_in_constant_node() -> ModelProto:
    made = conv(x={"kind": UINT8})
    zero = next(tensor for tensor in made.graph.initializer if tensor.name == "a_z")
    made.graph.node.insert(0, helper.make_node("Constant", [], ["a_z"], value=zero))
    made.graph.initializer.remove(zero)
    return made


@fault("error", "a_q", "INT16")
def int16_activation() -> ModelProto:
    made = conv(x={"kind": INT16})
    made.opset_import[0].version = 21
    return made


@fault("error", "a_q", "UINT16")
def uint16_activation() -> ModelProto:
    made = conv(x={"kind": UINT16})
    made.opset_import[0].version = 21
    return made


@fault("error", "b_dq", "INT32")
def int32_bias() -> ModelProto:
    return conv(bias=stored("b", (8,), axis=None, kind=INT32))


@fault("error", "b_dq", "INT32")
def int32_bias_per_channel() -> ModelProto:
    return conv(bias=stored("b", (8,), kind=INT32))


@fault("error", "conv", "bias")
def int8_bias() -> ModelProto:
    return conv(bias=stored("b", (8,), axis=None))


# -- scales ----------------------------------------------------------------------------------------


@fault("error", "a_q", "scale 0")
def zero_scale() -> ModelProto:
    return conv(x={"scale": 0.0})


@fault("error", "a_q", "scale -0.1")
def negative_scale() -> ModelProto:
    return conv(x={"scale": -0.1})


@fault("error", "w_dq", "scale 0")
def dead_channel() -> ModelProto:
    return conv(w={"scale": [0.01] * 7 + [0.0]})


@fault("error", "a_q", "scale nan")
def scale_not_a_number() -> ModelProto:
    return conv(x={"scale": float("nan")})


@fault("error", "a_q", "not constant")
def computed_scale() -> ModelProto:
    made = conv()
    made.graph.initializer.remove(next(tensor for tensor in made.graph.initializer if tensor.name == "a_s"))
    made.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["a_s"], name="range", keepdims=0))
    return made


@fault("error", "a_dq", "another scale")
def unequal_scales() -> ModelProto:
    made = conv()
    made.graph.node[1].input[1] = "other"
    made.graph.initializer.append(scalar("other", 0.2))
    return made


# -- where Q/DQ stand ------------------------------------------------------------------------------


@fault("error", "w_dq", "axis 1")
def conv_weight_axis() -> ModelProto:
    return conv(w={"axis": 1})


@fault("error", "w_dq", "axis 0")
def transposed_conv_weight_axis() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (3, 8, 3, 3), axis=0)
    nodes += [weights, helper.make_node("ConvTranspose", ["a", "w"], ["y"], name="up")]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 10, 10])], [*tensors, *more])


@fault("error", "w_dq", "axis 0")
def matmul_weight_axis() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (16, 8), axis=0)
    nodes += [weights, helper.make_node("MatMul", ["a", "w"], ["y"], name="linear")]
    return model(nodes, [value("x", [4, 16])], [value("y", [4, 8])], [*tensors, *more])


@fault("error", "a_q", "per channel")
def per_channel_activation() -> ModelProto:
    return conv(x={"scale": [0.1, 0.2, 0.3], "zero": [0, 0, 0], "axis": 1})


@fault("error", "a_q", "not followed")
def quantize_only() -> ModelProto:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="a_q")
    return model([node], [value("x", [1, 8])], [value("y", [1, 8], INT8)], [scalar("s", 0.1), scalar("z", 0, INT8)])


@fault("error", "a_q", "not followed")
def integers_used_raw() -> ModelProto:
    nodes, tensors = pair("x", "a")
    nodes += [helper.make_node("Cast", ["a_8"], ["c"], name="cast", to=FLOAT), helper.make_node("Add", ["a", "c"], ["y"], name="add")]
    return model(nodes, [value("x", [1, 8])], [value("y", [1, 8])], tensors)


@fault("warning", "op", "Softmax")
def quantized_softmax() -> ModelProto:
    return after("Softmax", axis=-1)


@fault("warning", "op", "Gelu")
def quantized_gelu() -> ModelProto:
    return after("Gelu")


@fault("warning", "op", "LayerNormalization")
def quantized_layer_norm() -> ModelProto:
    return after("LayerNormalization", inputs=["m", "g"], tensors=[weight("g", 8)])


@fault("warning", "add", "one side")
def one_sided_residual() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (8, 8, 3, 3))
    nodes += [
        weights,
        helper.make_node("Conv", ["a", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "x"], ["s"], name="add"),
        *pair("s", "e")[0],
        helper.make_node("Conv", ["e", "w"], ["y"], name="conv2", pads=[1, 1, 1, 1]),
    ]
    tensors += more + pair("s", "e")[1]
    return model(nodes, [value("x", [1, 8, 8, 8])], [value("y", [1, 8, 8, 8])], tensors)


# -- operators -------------------------------------------------------------------------------------


@fault("error", "op", "QLinearConv")
def qlinear_conv() -> ModelProto:
    zero, small_scale = scalar("z", 0, INT8), scalar("s", 0.1)
    _, tensors = stored("w", (8, 3, 3, 3), axis=None)
    node = helper.make_node("QLinearConv", ["x8", "s", "z", "w_i", "s", "z", "s", "z"], ["y8"], name="op")
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"], name="q")
    dequantize = helper.make_node("DequantizeLinear", ["y8", "s", "z"], ["y"], name="dq")
    return model([quantize, node, dequantize], [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 6, 6])], [zero, small_scale, tensors[0]])


@fault("error", "op", "QLinearMatMul")
def qlinear_matmul() -> ModelProto:
    zero, small_scale = scalar("z", 0, INT8), scalar("s", 0.1)
    _, tensors = stored("w", (8, 8), axis=None)
    node = helper.make_node("QLinearMatMul", ["x8", "s", "z", "w_i", "s", "z", "s", "z"], ["y8"], name="op")
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"], name="q")
    dequantize = helper.make_node("DequantizeLinear", ["y8", "s", "z"], ["y"], name="dq")
    return model([quantize, node, dequantize], [value("x", [2, 8])], [value("y", [2, 8])], [zero, small_scale, tensors[0]])


@fault("error", "op", "ConvInteger")
def conv_integer() -> ModelProto:
    return one("ConvInteger", [value("x", [1, 3, 8, 8], INT8)], [value("y", [1, 8, 6, 6], INT32)], [stored("w", (8, 3, 3, 3))[1][0]])


@fault("error", "op", "MatMulInteger")
def matmul_integer() -> ModelProto:
    return one("MatMulInteger", [value("x", [2, 8], INT8)], [value("y", [2, 8], INT32)], [stored("w", (8, 8))[1][0]])


@fault("error", "op", "DynamicQuantizeLinear")
def dynamic_quantization() -> ModelProto:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "s", "z"], name="op"),
        helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["y"], name="dq"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("error", "op", "com.microsoft")
def microsoft_operator() -> ModelProto:
    return one("FusedConv", [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 6, 6])], [weight("w", 8, 3, 3, 3)], domain=MICROSOFT, activation="Relu")


@fault("error", "a_q", "com.microsoft")
def microsoft_quantization() -> ModelProto:
    made = conv(x={"kind": INT16})
    for node in made.graph.node[:2]:
        node.domain = MICROSOFT
    made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return made


@fault("error", "op", "my.own")
def unknown_domain() -> ModelProto:
    return one("Sparkle", [value("x", [2, 8])], [value("y", [2, 8])], domain="my.own")


@fault("error", "op", "NonZero")
def sizes_from_data() -> ModelProto:
    return one("NonZero", [value("x", [2, 8])], [value("y", [2, "found"], INT64)])


@fault("error", "op", "Det")
def operator_without_kernel() -> ModelProto:
    return one("Det", [value("x", [2, 8, 8])], [value("y", [2])])


@fault("error", "op", "SequenceConstruct")
def sequences() -> ModelProto:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], name="op"),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], name="join", axis=0),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [4, 8])])


# -- types -----------------------------------------------------------------------------------------


@fault("error", "x", "STRING")
def string_input() -> ModelProto:
    return one("Identity", [value("x", [2], STRING)], [value("y", [2], STRING)])


@fault("error", "x", "UINT32")
def uint32_input() -> ModelProto:
    return one("Cast", [value("x", [2, 8], UINT32)], [value("y", [2, 8])], to=FLOAT)


@fault("error", "x", "UINT64")
def uint64_input() -> ModelProto:
    return one("Cast", [value("x", [2, 8], UINT64)], [value("y", [2, 8])], to=FLOAT)


@fault("error", "x", "DOUBLE")
def float64_input() -> ModelProto:
    return one("Relu", [value("x", [2, 8], FP64)], [value("y", [2, 8], FP64)])


@fault("error", "add", "FLOAT16 and FLOAT")
def mixed_operands() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=FP16),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "w"], ["y"], name="add"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [weight("w", 8)])


@fault("error", "linear", "FLOAT16 and FLOAT")
def mixed_matmul() -> ModelProto:
    half = numpy_helper.from_array(np.ones((8, 4), np.float16), "w")
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")], [value("x", [2, 8])], [value("y", [2, 4])], [half])


# -- the target ------------------------------------------------------------------------------------


@fault("error", "x", "axis 'T'", parser="accepts", why="the parser does not know the profile; the builder then refuses")
def axis_without_range() -> ModelProto:
    return small.attention()


@fault("error", "first", "FP32", parser="accepts", why="the parser does not know the GPU; the builder then refuses", compute_capabilities=["7.5"])
def fp32_gemm_on_turing() -> ModelProto:
    return small.mlp(batch=1)


@fault("error", "linear", "FP32", parser="accepts", why="the parser does not know the GPU; the builder then refuses", compute_capabilities=["8.9", "7.5"])
def fp32_matmul_on_turing() -> ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")], [value("x", [2, 8])], [value("y", [2, 4])], [weight("w", 8, 4)])


@fault("error", "relu", "BFLOAT16", parser="accepts", why="the parser does not know the GPU", compute_capabilities=["7.5"])
def bfloat16_on_turing() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=BF16),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["y"], name="back", to=FLOAT),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("error", "a_q", "FLOAT8", parser="accepts", why="the parser does not know the GPU", compute_capabilities=["8.6"])
def fp8_on_ampere() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=FP8)
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"))
    return model(nodes, [value("x", [16, 16])], [value("y", [16, 16])], [*tensors, weight("w", 16, 16)], opset=19)


# -- in bodies -------------------------------------------------------------------------------------


@fault("error", "a_q", "UINT8", parser="accepts", why="the trap again, in a branch of an If")
def uint8_in_branch() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=UINT8)
    then = helper.make_graph([*nodes, helper.make_node("MatMul", ["a", "w"], ["t"], name="left")], "then", [], [value("t", [2, 4])], tensors)
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["e"], name="right")], "else", [], [value("e", [2, 4])])
    node = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=then, else_branch=other)
    return model([node], [value("x", [2, 8]), value("flag", [], BOOL)], [value("y", [2, 4])], [weight("w", 8, 4)])


@fault("error", "a_q", "zero point 5")
def zero_point_in_loop() -> ModelProto:
    made = small.loop()
    body = made.graph.node[0].attribute[0].g
    nodes, tensors = pair("s", "a", zero=5)
    body.initializer.extend(tensors)
    body.node[0].input[0] = "a"
    for index, node in enumerate(nodes):
        body.node.insert(index, node)
    return made


# -- good ------------------------------------------------------------------------------------------


@good
def plain_cnn() -> ModelProto:
    return small.cnn(size=(16, 16), batch=1)


@good
def weights_in_constant_nodes() -> ModelProto:
    return small.cnn(size=(16, 16), batch=1, constants=True)


@good
def dynamic_batch() -> ModelProto:
    return small.mlp()


@good(profiles={"T": [1, 16, 32]})
def transformer() -> ModelProto:
    return small.attention()


@good(profiles={"T": [1, 8, 16]})
def lstm() -> ModelProto:
    return small.recurrent()


@good
def branch() -> ModelProto:
    return small.branches()


@good
def rounds() -> ModelProto:
    return small.loop()


@good(profiles={"T": [1, 8, 16]})
def integer_inputs() -> ModelProto:
    return small.embedding()


@good
def quantized_conv() -> ModelProto:
    return conv()


@good
def quantized_residual() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (8, 8, 3, 3))
    nodes += [
        weights,
        helper.make_node("Conv", ["a", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        *pair("c", "d")[0],
        helper.make_node("Add", ["d", "a"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    return model(nodes, [value("x", [1, 8, 8, 8])], [value("y", [1, 8, 8, 8])], [*tensors, *more, *pair("c", "d")[1]])


@good
def quantized_linear() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (16, 8), axis=1)
    nodes += [weights, helper.make_node("MatMul", ["a", "w"], ["m"], name="linear"), helper.make_node("Add", ["m", "b"], ["y"], name="bias")]
    return model(nodes, [value("x", [4, 16])], [value("y", [4, 8])], [*tensors, *more, weight("b", 8)])


@good
def quantized_gemm() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (8, 16), axis=0)
    nodes += [weights, helper.make_node("Gemm", ["a", "w", "b"], ["y"], name="linear", transB=1)]
    return model(nodes, [value("x", [4, 16])], [value("y", [4, 8])], [*tensors, *more, weight("b", 8)])


@good
def quantized_transposed_conv() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (3, 8, 3, 3), axis=1)
    nodes += [weights, helper.make_node("ConvTranspose", ["a", "w"], ["y"], name="up")]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 10, 10])], [*tensors, *more])


@good(compute_capabilities=["7.5", "8.6", "8.9", "12.0"])
def half_precision() -> ModelProto:
    half = numpy_helper.from_array(np.ones((8, 8), np.float16), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="in", to=FP16),
        helper.make_node("MatMul", ["h", "w"], ["m"], name="linear"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["y"], name="out", to=FLOAT),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [half])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in FAULTY + GOOD:
        onnx.save_model(case.make(), folder / f"{case.name}.onnx")
        print(f"{case.level or 'good':8} {case.name}.onnx  {case.node} {case.says}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
