"""INT8 by onnxruntime on ONNX models: Q/DQ pairs in the flavour that the target reads right."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError, StepError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import quantize_int8_dynamic as dynamic
from edgeopt.passes import quantize_int8_onnx_weights as weights
from edgeopt.passes.quantize_int8_onnx_prepare import prepare
from edgeopt.passes.quantize_int8_ranges import find_ranges, without_range
from edgeopt.passes.quantize_int8_samples import Calibration

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto

    from edgeopt.passes.quantize_int8 import QuantizeInt8

    Feeds = dict[str, np.ndarray[Any, Any]]

# Runtimes on CPUs that read U8 activations right; anything else gets symmetric S8, which everybody does.
_CPU_BACKENDS = ("onnxruntime", "openvino", "null")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What stands between layers with weights and computes on quantized numbers too.
_BETWEEN = (
    *("Add", "Mul", "Concat", "Clip", "Relu", "LeakyRelu", "Sigmoid", "GlobalAveragePool", "AveragePool", "MaxPool"),
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Resize", "Pad", "Split", "Slice"),
)
_TYPES = {"plain": (*WEIGHTED, *_BETWEEN), "transformer": WEIGHTED}
DYNAMIC = "dynamic"
_REMOVABLE = ("Relu", "Clip")
_PER_CHANNEL_OPSET, _LEAST_OPSET, _HALF_OPSET = 13, 10, 19


def quantize(model: Artifact, options: QuantizeInt8, ctx: Context) -> Path:
    """The quantized model's file. Raises StepError when nothing in it could be quantized."""
    with Quantizer(model, options, ctx, Calibration(ctx, options.samples, judge=options.searches)) as quantizer:
        best = quantizer.build()
    if not quantized_layers(best):
        raise StepError(
            "nothing was quantized: the model has no layer that onnxruntime quantizes, or all are kept", remedy="leave quantize-int8 out"
        )
    ctx.note("quantized_layers", quantized_layers(best))
    return save(best, ctx)


def save(made: ModelProto, ctx: Context) -> Path:
    """Write a quantized model that its target reads right, or raise StepError."""
    if flavour_of(ctx.target) == "s8s8":
        refuse_unsigned(made)
    path = onnx_format.save(made, ctx.folder / onnx_format.MAIN)
    onnx_format.Onnx().runner(path)
    return path


class Settings(NamedTuple):
    """Kind of model and range; none where ranges are found at each call."""

    kind: str
    method: str = ""

    def __str__(self) -> str:
        return f"{self.kind}, {self.method}" if self.method else self.kind


