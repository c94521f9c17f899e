"""Layer A, the rules on quantization: symmetric INT8, one scale per activation, one per output channel of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeopt.backends.tensorrt_check_scopes import MOVES
from edgeopt.core.protocols import Finding
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import NodeProto

    from edgeopt.backends.tensorrt_check_scopes import Scope

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
S8 = "quantize it with quantize-int8 for this target (int8: s8s8)"
KEEP = "name the layer under `keep` of quantize-int8"
# ONNX's own numbers of its types.
UINT8, INT8, INT32, FLOAT8, INT4, FLOAT4 = 2, 3, 6, 17, 22, 23
_GOOD_TYPES = (INT8, INT4, FLOAT8, FLOAT4)
# What takes a tensor without computing on it here: bodies and functions are looked at for themselves.
_PASSES_ON = ("If", "Loop", "Scan")
# Operators on integers: TensorRT has none of them.
INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
# Their outputs lose accuracy in 8 bit, and nothing runs faster for it.
_DELICATE = ("Softmax", "LogSoftmax", "Gelu", "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def node(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Findings on one node."""
    if node.domain not in onnx_format.DEFAULT_DOMAINS:
        return
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        # A DQ that shares its Q's tensors shares its faults, and what follows from a first fault is no news.
        source = scope.makers.get(node.input[0])
        shared = source is not None and source.op_type == QUANTIZE and list(source.input[1:]) == list(node.input[1:])
        first = None if shared and node.op_type == DEQUANTIZE else next(_pair(scope, node), None)
        if first:
            yield first
        else:
            yield from _place(scope, node)
    elif node.op_type in (*_CONVOLUTIONS, "Gemm"):
        yield from _bias(scope, node)
    elif node.op_type in ("Add", "Sum"):
        yield from _residual(scope, node)


def type_of(scope: Scope, node: NodeProto) -> int:
    """The integer type of a Q or DQ; a Q that names none makes UINT8. 0 when nothing tells it."""
    if len(node.input) > 2 and node.input[2]:
        return scope.type(node.input[2])
    if node.op_type == DEQUANTIZE:
        return scope.type(node.input[0])
    return next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype" and attribute.i), UINT8)


def type_name(number: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(number)) if number in TensorProto.DataType.values() else str(number)


