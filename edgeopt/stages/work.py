"""work: the multiplications of a model file, layer by layer, counted from its shapes. Nothing of it is run.

Counted are convolutions, matrix products and recurrent layers; all else is small beside them. The counts
are those of the textbook: a runtime that multiplies less (Winograd) or more (padded channels) is told apart by its time.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeopt.core import registry

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

    Shapes = Mapping[str, Sequence[int]]

Kind = Literal["convolution", "matrix", "recurrent"]
# Operator → its kind, and which inputs are data and weights.
ONNX: dict[str, tuple[Kind, int, int]] = {
    "Conv": ("convolution", 0, 1),
    "ConvInteger": ("convolution", 0, 1),
    "QLinearConv": ("convolution", 0, 3),
    "ConvTranspose": ("convolution", 0, 1),
    "Gemm": ("matrix", 0, 1),
    "MatMul": ("matrix", 0, 1),
    "MatMulInteger": ("matrix", 0, 1),
    "QLinearMatMul": ("matrix", 0, 3),
    "LSTM": ("recurrent", 0, 1),
    "DynamicQuantizeLSTM": ("recurrent", 0, 1),
    "DynamicQuantizeMatMul": ("matrix", 0, 1),
    "GRU": ("recurrent", 0, 1),
    "RNN": ("recurrent", 0, 1),
}
# The same for OpenVINO; of the weights' axes, so many come before those that one output value is made of.
OPENVINO: dict[str, tuple[Kind, int]] = {
    "Convolution": ("convolution", 1),
    "GroupConvolution": ("convolution", 2),
    "ConvolutionBackpropData": ("convolution", 1),
    "GroupConvolutionBackpropData": ("convolution", 2),
    "MatMul": ("matrix", 0),
    **dict.fromkeys(("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell"), ("recurrent", 0)),
}
READS = (".onnx", ".xml")
_HOLDERS = ("If", "Loop", "TensorIterator")
_LARGE = 1024  # elements: weights beyond are no axes or sizes, and shape inference does without their values
# What runtimes hang on the names of nodes that they rewrite.
_ADDED = re.compile(r"^InsertedPrecisionFreeCast_|(_nchwc|_quant|_token_\d+|/WithoutBiases|/DequantizationMultiply|/fq_\w+_\d+)$")


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies: elements of data in and out, and of weights (or of the second matrix)."""

    name: str
    kind: Kind
    macs: int
    moved: int
    weights: int

    def bytes(self, width: float) -> int:
        return math.ceil((self.moved + self.weights) * width)


@dataclass
class Work:
    """The layers of one model, and how they are called.

    `own` leads from the names of a layer and its result to its index; `names` from those of what follows
    it alone (activation, addition, requantization) as well: a runtime may fuse them, and name the whole after its end.
    """

    layers: list[Layer] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def add(self, layer: Layer, *called: str) -> int:
        index = len(self.layers)
        self.layers.append(layer)
        self.own |= {name: index for name in called if name}
        self.names |= {name: index for name in called if name}
        return index

    def to_json(self) -> dict[str, Any]:
        layers = [[one.name, one.kind, one.macs, one.moved, one.weights] for one in self.layers]
        return {"layers": layers, "own": self.own, "names": self.names}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Work:
        return Work([Layer(*one) for one in value["layers"]], value["own"], value["names"])


def found(called: list[str], names: Mapping[str, int]) -> set[int]:
    """The layers behind names as a runtime writes them."""
    indices = set()
    for name in called:
        while name not in names and (shorter := _ADDED.sub("", name)) not in (name, ""):
            name = shorter
        if name in names:
            indices.add(names[name])
    return indices


def bare(name: str) -> str:
    """A layer's name without what runtimes hang on it."""
    while (shorter := _ADDED.sub("", name)) not in (name, ""):
        name = shorter
    return name


def work(path: Path, shapes: Shapes | None = None) -> Work | None:
    """The work of one inference of an .onnx or .xml file; inputs have these shapes, else one sample of what stands in the file.

    None for other files, when a shape stays open, and when such layers stand in the body of a loop.
    """
    if path.suffix == ".xml":
        return _openvino(path, shapes)
    if path.suffix != ".onnx":
        return None
    counted = of_onnx(registry.need("onnx", "all").load(path, load_external_data=False), shapes)
    if counted is None and importlib.util.find_spec("openvino"):  # it follows sizes through reshapes further than onnx does
        return _openvino(path, shapes)
    return counted


def of_onnx(model: ModelProto, shapes: Shapes | None = None) -> Work | None:
    """The work of an ONNX model, whose inner shapes are forgotten and found anew."""
    onnx = registry.need("onnx", "all")
    if any(node.op_type in ONNX for body in _bodies(model.graph) for node in body.node):
        return None
    noted = _settle(model, shapes or {})
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # noqa: BLE001 (an odd model has no figure; that is no reason to fail)
        return None
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    known = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    known = noted | {name: sizes for name, sizes in known.items() if 0 not in sizes or name not in noted}
    known |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    counted = Work()
    for node in inferred.node:
        if node.op_type in ONNX:
            layer = _onnx_layer(node, known)
            if layer is None:
                return None
            counted.add(layer, node.name, node.output[0])
    _spread(inferred, counted)
    return counted


