"""Which Q/DQ pairs of an ONNX model belong to which layers, and the model in which each can be switched."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.mixed_precision_rules import Layer, Rule
from edgeopt.passes.quantize_int8_dynamic import is_dynamic
from edgeopt.passes.quantize_int8_onnx import WEIGHTED

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    Feeds = dict[str, np.ndarray[Any, Any]]

GATES = "edgeopt_gates"
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


class _Graph:
    """A quantized graph: who makes and who reads a tensor; a *quantizer* goes by the tensor that it rounds."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in onnx_format.reads(node):
                self.readers.setdefault(name, []).append(node)
        self.stored = {tensor.name for tensor in graph.initializer}

    def quantizer(self, name: str) -> str | None:
        """The tensor that was rounded to give this one; for a weight its stored integers. None for a float tensor."""
        pair = self.maker.get(name)
        if pair is None or pair.op_type != _DQ:
            return None
        source = self.maker.get(pair.input[0])
        return source.input[0] if source is not None and source.op_type == _Q else pair.input[0] if pair.input[0] in self.stored else None

    def pair_reads(self, node: NodeProto) -> list[str]:
        return [found for name in node.input if (found := self.quantizer(name)) is not None and found not in self.stored]

    def above(self, node: NodeProto) -> list[NodeProto]:
        return [self.maker[name] for name in node.input if name in self.maker]

    def below(self, node: NodeProto) -> list[NodeProto]:
        return [reader for name in node.output for reader in self.readers.get(name, ())]

    def nearest(self, start: NodeProto, step: Callable[[NodeProto], list[NodeProto]]) -> frozenset[str]:
        """The first layers with weights in one direction, on every way."""
        found, seen, waiting = set(), set(), step(start)
        while waiting:
            node = waiting.pop()
            if node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type in WEIGHTED:
                found.add(node.name)
            else:
                waiting += step(node)
        return frozenset(found)


def layers(model: ModelProto) -> dict[str, Layer]:
    """The quantized layers by name, in order. Those that find their ranges at each call have no quantizers of data."""
    graph, found = _Graph(model.graph), {}
    for node in model.graph.node:
        if is_dynamic(node):
            found[node.name] = Layer(node.name, node.op_type, (), tuple(name for name in node.input[1:3] if name in graph.stored))
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            continue
        data, weights = graph.quantizer(node.input[0]), graph.quantizer(node.input[1])
        if data is None or weights is None or data in graph.stored:
            continue
        constant = weights in graph.stored
        found[node.name] = Layer(node.name, node.op_type, (data,) if constant else (data, weights), (node.input[1],) if constant else ())
    return found


def rules(model: ModelProto) -> dict[str, Rule]:
    """A rule for each tensor that is rounded: it is where a quantized layer reads or makes it, or between two that are."""
    graph, found = _Graph(model.graph), {}
    quantized = {name: layer for name, layer in layers(model).items() if layer.data}
    for node in model.graph.node:
        if node.op_type != _Q:
            continue
        read = {name for name, layer in quantized.items() if node.input[0] in layer.data}
        maker = graph.maker.get(node.input[0])
        if maker is not None and maker.name in quantized:
            read.add(maker.name)
        ends = (graph.nearest(node, step) & set(quantized) for step in (graph.above, graph.below))
        found[node.input[0]] = Rule(frozenset(read), *map(frozenset, ends))
    return found


def between(model: ModelProto) -> dict[str, Rule]:
    """A rule for each other node that computes on rounded tensors."""
    graph, found = _Graph(model.graph), {}
    quantized = layers(model)
    for node in model.graph.node:
        if node.op_type not in (_Q, _DQ) and node.name not in quantized and graph.pair_reads(node):
            ends = (frozenset(graph.nearest(node, step) & set(quantized)) for step in (graph.above, graph.below))
            found[node.name] = Rule(frozenset(), *ends)
    return found


