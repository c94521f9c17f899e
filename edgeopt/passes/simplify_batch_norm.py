"""Batch normalization folded into the matrix products and convolutions beside it, where onnxslim leaves it.

In inference it is y = factor·x + shift for each channel, with factor = scale / √(variance + ε) and
shift = bias − factor·mean (Ioffe and Szegedy, Batch Normalization, 2015, algorithm 2): a layer with stored
weights does that as well. onnxslim folds those behind convolutions. One in front of a convolution that
pads stays: zeros would have to be −shift/factor there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.simplify_graph import attribute

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto

    Array = np.ndarray[Any, Any]

_LEAST_OPSET = 9  # before, one could normalize each element, or train


def fold(model: ModelProto) -> int:
    """Fold every BatchNormalization that a layer beside it takes up, those in bodies too; returns how many."""
    import onnx

    if onnx_format.opset(model) < _LEAST_OPSET or all(node.op_type != "BatchNormalization" for node in onnx_format.nodes(model)):
        return 0
    known = model if onnx_format.too_large(model) else onnx.shape_inference.infer_shapes(model)
    values = [value for graph in onnx_format.graphs(known.graph) for value in (*graph.input, *graph.value_info, *graph.output)]
    rows = {value.name for value in values if len(value.type.tensor_type.shape.dim) == 2}
    return sum(_Graph(graph, rows).fold() for graph in onnx_format.graphs(model.graph))


class _Graph:
    """One graph, its stored tensors, and which of its tensors are [samples, channels]: MatMul takes any rank, and channels must be last."""

    def __init__(self, graph: GraphProto, rows: set[str]) -> None:
        from onnx import numpy_helper

        self.graph, self.rows = graph, rows
        self.stored = {name: numpy_helper.to_array(tensor) for name, tensor in onnx_format.constants(graph).items()}

    def fold(self) -> int:
        folded = 0
        for node in [node for node in self.graph.node if node.op_type == "BatchNormalization"]:
            self.makers = {name: one for one in self.graph.node for name in one.output}
            self.reads = Counter(name for one in self.graph.node for name in onnx_format.reads(one))
            self.reads.update(value.name for value in self.graph.output)
            affine = self._affine(node)
            folded += affine is not None and (self._into_maker(node, *affine) or self._into_reader(node, *affine))
        if folded:
            read = {name for one in self.graph.node for name in onnx_format.reads(one)} | {value.name for value in self.graph.output}
            for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in read]:
                self.graph.initializer.remove(tensor)
            onnx_format.sort_nodes(self.graph)
        return folded

    def _affine(self, node: NodeProto) -> tuple[Array, Array] | None:
        """Factor and shift of each channel, float64 [channels]; None where they are not stored or not finite."""
        import numpy as np

        if any(node.output[1:]) or attribute(node, "training_mode", 0) or any(name not in self.stored for name in node.input[1:]):
            return None
        self.dtype = self.stored[node.input[1]].dtype
        scale, bias, mean, variance = (self.stored[name].astype(np.float64) for name in node.input[1:])
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
            shift = bias - factor * mean
        return (factor, shift) if np.isfinite(factor).all() and np.isfinite(shift).all() else None

    def _into_maker(self, node: NodeProto, factor: Array, shift: Array) -> bool:
        """Fold into a Gemm or MatMul whose result nothing else reads, with or without an Add of a stored row between."""
        last = self._alone(node.input[0])
        row = self._row_of(last, len(factor))
        layer = self._alone(last.input[1 - row]) if last is not None and row is not None else last
        weight, bias = self._weight(layer), self._bias(layer, len(factor))
        if layer is None or last is None or weight is None or bias is None or weight.shape[1] != len(factor):
            return False
        if layer.op_type == "MatMul" and not {node.input[0], layer.output[0]} <= self.rows:
            return False
        self._set_weight(layer, weight * factor)
        if row is not None:
            self._store(last, row, self.stored[last.input[row]].reshape(-1) * factor + shift)
            self._set_bias(layer, bias * factor)
        elif layer.op_type == "Gemm":
            self._set_bias(layer, bias * factor + shift)
        else:
            self._make_addition(node, layer.output[0], shift)
            return True
        last.output[0] = node.output[0]
        self.graph.node.remove(node)
        return True

    def _into_reader(self, node: NodeProto, factor: Array, shift: Array) -> bool:
        """Fold into the one Gemm, MatMul or unpadded Conv that reads the result."""
        layer = next((one for one in self.graph.node if one.input[:1] == node.output[:1]), None)
        if layer is None or self.reads[node.output[0]] != 1:
            return False
        if layer.op_type == "Conv":
            return self._into_convolution(node, layer, factor, shift)
        weight = self._weight(layer)
        bias = self._bias(layer, weight.shape[1]) if weight is not None else None
        if weight is None or bias is None or weight.shape[0] != len(factor) or attribute(layer, "transA", 0):
            return False
        if layer.op_type == "MatMul" and node.input[0] not in self.rows:
            return False
        extra = shift @ weight
        self._set_weight(layer, factor[:, None] * weight)
        layer.input[0] = node.input[0]
        after = next((one for one in self.graph.node if layer.output[0] in one.input), None)
        row = self._row_of(after, len(extra)) if self.reads[layer.output[0]] == 1 else None
        if layer.op_type == "Gemm":
            self._set_bias(layer, bias + extra * attribute(layer, "alpha", 1.0))
        elif after is not None and row is not None:
            self._store(after, row, self.stored[after.input[row]].reshape(-1) + extra)
        else:
            node.output[0], layer.output[0] = layer.output[0], f"{node.name}_product"
            self._make_addition(node, layer.output[0], extra)
            return True
        self.graph.node.remove(node)
        return True

    def _into_convolution(self, node: NodeProto, layer: NodeProto, factor: Array, shift: Array) -> bool:
        import numpy as np

        weight, biased = self.stored.get(layer.input[1]), any(layer.input[2:])
        bias = self.stored.get(layer.input[2]) if biased else np.zeros(1)
        padded = any(attribute(layer, "pads", [])) or attribute(layer, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if weight is None or bias is None or padded or weight.dtype != self.dtype:
            return False
        groups = attribute(layer, "group", 1)
        apart = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])  # [groups, outputs, inputs, kernel…]
        each = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        extra = (apart * shift.reshape(each)).reshape(weight.shape[0], -1).sum(axis=1)
        self._store(layer, 1, (apart * factor.reshape(each)).reshape(weight.shape))
        self._store(layer, 2, bias + extra)
        layer.input[0] = node.input[0]
        self.graph.node.remove(node)
        return True

    def _alone(self, name: str) -> NodeProto | None:
        """What makes a tensor that is read once."""
        return self.makers.get(name) if self.reads[name] == 1 else None

    def _weight(self, layer: NodeProto | None) -> Array | None:
        """The stored weight of a Gemm or MatMul, float64 [inputs, outputs]."""
        weight = self.stored.get(layer.input[1]) if layer is not None and layer.op_type in ("Gemm", "MatMul") else None
        if layer is None or weight is None or weight.ndim != 2 or weight.dtype != self.dtype:
            return None
        return (weight.T if attribute(layer, "transB", 0) else weight).astype("float64")

    def _bias(self, layer: NodeProto | None, width: int) -> Array | None:
        """What a Gemm adds, float64 [outputs], 0 where it adds nothing; None where that is no stored row."""
        import numpy as np

        if layer is None or not any(layer.input[2:]):
            return np.zeros(width)
        row = self._row(layer.input[2], width)
        return None if row is None else row * attribute(layer, "beta", 1.0)

    def _row(self, name: str, width: int) -> Array | None:
        """A stored tensor that is added alike to every row of `width` numbers, float64 [width]."""
        import numpy as np

        value = self.stored.get(name)
        if value is None or value.ndim > 2 or value.size not in (1, width) or value.shape[-1:] not in ((), (value.size,)):
            return None
        return np.broadcast_to(value.astype(np.float64).reshape(-1), (width,))

    def _row_of(self, node: NodeProto | None, width: int) -> int | None:
        """Which input of an Add is a stored row."""
        if node is None or node.op_type != "Add":
            return None
        return next((index for index, name in enumerate(node.input) if self._row(name, width) is not None), None)

    def _set_weight(self, layer: NodeProto, weight: Array) -> None:
        self._store(layer, 1, weight.T if attribute(layer, "transB", 0) else weight)

    def _set_bias(self, layer: NodeProto, bias: Array) -> None:
        if any(layer.input[2:]) or bias.any():
            self._store(layer, 2, bias)
            for beta in [one for one in layer.attribute if one.name == "beta"]:
                layer.attribute.remove(beta)

    def _make_addition(self, node: NodeProto, source: str, shift: Array) -> None:
        node.op_type = "Add"
        del node.attribute[:], node.input[1:], node.output[1:]
        node.input[0] = source
        self._store(node, 1, shift)

    def _store(self, node: NodeProto, index: int, value: Array) -> None:
        """Give a node a stored input of its own."""
        from onnx import numpy_helper

        del node.input[index : index + 1]
        name = f"{node.name}_folded_{len(self.stored)}"
        node.input.insert(index, name)
        self.stored[name] = value.astype(self.dtype)
        self.graph.initializer.append(numpy_helper.from_array(self.stored[name], name))
