"""Models that TensorRT builds and runs as they are."""

from __future__ import annotations

import numpy as np
import small_onnx as small
from faulty_parts import FP16, conv, good, pair, stored
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
