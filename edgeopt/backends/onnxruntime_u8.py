"""S8 activations as U8, which onnxruntime's kernels on x86 want: 8-bit models run about twice as fast, and compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.formats.onnx_narrow import drop

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, NodeProto, TensorProto

Q, DQ = "QuantizeLinear", "DequantizeLinear"
_NEVER_BELOW_0 = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus")
_PASS_ON = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("Slice", "Split", "Gather", "Identity", "Dropout", "Cast", "Tile", "Expand", "DepthToSpace", "SpaceToDepth"),
)
_OF_ALL = ("Add", "Mul", "Concat", "Max")
_LARGEST = 2.0**30  # a bias beyond, in units of the sums, would leave no room for them in 32 bits


def retype(graph: GraphProto) -> int:
    """Retype activations' Q/DQ pairs in place, the scale kept; returns how many.

    Numbers move up by 128 with the zero point, so that every value is what it was. What never falls below 0
    keeps a zero point of 0: then onnxruntime takes the ReLU before it into the layer, and values beyond the
    calibrated range, which S8 cut off, pass. Weights stay S8.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    makers = {name: node for node in graph.node for name in node.output if name}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in onnx_format.reads(node):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    positive = _Positive(makers, stored)
    noted = {value.name: value for value in graph.value_info}
    done = 0
    for node in [one for one in graph.node if one.op_type == Q and one.input[0] not in stored]:
        pair = [node, *readers.get(node.output[0], [])]
        zeros = {one.input[2] if len(one.input) > 2 else "" for one in pair}
        if node.output[0] in outputs or any(one.op_type != DQ for one in pair[1:]) or not zeros <= stored.keys():
            continue
        arrays = [numpy_helper.to_array(stored[name]) for name in zeros]
        if any(
            stored[name].data_type != TensorProto.INT8 or not np.array_equal(array, arrays[0])
            for name, array in zip(zeros, arrays, strict=True)
        ):
            continue
        at_zero = not arrays[0].any() and positive(node.input[0])
        moved = arrays[0].astype(np.int16) + (0 if at_zero else 128)
        name = f"{node.output[0]}_u8"
        graph.initializer.append(numpy_helper.from_array(moved.astype(np.uint8), name))
        for one in pair:
            one.input[2] = name
        if node.output[0] in noted:
            noted[node.output[0]].type.tensor_type.elem_type = TensorProto.UINT8
        done += 1
    return done


def round_biases(graph: GraphProto) -> int:
    """Store biases of quantized layers as 32-bit integers, in the scale in which the products add up; returns how many.

    With a float bias onnxruntime takes a layer into 8 bits only where its result is rounded at once: a model's last layer ran in float.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output if name}
    made: list[NodeProto] = []
    replaced: set[str] = set()
    for node in graph.node:
        bias = stored.get(node.input[2]) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
        scale = _scale_of_sums(node, makers, stored) if bias is not None and len(bias.dims) == 1 else None
        if bias is None or scale is None or scale.size not in (1, bias.dims[0]):
            continue
        whole = np.rint(numpy_helper.to_array(bias).astype(np.float64) / scale)
        if not (np.abs(whole) < _LARGEST).all():
            continue
        names = [f"{node.output[0]}_bias{suffix}" for suffix in ("_whole", "_scale", "_zero", "")]
        arrays = whole.astype(np.int32), scale.astype(np.float32), np.zeros(scale.shape, np.int32)
        graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in zip(arrays, names[:3], strict=True))
        made.append(helper.make_node(DQ, names[:3], names[3:], name=names[3]))
        if scale.ndim:
            made[-1].attribute.append(helper.make_attribute("axis", 0))
        replaced.add(bias.name)
        node.input[2] = names[3]
    for one in reversed(made):
        graph.node.insert(0, one)
    drop(graph, replaced)
    return len(made)


def _scale_of_sums(node: NodeProto, makers: dict[str, NodeProto], stored: dict[str, TensorProto]) -> np.ndarray[Any, Any] | None:
    """Scale of data times scale of weights, a number or one for each output; None where the layer is not quantized so."""
    from onnx import TensorProto, numpy_helper

    given = {one.name: one for one in node.attribute}
    pairs = [makers[name] for name in node.input[:2] if name in makers and makers[name].op_type == DQ]
    if len(pairs) < 2 or any(pair.input[1] not in stored for pair in pairs) or pairs[1].input[0] not in stored:
        return None
    if any(given[name].f != 1 for name in ("alpha", "beta") if name in given):
        return None
    if any(stored[name].data_type != TensorProto.FLOAT for name in (node.input[2], *(pair.input[1] for pair in pairs))):
        return None
    data, weights = (numpy_helper.to_array(stored[pair.input[1]]) for pair in pairs)
    outputs = 0 if node.op_type == "Conv" or ("transB" in given and given["transB"].i) else 1
    axis = next((one.i for one in pairs[1].attribute if one.name == "axis"), 1)
    return data * weights if data.ndim == 0 and (weights.ndim == 0 or axis == outputs) else None


class _Positive:
    """Which tensors never fall below 0."""

    def __init__(self, makers: dict[str, Any], stored: dict[str, TensorProto]) -> None:
        self.makers, self.stored = makers, stored
        self.known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        waiting = [name]
        while waiting:  # no recursion: models are deeper than Python's stack
            current = waiting[-1]
            node = self.makers.get(current)
            below = [one for one in self._asks(node) if one not in self.known] if node is not None and current not in self.known else []
            if below:
                waiting += below
                continue
            waiting.pop()
            if current not in self.known:
                self.known[current] = self._decide(node, current)
        return self.known[name]

    def _asks(self, node: NodeProto) -> list[str]:
        if node.op_type in _OF_ALL:
            return list(node.input)
        return [node.input[0]] if node.op_type in (*_PASS_ON, Q, DQ) else []

    def _decide(self, node: NodeProto | None, name: str) -> bool:
        if node is None:
            return name in self.stored and bool((self._array(name) >= 0).all())
        if node.op_type == "Clip":
            return len(node.input) > 1 and node.input[1] in self.stored and bool((self._array(node.input[1]) >= 0).all())
        asks = self._asks(node)
        return node.op_type in _NEVER_BELOW_0 or (bool(asks) and all(self.known[one] for one in asks))

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.stored[name])