def _bodies(graph: GraphProto) -> list[GraphProto]:
    """The graphs inside a graph's nodes, at every depth."""
    inner = [
        body
        for node in graph.node
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]
    return inner + [deeper for body in inner for deeper in _bodies(body)]


def _settle(model: ModelProto, shapes: Shapes) -> dict[str, list[int]]:
    """Give inputs their sizes, where none is told one sample; take large weights out, which shapes do not need.

    Returns the inner shapes as the exporter noted them, with these sizes for its symbols.
    """
    onnx = registry.need("onnx", "all")
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in stored]
    batch = next((d.dim_param or "?" for value in given for d in list(value.type.tensor_type.shape.dim)[:1]), "?")
    symbols: dict[str, int] = {batch: 1}
    for value in given:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            symbols |= {dim.dim_param: size} if dim.dim_param else {}
            dim.dim_value = size
    first = symbols[batch]
    for value in [*graph.input, *graph.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and (dim.dim_param in symbols or axis == 0):
                dim.dim_value = symbols.get(dim.dim_param, first)
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _LARGE]
    known = {value.name for value in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in large if tensor.name not in known
    )
    for tensor in large:
        graph.initializer.remove(tensor)
    noted = {
        value.name: [dim.dim_value or symbols.get(dim.dim_param, 0) for dim in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    del graph.value_info[:]
    return {name: sizes for name, sizes in noted.items() if sizes and 0 not in sizes}


def _onnx_layer(node: NodeProto, known: dict[str, list[int]]) -> Layer | None:
    kind, first, second = ONNX[node.op_type]
    if len(node.input) <= max(first, second) or not node.output:
        return None
    data, weight, result = (known.get(name) for name in (node.input[first], node.input[second], node.output[0]))
    if not data or not weight or not result or min(*data, *weight, *result) < 1:
        return None
    weights = math.prod(weight)
    if kind == "recurrent":
        again = known.get(node.input[2]) if len(node.input) > 2 else None
        if not again:
            return None
        weights += math.prod(again)
        macs = math.prod(data[:2]) * weights
    elif node.op_type == "ConvTranspose":
        macs = math.prod(data) * math.prod(weight[1:])
    elif kind == "convolution":
        macs = math.prod(result) * math.prod(weight[1:])
    else:
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        macs = math.prod(result) * data[0 if turned else -1]
    return Layer(node.name or node.output[0], kind, macs, math.prod(data) + math.prod(result), weights)


def _spread(graph: GraphProto, counted: Work) -> None:
    """Lead the names of what follows a layer alone to it."""
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for tensor, index in [(node.output[0], counted.own[node.output[0]]) for node in graph.node if node.op_type in ONNX]:
        while len(followers := users.get(tensor, [])) == 1 and followers[0].op_type not in ONNX and followers[0].output:
            tensor = followers[0].output[0]
            if tensor in counted.names:
                break
            counted.names |= {name: index for name in (tensor, followers[0].name) if name}


def _openvino(path: Path, shapes: Shapes | None) -> Work | None:
    """The work of a model that OpenVINO reads. The runtime itself finds the shapes."""
    try:
        model = registry.need("openvino", "openvino").Core().read_model(path)
    except RuntimeError:
        return None
    wanted = {}
    for port in model.inputs:
        given = next((list(shape) for name, shape in (shapes or {}).items() if name in port.get_names()), None)
        partial = port.partial_shape
        if partial.rank.is_dynamic and given is None:
            return None
        wanted[port] = given or [axis.get_length() if axis.is_static else 1 for axis in partial]
    try:
        model.reshape(wanted)
    except RuntimeError:  # the model insists on other sizes
        return None
    counted = Work()
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind in _HOLDERS:
            return None
        if kind in OPENVINO:
            layer = _openvino_layer(op, *OPENVINO[kind])
            if layer is None:
                return None
            index = counted.add(layer, op.friendly_name)
            while len(users := op.output(0).get_target_inputs()) == 1:
                op = next(iter(users)).get_node()
                if op.get_type_name() in OPENVINO or op.friendly_name in counted.names:
                    break
                counted.names[op.friendly_name] = index
    return counted


def _openvino_layer(op: Any, kind: Kind, before: int) -> Layer | None:
    if any(end.get_partial_shape().is_dynamic for end in (*op.inputs(), *op.outputs())):
        return None
    sizes = [list(end.get_shape()) for end in op.inputs()]
    data, weight, result = sizes[0], sizes[1], list(op.output(0).get_shape())
    weights = math.prod(weight)
    if kind == "recurrent":
        weights = math.prod(sizes[-3]) + math.prod(sizes[-2])  # W and R stand before the bias
        macs = math.prod(data[:-1]) * weights
    elif kind == "convolution":
        per_value = math.prod(weight[before:])
        macs = math.prod(data if "Backprop" in op.get_type_name() else result) * per_value
    else:
        turned = op.get_attributes().get("transpose_a", False) and len(data) > 1
        macs = math.prod(result) * data[-2 if turned else -1]
    return Layer(op.friendly_name, kind, macs, math.prod(data) + math.prod(result), weights)
