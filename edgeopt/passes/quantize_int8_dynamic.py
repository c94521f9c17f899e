"""INT8 with ranges found at each call, for onnxruntime on CPUs: weights are integers, activations are rounded as they come.

LSTM layers have no other INT8 form there (and GRU and RNN none), and transformers lose less in this one than with
ranges fixed beforehand. The operators, DynamicQuantizeLSTM and DynamicQuantizeMatMul, are onnxruntime's own
(com.microsoft 1, docs/ContribOperators.md): OpenVINO reads the first and computes it in float, TensorRT reads neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import saturation

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    Array = np.ndarray[Any, Any]

DOMAIN = "com.microsoft"
LSTM, PRODUCT = "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"
RECURRENT, PRODUCTS = ("LSTM",), ("Gemm", "MatMul")
_OPTIONAL = 8  # inputs of an LSTM: X, W, R, B, sequence_lens, initial_h, initial_c, P


def executes(target: Mapping[str, Any]) -> bool:
    """Whether a target reads such operators: onnxruntime with its CPU kernels."""
    return target.get("backend") == "onnxruntime" and target.get("int8", "any") != "s8s8"


def is_dynamic(node: NodeProto) -> bool:
    """Whether a node is a layer of this kind."""
    return node.domain == DOMAIN and node.op_type in (LSTM, PRODUCT)


def quantize(model: ModelProto, types: Collection[str], floats: Collection[str], per_channel: bool, reduce: bool) -> None:
    """Put the INT8 form in the place of every layer of these types with constant float32 weights, but for those named in `floats`.

    Names of nodes and tensors stay. What runs inside of If and Loop stays float. `reduce`: no sum of two products leaves 16 bits.
    """
    graph = model.graph
    weights = _Weights(graph, per_channel, reduce)
    changed = False
    for node in graph.node:
        if node.op_type in types and node.domain in onnx_format.DEFAULT_DOMAINS and node.name not in floats:
            made = _lstm(node, weights) if node.op_type in RECURRENT else _product(node, weights)
            if made is not None:
                node.CopyFrom(made)
                changed = True
    if not changed:
        return
    weights.drop_unread()
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        entry = model.opset_import.add()
        entry.domain, entry.version = DOMAIN, 1


class _Weights:
    """Stored float32 weights, and their integers, each made once."""

    def __init__(self, graph: GraphProto, per_channel: bool, reduce: bool) -> None:
        self.graph, self.per_channel, self.reduce = graph, per_channel, reduce
        self.stored: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[tuple[str, bool], list[str]] = {}

    def read(self, name: str, rank: int) -> Array | None:
        """The finite float32 values behind a name, or None where it is something else."""
        import numpy as np
        from onnx import TensorProto, numpy_helper

        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != rank:
            return None
        values: Array = numpy_helper.to_array(tensor)
        return values if values.size and np.isfinite(values).all() else None

    def integers(self, name: str, values: Array, outputs: int, turned: bool) -> list[str]:
        """Names of the symmetric S8 integers, scales and zero points of a weight; one scale for each index of the axis `outputs`, or one.

        A leading axis in front of the matrix (the directions of a layer) has scales of its own. `turned`: its last two axes change places.
        """
        import numpy as np
        from onnx import numpy_helper

        if (name, turned) not in self.made:
            matrix = tuple(range(values.ndim))[-2:]
            summed = tuple(axis for axis in matrix if axis != outputs) if self.per_channel else matrix
            added = next(axis for axis in matrix if axis != outputs)
            reach = saturation.reach(values, [added]) if self.reduce else np.abs(values)
            reach = reach.max(axis=summed, keepdims=True)
            scale = np.where(reach > 0, reach / 127, 1).astype(np.float32)
            whole = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
            whole, scale = np.ascontiguousarray(whole.swapaxes(-1, -2)) if turned else whole, scale.squeeze(summed)
            label = f"{name}_turned" if turned else name
            arrays: dict[str, Array] = {
                f"{label}_int8": whole,
                f"{label}_scale": scale,
                f"{label}_zero_point": np.zeros(scale.shape, np.int8),
            }
            self.graph.initializer.extend(numpy_helper.from_array(array, called) for called, array in arrays.items())
            self.made[name, turned] = list(arrays)
        return self.made[name, turned]

    def drop_unread(self) -> None:
        """Remove float weights that only their integers are left of."""
        read = {name for node in self.graph.node for name in onnx_format.reads(node)} | {value.name for value in self.graph.output}
        for name in {name for name, _ in self.made} - read:
            self.graph.initializer.remove(self.stored[name])


def _lstm(node: NodeProto, weights: _Weights) -> NodeProto | None:
    """An LSTM as DynamicQuantizeLSTM, or None where it has no such form: weights that are computed, or the batch first."""
    from onnx import helper

    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    inner, recurrent = weights.read(node.input[1], 3), weights.read(node.input[2], 3)
    if inner is None or recurrent is None or attributes.pop("layout", 0):
        return None
    w, w_scale, w_zero = weights.integers(node.input[1], inner, outputs=1, turned=True)
    r, r_scale, r_zero = weights.integers(node.input[2], recurrent, outputs=1, turned=True)
    given = [*node.input, *[""] * (_OPTIONAL - len(node.input))]
    inputs = [given[0], w, r, *given[3:], w_scale, w_zero, r_scale, r_zero]
    return helper.make_node(LSTM, inputs, list(node.output), node.name, domain=DOMAIN, **attributes)


def _product(node: NodeProto, weights: _Weights) -> NodeProto | None:
    """A product with a constant matrix as DynamicQuantizeMatMul, or None where it has no such form."""
    from onnx import helper

    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    matrix = weights.read(node.input[1], 2)
    plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get("transA", 0)
    if matrix is None or not plain:
        return None
    turned = bool(attributes.get("transB", 0))
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias:
        values = weights.read(bias, 1)
        if values is None or values.size != matrix.shape[0 if turned else 1]:
            return None
    w, scale, zero = weights.integers(node.input[1], matrix, outputs=0 if turned else 1, turned=turned)
    return helper.make_node(
        PRODUCT, [node.input[0], w, scale, zero, *([bias] if bias else [])], list(node.output), node.name, domain=DOMAIN
    )
