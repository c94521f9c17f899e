"""An OpenVINO model full of FakeQuantize nodes, and the models that it becomes when some of its layers stay float.

A layer is an operation that a FakeQuantize node feeds, straight or through operations that only move data. A layer kept float reads
around the FakeQuantize nodes in front of it; one that feeds float layers only goes away. Layers that share one stay apart that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import openvino

    Array = np.ndarray[Any, Any]

QUANTIZER = "FakeQuantize"
# What executes on quantized data as it is: quantization passes through.
_MOVES = frozenset(
    """Reshape Transpose Squeeze Unsqueeze MaxPool Concat Split VariadicSplit StridedSlice Slice ShuffleChannels DepthToSpace SpaceToDepth
    BatchToSpace SpaceToBatch Pad Tile Broadcast ReduceMax ReduceMin Gather Convert Relu""".split()
)
# Operations whose result is linear in their weights, and the input that takes these.
LINEAR = {
    "Convolution": 1,
    "GroupConvolution": 1,
    "ConvolutionBackpropData": 1,
    "GroupConvolutionBackpropData": 1,
    "MatMul": 1,
}


@dataclass
class Edge:
    """One reader of a FakeQuantize node: its name and input, and the layers that get the quantized data through it."""

    reader: str
    port: int
    layers: frozenset[str]


@dataclass
class Quantizer:
    """One FakeQuantize node. `scale` widens its range; `weights` stand in place of the float ones behind it while it is in use."""

    name: str
    stored: bool
    edges: list[Edge]
    scale: float = 1.0
    weights: Array | None = None

    @property
    def layers(self) -> frozenset[str]:
        return frozenset().union(*(edge.layers for edge in self.edges))


@dataclass
class Quantized:
    """A float model with FakeQuantize nodes: which layers they feed, and how they were tuned. The model itself is never changed."""

    model: openvino.Model
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.model.get_ordered_ops():
            if node.get_type_name() == QUANTIZER:
                edges = [
                    Edge(reader.get_node().friendly_name, reader.get_index(), frozenset(self._layers(reader.get_node())))
                    for reader in node.output(0).get_target_inputs()
                ]
                stored = stored_behind(node.input_value(0)) is not None
                self.quantizers[node.friendly_name] = Quantizer(node.friendly_name, stored, edges)

    def _layers(self, node: openvino.Node) -> Iterator[str]:
        """The layers behind a reader: itself, or those behind the operations that pass quantized data on."""
        kind = node.get_type_name()
        if kind in _MOVES:
            for output in node.outputs():
                for reader in output.get_target_inputs():
                    yield from self._layers(reader.get_node())
        elif kind not in (QUANTIZER, "Result", "ShapeOf"):
            self.kinds[node.friendly_name] = kind
            yield node.friendly_name

    def feeding(self, layer: str) -> list[Quantizer]:
        """The quantizers that a layer depends on."""
        return [one for one in self.quantizers.values() if layer in one.layers]

    def with_float(self, floats: Iterable[str]) -> openvino.Model:
        """A model of its own in which these layers are float and all others read through FakeQuantize."""
        kept = frozenset(floats)
        model = self.model.clone()
        for node in quantizers_of(model):
            one = self.quantizers[node.friendly_name]
            source = node.input_value(0)
            gone = one.layers <= kept
            if not gone:
                tune(node, one)
            for reader in node.output(0).get_target_inputs():
                if gone or reader.get_node().friendly_name in kept:
                    reader.replace_source_output(source)
        return model

    def plain(self) -> openvino.Model:
        """The float model: no FakeQuantize node is left."""
        return self.with_float(self.kinds)


def quantizers_of(model: openvino.Model) -> list[openvino.Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == QUANTIZER]


def tune(node: openvino.Node, one: Quantizer) -> None:
    """Give a FakeQuantize node its tuned range and weights."""
    if one.weights is not None:
        node.input(0).replace_source_output(_constant(one.weights))
    if one.scale != 1.0:
        for port in range(1, 5):
            stored = stored_behind(node.input_value(port))
            assert stored is not None
            node.input(port).replace_source_output(_constant(stored * stored.dtype.type(one.scale)))


def _constant(values: Array) -> openvino.Output:
    from openvino import opset13 as opset

    return opset.constant(values).output(0)


def stored_behind(output: openvino.Output) -> Array | None:
    """The values of a stored tensor, or None when the output is computed from inputs."""
    node = output.get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def plain_ranges(node: openvino.Node) -> tuple[Array, Array] | None:
    """Low and high of a FakeQuantize node whose input and output ranges are alike; None for any other."""
    import numpy as np

    ranges = [stored_behind(node.input_value(port)) for port in range(1, 5)]
    if any(one is None for one in ranges):
        return None
    low, high, low_out, high_out = (one for one in ranges if one is not None)
    if low.shape != low_out.shape or not (np.allclose(low, low_out) and np.allclose(high, high_out)):
        return None
    return low, high


def reshaped_like(source: openvino.Output, wanted: openvino.Output) -> openvino.Output:
    """A source brought to a shape by a Reshape, unless it has it."""
    from openvino import opset13 as opset

    shape = list(wanted.get_shape())
    return source if list(source.get_shape()) == shape else opset.reshape(source, opset.constant(shape, "i64"), False).output(0)


def copied(node: openvino.Node, inputs: list[openvino.Output]) -> openvino.Node:
    """The same operation on other inputs."""
    from openvino.utils.node_factory import NodeFactory

    make: Callable[..., openvino.Node] = NodeFactory(node.type_info.version_id).create
    return make(node.get_type_name(), inputs, node.get_attributes())
