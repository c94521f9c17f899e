"""INT8 by NNCF on OpenVINO models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import openvino as openvino_format
from edgeopt.passes import quantize_int8_nncf as engine
from edgeopt.passes import quantize_int8_openvino_saturation as saturation
from edgeopt.passes.quantize_int8_nncf import Settings
from edgeopt.passes.quantize_int8_samples import Calibration

if TYPE_CHECKING:
    import openvino

    from edgeopt.passes.quantize_int8 import QuantizeInt8

# Full bias correction keeps the raw inputs of layers: from 8 samples it is as good as from 60, at a tenth of the memory.
BIAS_SAMPLES, BIAS_BYTES = 8, 250_000_000
# The CPU plugin wants the weights of these as plain constants.
_RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell", "TensorIterator")
_WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
# These hand on values of their first input as they are.
MOVES = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Gather", "Slice", "StridedSlice", "Split", "VariadicSplit"),
    *("MaxPool", "ReduceMax", "Pad", "Tile", "Broadcast", "DepthToSpace", "SpaceToDepth", "ShuffleChannels"),
)
# What ONNX calls these, so that one `keep` serves both formats.
_ONNX_NAMES = {
    "Convolution": "Conv",
    "GroupConvolution": "Conv",
    "ConvolutionBackpropData": "ConvTranspose",
    "Multiply": "Mul",
    "AvgPool": "AveragePool",
}
# Behind the name of a layer with a bias: the addition of the bias has the name itself, or that of an output.
_WITHOUT = "/WithoutBiases"


def quantize(model: Artifact, options: QuantizeInt8, ctx: Context) -> Path:
    """The quantized model's file. Raises StepError when nothing in it could be quantized."""
    made = quantized(model, options, ctx, Calibration(ctx, options.samples, judge=options.searches))
    layers = quantized_layers(made)
    if not layers:
        raise StepError(
            "nothing was quantized: the model has no layer that NNCF quantizes, or all are kept", remedy="leave quantize-int8 out"
        )
    ctx.note("quantized_layers", layers)
    return openvino_format.save(made, ctx.folder / openvino_format.MAIN, model.signature)


