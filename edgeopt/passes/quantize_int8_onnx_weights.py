"""How onnxruntime is to quantize single weights, where not as the rest: its `TensorQuantOverrides`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import saturation

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

    Overrides = dict[str, list[dict[str, Any]]]


def whole(graph: GraphProto) -> Overrides:
    """Stacks of matrices get one scale: onnxruntime's kernel refuses one for each column of them, when it runs."""
    read = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    return {tensor.name: [{}] for tensor in graph.initializer if tensor.name in read and len(tensor.dims) > 2}


def unsaturated(graph: GraphProto, per_channel: bool) -> Overrides:
    """Ranges in which no sum of two products leaves 16 bits. Weights that others read too are left to 7 bits."""
    from onnx import numpy_helper

    read: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in onnx_format.reads(node):
            read.setdefault(name, []).append(node)
    found: Overrides = {}
    for tensor in graph.initializer:
        places = {saturation.place(node, tensor.name, tensor.dims) for node in read.get(tensor.name, [])}
        if len(places) != 1 or (place := places.pop()) is None or 0 in tensor.dims:
            continue
        channel, axes = place
        limits = saturation.by_channel(numpy_helper.to_array(tensor), channel, axes).ravel()
        limits = limits if per_channel else limits.max(keepdims=True, initial=0)
        ranges = [{"rmin": -limit, "rmax": limit, "reduce_range": False} for limit in limits.tolist()]
        found[tensor.name] = [{"axis": channel, **ranges[0]}, *ranges[1:]] if per_channel else ranges
    return found