class Quantizer:
    """A model prepared for quantization, with its ranges found and the settings that suit it best chosen."""

    def __init__(self, model: Artifact, options: QuantizeInt8, ctx: Context, calibration: Calibration) -> None:
        registry.need("onnxruntime.quantization", "onnxruntime")
        self.options, self.flavour, self.backend = options, flavour_of(ctx.target), ctx.target.get("backend", "")
        proto = onnx_format.load(model.path)
        self.kept = onnx_format.matching(options.keep, {node.name: node.op_type for node in proto.graph.node})
        refuse(proto)
        proto = _raised(proto, self.kept)
        self.dynamic = dynamic.executes(ctx.target) and options.activations != "static"
        if options.activations == DYNAMIC and not self.dynamic:
            raise UsageError(
                "activations: dynamic is executed by onnxruntime on CPUs alone, and this target is another",
                remedy="leave it out, or give each target a variant of its own",
            )
        attention = has_attention(proto)
        kinds = [options.model_type] if options.model_type != "auto" else ["plain", "transformer"] if attention else ["plain"]
        methods: list[str] = [options.calibration] if options.calibration != "auto" else ["minmax", "mean-minmax"]
        self.reduce, why = options.reduced(ctx.target) if self.flavour == "u8s8" else (False, "")
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self._scratch.name)
        with quiet():
            try:
                self.prepared = prepare(proto, self.folder, model, self.kept, ctx)
                self.ranges, none = find_ranges(self.prepared, _TYPES[kinds[0]], calibration, methods, self.folder)
                self.rangeless = without_range(onnx_format.load(self.prepared).graph, none, _TYPES["plain"])
                candidates: dict[Settings, Callable[[], ModelProto]] = {
                    Settings(kind, method): partial(self._build, kind, method)
                    for kind in (kinds if options.activations != DYNAMIC else ())
                    for method in methods
                }
                if self.dynamic and (attention or options.activations == DYNAMIC):
                    candidates[Settings(DYNAMIC)] = partial(self._build, DYNAMIC, "")
                choice = calibration.choose(
                    candidates, lambda: onnx_format.Onnx().runner(model.path), self.runner, alone=len(candidates) == 1
                )
            except EdgeoptError:
                raise
            except Exception as error:
                raise _failed(error) from error
        self.kind, self.method = choice.settings
        notes = {
            "engine": "onnxruntime",
            "flavour": self.flavour,
            "chosen": choice.title,
            "tried_db": choice.tried_db,
            "reduce_range": why,
            "kept_without_range": self.rangeless,
        }
        for name, value in notes.items():
            if value:
                ctx.note(name, value)

    def build(self, excluded: Collection[str] = (), keep_activations: bool = False) -> ModelProto:
        """The quantized model; nodes named in `excluded` stay float.

        A Relu or Clip whose cut the quantizer's range makes anyway is taken out unless `keep_activations`, or a body of If or
        Loop reads one: no quantizer stands between there.
        """
        with quiet():
            return self._build(self.kind, self.method, excluded, keep_activations)

    def runner(self, made: ModelProto) -> Callable[[Feeds], Feeds]:
        """Runs a model plainly."""
        return onnx_format.Onnx().runner(onnx_format.save(made, self.folder / "candidate.onnx"))

    def _build(self, kind: str, method: str, excluded: Collection[str] = (), keep_activations: bool = False) -> ModelProto:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        original = onnx_format.load(self.prepared)
        symmetric, floats = self.flavour == "s8s8", {*self.kept, *self.rangeless, *excluded}
        if kind == DYNAMIC:
            dynamic.quantize(original, (*dynamic.RECURRENT, *dynamic.PRODUCTS), floats, self.options.per_channel, self.reduce)
            return original
        # TensorRT reads biases only as float; it and every S8 kernel want zero points of 0.
        extra: dict[str, Any] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if symmetric else {}
        captured = _read_in_bodies(original)
        keep_activations |= any(node.op_type in _REMOVABLE and node.output[0] in captured for node in original.graph.node)
        per_channel = self.options.per_channel and onnx_format.opset(original) >= _PER_CHANNEL_OPSET
        narrowed = weights.unsaturated(original.graph, per_channel) if self.reduce else {}
        extra |= {"QDQKeepRemovableActivations": keep_activations, "TensorQuantOverrides": narrowed | weights.whole(original.graph)}
        quantizer = QDQQuantizer(
            onnx_format.load(self.prepared),
            per_channel,
            self.reduce,
            QuantType.QInt8,
            QuantType.QInt8 if symmetric else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(self.ranges[method])),
            [],
            [node.name for node in original.graph.node if node.name in floats or _unquantizable(node)],
            list(_TYPES[kind]),
            extra,
        )
        quantizer.quantize_model()
        made: ModelProto = quantizer.model.model
        _restore_captured(made, original)
        if not symmetric or self.backend not in _CPU_BACKENDS:
            _free_outputs(made.graph, original.graph)
        if self.dynamic:
            dynamic.quantize(made, dynamic.RECURRENT, floats, self.options.per_channel, self.reduce)
        onnx_format.sort_nodes(made.graph)
        onnx_format.name_nodes(made)
        return made

    def close(self) -> None:
        self._scratch.cleanup()

    def __enter__(self) -> Quantizer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def flavour_of(target: Any) -> str:
    """u8s8 only where it is known to be right: elsewhere the U8 flavour loads and computes nonsense."""
    asked, backend = target.get("int8", "any"), target.get("backend", "")
    if backend not in _CPU_BACKENDS or asked == "s8s8":
        return "s8s8"
    return "u8s8" if asked == "u8s8" or target.get("arch") == "x86_64" else "s8s8"


def refuse(proto: ModelProto) -> None:
    if any(onnx_format.quantized(node) for node in onnx_format.nodes(proto)):
        raise StepError("the model is quantized already", remedy="leave quantize-int8 out, or give the model before quantization")
    if onnx_format.opset(proto) < _LEAST_OPSET:
        raise StepError(
            f"the model has opset {onnx_format.opset(proto)}, and quantization needs {_LEAST_OPSET}", remedy="export it with a newer opset"
        )