def gated(full: ModelProto, prepared: ModelProto, quantized: Mapping[str, Layer], named: Mapping[str, Rule]) -> ModelProto:
    """The quantized model with a gate on every quantizer: an input `GATES`, of all layers, then of all quantizers of activations."""
    import onnx
    from onnx import helper, numpy_helper

    graph = _Graph(full.graph)
    stored = {tensor.name: tensor for tensor in prepared.graph.initializer}
    original = {node.name: node for node in prepared.graph.node}
    count = len(quantized) + len(named)
    added: list[NodeProto] = []

    def blend(exact: str, rounded: str, index: int, result: str) -> str:
        """exact + gate · (rounded − exact)"""
        added.extend(
            [
                helper.make_node("Gather", [GATES, f"edgeopt_gate_{index}"], [f"{result}_g"], axis=0),
                helper.make_node("Sub", [rounded, exact], [f"{result}_d"]),
                helper.make_node("Mul", [f"{result}_d", f"{result}_g"], [f"{result}_m"]),
                helper.make_node("Add", [exact, f"{result}_m"], [result]),
            ]
        )
        return result

    full.graph.initializer.extend(numpy_helper.from_array(_index(index), f"edgeopt_gate_{index}") for index in range(count))
    full.graph.input.append(helper.make_tensor_value_info(GATES, onnx.TensorProto.FLOAT, [count]))
    for index, (name, rounds) in enumerate(quantized.items()):
        if not rounds.data:
            float_layer = _exact(full.graph, original[name], stored)
            added.append(float_layer)
            for place, result in enumerate(original[name].output):
                if result:
                    graph.nodes[name].output[place] = f"{result}_rounded"
                    blend(float_layer.output[place], f"{result}_rounded", index, result)
            continue
        layer, before = graph.nodes[name], original[name]
        if rounds.weights:
            exact = _keep(full.graph, stored[before.input[1]])
            layer.input[1] = blend(exact, layer.input[1], index, f"{name}_gated_weight")
        if len(layer.input) > 2 and len(before.input) > 2 and before.input[2] in stored:  # a rounded bias changes nothing worth a gate
            layer.input[2] = _keep(full.graph, stored[before.input[2]])
    for index, name in enumerate(named, len(quantized)):
        pairs = {output for node in graph.readers.get(name, ()) if node.op_type == _Q for output in node.output}
        for pair in [reader for rounded in pairs for reader in graph.readers.get(rounded, ()) if reader.op_type == _DQ]:
            result, pair.output[0] = pair.output[0], f"{pair.output[0]}_rounded"
            blend(name, pair.output[0], index, result)
    full.graph.node.extend(added)
    onnx_format.sort_nodes(full.graph)
    onnx_format.name_nodes(full)
    return full


def macs(
    model: ModelProto, quantized: Collection[str], feeds: Feeds, runner: Callable[[ModelProto], Callable[[Feeds], Feeds]]
) -> dict[str, int]:
    """Multiply-accumulates by layer, from the sizes of what comes out when the float model runs on `feeds`."""
    from onnx import helper

    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    chosen = [node for node in model.graph.node if node.name in quantized]
    present = {value.name for value in model.graph.output}
    wanted = dict.fromkeys(name for node in chosen for name in (node.input[0], node.output[0]) if name)
    fed = {value.name for value in model.graph.input}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in present | fed | set(weights))
    sizes = {name: array.shape for name, array in {**feeds, **runner(model)(feeds)}.items()}
    found = {}
    for node in chosen:
        data, weight = sizes[node.input[0]], weights.get(node.input[1], (1,))
        if node.op_type == "LSTM":
            found[node.name] = prod(data[:2]) * (prod(weight) + prod(weights[node.input[2]]))
            continue
        result = sizes[node.output[0]]
        turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if node.op_type in ("Conv", "ConvTranspose"):
            found[node.name] = prod(data if node.op_type == "ConvTranspose" else result) * prod(weight[1:])
        else:
            found[node.name] = prod(result) * data[0 if turned else -1]
    return found


def owners(model: ModelProto, layers: Collection[str]) -> Callable[[str], str | None]:
    """Which layer a node of the runtime's trace computes: fused nodes are named after a node, or after the tensor that comes out."""
    graph = _Graph(model.graph)

    def owner(traced: str) -> str | None:
        bare = re.sub(r"(_nchwc|_nhwc|_quant|_token_\d+|/MatMulAddFusion|_fused.*)+$", "", traced)
        node = graph.nodes.get(traced) or graph.nodes.get(bare) or graph.maker.get(bare)
        while node is not None and node.name not in layers:
            node = graph.maker.get(node.input[0]) if node.input and node.op_type not in WEIGHTED else None
        return node.name if node is not None else None

    return owner


def _exact(graph: GraphProto, layer: NodeProto, stored: Mapping[str, TensorProto]) -> NodeProto:
    """The float layer beside the one that rounds what it reads."""
    exact: NodeProto = type(layer).FromString(layer.SerializeToString())
    exact.name = f"{layer.name}_exact"
    exact.input[:] = [_keep(graph, stored[name]) if name in stored else name for name in layer.input]
    exact.output[:] = [name and f"{name}_exact" for name in layer.output]
    return exact


def _index(value: int) -> Any:
    import numpy as np

    return np.array(value, np.int64)


def _keep(graph: GraphProto, tensor: TensorProto) -> str:
    """Store an exact weight beside its rounded one; returns its name."""
    name = f"{tensor.name}_exact"
    if all(one.name != name for one in graph.initializer):
        kept = graph.initializer.add()
        kept.CopyFrom(tensor)
        kept.name = name
    return name
