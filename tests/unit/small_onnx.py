"""Small real ONNX models for the tests: each is what some exporter really writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name, *shape, seed=0, scale=0.3):
    return numpy_helper.from_array((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32), name)


def constant(name, *shape, seed=0):
    return helper.make_node("Constant", [], [name], value=weight(name, *shape, seed=seed))


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def scalar_int(name, value):
    return numpy_helper.from_array(np.array(value, np.int64), name)


def model(nodes, inputs, outputs, weights=(), opset=17, ir=10, domains=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def mlp(opset=17, ir=10, batch="N", unnamed=False):
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="" if unnamed else "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="" if unnamed else "relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="" if unnamed else "second", transB=1),
    ]
    weights = [weight("w1", 16, 8), weight("b1", 16, seed=1), weight("w2", 4, 16, seed=2), weight("b2", 4, seed=3)]
    return model(nodes, [value("x", [batch, 8])], [value("y", [batch, 4])], weights, opset, ir)


def cnn(opset=17, constants=False, size=("H", "W"), batch="N"):
    """Two convolutions with a residual addition, a pool and a linear layer."""
    stored = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (5, 8), "b3": (5,)}
    made = [constant(name, *shape, seed=i) for i, (name, shape) in enumerate(stored.items())] if constants else []
    weights = [] if constants else [weight(name, *shape, seed=i) for i, (name, shape) in enumerate(stored.items())]
    nodes = [
        *made,
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    return model(nodes, [value("x", [batch, 3, *size])], [value("y", [batch, 5])], weights, opset)


def pooled(opset=17):
    """A convolution, its largest values, another convolution, and a linear layer on the last row of them."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["m"], name="largest", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Gather", ["r2", "last"], ["row"], name="row", axis=2),
        helper.make_node("Flatten", ["row"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    stored = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (5, 32), "b3": (5,)}
    weights = [weight(name, *shape, seed=i) for i, (name, shape) in enumerate(stored.items())]
    return model(nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 5])], [*weights, scalar_int("last", -1)], opset)


def branches(opset=17):
    """A linear layer, then an If whose branches hold weights of their own."""
    then = helper.make_graph([helper.make_node("MatMul", ["h", "tw"], ["to"])], "then", [], [value("to", ["N", 4])], [weight("tw", 8, 4)])
    other = helper.make_graph(
        [constant("ew", 8, 4, seed=5), helper.make_node("MatMul", ["h", "ew"], ["eo"])], "else", [], [value("eo", ["N", 4])]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    return model(nodes, [value("x", ["N", 8]), value("flag", [], BOOL)], [value("y", ["N", 4])], [weight("w", 8, 8, seed=7)], opset)


def loop(opset=17):
    """Three rounds of the same layer in a Loop."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "lw"], ["m"]),
            helper.make_node("Tanh", ["m"], ["s_out"]),
            helper.make_node("Identity", ["c"], ["c_out"]),
        ],
        "body",
        [value("i", [], INT64), value("c", [], BOOL), value("s", ["N", 8])],
        [value("c_out", [], BOOL), value("s_out", ["N", 8])],
        [weight("lw", 8, 8)],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "go", "x"], ["l"], name="rounds", body=body),
        helper.make_node("MatMul", ["l", "w"], ["y"], name="last"),
    ]
    weights = [
        numpy_helper.from_array(np.array(3, np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "go"),
        weight("w", 8, 4, seed=3),
    ]
    return model(nodes, [value("x", ["N", 8])], [value("y", ["N", 4])], weights, opset)


def recurrent(kind="LSTM", opset=14):
    """Time-major LSTM or GRU with open batch and time, then a linear layer."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    nodes = [
        helper.make_node(kind, ["x", "w", "r", "b"], ["all", "last"], name="rnn", hidden_size=6),
        helper.make_node("Squeeze", ["last", "axis"], ["s"], name="squeeze"),
        helper.make_node("Gemm", ["s", "wo", "bo"], ["y"], name="out", transB=1),
    ]
    weights = [weight("w", 1, gates * 6, 3), weight("r", 1, gates * 6, 6, seed=1), weight("b", 1, 2 * gates * 6, seed=2), ints("axis", 0)]
    weights += [weight("wo", 4, 6, seed=4), weight("bo", 4, seed=5)]
    return model(nodes, [value("x", ["T", "N", 3])], [value("y", ["N", 4])], weights, opset)


