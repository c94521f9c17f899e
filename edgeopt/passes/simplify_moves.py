"""Convolutions along one axis that exporters of TensorFlow and JAX write along two: laid for runtimes, with their bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeopt.passes.simplify_graph import Rewriting, attribute

if TYPE_CHECKING:
    from onnx import NodeProto

_LEAST_OPSET = 13  # of Squeeze with axes as an input


def wide_convolutions(graph: Rewriting) -> int:
    """Lay convolutions along the first of two axes, where the second has one place and is taken away, along the second.

    Runtimes go through the last axis in blocks: OpenVINO takes half the time. Returns how many.
    """
    if graph.opset < _LEAST_OPSET:
        return 0
    return sum(_wide(graph, node) for node in graph.each("Conv"))


def _wide(graph: Rewriting, node: NodeProto) -> bool:
    import numpy as np

    weight, shape, squeeze = graph.stored(node.input[1]), graph.shapes.get(node.input[0]), graph.only_reader(node.output[0])
    if weight is None or weight.ndim != 4 or shape is None or len(shape) != 4 or weight.shape[2] == 1 or weight.shape[3] != 1:
        return False
    if shape[3] != 1 or squeeze is None or squeeze.op_type != "Squeeze" or _axes(graph, squeeze) != [3]:
        return False
    pads = attribute(node, "pads", [0, 0, 0, 0])
    if pads[1] or pads[3] or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    for one in node.attribute:
        if one.name in ("strides", "dilations", "kernel_shape"):
            one.ints[:] = one.ints[::-1]
        elif one.name == "pads":
            one.ints[:] = [0, pads[0], 0, pads[2]]
    second, third = (graph.store(np.array([axis]), f"{node.name}_axis") for axis in (2, 3))
    row = graph.add("Squeeze", [node.input[0], third], f"{node.name}_row")
    node.input[0] = graph.add("Unsqueeze", [row, second], f"{node.name}_wide")
    node.input[1] = graph.store(weight.transpose(0, 1, 3, 2), f"{node.name}_weight")
    squeeze.input[1] = second
    if shape := graph.shapes.get(node.output[0]):
        shape[2:] = shape[:1:-1]
    graph.finish()
    return True


def biases(graph: Rewriting) -> int:
    """Make what is added to each channel of a convolution, behind a Squeeze too, its bias; returns how many."""
    return sum(_bias(graph, node) for node in graph.each("Add"))


def _bias(graph: Rewriting, node: NodeProto) -> bool:
    import numpy as np

    place = next((index for index, name in enumerate(node.input) if name in graph.constants), None)
    added = None if place is None else graph.stored(node.input[place])
    source = node.input[1 - place] if place is not None else ""
    squeeze = graph.maker(source, "Squeeze") if graph.opset >= _LEAST_OPSET else None
    layer = graph.maker(source if squeeze is None else squeeze.input[0], "Conv")
    rank = graph.rank(source)
    if added is None or layer is None or rank is None or graph.only_reader(source) is not node:
        return False
    if squeeze is not None and (graph.only_reader(layer.output[0]) is not squeeze or not _behind_channels(graph, squeeze)):
        return False
    weight, channel = graph.stored(layer.input[1]), rank - added.ndim  # how many axes come before those that are added to
    old = graph.stored(layer.input[2]) if any(layer.input[2:]) else None
    if weight is None or (old is None and any(layer.input[2:])) or added.ndim > rank or added.dtype != weight.dtype:
        return False
    shape = (1,) * channel + added.shape
    if added.size not in (1, len(weight)) or len(shape) < 2 or (added.size > 1 and shape[1] != len(weight)):
        return False
    bias = np.broadcast_to(added.reshape(-1), (len(weight),)) + (0 if old is None else old)
    del layer.input[2:]
    layer.input.append(graph.store(bias.astype(weight.dtype), f"{layer.name}_bias"))
    result = node.output[0]
    graph.remove(node)
    (squeeze or layer).output[0] = result
    graph.finish()
    return True


def _behind_channels(graph: Rewriting, squeeze: NodeProto) -> bool:
    """Whether a Squeeze takes away axes behind the channels' only."""
    axes = _axes(graph, squeeze)
    return axes is not None and all(axis > 1 for axis in axes)


def _axes(graph: Rewriting, squeeze: NodeProto) -> list[int] | None:
    """The axes that a Squeeze takes away, counted from the first; None where they are not stored."""
    axes, rank = graph.stored(squeeze.input[1]) if any(squeeze.input[1:]) else None, graph.rank(squeeze.input[0])
    return None if axes is None or rank is None else [int(axis) % rank for axis in axes.reshape(-1)]
