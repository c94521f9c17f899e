"""Models whose operators, types, axes or GPUs TensorRT has trouble with."""

from __future__ import annotations

import numpy as np
import small_onnx as small
from faulty_parts import (
    BF16,
    BOOL,
    FP8,
    FP16,
    FP64,
    GPU,
    INT8,
    INT16,
    INT32,
    MICROSOFT,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    conv,
    fault,
    one,
    pair,
    scalar,
    stored,
)
from onnx import ModelProto, helper, numpy_helper
from small_onnx import FLOAT, INT64, ints, model, value, weight
from sound_onnx import quantized_gemm

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
    return one(
        "FusedConv", [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 6, 6])], [weight("w", 8, 3, 3, 3)], domain=MICROSOFT, activation="Relu"
    )


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


@fault("error", "op", "NonMaxSuppression", parser="accepts", why="the parser accepts it, and then the builder has no kernel")
def boxes_from_data() -> ModelProto:
    boxes = [value("b", [1, 20, 4]), value("s", [1, 2, 20])]
    return one("NonMaxSuppression", boxes, [value("y", ["found", 3], INT64)], [ints("most", 5), weight("overlap", 1)])


@fault("error", "op", "RoiAlign")
def regions() -> ModelProto:
    tensors = [numpy_helper.from_array(np.array([[0, 0, 4, 4], [2, 2, 6, 6]], np.float32), "regions"), ints("of", 0, 0)]
    return one("RoiAlign", [value("x", [1, 3, 8, 8])], [value("y", [2, 3, 2, 2])], tensors, output_height=2, output_width=2)


@fault("warning", "op", "Attention", parser="accepts", why="the parser accepts it, and then the builder has no kernel for it")
def attention_in_one_operator() -> ModelProto:
    sides = [value(name, [2, 2, 8, 8]) for name in "qkv"]
    return one("Attention", sides, [value("y", [2, 2, 8, 8])], opset=23)


@fault("error", "op", "training")
def dropout_that_drops() -> ModelProto:
    tensors = [scalar("ratio", 0.5), scalar("training", True, BOOL)]
    return one("Dropout", [value("x", [2, 8])], [value("y", [2, 8])], tensors)


@fault("error", "op", "training")
def batch_norm_that_trains() -> ModelProto:
    tensors = [weight(name, 8) for name in ("scale", "shift", "mean", "variance")]
    made = one("BatchNormalization", [value("x", [2, 8, 4, 4])], [value("y", [2, 8, 4, 4])], tensors, training_mode=1)
    made.graph.node[0].output.extend(["mean_out", "variance_out"])
    return made


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


@fault(
    "error", "x", "DOUBLE", parser="accepts", why="it builds an engine whose input is FP32: half the bytes of what the application feeds"
)
def float64_input() -> ModelProto:
    return one("Relu", [value("x", [2, 8], FP64)], [value("y", [2, 8], FP64)])


@fault("error", "cast", "INT16")
def cast_to_int16() -> ModelProto:
    nodes = [helper.make_node("Cast", ["x"], ["c"], name="cast", to=INT16), helper.make_node("Cast", ["c"], ["y"], name="back", to=FLOAT)]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("error", "cast", "UINT8")
def cast_to_uint8() -> ModelProto:
    nodes = [helper.make_node("Cast", ["x"], ["c"], name="cast", to=UINT8), helper.make_node("Cast", ["c"], ["y"], name="back", to=FLOAT)]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("warning", "relu", "DOUBLE", parser="accepts", why="it computes in FP32 instead, which is mostly what one wants")
def float64_inside() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], name="cast", to=FP64),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["y"], name="back", to=FLOAT),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("error", "add", "FLOAT16 and FLOAT")
def mixed_operands() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=FP16),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "w"], ["y"], name="add"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [weight("w", 8)])


@fault("error", "linear", "FLOAT and FLOAT16")
def mixed_matmul() -> ModelProto:
    half = numpy_helper.from_array(np.ones((8, 4), np.float16), "w")
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")], [value("x", [2, 8])], [value("y", [2, 4])], [half])


# -- the target ------------------------------------------------------------------------------------


@fault("error", "x", "axis 'T'", parser="accepts", why="the parser does not know the profile; the builder then refuses")
def axis_without_range() -> ModelProto:
    return small.attention()


