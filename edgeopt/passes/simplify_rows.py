"""Rows of stored tables: a one-hot code times a matrix is a look-up, and what is done to each row alone is done to the table.

Exporters of TensorFlow and JAX write embeddings of categories and bytes as products with one-hot codes: as many
multiplications as the table is long, for each row that is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.simplify_graph import Rewriting, attribute

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    Array = np.ndarray[Any, Any]

_LEAST_OPSET = 13  # of Clip on integers (12), and of Squeeze with axes as an input
_INTEGERS = (6, 7)  # ONNX's numbers of int32 and int64
_ALONE = ("Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Exp", "Sqrt", "Neg", "Abs", "Softplus", "Elu", "LeakyRelu", "HardSigmoid", "HardSwish")
_PAIRS = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")


def look_up(graph: Rewriting) -> int:
    """Turn each product of a one-hot code and a stored matrix into a Gather; returns how many."""
    if graph.opset < _LEAST_OPSET:
        return 0
    return sum(_look_up(graph, node) for node in graph.each("MatMul"))


def _look_up(graph: Rewriting, node: NodeProto) -> bool:
    import numpy as np

    code = graph.maker(node.input[0], "Cast", "OneHot")
    while code is not None and code.op_type == "Cast":
        code = graph.maker(code.input[0], "Cast", "OneHot", "Equal")
    table = graph.stored(node.input[1]) if code is not None else None
    if code is None or table is None or table.ndim != 2 or graph.only_reader(node.input[1]) is not node:
        return False
    backwards = code.op_type == "OneHot"
    indices = (_one_hot if backwards else _compared)(graph, code, len(table))
    if indices is None:
        return False
    # A number that is no row of the table has a code of zeros; OneHot counts negative ones from the end.
    nothing = np.zeros_like(table[:1])
    rows = np.concatenate([nothing, *([table] if backwards else []), table, nothing])
    dtype, result = graph.kinds[indices], node.output[0]
    graph.remove(node)

    def number(value: int) -> str:
        return graph.store(np.array(value, np.int32 if dtype == _INTEGERS[0] else np.int64), f"{node.name}_number")

    first = graph.add("Add", [indices, number(1 + backwards * len(table))], f"{node.name}_first")
    row = graph.add("Clip", [first, number(0), number(len(rows) - 1)], f"{node.name}_row")
    if not backwards:
        row = graph.add("Squeeze", [row, graph.store(np.array([-1]), f"{node.name}_axis")], f"{node.name}_rows")
    graph.add("Gather", [graph.store(rows, f"{node.name}_table"), row], f"{node.name}_look_up", result, axis=0)
    graph.finish()
    return True


def _compared(graph: Rewriting, node: NodeProto, length: int) -> str | None:
    """The integers [..., 1] that an Equal compares with 0 to length - 1, which stand along the last axis."""
    import numpy as np

    for indices, other in (node.input, node.input[::-1]):
        numbers, shape = graph.stored(other), graph.shapes.get(indices)
        if numbers is None or not shape or numbers.size != length or numbers.ndim > len(shape) or numbers.shape[-1:] != (length,):
            continue
        if np.array_equal(numbers.reshape(-1), np.arange(length)) and graph.kinds.get(indices) in _INTEGERS and shape[-1] == 1:
            return str(indices)
    return None


def _one_hot(graph: Rewriting, node: NodeProto, length: int) -> str | None:
    """The integers that a OneHot of zeros and ones encodes along a new last axis."""
    import numpy as np

    rank, values = graph.rank(node.input[0]), graph.stored(node.input[2])
    last = rank is not None and attribute(node, "axis", -1) in (-1, rank)
    if not last or values is None or not np.array_equal(values, [0, 1]) or graph.scalar(node.input[1]) != length:
        return None
    return node.input[0] if graph.kinds.get(node.input[0]) in _INTEGERS else None


def fold(graph: Rewriting) -> int:
    """Apply to stored tables what is done to each element of the rows that are gathered from them; returns to how many."""
    return sum(_fold(graph, node) for node in graph.each("Gather"))


def _fold(graph: Rewriting, gather: NodeProto) -> bool:
    table = graph.stored(gather.input[0])
    if table is None or table.ndim != 2 or table.dtype.kind != "f" or attribute(gather, "axis", 0) != 0:
        return False
    if graph.only_reader(gather.input[0]) is not gather or graph.rank(gather.output[0]) is None:
        return False
    computed = {gather.output[0]: table}
    for node in graph.graph.node:  # in order: what is read was computed before
        made = _computed(graph, node, computed, graph.rank(gather.output[0]) or 0) if computed.keys() & set(node.input) else None
        if made is not None:
            computed[node.output[0]] = made
    wanted = [name for name in computed if name in graph.given or any(one.output[0] not in computed for one in graph.readers[name])]
    if len(wanted) != 1 or wanted[0] == gather.output[0]:
        return False
    graph.remove(graph.makers[wanted[0]])
    rows = graph.store(computed[wanted[0]], f"{gather.name}_table")
    graph.add("Gather", [rows, gather.input[1]], f"{gather.name}_rows", wanted[0], axis=0)
    graph.finish()
    return True


def _computed(graph: Rewriting, node: NodeProto, known: dict[str, Array], rank: int) -> Array | None:
    """What a node makes of whole tables, or None where it does more than change each number by itself, or by its column."""
    import numpy as np
    from onnx import helper

    if node.domain not in onnx_format.DEFAULT_DOMAINS or node.op_type not in (*_ALONE, *_PAIRS) or len(node.output) != 1:
        return None
    size = next(iter(known.values())).shape[1]
    feeds: dict[str, Array] = {}
    for name in node.input:
        value = known.get(name)
        if value is None:
            value = graph.stored(name)
            if value is None or value.ndim > rank or value.size not in (1, size) or value.shape[-1:] not in ((), (value.size,)):
                return None
            value = value.reshape(-1)
        feeds[name] = value
    dtype = next(iter(known.values())).dtype
    if any(value.dtype != dtype for value in feeds.values()):  # Pow takes a base or an exponent of another type
        return None
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape) for name, one in feeds.items()]
    result = helper.make_tensor_value_info(node.output[0], helper.np_dtype_to_tensor_dtype(dtype), None)
    model = helper.make_model(helper.make_graph([node], "rows", values, [result]), opset_imports=[helper.make_opsetid("", graph.opset)])
    model.ir_version = onnx_format.OLDEST_IR
    with np.errstate(all="ignore"):
        made: Array = onnx_format.runner_of(model.SerializeToString())(feeds)[node.output[0]]
    return made if made.shape == next(iter(known.values())).shape and np.isfinite(made).all() else None
