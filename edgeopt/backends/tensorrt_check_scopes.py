"""The graphs of an ONNX model as the checker sees them: what each name stands for, in bodies and functions too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

# Operators that only rearrange a constant, or store it in another type: its values stay.
_REARRANGES = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Cast")
# Operators that move numbers about and compute nothing: what is 8 bits before them is so behind them.
_MOVE_WORDS = """Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Pad Reshape Slice SpaceToDepth Split
    Squeeze Tile Transpose Unsqueeze"""
MOVES = frozenset(_MOVE_WORDS.split())


@dataclass
class Scope:
    """One graph of the model: what its names stand for, those of the graphs around it included.

    `where` leads to it from the outermost graph; `given` are the inputs of a function, of which nothing
    is known; `folder` is the model's, for weights kept beside it.
    """

    where: str
    nodes: list[NodeProto]
    outputs: set[str]
    given: set[str]
    types: dict[str, int]
    constants: dict[str, TensorProto]
    makers: dict[str, NodeProto]
    users: dict[str, list[tuple[NodeProto, int]]]
    folder: Path

    def name(self, node: NodeProto) -> str:
        """What the user finds the node by."""
        return self.where + name_of(node)

    def constant(self, name: str) -> TensorProto | None:
        """The stored tensor behind a name, also through nodes that only rearrange it."""
        while name not in self.constants:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _REARRANGES:
                return None
            name = maker.input[0]
        return self.constants[name]

    def computed(self, name: str) -> bool:
        """Whether what is fed decides a tensor: it is neither stored nor computed from what is stored alone, as far as the graph shows."""
        waiting, seen = [name], set[str]()
        while waiting:
            one = waiting.pop()
            if not one or one in seen or one in self.constants or one in self.given:
                continue
            seen.add(one)
            maker = self.makers.get(one)
            if maker is None or onnx_format.bodies(maker) or maker.op_type.startswith("Random"):
                return True
            waiting += maker.input
        return False

    def values(self, name: str) -> np.ndarray[Any, Any] | None:
        """The numbers behind a constant's name, flat; None when it is computed, or text."""
        tensor = self.constant(name)
        if tensor is None or tensor.data_type == tensor.STRING:
            return None
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor, str(self.folder)).reshape(-1)

    def type(self, name: str) -> int:
        """The ONNX type of a tensor; 0 when nothing tells it."""
        tensor = self.constants.get(name)
        return tensor.data_type if tensor is not None else self.types.get(name, 0)

    def maker(self, name: str) -> str:
        """The operator that makes a tensor, or an empty string."""
        node = self.makers.get(name)
        return node.op_type if node is not None else ""

    def readers(self, name: str) -> Iterator[NodeProto]:
        """What computes on a tensor: nodes behind those that only move its numbers, and those in bodies that take it from here."""
        waiting, seen = [name], set[str]()
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            for node, index in self.users.get(one, []):
                if index < 0:
                    yield from _inside(node, one)
                elif node.op_type in MOVES and node.domain in onnx_format.DEFAULT_DOMAINS:
                    waiting += node.output
                else:
                    yield node


def name_of(node: NodeProto) -> str:
    """A node's name, or what it makes."""
    return node.name or f"{node.op_type} of {next(filter(None, node.output), 'nothing')}"


def scopes(model: ModelProto, folder: Path) -> Iterator[Scope]:
    """The model's graph, the bodies of If, Loop and Scan in it, and its functions."""
    yield from _scopes(model.graph, "", None, folder)
    for function in model.functions:
        constants = onnx_format.constants(function)
        own = _scope(list(function.node), set(function.output), f"{function.name}/", {}, constants, None, folder, set(function.input))
        yield own
        yield from _bodies(own, function.node, folder)


def _scopes(graph: GraphProto, where: str, around: Scope | None, folder: Path) -> Iterator[Scope]:
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = onnx_format.constants(graph)
    own = _scope(list(graph.node), {value.name for value in graph.output}, where, types, constants, around, folder)
    yield own
    yield from _bodies(own, graph.node, folder)


def _bodies(own: Scope, nodes: Any, folder: Path) -> Iterator[Scope]:
    for node in nodes:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _scopes(body, f"{own.name(node)}/{attribute.name}/", own, folder)


def _scope(
    nodes: list[NodeProto],
    outputs: set[str],
    where: str,
    types: dict[str, int],
    constants: dict[str, TensorProto],
    around: Scope | None,
    folder: Path,
    given: set[str] | None = None,
) -> Scope:
    makers = {name: node for node in nodes for name in node.output if name}
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node, index))
        for name in _used_inside(node):
            users.setdefault(name, []).append((node, -1))
    outer = around or Scope("", [], set(), set(), {}, {}, {}, {}, folder)
    for name in makers:
        users.setdefault(name, [])
    return Scope(
        where,
        nodes,
        outputs,
        outer.given | (given or set()),
        {**outer.types, **types},
        {**outer.constants, **constants},
        {**outer.makers, **makers},
        users,
        folder,
    )


def _inside(node: NodeProto, name: str) -> Iterator[NodeProto]:
    """The nodes in a node's bodies that read a tensor from around it."""
    for one in (one for body in onnx_format.bodies(node) for one in body.node):
        if name in one.input:
            yield one
        yield from _inside(one, name)


def _used_inside(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of a node take from around it."""
    for body in onnx_format.bodies(node):
        made = {name for one in body.node for name in one.output} | {tensor.name for tensor in body.initializer}
        for one in body.node:
            yield from (name for name in (*one.input, *_used_inside(one)) if name not in made)
