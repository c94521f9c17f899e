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

# Operators that only rearrange a constant: its values stay.
_REARRANGES = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten")


@dataclass
class Scope:
    """One graph of the model: what its names stand for, those of the graphs around it included.

    `where` leads to it from the outermost graph; `folder` is the model's, for weights kept beside it.
    """

    where: str
    nodes: list[NodeProto]
    outputs: set[str]
    types: dict[str, int]
    constants: dict[str, TensorProto]
    makers: dict[str, NodeProto]
    users: dict[str, list[tuple[NodeProto, int]]]
    folder: Path

    def name(self, node: NodeProto) -> str:
        """What the user finds the node by."""
        return f"{self.where}{node.name or f'{node.op_type} of {node.output[0] if node.output else node.op_type}'}"

    def constant(self, name: str) -> TensorProto | None:
        """The stored tensor behind a name, also through nodes that only rearrange it."""
        while name not in self.constants:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _REARRANGES:
                return None
            name = maker.input[0]
        return self.constants[name]

    def values(self, name: str) -> np.ndarray[Any, Any] | None:
        """The numbers behind a constant's name, flat; None when it is computed."""
        tensor = self.constant(name)
        if tensor is None:
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


def scopes(model: ModelProto, folder: Path) -> Iterator[Scope]:
    """The model's graph, the bodies of If, Loop and Scan in it, and its functions."""
    yield from _scopes(model.graph, "", None, folder)
    for function in model.functions:
        constants = {node.output[0]: attribute.t for node in function.node for attribute in node.attribute if attribute.name == "value"}
        yield _scope(list(function.node), set(function.output), f"{function.name}/", {}, constants, None, folder)


def _scopes(graph: GraphProto, where: str, around: Scope | None, folder: Path) -> Iterator[Scope]:
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = onnx_format.constants(graph)
    own = _scope(list(graph.node), {value.name for value in graph.output}, where, types, constants, around, folder)
    yield own
    for node in graph.node:
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
) -> Scope:
    makers = {name: node for node in nodes for name in node.output if name}
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node, index))
        for name in _used_inside(node):
            users.setdefault(name, []).append((node, -1))
    outer = around or Scope("", [], set(), {}, {}, {}, {}, folder)
    for name in makers:
        users.setdefault(name, [])
    return Scope(
        where,
        nodes,
        outputs,
        {**outer.types, **types},
        {**outer.constants, **constants},
        {**outer.makers, **makers},
        users,
        folder,
    )


def _used_inside(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of a node take from around it."""
    for body in onnx_format.bodies(node):
        made = {name for one in body.node for name in one.output} | {tensor.name for tensor in body.initializer}
        for one in body.node:
            yield from (name for name in (*one.input, *_used_inside(one)) if name not in made)