def _pair(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Type, zero point and scale."""
    import numpy as np

    name, kind = scope.name(node), type_of(scope, node)
    if kind == UINT8:
        cause = "UINT8: TensorRT reads it as INT8 and keeps the scale, so that the upper half of the range is cut off, in silence"
        yield Finding("A", "error", name, cause, S8)
    elif kind == INT32:
        yield Finding("A", "error", name, "INT32 is dequantized (a quantized bias); TensorRT wants the bias as floats", S8)
    elif kind and kind not in _GOOD_TYPES:
        yield Finding("A", "error", name, f"{type_name(kind)}: TensorRT quantizes to INT8 only (FLOAT8E4M3FN, INT4 and FLOAT4 aside)", S8)
    zeros = scope.values(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    shifts = zeros.astype(np.float64) if zeros is not None and kind in _GOOD_TYPES else np.zeros(1)
    if shifts.any():
        yield Finding("A", "error", name, f"zero point {shifts[np.abs(shifts).argmax()]:g}: TensorRT quantizes symmetrically, around 0", S8)
    scales = scope.values(node.input[1])
    if scales is None:
        if scope.computed(node.input[1]):
            yield Finding("A", "error", name, "the scale is not constant but computed; TensorRT may crash over it", S8)
        return
    numbers = scales.astype(np.float64)
    if not numbers.size:
        yield Finding("A", "error", name, "the scale is an empty tensor", S8)
    elif kind != FLOAT4 and not (np.isfinite(numbers) & (numbers > 0)).all():
        worst = numbers[~(np.isfinite(numbers) & (numbers > 0))][0]
        yield Finding("A", "error", name, f"scale {worst:g}: scales are above 0 (a channel of zeros needs one too)", S8)


def _place(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Where the pair stands, and along which axis."""
    name, result = scope.name(node), node.output[0]
    scales = scope.values(node.input[1])
    channels = scales is not None and scales.size > 1
    stored = scope.constant(node.input[0]) is not None or (channels and not scope.computed(node.input[0]))
    if node.op_type == QUANTIZE:
        if others := sorted({user.op_type for user in scope.readers(result) if _computes(user)}):
            cause = f"it is not followed by {DEQUANTIZE} but by {', '.join(others)}: INT8 means something only between the two"
            yield Finding("A", "error", name, cause, S8)
        elif result in scope.outputs:
            cause = f"it is not followed by {DEQUANTIZE}: the model's output is INT8 without its scale"
            yield Finding("A", "warning", name, cause, "end the model with the dequantized tensor")
        if type_of(scope, node) == INT4 and scope.computed(node.input[0]):
            yield Finding("A", "error", name, "an activation is quantized to INT4, which TensorRT takes for weights only", S8)
        if channels and not stored:
            yield Finding("A", "error", name, "an activation is quantized per channel; TensorRT takes one scale for all of it", S8)
        if delicate := _delicate(scope, node.input[0]):
            cause = (
                f"the output of {delicate.op_type if delicate.op_type in _DELICATE else 'Gelu'} is quantized: accuracy is lost, no time won"
            )
            yield Finding("A", "warning", scope.name(delicate), cause, KEEP)
        return
    source = scope.makers.get(node.input[0])
    if source is not None and source.op_type == QUANTIZE:
        before = scope.values(source.input[1])
        if before is not None and scales is not None and (before.size != scales.size or (before > scales).any() or (before < scales).any()):
            yield Finding("A", "warning", name, f"it has another scale than its {QUANTIZE}: the values change", S8)
        stored = stored or scope.constant(source.input[0]) is not None
    elif channels and not stored:
        yield Finding("A", "error", name, "an activation is dequantized per channel; TensorRT takes one scale for all of it", S8)
    if channels and stored and not _attribute(node, "block_size", 0):
        yield from _axis(scope, node)


def _computes(node: NodeProto) -> bool:
    """Whether a node behind a Q reads its integers as numbers of their own."""
    return node.domain in onnx_format.DEFAULT_DOMAINS and node.op_type not in (DEQUANTIZE, *INTEGER, *_PASSES_ON, *MOVES)


def _axis(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """A weight's scales go along its output channels."""
    tensor = scope.constant(node.input[0])
    source = scope.makers.get(node.input[0])
    if tensor is None and source is not None:
        tensor = scope.constant(source.input[0])
    rank = len(tensor.dims) if tensor is not None else 0
    axis = _attribute(node, "axis", 1)
    axis = axis + rank if axis < 0 else axis
    for user, index in scope.users[node.output[0]]:
        wanted = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if _attribute(user, "transB", 0) else 1, "MatMul": rank - 1}.get(user.op_type)
        if index == 1 and wanted is not None and axis != wanted:
            cause = f"scales along axis {axis}: for the weight of {user.op_type} '{scope.name(user)}' TensorRT wants axis {wanted}"
            yield Finding("A", "error", scope.name(node), cause, S8)
            return


def _bias(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """INT32 is told at the DQ; narrower biases build and lose accuracy."""
    if len(node.input) < 3 or scope.maker(node.input[2]) != DEQUANTIZE:
        return
    if type_of(scope, scope.makers[node.input[2]]) != INT32:
        yield Finding("A", "warning", scope.name(node), "its bias is quantized to 8 bit, which is too coarse for a bias", S8)


def _residual(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Both sides of an addition in INT8, or none: else TensorRT cannot fuse it with the convolution before it."""
    sides = [_side(scope, name) for name in node.input if scope.constant(name) is None]
    if len(sides) == 2 and "float" in sides and sides != ["float", "float"]:
        cause = "a sum is quantized on one side only: it runs apart from its convolution, in float"
        yield Finding("A", "warning", scope.name(node), cause, "quantize both sides, or neither (quantize-int8 does)")


def _side(scope: Scope, name: str) -> str:
    maker = scope.makers.get(name)
    if maker is None:
        return "float"
    if maker.op_type == DEQUANTIZE:
        return "quantized"
    return "fused" if maker.op_type in _CONVOLUTIONS and scope.maker(maker.input[0]) == DEQUANTIZE else "float"


def _delicate(scope: Scope, name: str) -> NodeProto | None:
    """The node behind a tensor when quantizing its output costs accuracy; GELU may be spelt out with Erf or Tanh."""
    maker = scope.makers.get(name)
    if maker is None or maker.op_type in _DELICATE:
        return maker
    return maker if maker.op_type == "Mul" and _is_gelu(scope, maker, 4) else None


def _is_gelu(scope: Scope, node: NodeProto, depth: int) -> bool:
    """Whether an Erf goes into a product, or a Tanh through a sum: x·(1 + tanh …), and not Mish, which is x·tanh …."""
    makers = [scope.makers[name] for name in node.input if name in scope.makers]
    if any(one.op_type == "Erf" or (one.op_type == "Tanh" and node.op_type == "Add") for one in makers):
        return True
    arithmetic = [one for one in makers if one.op_type in ("Mul", "Add", "Div")]
    return depth > 0 and any(_is_gelu(scope, one, depth - 1) for one in arithmetic)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