def _raised(proto: ModelProto, kept: Collection[str]) -> ModelProto:
    """The model in operators whose Q/DQ pairs take float16, where layers have such weights. Raises StepError where it cannot be."""
    from onnx import TensorProto, version_converter

    half = {name for name, one in onnx_format.constants(proto.graph).items() if one.data_type == TensorProto.FLOAT16}
    layers = [node for node in proto.graph.node if node.op_type in WEIGHTED and node.name not in kept]
    if onnx_format.opset(proto) >= _HALF_OPSET or not any(half.intersection(node.input) for node in layers):
        return proto
    with contextlib.suppress(Exception):  # the converter knows not every operator, and says so in ways of its own
        made: ModelProto = version_converter.convert_version(proto, _HALF_OPSET)
        onnx_format.runner_of(made.SerializeToString())
        if onnx_format.signature_of(made) == onnx_format.signature_of(proto):
            return made
    raise StepError(
        f"the model is float16 at opset {onnx_format.opset(proto)}, and only from {_HALF_OPSET} on can float16 be quantized",
        remedy="put quantize-int8 before cast-fp16, or export the model anew, at opset 19 or later",
    )


def _unquantizable(node: NodeProto) -> bool:
    """What onnxruntime quantizes wrongly.

    A transposed convolution in groups: its bias gets a scale for each channel of one group only. A cubic Resize: its result
    gets the range of what it reads, beyond which cubic curves go (a small CNN fell from 33 dB to 22).
    """
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "ConvTranspose":
        return "group" in given and given["group"].i > 1
    return node.op_type == "Resize" and "mode" in given and given["mode"].s == b"cubic"


def has_attention(proto: ModelProto) -> bool:
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    return any(node.op_type == "MatMul" and "Softmax" in (makers.get(name) for name in node.input) for node in proto.graph.node)


def _failed(error: Exception) -> StepError:
    return StepError(
        f"onnxruntime cannot quantize this model: {type(error).__name__}: {onnx_format.cause(error)}", remedy="leave quantize-int8 out"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _restore_captured(made: ModelProto, original: ModelProto) -> None:
    """Bring back float weights that a body of If or Loop reads: the quantizer sees only the outer nodes."""
    present = {tensor.name for tensor in made.graph.initializer}
    made.graph.initializer.extend(tensor for tensor in original.graph.initializer if tensor.name in _read_in_bodies(made) - present)


def _read_in_bodies(model: ModelProto) -> set[str]:
    """Names of the tensors that If, Loop and Scan read, in their bodies too."""
    return {name for node in model.graph.node if onnx_format.bodies(node) for name in onnx_format.reads(node)}


def _free_outputs(graph: GraphProto, original: GraphProto) -> None:
    """Take the Q/DQ pair off outputs that a matrix product makes: its kernels give float as fast, and exactly.

    Not for onnxruntime with float biases: there only a rounded output is fused. And not where an activation
    stood behind the product, which the quantizer took out: there the pair makes the cut.
    """
    products = {name for node in original.node if node.op_type in ("Gemm", "MatMul") for name in node.output}
    outputs = {value.name for value in graph.output} & products
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in onnx_format.reads(node))
    for name in outputs:
        pair = makers.get(name)
        quantizer = makers.get(pair.input[0]) if pair is not None and pair.op_type == "DequantizeLinear" else None
        layer = makers.get(quantizer.input[0]) if quantizer is not None and quantizer.op_type == "QuantizeLinear" else None
        if pair is None or quantizer is None or layer is None or layer.op_type not in ("Gemm", "MatMul"):
            continue
        if readers[layer.output[0]] == readers[quantizer.output[0]] == 1:
            layer.output[0] = name
            graph.node.remove(pair)
            graph.node.remove(quantizer)


def quantized_layers(model: ModelProto) -> dict[str, int]:
    """How many layers of each type compute on quantized tensors, weights included where they have any, or round what they read."""
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if dynamic.is_dynamic(node):
            found[node.op_type] += 1
        sources = node.input[: 2 if node.op_type in WEIGHTED else 1]
        if node.op_type != "QuantizeLinear" and sources and made.issuperset(sources):
            found[node.op_type] += 1
    return dict(found)


def refuse_unsigned(model: ModelProto) -> None:
    """Raises StepError unless every Q/DQ pair is symmetric S8: with U8, TensorRT loads the model and computes at half range."""
    from onnx import TensorProto, numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = stored.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8 or numpy_helper.to_array(zero).any():
            raise StepError(
                f"'{node.name}' is not symmetric S8, which this target needs", remedy="keep the layer in float (`keep`), and report this"
            )