def quantized(model: Artifact, options: QuantizeInt8, ctx: Context, calibration: Calibration, compress: bool = True) -> openvino.Model:
    """The model with what NNCF quantizes of it; with `compress=False` its weights stay float behind their quantizers."""
    exact = openvino_format.load(model.path)
    if quantized_layers(exact) or openvino_format.narrow_weights(exact):
        raise StepError("the model is quantized already", remedy="leave quantize-int8 out, or give the model before quantization")
    nncf = engine.load()
    attention, found = _has_attention(exact), {operation.get_type_name() for operation in exact.get_ordered_ops()}
    recurrent = sorted(found & set(_RECURRENT))
    kept = dict.fromkeys([*named(options.keep, exact), *miscomputed(exact)])
    ignored = nncf.IgnoredScope(names=list(kept), types=recurrent)
    bias_samples = 0 if "If" in found else min(BIAS_SAMPLES, BIAS_BYTES // max(1, _layer_input_bytes(exact, calibration)))

    def build(settings: Settings, samples: Calibration) -> openvino.Model:
        whole = bias_samples if settings.bias == "full" else 0
        with saturation.widening(settings.narrow == "sums"), _bias_correction(whole) as full:
            made: openvino.Model = nncf.quantize(
                openvino_format.load(model.path),
                nncf.Dataset(samples),
                subset_size=samples.count,
                fast_bias_correction=not full,
                ignored_scope=ignored,
                **engine.parameters(nncf, options, settings, backend_params={"compress_weights": compress}),
            )
        return made

    runner = partial(openvino_format.runner_of, signature=model.signature)
    alternatives = engine.alternatives(options, ctx.target, attention, bias_samples, narrow="sums")
    best, choice = engine.search(build, alternatives, calibration, lambda: runner(exact), runner, openvino_format.cause)
    notes: dict[str, Any] = {
        "engine": "nncf",
        "chosen": choice.title,
        "tried_db": choice.tried_db,
        "bias_samples": bias_samples if choice.settings.bias == "full" else 0,
        "reduce_range": options.reduced(ctx.target)[1],
        "kept_types": recurrent,
    }
    for name, value in notes.items():
        if value:
            ctx.note(name, value)
    return best


def compress(model: openvino.Model) -> None:
    """Store the weights behind quantizers as 8 bit, in place: NNCF's own last step."""
    from openvino._offline_transformations import compress_quantize_weights_transformation

    compress_quantize_weights_transformation(model)


@contextmanager
def _bias_correction(samples: int) -> Iterator[bool]:
    """Let NNCF's full bias correction keep at most so many samples; yields whether it can be used at all.

    NNCF takes a fifth of the calibration samples and offers no option for it: 60 of 300, some hundred MB.
    """
    from nncf.quantization.algorithms.post_training import pipeline

    whole = getattr(pipeline, "BiasCorrection", None)
    if whole is None or samples == 0:
        yield False
        return
    pipeline.BiasCorrection = lambda subset_size, *rest, **more: whole(min(subset_size, samples), *rest, **more)
    try:
        yield True
    finally:
        pipeline.BiasCorrection = whole


def operations(model: openvino.Model) -> Iterator[Any]:
    """Every operation, those in bodies of If, Loop and TensorIterator included."""
    for operation in model.get_ordered_ops():
        yield operation
        for body in openvino_format.bodies(operation):
            yield from operations(body)


def quantized_layers(model: openvino.Model) -> dict[str, int]:
    """How many layers of each type compute on quantized tensors, weights included where they have any."""
    found: dict[str, int] = {}
    for operation in operations(model):
        kind = operation.get_type_name()
        sources = [operation.input_value(index).get_node() for index in range(operation.get_input_size())]
        if kind == "FakeQuantize" or not sources:
            continue
        given = maker(sources[0]) if kind in _WEIGHTED else sources[0]
        if given.get_type_name() == "FakeQuantize" and (kind not in _WEIGHTED or _quantized_weight(sources[1])):
            found[kind] = found.get(kind, 0) + 1
    return found


def maker(node: Any) -> Any:
    """The operation that made a value, behind those that only hand it on: NNCF puts its quantizers before them."""
    while node.get_type_name() in MOVES:
        node = node.input_value(0).get_node()
    return node


def _quantized_weight(node: Any) -> bool:
    """Whether a tensor comes from a FakeQuantize, or from a constant of 8 bits through what scales and shapes it."""
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize" or node.get_output_element_type(0).get_type_name() in ("i8", "u8")


def kinds(model: openvino.Model) -> dict[str, str]:
    """Name to type of the layers that can be kept in float."""
    types = {name: found[0].get_type_name() for name, found in _layers(model).items()}
    return {name: _ONNX_NAMES.get(kind, kind) for name, kind in types.items()}


def named(patterns: Sequence[str], model: openvino.Model) -> list[str]:
    """The operations of the layers that some pattern names, by name or type. Raises UsageError for one that names nothing."""
    layers = _layers(model)
    wanted = onnx_format.matching([one.removesuffix(_WITHOUT) for one in patterns], kinds(model))
    return [one.get_friendly_name() for name in wanted for one in layers[name]]


def _layers(model: openvino.Model) -> dict[str, list[Any]]:
    """The operations of each layer: itself, and the addition of its bias."""
    found: dict[str, list[Any]] = {}
    for one in model.get_ordered_ops():
        if one.get_type_name() in ("Parameter", "Result", "Constant"):
            continue
        sources = [one.input_value(index).get_node() for index in range(one.get_input_size())]
        layer = next((node.get_friendly_name() for node in sources if node.get_friendly_name().endswith(_WITHOUT)), "")
        adds = one.get_type_name() == "Add" and any(node.get_type_name() == "Constant" for node in sources)
        name: str = layer if layer and adds else one.get_friendly_name()
        found.setdefault(name.removesuffix(_WITHOUT), []).append(one)
    return found


def miscomputed(model: openvino.Model) -> list[str]:
    """Transposed convolutions to one channel, from a number of channels that 4 does not divide.

    With an activation behind them the CPU plugin's 8-bit kernel gives nonsense (2026.4.1: −4 dB where the numbers mean 45).
    """
    found = [one for one in model.get_ordered_ops() if one.get_type_name() == "ConvolutionBackpropData"]
    shapes = {one.get_friendly_name(): one.input(1).get_partial_shape() for one in found}
    return [name for name, shape in shapes.items() if shape[1] == 1 and shape[0].is_static and shape[0].get_length() % 4]


def _has_attention(model: openvino.Model) -> bool:
    found = {operation.get_type_name() for operation in operations(model)}
    return "ScaledDotProductAttention" in found or {"Softmax", "MatMul", "MVN"} <= found


def _layer_input_bytes(model: openvino.Model, calibration: Calibration) -> int:
    """Bytes of all that layers with weights read for one sample."""
    sized = model.clone()
    feeds = next(iter(calibration))
    sized.reshape({port: list(feeds[next(name for name in port.get_names() if name in feeds)].shape) for port in sized.inputs})
    layers = [one for one in sized.get_ordered_ops() if one.get_type_name() in _WEIGHTED]
    shapes = [one.input(0).get_partial_shape() for one in layers]
    return sum(4 * prod(shape.to_shape()) for shape in shapes if shape.is_static)
