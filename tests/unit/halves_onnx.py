"""Small ONNX models, one for each kind of rule on float16: what an operator's schema allows, and what else keeps a tensor float32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import small_onnx as small
from onnx import helper, numpy_helper

node, value = helper.make_node, small.value


def stored(name, numbers, dtype=np.float32):
    return numpy_helper.from_array(np.array(numbers, dtype), name)


def integers(name, numbers):
    return stored(name, numbers, np.int64)


class Case(NamedTuple):
    """A model; the operators that read or make float32 when it is cast; whether TensorRT for RTX takes it."""

    model: onnx.ModelProto
    full: set[str]
    engine: bool = True


def after_product(made, weights=(), opset=17, outputs=(), ends=("N", 8)):
    """A product of matrices, `m`, and what is made of it: `y`."""
    product = node("MatMul", ["x", "w"], ["m"], name="product")
    return small.model(
        [product, *made],
        [value("x", ["N", 8])],
        [value("y", ends), *outputs],
        [small.weight("w", 8, 8), *weights],
        opset,
        domains=_domains(made),
    )


def _domains(made):
    return sorted({one.domain for one in made} - {""})


def on_image(made, weights=(), opset=17, inputs=(), ends=("N", 4, "h", "v"), size=("H", "W")):
    """A convolution, `c`, and what is made of it: `y`."""
    conv = node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1])
    return small.model(
        [conv, *made], [value("x", ["N", 3, *size]), *inputs], [value("y", ends)], [small.weight("w", 4, 3, 3, 3), *weights], opset
    )


def looped(made, weights=()):
    """Three rounds of a product, `m`, and what is made of it: `n`; the factor `two` and `x2` are of the graph around."""
    flag = small.BOOL
    body = helper.make_graph(
        [
            node("MatMul", ["s", "lw"], ["m"]),
            *made,
            node("Tanh", ["n"], ["s_out"]),
            node("Identity", ["c"], ["c_out"]),
        ],
        "body",
        [value("i", [], small.INT64), value("c", [], flag), value("s", ["N", 8])],
        [value("c_out", [], flag), value("s_out", ["N", 8])],
        [small.weight("lw", 8, 8), *weights],
    )
    around = [
        node("Mul", ["x", "two"], ["x2"]),
        node("Loop", ["trips", "go", "x2"], ["l"], name="rounds", body=body),
        node("MatMul", ["l", "w"], ["y"]),
    ]
    weights = [integers("trips", 3), stored("go", True, bool), small.weight("w", 8, 4, seed=3), stored("two", 2)]
    return small.model(around, [value("x", ["N", 8])], [value("y", ["N", 4])], weights)


def boxes():
    made = [
        node("Mul", ["x", "grow"], ["b"]),
        node("MatMul", ["s", "w"], ["t"]),
        node("NonMaxSuppression", ["b", "t", "most", "iou"], ["y"]),
        node("Sigmoid", ["t"], ["z"]),
    ]
    weights = [stored("grow", [[[1, 2, 1, 2]]]), small.weight("w", 6, 6), integers("most", [4]), stored("iou", [0.5])]
    outputs = [value("y", ["found", 3], small.INT64), value("z", [1, 2, 6])]
    return small.model(made, [value("x", [1, 6, 4]), value("s", [1, 2, 6])], outputs, weights)


def quantized(opset):
    made = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    weights = [stored("s", 0.03), stored("z", 0, np.int8), small.weight("w", 8, 8)]
    return small.model(made, [value("x", ["N", 8])], [value("y", ["N", 8])], weights, opset)


SCALES = stored("k", [1, 1, 2, 2])
ENLARGED = [
    node("Shape", ["c"], ["shape"]),
    node("Cast", ["shape"], ["size"], to=small.FLOAT),
    node("Mul", ["size", "third"], ["wanted"]),
    node("Div", ["wanted", "size"], ["k"]),
    node("Resize", ["c", "", "k"], ["y"], mode="linear"),
]
POSITIONS = [
    node("Shape", ["m"], ["shape"]),
    node("Gather", ["shape", "last"], ["length"]),
    node("Range", ["zero", "length", "one"], ["places"]),
    node("Cast", ["places"], ["counted"], to=small.FLOAT),
    node("Mul", ["counted", "turn"], ["angle"]),
    node("Sin", ["angle"], ["wave"]),
    node("Add", ["m", "wave"], ["y"]),
]
UNITS = [stored("low", -0.5), stored("high", 0.5)]
NORM = [small.weight("g", 8), small.weight("b", 8, seed=1)]

CASES = {
    "Resize by scales, opset 10": Case(on_image([node("Resize", ["c", "k"], ["y"])], [SCALES], 10), {"Resize"}),
    "Resize by scales": Case(on_image([node("Resize", ["c", "", "k"], ["y"], mode="linear")], [SCALES]), {"Resize"}),
    "Resize by scales as numbers": Case(
        on_image([node("Constant", [], ["k"], value_floats=[1.0, 1, 2, 2]), node("Resize", ["c", "", "k"], ["y"])]), {"Constant", "Resize"}
    ),
    "Resize to sizes": Case(
        on_image([node("Resize", ["c", "", "", "k"], ["y"], mode="linear")], [integers("k", [2, 4, 9, 9])], size=(5, 5)), set(), False
    ),
    "Resize by what sizes say": Case(on_image(ENLARGED, [stored("third", [1, 1, 4 / 3, 4 / 3])]), {"Cast", "Mul", "Div", "Resize"}, False),
    "positions": Case(
        after_product(
            POSITIONS,
            [integers("last", 1), integers("zero", 0), integers("one", 1), stored("turn", 0.7)],
        ),
        {"Cast", "Mul", "Sin"},
    ),
    "NonMaxSuppression": Case(boxes(), {"NonMaxSuppression"}, False),
    "TopK": Case(
        after_product(
            [node("TopK", ["m", "k"], ["y", "i"])], [integers("k", [3])], outputs=[value("i", ["N", 3], small.INT64)], ends=("N", 3)
        ),
        set(),
    ),
    "Range": Case(
        after_product(
            [node("Range", ["zero", "end", "one"], ["r"]), node("Add", ["m", "r"], ["y"])],
            [stored("zero", 0), stored("end", 8), stored("one", 1)],
        ),
        {"Range"},
    ),
    "LSTM": Case(small.recurrent("LSTM"), set(), False),
    "GRU": Case(small.recurrent("GRU"), set(), False),
    "If": Case(small.branches(), set(), False),
    "CumSum in a body": Case(looped([node("CumSum", ["m", "axis"], ["n"])], [integers("axis", 1)]), set()),
    "Range in a body": Case(
        looped(
            [node("Range", ["low", "high", "step"], ["r"]), node("Add", ["m", "r"], ["n"])],
            [stored("low", 0), stored("high", 8), stored("step", 1)],
        ),
        {"Range"},
    ),
    "Q/DQ in a body": Case(
        looped([node("QuantizeLinear", ["m", "qs"], ["q"]), node("DequantizeLinear", ["q", "qs"], ["n"])], [stored("qs", 0.05)]),
        {"QuantizeLinear", "DequantizeLinear"},
        False,
    ),
    "a number in a body, a tensor from around it": Case(
        looped([node("Constant", [], ["half"], value_float=0.5), node("Mul", ["m", "half"], ["o"]), node("Max", ["o", "x2"], ["n"])]), set()
    ),
    "Where": Case(after_product([node("Greater", ["m", "low"], ["g"]), node("Where", ["g", "m", "high"], ["y"])], UNITS), set()),
    "Pow": Case(after_product([node("Pow", ["m", "two"], ["y"])], [integers("two", 2)]), set(), False),
    "LayerNormalization": Case(after_product([node("LayerNormalization", ["m", "g", "b"], ["y"])], NORM), set()),
    "LayerNormalization that tells its mean": Case(
        after_product([node("LayerNormalization", ["m", "g", "b"], ["n", "mean"]), node("Add", ["n", "mean"], ["y"])], NORM),
        {"LayerNormalization"},
        False,
    ),
    "GroupNormalization": Case(
        on_image([node("GroupNormalization", ["c", "g", "b"], ["y"], num_groups=2)], [small.weight("g", 4), small.weight("b", 4)], 21),
        set(),
    ),
    "ConstantOfShape": Case(
        after_product(
            [node("Shape", ["m"], ["s"]), node("ConstantOfShape", ["s"], ["z"], value=stored("v", [-1e9])), node("Max", ["m", "z"], ["y"])]
        ),
        set(),
    ),
    "EyeLike": Case(after_product([node("EyeLike", ["w"], ["e"]), node("MatMul", ["m", "e"], ["y"])]), {"EyeLike"}, False),
    "Einsum": Case(after_product([node("Einsum", ["m", "w"], ["y"], equation="ij,kj->ik")]), set()),
    "GridSample": Case(on_image([node("GridSample", ["c", "g"], ["y"])], opset=20, inputs=[value("g", ["N", "h", "v", 2])]), set(), False),
    "DFT": Case(
        after_product(
            [node("Unsqueeze", ["m", "last"], ["u"]), node("DFT", ["u"], ["y"], axis=1)], [integers("last", [2])], ends=("N", 8, 2)
        ),
        set(),
        False,
    ),
    "Softmax, opset 11": Case(after_product([node("Softmax", ["m"], ["y"], axis=1)], opset=11), set()),
    "Clip": Case(after_product([node("Clip", ["m", "low", "high"], ["y"])], UNITS), set()),
    "Clip to numbers": Case(
        after_product(
            [
                node("Constant", [], ["a"], value_float=-0.5),
                node("Constant", [], ["b"], value_float=0.5),
                node("Clip", ["m", "a", "b"], ["y"]),
            ]
        ),
        set(),
    ),
    "Pad": Case(after_product([node("Pad", ["m", "p", "low"], ["y"])], [integers("p", [0, 1, 0, 1]), UNITS[0]], ends=("N", 10)), set()),
    "IsInf, opset 17": Case(
        after_product([node("IsInf", ["m"], ["i"]), node("Where", ["i", "low", "m"], ["y"])], UNITS[:1]), {"IsInf"}, False
    ),
    "IsInf, opset 20": Case(
        after_product([node("IsInf", ["m"], ["i"]), node("Where", ["i", "low", "m"], ["y"])], UNITS[:1], 20), set(), False
    ),
    "HannWindow": Case(
        after_product([node("HannWindow", ["n"], ["win"]), node("Mul", ["m", "win"], ["y"])], [integers("n", 8)]), {"HannWindow"}, False
    ),
    "a sequence": Case(
        after_product([node("SequenceConstruct", ["m", "x"], ["q"]), node("ConcatFromSequence", ["q"], ["y"], axis=1)], ends=("N", 16)),
        {"SequenceConstruct", "ConcatFromSequence"},
        False,
    ),
    "an optional": Case(
        after_product([node("Optional", ["m"], ["o"]), node("OptionalGetElement", ["o"], ["y"])], opset=18),
        {"Optional", "OptionalGetElement"},
        False,
    ),
    "an operator of ai.onnx.ml": Case(
        after_product([node("Normalizer", ["m"], ["n"], domain="ai.onnx.ml", norm="L2"), node("Relu", ["n"], ["y"])]), {"Normalizer"}, False
    ),
    "an operator of onnxruntime's": Case(
        after_product([node("Gelu", ["m"], ["n"], domain="com.microsoft"), node("MatMul", ["n", "w"], ["y"])]), {"Gelu"}, False
    ),
    **{f"Q/DQ, opset {one}": Case(quantized(one), {"QuantizeLinear", "DequantizeLinear"}) for one in (13, 19, 21)},
}
