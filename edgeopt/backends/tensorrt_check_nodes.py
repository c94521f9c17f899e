"""Layer A, the rules on operators, types, axes and GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.backends import tensorrt_profiles
from edgeopt.backends.tensorrt_check_quantization import INTEGER, QUANTIZE, S8, type_name, type_of
from edgeopt.backends.tensorrt_check_scopes import name_of
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Finding, Level
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from edgeopt.backends.tensorrt_check_scopes import Scope

# Operators of ONNX that the parser of TensorRT for RTX 1.7 knows no kernel for; a test compares this list with the installed one's.
_UNSUPPORTED_WORDS = """AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
    ConcatFromSequence CumProd DFT DeformConv Det ImageDecoder MaxRoiPool MaxUnpool MelWeightMatrix Multinomial
    NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat
    StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique"""
UNSUPPORTED = frozenset(_UNSUPPORTED_WORDS.split())
# The size of their output depends on the data. The parser of RTX takes them, and then there is no kernel.
_SIZED_BY_DATA = ("NonZero", "NonMaxSuppression")
# Operators of ONNX that the parser makes plugins of: TensorRT brings these, TensorRT for RTX does not.
_BY_PLUGIN = ("RoiAlign",)
_KNOWN_FOREIGN = ("com.microsoft", "ai.onnx.ml", "com.ms.internal.nhwc", "org.pytorch.aten", "ai.onnx.contrib")
_MATRIX = ("MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention")
_RECURRENT = ("LSTM", "GRU", "RNN")
_ONE_FLOAT_WORDS = """Add Sub Mul Div MatMul Gemm Conv ConvTranspose Concat Min Max Sum Mean PRelu LayerNormalization InstanceNormalization
    GroupNormalization Einsum LSTM GRU RNN Where"""
_ONE_FLOAT = frozenset(_ONE_FLOAT_WORDS.split())
# Inputs that decide shapes, by operator.
_SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "TopK", "Tile", "Pad", "OneHot", "Split", "Squeeze", "Unsqueeze"), (1,)),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
}
_LEAST_OPSET = 7
FLOAT, DOUBLE, FP16, BF16, UINT8 = 1, 11, 10, 16, 2
_FLOATS = (FLOAT, FP16, BF16, DOUBLE)
_FLOAT8, _FLOAT4 = (17, 18, 19, 20), (23,)
_NO_TYPE = (4, 5, 8, 12, 13, 14, 15)  # UINT16 INT16 STRING UINT32 UINT64 COMPLEX64 COMPLEX128
_NO_NUMPY = (BF16, *_FLOAT8, *_FLOAT4, 21, 22, 24, 25, 26)  # UINT4 INT4 FLOAT8E8M0 UINT2 INT2
# From which compute capability on a type runs.
_SINCE = {BF16: 8.0, **dict.fromkeys(_FLOAT8, 8.9), **dict.fromkeys(_FLOAT4, 10.0)}
_HALF = "put cast-fp16 in the variant, or leave 7.5 out of compute_capabilities"


def ends(model: ModelProto, target: Mapping[str, Any]) -> list[Finding]:
    """Findings on the model as a whole, its inputs and outputs: their types, and axes without a range."""
    found = []
    if (version := onnx_format.opset(model)) < _LEAST_OPSET:
        cause = f"opset {version}: TensorRT answers for models from opset {_LEAST_OPSET} on"
        found.append(Finding("A", "warning", "opset", cause, "export it at opset 17; the import of `edgeopt run` raises what it can"))
    for tensor in (one.values for graph in onnx_format.graphs(model.graph) for one in graph.sparse_initializer):
        cause = "it is stored as a sparse tensor, which TensorRT's parser does not see"
        found.append(Finding("A", "error", tensor.name, cause, "store it as a plain tensor, as the import of `edgeopt run` does"))
    for side, values in (("inputs", onnx_format.inputs(model)), ("outputs", model.graph.output)):
        if not values:
            found.append(Finding("A", "error", side, f"there are no {side}", f"export the model with its {side}"))
    for value in (*onnx_format.inputs(model), *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind in _NO_TYPE:
            cause = f"it is {type_name(kind)}, which TensorRT does not know"
            found.append(Finding("A", "error", value.name, cause, "export it as float32, int32 or int64"))
        elif kind == DOUBLE:
            cause = "it is DOUBLE: TensorRT makes FP32 of it in silence, and the engine takes other bytes than the model"
            found.append(Finding("A", "error", value.name, cause, "export it as float32"))
        elif kind in _NO_NUMPY:
            cause = f"it is {type_name(kind)}: numpy has no such numbers, so that nothing here can feed or read it"
            found.append(Finding("A", "error", value.name, cause, "export it as float32, with a cast inside the model"))
    for value in onnx_format.inputs(model):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            cause, remedy = "nothing tells how many axes it has", "export the model with the shapes of its inputs"
            found.append(Finding("A", "error", value.name, cause, remedy))
    try:
        signature = onnx_format.signature_of(model)
    except UsageError as error:
        return [*found, Finding("A", "error", "inputs", error.cause, error.remedy)]
    known = tensorrt_profiles.ranges(signature, int(target.get("batch", 1)), target.get("options", {}).get("profiles", {}))
    for axis, name in tensorrt_profiles.open_axes(signature, known).items():
        remedy = f"give it: options: {{profiles: {{{axis}: [min, opt, max]}}}}, or export the model with that size fixed"
        found.append(Finding("A", "error", name, f"axis '{axis}' may vary and has no range", remedy))
    deciding: dict[str, NodeProto] = {}
    for node in model.graph.node:
        for index in _SHAPE_INPUTS.get(node.op_type, ()):
            if index < len(node.input):
                deciding.setdefault(node.input[index], node)
    for value in onnx_format.inputs(model):
        if one := deciding.get(value.name):
            cause = f"it decides a shape (of {one.op_type} '{name_of(one)}'): TensorRT would need a range of its values"
            found.append(Finding("A", "error", value.name, cause, "export the model with that input as a constant"))
    return [*found, *(_recurrent(model, known) if target.get("options", {}).get("product") == "rtx" else [])]


def node(scope: Scope, node: NodeProto, target: Mapping[str, Any], functions: set[str]) -> Iterator[Finding]:
    """Findings on one node."""
    options = target.get("options", {})
    rtx = options.get("product") == "rtx"
    name = scope.name(node)
    if node.domain not in onnx_format.DEFAULT_DOMAINS:
        if node.op_type not in functions:
            level: Level = "error" if rtx or node.domain in _KNOWN_FOREIGN else "warning"
            cause = f"{node.op_type} of {node.domain} is no operator of ONNX: TensorRT has it only where a plugin brings it"
            remedy = S8 if "Quantize" in node.op_type or "QLinear" in node.op_type else "export with operators of ONNX"
            yield Finding("A", level, name, cause, remedy)
        return
    yield from _operator(scope, node, rtx)
    yield from _types(scope, node)
    kinds = list(dict.fromkeys(kind for one in node.input if (kind := scope.type(one)) in _FLOATS))
    if node.op_type in _ONE_FLOAT and len(kinds) > 1:
        cause = f"{type_name(kinds[0])} and {type_name(kinds[1])} meet in it; TensorRT casts nothing by itself"
        yield Finding("A", "error", name, cause, "put cast-fp16 in the variant once, and nothing that casts by hand")
    yield from _gpus(scope, node, [float(one) for one in options.get("compute_capabilities", [])], rtx)


def _operator(scope: Scope, node: NodeProto, rtx: bool) -> Iterator[Finding]:
    name, kind = scope.name(node), node.op_type
    if kind in INTEGER:
        yield Finding("A", "error", name, f"{kind}: TensorRT takes quantized models as Q/DQ pairs only", S8)
    elif kind in UNSUPPORTED:
        cause = f"{kind}: TensorRT for RTX has no such operator" + ("" if rtx else "; TensorRT may have it")
        yield Finding("A", "error" if rtx else "warning", name, cause, "replace it before export")
    elif kind in _BY_PLUGIN and rtx:
        yield Finding("A", "error", name, f"{kind}: TensorRT for RTX brings no plugin for it", "leave that part to the application")
    elif kind == "Attention":
        cause = "Attention as one operator: TensorRT has kernels for some sizes in FP16 and BF16 only, and may refuse it or crash"
        yield Finding("A", "warning", name, cause, "export it at an opset below 23, where it is written out")
    elif kind in _SIZED_BY_DATA and rtx:
        yield Finding("A", "error", name, f"{kind}: TensorRT for RTX has no kernel for it", "leave that part to the application")
    elif kind in _SIZED_BY_DATA:
        cause = f"{kind}: how large its output is depends on the data, and edgeopt's runner opens no engine with such an output"
        yield Finding("A", "warning", name, cause, "leave that part to the application")
    elif _trains(scope, node):
        yield Finding("A", "error", name, f"{kind} is in training mode", "export the model in evaluation mode: model.eval()")


def _trains(scope: Scope, node: NodeProto) -> bool:
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        mode = scope.values(node.input[2])
        return mode is None or bool(mode.any())
    return node.op_type == "BatchNormalization" and any(one.name == "training_mode" and one.i for one in node.attribute)


def _types(scope: Scope, node: NodeProto) -> Iterator[Finding]:
    """Types of what the node makes; a Q's are judged elsewhere, a model's output at its end."""
    if node.op_type in (QUANTIZE, "Constant", *INTEGER):
        return
    for result in node.output:
        kind = scope.type(result)
        if kind in _NO_TYPE and result not in scope.outputs:
            yield Finding("A", "error", scope.name(node), f"it makes {type_name(kind)}, which TensorRT does not know", "use int32 or int64")
        elif kind == UINT8 and result not in scope.outputs:
            yield Finding("A", "error", scope.name(node), "it makes UINT8: TensorRT knows that at inputs and outputs only", "use int32")
        elif kind == DOUBLE and result not in scope.outputs:
            yield Finding("A", "warning", scope.name(node), "it makes DOUBLE: TensorRT computes it in FP32", "export in float32")


def _gpus(scope: Scope, node: NodeProto, capabilities: list[float], rtx: bool) -> Iterator[Finding]:
    """What runs on all of the target's GPUs but one does not run on the target."""
    least = min(capabilities, default=99.0)
    kinds = {scope.type(one) for one in (*node.input, *node.output)}
    if node.op_type == QUANTIZE:
        kinds.add(type_of(scope, node))
    for kind in kinds:
        if least < _SINCE.get(kind, 0.0) and node.op_type != "Constant":
            cause = f"{type_name(kind)} runs from compute capability {_SINCE[kind]} on, the target has {least}"
            yield Finding("A", "error", scope.name(node), cause, "use cast-fp16 instead" if kind == BF16 else S8, unfit=True)
            return
    if rtx and least < 8.0 and node.op_type in _MATRIX and FLOAT in kinds:
        cause = f"{node.op_type} multiplies FP32 matrices, and Turing has no kernel for it"
        yield Finding("A", "error", scope.name(node), cause, _HALF, unfit=True)


def _recurrent(model: ModelProto, known: Mapping[str, tensorrt_profiles.Range]) -> Iterator[Finding]:
    """Recurrent layers of batch 1: RTX 1.7 took 49 s for a GRU of three steps, and had not ended after a minute for four."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.value_info)}
    for node in model.graph.node:
        dims = shapes.get(node.input[0], ()) if node.op_type in _RECURRENT and node.input else ()
        if len(dims) != 3:
            continue
        batch = dims[0 if any(one.name == "layout" and one.i for one in node.attribute) else 1]
        if batch.dim_value == 1 or known.get(batch.dim_param, (0, 0, 2))[2] == 1:
            cause = f"{node.op_type} of batch 1: TensorRT for RTX may take very long over it, or never end"
            opened = "" if batch.dim_param else "export the model with its batch axis open, and "
            remedy = f"{opened}let the axis vary up to 2: options: {{profiles: {{{batch.dim_param or 'AXIS'}: [1, 1, 2]}}}}"
            yield Finding("A", "warning", name_of(node), cause, remedy)
