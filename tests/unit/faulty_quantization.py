"""Models whose quantization TensorRT refuses, runs wrongly or runs slowly."""

from __future__ import annotations

from faulty_parts import ACCURACY, FP8, INT4, INT8, INT16, INT32, SILENT, UINT4, UINT8, UINT16, after, conv, fault, pair, scalar, stored
from onnx import ModelProto, helper
from small_onnx import FLOAT, model, value, weight

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


@fault("warning", "conv", "bias", parser="accepts", why="it builds; 8 bits for a bias cost accuracy, which no parser can know")
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


@fault("error", "a_q", "not constant", parser="accepts", why="the parser accepts it, and then the builder crashes (SIGSEGV)")
def computed_scale() -> ModelProto:
    made = conv()
    made.graph.initializer.remove(next(tensor for tensor in made.graph.initializer if tensor.name == "a_s"))
    made.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["a_s"], name="range", keepdims=0))
    return made


@fault("warning", "a_dq", "another scale", parser="accepts", why="legal ONNX, and hardly what anyone wants")
def unequal_scales() -> ModelProto:
    made = conv()
    made.graph.node[1].input[1] = "other"
    made.graph.initializer.append(scalar("other", 0.2))
    return made


# -- where Q/DQ stand ------------------------------------------------------------------------------


@fault("error", "w_dq", "axis 1", parser="accepts", why=SILENT)
def conv_weight_axis() -> ModelProto:
    return conv(w={"axis": 1})


@fault("error", "w_dq", "axis 0", parser="accepts", why=SILENT)
def transposed_conv_weight_axis() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (3, 8, 3, 3), axis=0)
    nodes += [weights, helper.make_node("ConvTranspose", ["a", "w"], ["y"], name="up")]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 10, 10])], [*tensors, *more])


@fault("error", "w_dq", "axis 0", parser="accepts", why=SILENT)
def matmul_weight_axis() -> ModelProto:
    nodes, tensors = pair("x", "a")
    weights, more = stored("w", (16, 8), axis=0)
    nodes += [weights, helper.make_node("MatMul", ["a", "w"], ["y"], name="linear")]
    return model(nodes, [value("x", [4, 16])], [value("y", [4, 8])], [*tensors, *more])


@fault("error", "a_q", "per channel", parser="accepts", why=SILENT)
def per_channel_activation() -> ModelProto:
    return conv(x={"scale": [0.1, 0.2, 0.3], "zero": [0, 0, 0], "axis": 1})


@fault("warning", "a_q", "not followed", parser="accepts", why="an INT8 output is legal; that its scale is lost is for the user to know")
def quantize_only() -> ModelProto:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="a_q")
    return model([node], [value("x", [1, 8])], [value("y", [1, 8], INT8)], [scalar("s", 0.1), scalar("z", 0, INT8)])


@fault("error", "a_q", "not followed", parser="accepts", why=SILENT)
def integers_used_raw() -> ModelProto:
    nodes, tensors = pair("x", "a")
    nodes += [helper.make_node("Cast", ["a_8"], ["c"], name="cast", to=FLOAT), helper.make_node("Mul", ["a", "c"], ["y"], name="mul")]
    return model(nodes, [value("x", [1, 8])], [value("y", [1, 8])], tensors)


@fault("warning", "op", "Softmax", parser="accepts", why=ACCURACY)
def quantized_softmax() -> ModelProto:
    return after("Softmax", axis=-1)


@fault("warning", "op", "Gelu", parser="accepts", why=ACCURACY)
def quantized_gelu() -> ModelProto:
    return after("Gelu")


@fault("warning", "op", "Gelu", parser="accepts", why=ACCURACY)
def quantized_gelu_spelt_out() -> ModelProto:
    nodes, scales = pair("o", "a")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node("Div", ["m", "root"], ["d"], name="div"),
        helper.make_node("Erf", ["d"], ["e"], name="erf"),
        helper.make_node("Add", ["e", "one"], ["p"], name="plus"),
        helper.make_node("Mul", ["m", "p"], ["q"], name="mul"),
        helper.make_node("Mul", ["q", "half"], ["o"], name="op"),
        *nodes,
        helper.make_node("MatMul", ["a", "v"], ["y"], name="last"),
    ]
    numbers = [scalar("root", 1.4142135), scalar("one", 1.0), scalar("half", 0.5)]
    tensors = [weight("w", 8, 8), weight("v", 8, 8, seed=1), *numbers, *scales]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], tensors)


@fault("warning", "op", "Gelu", parser="accepts", why=ACCURACY)
def quantized_gelu_by_tanh() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node("Mul", ["m", "root"], ["d"], name="inner"),
        helper.make_node("Tanh", ["d"], ["e"], name="tanh"),
        helper.make_node("Add", ["e", "one"], ["p"], name="plus"),
        helper.make_node("Mul", ["m", "half"], ["q"], name="mul"),
        helper.make_node("Mul", ["q", "p"], ["o"], name="op"),
        *pair("o", "a")[0],
        helper.make_node("MatMul", ["a", "v"], ["y"], name="last"),
    ]
    numbers = [scalar("root", 0.8), scalar("one", 1.0), scalar("half", 0.5)]
    tensors = [weight("w", 8, 8), weight("v", 8, 8, seed=1), *numbers, *pair("o", "a")[1]]
    return model(nodes, [value("x", [2, 8])], [value("y", [2, 8])], tensors)


@fault("error", "a_q", "weights only", parser="accepts", why=SILENT)
def int4_activation() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=INT4)
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"))
    return model(nodes, [value("x", [16, 16])], [value("y", [16, 16])], [*tensors, weight("w", 16, 16)], opset=21)


@fault("error", "a_q", "UINT4")
def uint4_activation() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=UINT4)
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"))
    return model(nodes, [value("x", [16, 16])], [value("y", [16, 16])], [*tensors, weight("w", 16, 16)], opset=21)


@fault("error", "a_q", "zero point 1", parser="accepts", why=SILENT)
def fp8_zero_point() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=FP8, zero=1.0)
    nodes.append(helper.make_node("MatMul", ["a", "w"], ["y"], name="linear"))
    return model(nodes, [value("x", [16, 16])], [value("y", [16, 16])], [*tensors, weight("w", 16, 16)], opset=19)


@fault("warning", "op", "LayerNormalization", parser="accepts", why=ACCURACY)
def quantized_layer_norm() -> ModelProto:
    return after("LayerNormalization", inputs=["m", "g"], tensors=[weight("g", 8)])


@fault("warning", "add", "one side", parser="accepts", why="it builds; only speed is lost")
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
