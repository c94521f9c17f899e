"""Models that TensorRT builds and runs as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import small_onnx as small
from faulty_parts import BOOL, FP16, INT4, INT8, conv, good, pair, scalar, stored
from onnx import ModelProto, helper, numpy_helper
from small_onnx import FLOAT, model, value, weight

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


@good(profiles={"T": [1, 8, 16], "N": [1, 1, 4]})
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
    nodes += [
        weights,
        helper.make_node("MatMul", ["a", "w"], ["m"], name="linear"),
        helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
    ]
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


# -- quantized as exporters spell it ---------------------------------------------------------------


@good
def scale_spelt_as_a_number() -> ModelProto:
    made = conv()
    for name, extra in {"a_s": {"value_float": 0.1}, "w_s": {"value_floats": [0.01] * 8}}.items():
        made.graph.initializer.remove(next(tensor for tensor in made.graph.initializer if tensor.name == name))
        made.graph.node.insert(0, helper.make_node("Constant", [], [name], name=f"{name}_made", **extra))
    return made


@good
def scales_and_weights_cast_to_half() -> ModelProto:
    """As modelopt exports for FP16: scales are cast, weights are stored in FP32, cast, transposed, and only then rounded."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="in", to=FP16),
        *(helper.make_node("Cast", [f"{name}_f"], [f"{name}_s"], name=f"{name}_cast", to=FP16) for name in "aw"),
        helper.make_node("Cast", ["w_f32"], ["w_h"], name="w_half", to=FP16),
        helper.make_node("Transpose", ["w_h"], ["w_t"], name="w_turn", perm=[1, 0]),
        *pair("h", "a")[0],
        *pair("w_t", "w", axis=1)[0],
        helper.make_node("MatMul", ["a", "w"], ["m"], name="linear"),
        helper.make_node("Cast", ["m"], ["y"], name="out", to=FLOAT),
    ]
    zeros = [
        tensor for name, many in {"a": 0, "w": [0] * 8}.items() for tensor in pair("", name, zero=many)[1] if tensor.name.endswith("_z")
    ]
    tensors = [weight("w_f32", 8, 16), scalar("a_f", 0.1), scalar("w_f", [0.01] * 8), *zeros]
    return model(nodes, [value("x", [4, 16])], [value("y", [4, 8])], tensors, opset=19)


@good
def scale_handed_to_a_function() -> ModelProto:
    """A function that rounds with the scale it is given. It is called once: RTX 1.7 gives two layers the same name, and refuses that."""
    nodes, _ = pair("a", "b")
    opset = [helper.make_opsetid("", 17)]
    call = helper.make_node("Rounded", ["x", "s", "z"], ["y"], name="call", domain="my.own")
    made = model([call], [value("x", [2, 8])], [value("y", [2, 8])], [scalar("s", 0.1), scalar("z", 0, INT8)])
    made.functions.append(helper.make_function("my.own", "Rounded", ["a", "b_s", "b_z"], ["b"], nodes, opset))
    made.opset_import.append(helper.make_opsetid("my.own", 1))
    return made


@good
def moved_between_q_and_dq() -> ModelProto:
    quantize, dequantize = pair("x", "a")[0]
    quantize.output[0], dequantize.input[0] = "q", "t"
    nodes = [
        quantize,
        helper.make_node("MaxPool", ["q"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], name="turn", perm=[0, 2, 3, 1]),
        dequantize,
        helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"),
    ]
    return model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 4, 4, 8])], [*pair("x", "a")[1], weight("w", 4, 8)])


@good
def dequantized_in_the_branches() -> ModelProto:
    quantize, dequantize = pair("x", "a")[0]

    def branch(name: str) -> Any:
        node = helper.make_node("DequantizeLinear", list(dequantize.input), [f"{name}_a"], name=f"{name}_dq")
        end = helper.make_node("MatMul", [f"{name}_a", "w"], [name], name=f"{name}_linear")
        return helper.make_graph([node, end], name, [], [value(name, [2, 4])])

    node = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=branch("t"), else_branch=branch("e"))
    inputs = [value("x", [2, 8]), value("flag", [], BOOL)]
    return model([quantize, node], inputs, [value("y", [2, 4])], [*pair("x", "a")[1], weight("w", 8, 4)])


@good
def mish() -> ModelProto:
    """x · tanh(softplus(x)) before a Q: no GELU, though it has a Tanh in a product."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node("Softplus", ["m"], ["p"], name="softplus"),
        helper.make_node("Tanh", ["p"], ["t"], name="tanh"),
        helper.make_node("Mul", ["m", "t"], ["o"], name="op"),
        *pair("o", "a")[0],
        helper.make_node("MatMul", ["a", "v"], ["y"], name="last"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [weight("w", 8, 8), weight("v", 8, 8, seed=1), *pair("o", "a")[1]])


@good
def weights_rounded_to_4_bits() -> ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["w_4", "w_s"], ["w"], name="w_dq", axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="linear"),
    ]
    tensors = [helper.make_tensor("w_4", INT4, [64, 16], [1] * 1024), helper.make_tensor("w_s", FLOAT, [4, 16], [0.1] * 64)]
    return model(nodes, [value("x", [4, 64])], [value("y", [4, 16])], tensors, opset=21)