def embedding(opset=17):
    """Token ids and a mask (int64), a scalar factor without a batch axis, two outputs."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Cast", ["mask"], ["mf"], name="to_float", to=FLOAT),
        helper.make_node("Unsqueeze", ["mf", "last_axis"], ["mu"], name="widen"),
        helper.make_node("Mul", ["e", "mu"], ["masked"], name="masking"),
        helper.make_node("Mul", ["masked", "factor"], ["scaled"], name="scaling"),
        helper.make_node("MatMul", ["scaled", "w"], ["tokens"], name="project"),
        helper.make_node("ReduceMean", ["tokens"], ["y"], name="mean", axes=[1], keepdims=0),
    ]
    inputs = [value("ids", ["N", "T"], INT64), value("mask", ["N", "T"], INT64), value("factor", [])]
    outputs = [value("y", ["N", 4]), value("tokens", ["N", "T", 4])]
    return model(nodes, inputs, outputs, [weight("table", 32, 8), weight("w", 8, 4, seed=1), ints("last_axis", -1)], opset)


def attention(opset=17, width=16, heads=2):
    """One transformer block with open batch and time."""
    size = width // heads

    def project(source, name, seed):
        return [
            helper.make_node("MatMul", [source, f"w{name}"], [f"{name}p"], name=f"{name}_matmul"),
            helper.make_node("Reshape", [f"{name}p", "split"], [f"{name}s"], name=f"{name}_split"),
        ]

    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "beta"], ["n"], name="norm", axis=-1),
        *project("n", "q", 0),
        *project("n", "k", 1),
        *project("n", "v", 2),
        helper.make_node("Transpose", ["qs"], ["qt"], name="qt", perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["ks"], ["kt"], name="kt", perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["vs"], ["vt"], name="vt", perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["qt", "kt"], ["scores"], name="scores_matmul"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "vt"], ["o"], name="mix"),
        helper.make_node("Transpose", ["o"], ["ot"], name="ot", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "join"], ["oj"], name="join_heads"),
        helper.make_node("MatMul", ["oj", "wo"], ["f"], name="o_matmul"),
        helper.make_node("Add", ["x", "f"], ["y"], name="residual"),
    ]
    weights = [weight(f"w{name}", width, width, seed=i) for i, name in enumerate("qkvo")]
    weights += [
        ints("split", 0, 0, heads, size),
        ints("join", 0, 0, width),
        weight("g", width, seed=8, scale=1.0),
        weight("beta", width, seed=9),
    ]
    return model(nodes, [value("x", ["N", "T", width])], [value("y", ["N", "T", width])], weights, opset)


def ends_in_relu(opset=17):
    """A matrix product and a ReLU that makes the output."""
    made = [helper.make_node("MatMul", ["x", "w"], ["m"], name="product"), helper.make_node("Relu", ["m"], ["y"], name="cut")]
    return model(made, [value("x", ["N", 8])], [value("y", ["N", 4])], [weight("w", 8, 4)], opset)


def stacked(opset=17):
    """Products with stacks of matrices as weights."""
    made = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    weights = [weight("w1", 3, 8, 16), weight("w2", 3, 16, 4, seed=1)]
    return model(made, [value("x", ["N", 3, 5, 8])], [value("y", ["N", 3, 5, 4])], weights, opset)


def transposed_in_groups(opset=17):
    """A convolution, then a transposed one in two groups with a bias."""
    made = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("ConvTranspose", ["c", "t", "b"], ["y"], name="up", group=2, strides=[2, 2]),
    ]
    weights = [weight("w", 4, 3, 3, 3), weight("t", 4, 3, 2, 2, seed=1), weight("b", 6, seed=2)]
    return model(made, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 6, 12, 12])], weights, opset)


def to_a_mask(opset=17):
    """Down and up again to one channel through a sigmoid: how text detectors and segmenters end. Six channels between."""
    made = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="down", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "t", "b"], ["u"], name="up", strides=[2, 2]),
        helper.make_node("Sigmoid", ["u"], ["y"], name="mask"),
    ]
    weights = [weight("w", 6, 3, 3, 3), weight("t", 6, 1, 2, 2, seed=1), weight("b", 1, seed=2)]
    return model(made, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 1, 8, 8])], weights, opset)


def sparse(opset=17):
    """A weight stored sparse, by places in the flat tensor."""
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [value("x", ["N", 8])], [value("y", ["N", 4])], (), opset)
    values = numpy_helper.from_array(np.array([0.5, -1, 2], np.float32), "w")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, ints("places", 1, 9, 20), [8, 4]))
    return made


def half_inside(opset=17):
    """Float at both ends, float16 between: what many exporters write for phones."""
    made = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["m"], name="product"),
        helper.make_node("Cast", ["m"], ["y"], name="up", to=FLOAT),
    ]
    half = numpy_helper.from_array(numpy_helper.to_array(weight("w", 8, 4)).astype(np.float16), "w")
    return model(made, [value("x", ["N", 8])], [value("y", ["N", 4])], [half], opset)


def integers_inside(opset=17):
    """Quantized at run time, as quantize_dynamic writes it."""
    made = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="product"),
        helper.make_node("Cast", ["i"], ["f"], name="to_float", to=FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"], name="scale"),
    ]
    eight = numpy_helper.from_array(np.random.default_rng(0).integers(-20, 20, (8, 4)).astype(np.int8), "w")
    return model(made, [value("x", ["N", 8])], [value("y", ["N", 4])], [eight], opset)


def decides(opset=17):
    """A classifier that gives the index of its class, and the places where its hidden layer is positive."""
    made = [
        helper.make_node("Gemm", ["x", "w", "b"], ["m"], name="product"),
        helper.make_node("ArgMax", ["m"], ["label"], name="decide", axis=1, keepdims=0),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("NonZero", ["r"], ["places"], name="where"),
    ]
    outputs = [value("label", ["N"], INT64), value("places", [2, "found"], INT64)]
    return model(made, [value("x", ["N", 8])], outputs, [weight("w", 8, 6), weight("b", 6, seed=1)], opset)


def write(proto, folder: Path, name="model.onnx", **options) -> Path:
    path = folder / name
    onnx.save_model(proto, path, **options)
    return path
