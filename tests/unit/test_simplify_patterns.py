"""simplify's own rules: one-hot products, GELU written out, tables, convolutions along one axis and their biases; and what must stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import helper, numpy_helper

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.simplify import rewritten

Nodes = list[onnx.NodeProto]


def node(kind: str, *names: str, **more: Any) -> onnx.NodeProto:
    """A node with the inputs and, last, the output named."""
    return helper.make_node(kind, names[:-1], names[-1:], name=f"{kind}_{names[-1]}", **more)


def number(name: str, value: Any, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def outcome(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], close: float = 1e-5) -> tuple[dict[str, int], list[str]]:
    """What was done, and the operators that are left; the function is held to be the same, names and shapes too."""
    onnx.checker.check_model(proto, full_check=True)
    before, signature = onnx_format.runner_of(proto.SerializeToString())(feeds), onnx_format.signature_of(proto)
    notes = rewritten(proto)
    onnx.checker.check_model(proto, full_check=True)
    after = onnx_format.runner_of(proto.SerializeToString())(feeds)
    assert before.keys() == after.keys() and onnx_format.signature_of(proto) == signature
    for name, wanted in before.items():
        assert wanted.shape == after[name].shape and wanted.dtype == after[name].dtype
        assert np.allclose(wanted, after[name], rtol=close, atol=close)
    read = {name for one in onnx_format.nodes(proto) for name in onnx_format.reads(one)}
    assert {tensor.name for tensor in proto.graph.initializer} <= read
    return notes, [one.op_type for one in proto.graph.node]


# One-hot codes: 7 rows, and indices that are no rows.
PLACES = np.array([[0, 6, 3], [2, -1, 7], [-7, 100, -8]])
TABLE = small.weight("w", 7, 4)


def compared(swapped: bool = False, dtype: str = "int64", count: int = 7, cast: str = "float32") -> tuple[Nodes, list[onnx.TensorProto]]:
    names = ("numbers", "u") if swapped else ("u", "numbers")
    kinds = {"float32": 1, "float16": 10}
    nodes = [
        node("Unsqueeze", "x", "axis", "u"),
        node("Equal", *names, "same"),
        node("Cast", "same", "code", to=kinds[cast]),
        node("MatMul", "code", "w", "y"),
    ]
    table = numpy_helper.from_array(numpy_helper.to_array(TABLE)[:count].astype(cast), "w")
    return nodes, [small.ints("axis", 2), number("numbers", np.arange(count), dtype), table]


def indexed(nodes: Nodes, stored: list[onnx.TensorProto], dtype: str = "int64", result: int = 1, opset: int = 17) -> onnx.ModelProto:
    kind = {"int64": 7, "int32": 6, "float32": 1}[dtype]
    return small.model(nodes, [small.value("x", ["N", 3], kind)], [small.value("y", ["N", 3, 4], result)], stored, opset)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_product_with_a_compared_code_is_looked_up(dtype: str, swapped: bool) -> None:
    notes, left = outcome(indexed(*compared(swapped, dtype), dtype=dtype), {"x": PLACES.astype(dtype)})
    assert notes == {"products_looked_up": 1} and "Gather" in left and not {"MatMul", "Equal", "Cast"} & set(left)


def test_a_code_of_float16_is_looked_up_in_float16() -> None:
    notes, left = outcome(indexed(*compared(cast="float16"), result=10), {"x": PLACES})
    assert notes == {"products_looked_up": 1} and "MatMul" not in left


def coded(values: tuple[float, float] = (0, 1), axis: int = -1, depth: int = 7) -> tuple[Nodes, list[onnx.TensorProto]]:
    nodes = [node("OneHot", "x", "depth", "values", "code", axis=axis), node("MatMul", "code", "w", "y")]
    return nodes, [small.scalar_int("depth", depth), number("values", values), TABLE]


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_product_with_the_operator_one_hot_is_looked_up(axis: int) -> None:
    """Its negative indices count from the end, those beyond have a code of zeros."""
    notes, left = outcome(indexed(*coded(axis=axis)), {"x": PLACES})
    assert notes == {"products_looked_up": 1} and sorted(left) == ["Add", "Clip", "Gather"]


def shared() -> tuple[Nodes, list[onnx.TensorProto]]:
    nodes, stored = compared()
    nodes[-1].output[0] = "h"
    return [*nodes, node("ReduceMean", "w", "all", keepdims=0), node("Add", "h", "all", "y")], stored


def counted_from_one() -> tuple[Nodes, list[onnx.TensorProto]]:
    nodes, stored = compared()
    return nodes, [stored[0], number("numbers", np.arange(1, 8), "int64"), stored[2]]


KEPT = {
    "the table is read elsewhere": shared(),
    "numbers from 1": counted_from_one(),
    "other values than 0 and 1": coded((0, 2)),
}


@pytest.mark.parametrize("what", KEPT)
def test_other_products_stay(what: str) -> None:
    notes, left = outcome(indexed(*KEPT[what]), {"x": PLACES})
    assert "products_looked_up" not in notes and "MatMul" in left


def test_codes_of_reals_and_before_opset_13_stay() -> None:
    nodes, stored = compared(dtype="float32")
    notes, _ = outcome(indexed(nodes, stored, "float32"), {"x": PLACES.astype("float32")})
    assert not notes
    nodes, stored = coded()
    assert not outcome(indexed(nodes, stored, opset=12), {"x": PLACES})[0]


# GELU: what is computed from x, by the names of tensors; one letter each.
SPELLINGS = {
    "flax": "Mul k x a, Mul x a p, Mul x p q, Add x q r, Mul b r s, Tanh s t, Add o t u, Mul h u v, Mul x v y",
    "tensorflow": "Pow x c p, Mul k p q, Add x q r, Mul b r s, Tanh s t, Add t o u, Mul u h v, Mul v x y",
    "factored": "Mul x x p, Mul p k q, Add q o r, Mul x b m, Mul m r s, Tanh s t, Add t o u, Mul x u v, Mul v h y",
    "halves last": "Pow x c p, Mul p k q, Add x q r, Mul r b s, Tanh s t, Mul x t e, Add x e f, Mul f h y",
    "erf, multiplied": "Mul x i s, Erf s t, Add t o u, Mul x u v, Mul v h y",
    "erf, halves inside": "Div x w s, Erf s t, Mul t h u, Add u h v, Mul x v y",
}
NUMBERS = {"k": 0.044715, "b": math.sqrt(2 / math.pi), "c": 3.0, "o": 1.0, "h": 0.5, "i": math.sqrt(0.5), "w": math.sqrt(2)}


def written(text: str, dtype: str = "float32", **changed: float) -> tuple[Nodes, list[onnx.TensorProto]]:
    nodes = [node(*part.split()) for part in text.split(", ")]
    read = {name for one in nodes for name in one.input}
    return nodes, [number(name, value, dtype) for name, value in {**NUMBERS, **changed}.items() if name in read]


REALS = np.linspace(-6, 6, 60, dtype="float32").reshape(3, 4, 5)


def activation(nodes: Nodes, stored: list[onnx.TensorProto], opset: int = 17, kind: int = 1) -> onnx.ModelProto:
    return small.model(nodes, [small.value("x", ["N", 4, 5], kind)], [small.value("y", ["N", 4, 5], kind)], stored, opset)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_gelu_is_recognized_however_it_is_spelt(spelling: str) -> None:
    notes, left = outcome(activation(*written(SPELLINGS[spelling])), {"x": REALS}, 1e-4)
    tanh = ["Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"]
    assert notes == {"gelus_rewritten": 1} and sorted(left) == sorted(["Div", "Erf", "Add", "Mul", "Mul"] if "erf" in spelling else tanh)
    notes, left = outcome(activation(*written(SPELLINGS[spelling]), opset=20), {"x": REALS}, 1e-4)
    assert notes == {"gelus_rewritten": 1} and left == ["Gelu"]


def test_gelu_in_float16_stays_in_float16() -> None:
    proto = activation(*written(SPELLINGS["flax"], "float16"), kind=10)
    notes, _ = outcome(proto, {"x": REALS.astype("float16")}, 1e-2)
    assert notes == {"gelus_rewritten": 1}


def test_what_is_spelt_as_here_stays_as_it_is() -> None:
    proto = activation(*written("Pow x c p, Mul p k q, Add x q r, Mul r b s, Tanh s t, Add t o u, Mul x h v, Mul v u y"))
    before = proto.SerializeToString(deterministic=True)
    assert not outcome(proto, {"x": REALS})[0] and proto.SerializeToString(deterministic=True) == before


OTHERS = {
    "another constant": written(SPELLINGS["flax"], k=0.05),
    "not halved": written("Mul x i s, Erf s t, Add t o u, Mul x u y"),
    "a factor of another tensor": written("Sin x z, Mul x i s, Erf s t, Add t o u, Mul z u v, Mul v h y"),
    "an infinite power": written("Pow x i s, Tanh s t, Add t o u, Mul x u y", i=np.inf),
    "a number wider than x": ([node("Squeeze", "x", "g"), *written(SPELLINGS["flax"].replace("x", "g"))[0]],
        [*written(SPELLINGS["flax"], o=0)[1][:-2], number("o", [[[[1.0]]]]), number("h", 0.5)]),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_gelu_stays(what: str) -> None:
    nodes, stored = OTHERS[what]
    wide = what == "a number wider than x"
    proto = activation(nodes, stored)
    if wide:
        proto = small.model(nodes, [small.value("x", [1, 4, 5])], [small.value("y", [1, 1, 4, 5])], stored)
    assert not outcome(proto, {"x": REALS[:1]} if wide else {"x": REALS})[0]


def test_a_value_that_is_read_elsewhere_keeps_the_formula() -> None:
    nodes, stored = written(SPELLINGS["flax"])
    nodes[-1].output[0] = "z"
    proto = activation([*nodes, node("Sub", "z", "t", "y")], stored)
    assert not outcome(proto, {"x": REALS})[0]


def test_a_part_that_is_read_elsewhere_is_kept_for_that() -> None:
    nodes, stored = written(SPELLINGS["flax"])
    nodes[-1].output[0] = "z"
    notes, left = outcome(activation([*nodes, node("Sub", "z", "p", "y")], stored, opset=20), {"x": REALS}, 1e-4)
    assert notes == {"gelus_rewritten": 1} and left.count("Mul") == 2 and "Gelu" in left


def test_gelu_goes_before_what_only_moves_elements() -> None:
    """So it stands beside its convolution."""
    nodes, stored = written(SPELLINGS["flax"].replace("x", "m"))
    moved = [node("Conv", "x", "kernel", "n"), node("Transpose", "n", "m", perm=[0, 2, 1])]
    proto = small.model(
        [*moved, *nodes], [small.value("x", [2, 4, 5])], [small.value("y", [2, 3, 6])], [*stored, small.weight("kernel", 6, 4, 3)], 20
    )
    notes, left = outcome(proto, {"x": REALS[:2]}, 1e-4)
    assert notes == {"gelus_rewritten": 1} and left == ["Conv", "Gelu", "Transpose"]


def test_gelu_stays_behind_what_moves_elements_where_a_part_of_it_is_read() -> None:
    nodes, stored = written(SPELLINGS["flax"].replace("x", "m"))
    nodes[-1].output[0] = "z"
    proto = activation(
        [node("Identity", "x", "i"), node("Transpose", "i", "m", perm=[0, 1, 2]), *nodes, node("Sub", "z", "p", "y")], stored, 20
    )
    notes, left = outcome(proto, {"x": REALS}, 1e-4)
    assert notes == {"gelus_rewritten": 1} and left.index("Transpose") < left.index("Gelu")


def test_two_of_each_are_rewritten() -> None:
    """The graph is put in order after each."""
    codes, stored = compared()
    again = [
        node(
            one.op_type,
            *(f"{name}{'' if name in ('x', 'axis', 'numbers') else '2'}" for name in (*one.input, *one.output)),
            **({"to": 1} if one.op_type == "Cast" else {}),
        )
        for one in codes
    ]
    both = [*codes, *again, node("Add", "y", "y2", "d"), node("Tanh", "y", "t"), node("Add", "d", "t", "z")]
    proto = indexed(both, [*stored, small.weight("w2", 7, 4, seed=3)])
    proto.graph.output[0].name = "z"
    assert outcome(proto, {"x": PLACES})[0] == {"products_looked_up": 2}

    nodes, stored = written(SPELLINGS["flax"])
    nodes[-1].output[0] = "z"
    more, _ = written(", ".join(" ".join(part if part in NUMBERS or part[0].isupper() else f"{part}2" for part in one.split())
        for one in SPELLINGS["flax"].replace("x", "z").split(", ")))  # fmt: skip
    for one in more:
        one.input[:] = ["z" if name == "z2" else name for name in one.input]
    more[-1].output[0] = "y"
    assert outcome(activation([*nodes, *more], stored), {"x": REALS}, 1e-4)[0] == {"gelus_rewritten": 2}


def test_a_body_is_rewritten_too() -> None:
    nodes, stored = written(SPELLINGS["erf, multiplied"])
    other = helper.make_graph([node("Neg", "x", "z")], "other", [], [small.value("z", ["N", 4, 5])])
    body = helper.make_graph(nodes, "body", [], [small.value("y", ["N", 4, 5])], stored)
    choice = helper.make_node("If", ["yes"], ["out"], name="choice", then_branch=body, else_branch=other)
    inputs = [small.value("x", ["N", 4, 5]), small.value("yes", [], small.BOOL)]
    proto = small.model([choice], inputs, [small.value("out", ["N", 4, 5])])
    assert outcome(proto, {"x": REALS, "yes": np.array(True)}, 1e-4)[0] == {"gelus_rewritten": 1}


def test_a_body_and_what_is_around_it_are_both_rewritten() -> None:
    nodes, stored = written(SPELLINGS["erf, multiplied"])
    outer, _ = written(SPELLINGS["erf, multiplied"])
    for one in outer:
        one.name = f"outer_{one.name}"
        one.input[:] = [name if name in NUMBERS or name == "x" else f"{name}_out" for name in one.input]
        one.output[:] = [f"{name}_out" for name in one.output]
    other = helper.make_graph([node("Neg", "x", "z")], "other", [], [small.value("z", ["N", 4, 5])])
    for one in nodes:
        one.input[:] = [f"{name}_in" if name in NUMBERS else name for name in one.input]
    inner = [numpy_helper.from_array(numpy_helper.to_array(one), f"{one.name}_in") for one in stored]
    body = helper.make_graph(nodes, "body", [], [small.value("y", ["N", 4, 5])], inner)
    choice = helper.make_node("If", ["yes"], ["chosen"], name="choice", then_branch=body, else_branch=other)
    inputs = [small.value("x", ["N", 4, 5]), small.value("yes", [], small.BOOL)]
    proto = small.model([*outer, choice, node("Sub", "y_out", "chosen", "out")], inputs, [small.value("out", ["N", 4, 5])], stored, 20)
    assert outcome(proto, {"x": REALS, "yes": np.array(True)}, 1e-4)[0] == {"gelus_rewritten": 2}
    assert [one.op_type for one in onnx_format.nodes(proto)].count("Gelu") == 2


# Tables.
ROW = small.weight("row", 4, seed=7)


def gathered(*more: onnx.NodeProto, stored: tuple[onnx.TensorProto, ...] = (ROW,)) -> onnx.ModelProto:
    return indexed([node("Gather", "w", "x", "g"), *more], [TABLE, *stored])


ROWS = {"x": np.array([[0, 6, 3], [2, -1, 5]])}
FOLDED = {
    "scaled and shifted": gathered(node("Mul", "g", "row", "h"), node("Add", "h", "row", "y")),
    "an activation": gathered(node("Add", "row", "g", "h"), node("Sigmoid", "h", "s"), node("Mul", "h", "s", "y")),
    "a number": gathered(node("Div", "g", "n", "y"), stored=(number("n", [[[2.0]]]),)),
}
WHOLE = {
    "another number for each place": gathered(node("Add", "g", "places", "y"), stored=(small.weight("places", 3, 4),)),
    "infinity": gathered(node("Div", "g", "n", "y"), stored=(number("n", 0.0),)),
    "what adds up a row": gathered(node("Softmax", "g", "y"), stored=()),
    "two that are read": gathered(node("Add", "g", "row", "a"), node("Mul", "g", "row", "b"), node("Max", "a", "b", "c"),
        node("Softmax", "c", "d"), node("Softmax", "a", "e"), node("Add", "d", "e", "y")),
    "a base of another type": indexed([node("Gather", "w", "x", "g"), node("Pow", "n", "g", "y")],
        [TABLE, number("n", 2, "int64")], result=onnx.TensorProto.INT64),
    "a table that is read elsewhere": gathered(
        node("Add", "g", "row", "h"), node("ReduceMean", "w", "all", keepdims=0), node("Add", "h", "all", "y")
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDED)
def test_what_is_done_to_rows_is_done_to_the_table(what: str) -> None:
    notes, left = outcome(FOLDED[what], ROWS)
    assert notes == {"tables_folded": 1} and left == ["Gather"]


@pytest.mark.parametrize("what", WHOLE)
def test_what_is_not_done_to_rows_alone_stays(what: str) -> None:
    notes, left = outcome(WHOLE[what], ROWS)
    assert not notes and len(left) > 1


# Convolutions along one axis, as TensorFlow and JAX write them.
def along(stride: int = 1, pads: tuple[int, int] = (0, 0), groups: int = 1, bias: bool = True, squeezed: int = 3) -> onnx.ModelProto:
    begin, end = pads
    options = {"strides": [stride, 1], "dilations": [2, 1], "pads": [begin, 0, end, 0], "group": groups, "kernel_shape": [3, 1]}
    length = (20 + begin + end - 5) // stride + 1
    nodes = [
        node("Unsqueeze", "x", "last", "u"),
        node("Conv", "u", "kernel", *(["b"] if bias else []), "c", **options),
        node("Squeeze", "c", "axis", "s"),
        node("Add", "s", "shift", "h"),
        node("Relu", "h", "y"),
    ]
    stored = [
        small.ints("last", 3),
        small.ints("axis", squeezed),
        small.weight("kernel", 6, 4 // groups, 3, 1),
        small.weight("shift", 6, 1),
    ]
    stored += [small.weight("b", 6, seed=4)] if bias else []
    return small.model(nodes, [small.value("x", [2, 4, 20])], [small.value("y", [2, 6, length])], stored)


LONG = {"x": np.random.default_rng(2).standard_normal((2, 4, 20)).astype("float32")}


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"pads": (2, 1)}, {"groups": 2}, {"bias": False}, {"squeezed": -1}])
def test_a_convolution_along_one_axis_is_turned_and_gets_its_bias(options: dict[str, Any]) -> None:
    proto = along(**options)
    notes, left = outcome(proto, LONG)
    assert notes == {"convolutions_turned": 1, "biases_folded": 1} and "Add" not in left
    turned = next(one for one in proto.graph.node if one.op_type == "Conv")
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == turned.input[1])
    assert list(weights.dims[2:]) == [1, 3] and len(turned.input) == 3


def test_two_convolutions_are_turned() -> None:
    proto = along()
    for one in list(proto.graph.node)[:4]:
        copy = proto.graph.node.add()
        copy.CopyFrom(one)
        copy.name = f"{one.name}_2"
        copy.input[:] = [f"{name}_2" if name in ("u", "c", "s") else name for name in one.input]
        copy.output[:] = [f"{name}_2" for name in one.output]
    proto.graph.node.extend([node("Sub", "y", "h_2", "z")])
    proto.graph.output[0].name = "z"
    assert outcome(proto, LONG)[0] == {"convolutions_turned": 2, "biases_folded": 2}


def biased(*shape: int, result: tuple[int, ...] = (2, 6, 18), nodes: Nodes | None = None) -> onnx.ModelProto:
    made = nodes or [node("Conv", "x", "kernel", "c"), node("Add", "c", "shift", "y")]
    return small.model(
        made, [small.value("x", [2, 4, 20])], [small.value("y", result)], [small.weight("kernel", 6, 4, 3), small.weight("shift", *shape)]
    )


@pytest.mark.parametrize("shape", [(1, 6, 1), (6, 1), (1,), ()])
def test_what_is_added_to_each_channel_becomes_the_bias(shape: tuple[int, ...]) -> None:
    notes, left = outcome(biased(*shape), LONG)
    assert notes == {"biases_folded": 1} and left == ["Conv"]


STAY = {
    "along the length": biased(18),
    "of each sample": biased(2, 6, 1),
    "of another rank": biased(1, 1, 6, 1, result=(1, 2, 6, 18)),
    "read before": biased(6, 1, nodes=[node("Conv", "x", "kernel", "c"), node("Add", "c", "shift", "a"), node("Mul", "a", "c", "y")]),
}


@pytest.mark.parametrize("what", STAY)
def test_what_is_no_bias_stays(what: str) -> None:
    notes, left = outcome(STAY[what], LONG)
    assert not notes and "Add" in left