@fault("error", "first", "FP32", parser="accepts", why=GPU, compute_capabilities=["7.5"])
def fp32_gemm_on_turing() -> ModelProto:
    return small.mlp(batch=1)


@fault("error", "linear", "FP32", parser="accepts", why=GPU, compute_capabilities=["8.9", "7.5"])
def fp32_matmul_on_turing() -> ModelProto:
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")], [value("x", [2, 8])], [value("y", [2, 4])], [weight("w", 8, 4)]
    )


@fault("error", "shape", "decides a shape", parser="accepts", why="the parser does not know the profile; the builder then refuses")
def shape_as_input() -> ModelProto:
    return one("Reshape", [value("x", [4, 16]), value("shape", [2], INT64)], [value("y", [64, 1])])


@fault("error", "linear", "FP32", parser="accepts", why=GPU, compute_capabilities=["7.5"])
def quantized_fp32_gemm_on_turing() -> ModelProto:
    return quantized_gemm()


@fault("error", "rnn", "FP32", parser="accepts", why=GPU, compute_capabilities=["7.5"], profiles={"T": [1, 8, 16], "N": [1, 1, 4]})
def fp32_lstm_on_turing() -> ModelProto:
    return small.recurrent()


@fault(
    "warning", "rnn", "batch 1", parser="accepts", why="the builder takes minutes for 4 steps, if it ends at all", profiles={"T": 4, "N": 1}
)
def gru_of_batch_one() -> ModelProto:
    return small.recurrent("GRU")


@fault("error", "relu", "BFLOAT16", parser="accepts", why=GPU, compute_capabilities=["7.5"])
def bfloat16_on_turing() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=BF16),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Cast", ["r"], ["y"], name="back", to=FLOAT),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])])


@fault("error", "a_q", "FLOAT8", parser="accepts", why=GPU, compute_capabilities=["8.6"])
def fp8_on_ampere() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=FP8)
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"))
    return model(nodes, [value("x", [16, 16])], [value("y", [16, 16])], [*tensors, weight("w", 16, 16)], opset=19)


@fault("error", "size", "decides a shape", parser="accepts", why="the parser does not know the profile; the builder then refuses")
def shape_as_input_of_the_first_of_two() -> ModelProto:
    """The input decides a Slice's end, and is then cast to a number as well."""
    nodes = [
        helper.make_node("Slice", ["x", "start", "size"], ["s"], name="cut"),
        helper.make_node("ReduceMean", ["s"], ["m"], name="mean", keepdims=0),
        helper.make_node("Cast", ["size"], ["n"], name="number", to=FLOAT),
        helper.make_node("Mul", ["m", "n"], ["y"], name="scale"),
    ]
    return model(nodes, [value("x", [16]), value("size", [1], INT64)], [value("y", [1])], [ints("start", 0)])


@fault(
    "error", "x", "BFLOAT16", parser="accepts", why="TensorRT takes it; numpy, and with it whoever feeds the engine here, has no such type"
)
def bfloat16_input() -> ModelProto:
    return one("Cast", [value("x", [2, 8], BF16)], [value("y", [2, 8])], to=FLOAT)


@fault("error", "where", "FLOAT16 and FLOAT")
def mixed_choice() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=FP16),
        helper.make_node("Greater", ["x", "low"], ["c"], name="greater"),
        helper.make_node("Where", ["c", "h", "low"], ["y"], name="where"),
    ]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], [scalar("low", 0.0)])


@fault("warning", "op", "depends on the data", parser="refuses", why="RTX has no kernel; TensorRT has", product="tensorrt")
def sizes_from_data_on_tensorrt() -> ModelProto:
    return sizes_from_data()


@fault("error", "w", "sparse tensor")
def sparse_weights() -> ModelProto:
    made = one("Add", [value("x", [4]), value("w", [4])], [value("y", [4])])
    del made.graph.input[1:]
    values, places = helper.make_tensor("w", FLOAT, [1], [1.0]), helper.make_tensor("", INT64, [1], [2])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    return made


@fault("warning", "opset", "opset 6", parser="accepts", why="it builds, with a warning that nothing is guaranteed")
def old_opset() -> ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="relu")], [value("x", [1, 4])], [value("y", [1, 4])], opset=6)
