"""GELU written out, in whatever order and spelling, becomes the operator Gelu, or the spelling that runtimes know.

Both formulas are those of Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: x/2·(1 + erf(x/√2)), and
x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). What stands in a graph is recognized by its polynomial: the argument
of erf or tanh as one of x, and the result as one of x and of the value of erf or tanh.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeopt.passes.simplify_graph import Rewriting

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    Polynomial = dict[tuple[int, int], float]  # coefficients by the powers of x, and of the value of erf or tanh

_INNER = {"Erf": {(1, 0): math.sqrt(0.5)}, "Tanh": {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)}}
_WHOLE = {(1, 0): 0.5, (1, 1): 0.5}
# The operators of what is written here: onnxruntime and OpenVINO fuse both.
_SPELLINGS = (("Div", "Erf", "Add", "Mul", "Mul"), ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"))
_LEAST_OPSET = 20  # of the operator Gelu
_DEEPEST = 8  # nodes between x and erf or tanh, and from there to the result
_DEGREE = 4
# Nodes that move elements and change none.
_MOVES = ("Squeeze", "Unsqueeze", "Flatten", "Reshape", "Transpose")


def rewrite(graph: Rewriting) -> int:
    """Rewrite every GELU of a graph that is spelt otherwise than it would be here; returns how many."""
    return sum(_rewrite(graph, node) for node in graph.each(*_INNER))


def _rewrite(graph: Rewriting, node: NodeProto) -> bool:
    inner, argument = _INNER[node.op_type], node.input[0]
    source = next((name for name in _behind(graph, argument) if _same(_polynomial(graph, argument, name, ""), inner)), None)
    last = None if source is None else _result(graph, node, source)
    if source is None or last is None or graph.rank(source) is None or graph.rank(source) != graph.rank(last.output[0]):
        return False
    inside, result = _between(graph, source, last), last.output[0]
    # An operator that only moves elements may as well come after: then GELU stands beside the layer that it belongs to.
    before = graph.maker(source, *_MOVES)
    if before is not None and not _enclosed(graph, inside, source):
        before = None
    if before is None and graph.opset < _LEAST_OPSET and _spelt(graph, source, inside, last):
        return False
    graph.remove(last)
    made = _gelu(
        graph, node, before.input[0] if before is not None else source, "" if before is not None else result, _dtype(graph, inside)
    )
    if before is not None:
        before.input[0], before.output[0] = made, result
    graph.finish()
    return True


def _behind(graph: Rewriting, name: str) -> Iterator[str]:
    """Tensors that another is computed from, nearest first."""
    waiting, seen = [(name, 0)], {name}
    while waiting:
        found, depth = waiting.pop(0)
        yield found
        node = graph.maker(found, "Mul", "Add", "Div", "Pow")
        if node is not None and depth < _DEEPEST:
            for one in node.input:
                if one not in seen and one not in graph.constants:
                    seen.add(one)
                    waiting.append((one, depth + 1))


def _result(graph: Rewriting, node: NodeProto, source: str) -> NodeProto | None:
    """The node that gives x/2·(1 + f) with f the output of this one, every tensor on the way read by nothing else."""
    name = node.output[0]
    for _ in range(_DEEPEST):
        reader = graph.only_reader(name)
        if reader is None or len(reader.output) != 1:
            return None
        name = reader.output[0]
        found = _polynomial(graph, name, source, node.output[0])
        if found is None:
            return None
        if _same(found, _WHOLE):
            return reader
    return None


def _between(graph: Rewriting, source: str, last: NodeProto) -> list[NodeProto]:
    """The nodes that compute the result of the last from x."""
    found = [last]
    for node in found:  # it grows meanwhile
        for name in node.input:
            maker = graph.makers.get(name)
            if maker is not None and name != source and name not in graph.constants and all(maker is not one for one in found):
                found.append(maker)
    return found


def _enclosed(graph: Rewriting, inside: list[NodeProto], source: str) -> bool:
    """Whether nothing but these nodes reads x, or what they make on the way to the result, which the first of them gives."""
    made = [source, *(name for one in inside[1:] for name in one.output)]
    return not any(name in graph.given or any(all(reader is not one for one in inside) for reader in graph.readers[name]) for name in made)


def _spelt(graph: Rewriting, source: str, inside: list[NodeProto], last: NodeProto) -> bool:
    """Whether the nodes are those that would be written: the last multiplies x/2 with 1 + f."""
    kinds = sorted(one.op_type for one in inside)
    halved = any(one is not None and source in one.input for one in (graph.maker(name, "Mul") for name in last.input))
    return halved and kinds in (sorted(one) for one in _SPELLINGS)


def _dtype(graph: Rewriting, inside: list[NodeProto]) -> np.dtype[Any]:
    """That of x, which the numbers beside it share; an exponent may be an integer."""
    numbers = (graph.stored(name) for node in inside if node.op_type != "Pow" for name in node.input if name in graph.constants)
    return next(value.dtype for value in numbers if value is not None)


def _polynomial(graph: Rewriting, name: str, x: str, value: str, depth: int = 0) -> Polynomial | None:
    """A tensor as a polynomial of x and a value, or None where it is none."""
    if name == x:
        return {(1, 0): 1.0}
    if name == value:
        return {(0, 1): 1.0}
    number = graph.scalar(name)
    if number is not None:
        return {(0, 0): number} if math.isfinite(number) else None
    node = graph.maker(name, "Mul", "Add", "Div", "Pow")
    if node is None or depth > 2 * _DEEPEST:
        return None
    if node.op_type in ("Div", "Pow"):
        number = graph.scalar(node.input[1])
        first = _polynomial(graph, node.input[0], x, value, depth + 1)
        if first is None or number is None:
            return None
        if node.op_type == "Div":
            return {powers: one / number for powers, one in first.items()} if number else None
        return _power(first, number)
    first, second = (_polynomial(graph, one, x, value, depth + 1) for one in node.input)
    if first is None or second is None:
        return None
    return _product(first, second) if node.op_type == "Mul" else _sum(first, second)


def _power(one: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in (1, 2, 3):
        return None
    found: Polynomial | None = one
    for _ in range(int(exponent) - 1):
        found = None if found is None else _product(found, one)
    return found


def _product(one: Polynomial, other: Polynomial) -> Polynomial | None:
    found: Polynomial = defaultdict(float)
    for (a, b), first in one.items():
        for (c, d), second in other.items():
            if a + c > _DEGREE or b + d > 1:
                return None
            found[a + c, b + d] += first * second
    return found


def _sum(one: Polynomial, other: Polynomial) -> Polynomial:
    return {powers: one.get(powers, 0.0) + other.get(powers, 0.0) for powers in one.keys() | other.keys()}


def _same(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Constants are written with as few as four digits, or rounded to float16."""
    if found is None:
        return False
    return all(
        math.isclose(found.get(powers, 0.0), wanted.get(powers, 0.0), rel_tol=1e-3, abs_tol=1e-6) for powers in found.keys() | wanted.keys()
    )


def _gelu(graph: Rewriting, node: NodeProto, source: str, result: str, dtype: np.dtype[Any]) -> str:
    """New nodes that compute GELU; returns the name of their output."""
    import numpy as np

    name, tanh = f"{node.name}_gelu", node.op_type == "Tanh"
    if graph.opset >= _LEAST_OPSET:
        return graph.add("Gelu", [source], name, result, approximate="tanh" if tanh else "none")

    def number(value: float) -> str:
        return graph.store(np.array(value, dtype), f"{name}_number")

    if tanh:
        cube = graph.add("Pow", [source, number(3)], f"{name}_cube")
        inner = graph.add("Add", [source, graph.add("Mul", [cube, number(0.044715)], f"{name}_part")], f"{name}_sum")
        argument = graph.add("Mul", [inner, number(math.sqrt(2 / math.pi))], f"{name}_argument")
    else:
        argument = graph.add("Div", [source, number(math.sqrt(2))], f"{name}_argument")
    value = graph.add(node.op_type, [argument], f"{name}_value")
    onward = graph.add("Add", [value, number(1)], f"{name}_onward")
    half = graph.add("Mul", [source, number(0.5)], f"{name}_half")
    return graph.add("Mul", [half, onward], name, result)
