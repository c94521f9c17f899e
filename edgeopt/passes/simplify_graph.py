"""One graph of a model while it is rewritten: who makes and reads each tensor, what is stored, which shapes are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto

    Array = np.ndarray[Any, Any]


class Rewriting:
    """A graph and its indexes, which follow the changes made through the methods here."""

    def __init__(self, graph: GraphProto, opset: int, shapes: dict[str, list[int | None]], kinds: dict[str, int], taken: set[str]) -> None:
        self.graph, self.opset, self.shapes, self.kinds, self.taken = graph, opset, shapes, kinds, taken
        self.constants = onnx_format.constants(graph)
        self.given = {value.name for value in graph.output}
        self.index()

    def index(self) -> None:
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in onnx_format.reads(node):
                self.readers[name].append(node)

    def maker(self, name: str, *kinds: str) -> NodeProto | None:
        """What makes a tensor, if it is of one of these kinds."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds and node.domain in onnx_format.DEFAULT_DOMAINS else None

    def each(self, *kinds: str) -> Iterator[NodeProto]:
        """The nodes of these kinds that are there when their turn comes; the graph may be changed meanwhile."""
        for name in [node.output[0] for node in self.graph.node if node.op_type in kinds]:
            node = self.maker(name, *kinds)
            if node is not None:
                yield node

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads a tensor, where nothing else does, nor a caller."""
        found = self.readers[name]
        return found[0] if len(found) == 1 and name not in self.given else None

    def stored(self, name: str) -> Array | None:
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """The number in a stored tensor of one element."""
        value = self.stored(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def rank(self, name: str) -> int | None:
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def name(self, wanted: str) -> str:
        """A name that nothing has."""
        found, copy = wanted, 0
        while found in self.taken:
            copy += 1
            found = f"{wanted}_{copy}"
        self.taken.add(found)
        return found

    def store(self, value: Array, wanted: str) -> str:
        """The name of a new stored tensor."""
        import numpy as np
        from onnx import numpy_helper

        name = self.name(wanted)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.graph.initializer.append(self.constants[name])
        self.shapes[name] = list(value.shape)
        return name

    def add(self, kind: str, inputs: Sequence[str], wanted: str, result: str = "", **attributes: Any) -> str:
        """The output of a new node; `result` is its name where others read it already. The order is mended by `finish`."""
        from onnx import helper

        name = self.name(wanted)
        result = result or self.name(f"{name}_result")
        self.graph.node.append(helper.make_node(kind, list(inputs), [result], name=name, **attributes))
        return result

    def remove(self, node: NodeProto) -> None:
        self.graph.node.remove(node)

    def finish(self) -> None:
        """Drop what nothing reads any more, put the nodes in order, and index anew."""
        while True:
            read = {name for node in self.graph.node for name in onnx_format.reads(node)} | self.given
            dead = [node for node in self.graph.node if not any(name in read for name in node.output if name)]
            if not dead:
                break
            for node in dead:
                self.graph.node.remove(node)
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in read]:
            self.graph.initializer.remove(tensor)
        onnx_format.sort_nodes(self.graph)
        self.constants = onnx_format.constants(self.graph)
        self.index()


def rewritings(model: ModelProto) -> Iterator[Rewriting]:
    """Every graph of a model with the shapes and element types that inference finds; bodies before the graphs around them.

    To put a graph in order copies its nodes, and so their bodies: what is done to a body later would be done to the old one.
    """
    import onnx

    known = model if onnx_format.too_large(model) else onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes: dict[str, list[int | None]] = {}
    kinds: dict[str, int] = {}
    for graph in onnx_format.graphs(known.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                shapes[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    every = list(onnx_format.graphs(model.graph))  # bodies may not use a name of the graphs around them anew
    taken = {name for graph in every for node in graph.node for name in (node.name, *node.input, *node.output)}
    taken |= {tensor.name for graph in every for tensor in graph.initializer} | shapes.keys()
    for graph in reversed(every):
        yield Rewriting(graph, onnx_format.opset(model), shapes, kinds, taken)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)
