"""INT8 by NNCF on ONNX models: Q/DQ pairs, made symmetric S8 where the target needs that."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import quantize_int8_nncf as engine
from edgeopt.passes import quantize_int8_onnx as by_onnxruntime
from edgeopt.passes.quantize_int8_nncf import Settings
from edgeopt.passes.quantize_int8_onnx_prepare import prepare
from edgeopt.passes.quantize_int8_samples import Calibration

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

    from edgeopt.passes.quantize_int8 import QuantizeInt8
    from edgeopt.passes.quantize_int8_samples import Run

_REMEDY = "say `engine: onnxruntime`, or keep the layers that it fails at float (`keep`)"
_UNREADABLE = "say `engine: onnxruntime`"


def quantize(model: Artifact, options: QuantizeInt8, ctx: Context) -> Path:
    """The quantized model's file. Raises StepError when nothing in it could be quantized."""
    calibration = Calibration(ctx, options.samples, judge=options.searches)
    nncf, proto, flavour = engine.load(), onnx_format.load(model.path), by_onnxruntime.flavour_of(ctx.target)
    by_onnxruntime.refuse(proto)
    kept = onnx_format.matching(options.keep, {node.name: node.op_type for node in proto.graph.node})
    with tempfile.TemporaryDirectory() as scratch:
        with by_onnxruntime.quiet():
            prepared = prepare(proto, Path(scratch), model, kept, ctx)
        readable = onnx_format.load(prepared)
        settle_casts(readable.graph)
        separate_biases(readable.graph)
        kept += doubles(readable.graph)
        onnx_format.save(readable, prepared)

        def build(settings: Settings, samples: Calibration) -> ModelProto:
            # Of activations by channel, which NNCF likes before depthwise convolutions, TensorRT reads the first scale only.
            parameters = engine.parameters(nncf, options, settings, activations_quantization_params=engine.one_scale())
            with by_onnxruntime.quiet():
                made: ModelProto = nncf.quantize(
                    onnx_format.load(prepared),
                    nncf.Dataset(samples),
                    subset_size=samples.count,
                    fast_bias_correction=True,
                    ignored_scope=nncf.IgnoredScope(names=kept),
                    **parameters,
                )
            if flavour == "s8s8":
                make_signed(made)
            onnx_format.name_nodes(made)
            return made

        def runner(made: ModelProto) -> Run:
            return onnx_format.Onnx().runner(onnx_format.save(made, Path(scratch) / "candidate.onnx"))

        alternatives = engine.alternatives(options, ctx.target, by_onnxruntime.has_attention(proto), bias_samples=0, narrow="all")
        best, choice = engine.search(
            build, alternatives, calibration, lambda: onnx_format.Onnx().runner(model.path), runner, onnx_format.cause, _REMEDY
        )
    layers = by_onnxruntime.quantized_layers(best)
    if not layers:
        raise StepError(
            "nothing was quantized: the model has no layer that NNCF quantizes, or all are kept", remedy="leave quantize-int8 out"
        )
    notes: dict[str, Any] = {
        "engine": "nncf",
        "flavour": flavour,
        "chosen": choice.title,
        "tried_db": choice.tried_db,
        "reduce_range": options.reduced(ctx.target)[1],
        "quantized_layers": layers,
    }
    for name, value in notes.items():
        if value:
            ctx.note(name, value)
    return by_onnxruntime.save(best, ctx)


def settle_casts(graph: GraphProto) -> None:
    """Store numbers in the type in which they are read, and end in no Cast.

    Casts hide weights (onnxruntime computes float16 layers in float32), and NNCF drops those that change nothing, outputs with them.
    """
    from onnx import helper, numpy_helper

    stored, outputs = onnx_format.constants(graph), {value.name for value in graph.output}
    for node in [one for one in graph.node if one.op_type == "Cast"]:
        if node.output[0] in outputs:
            result, node.output[0] = node.output[0], f"{node.output[0]}_cast"
            graph.node.append(helper.make_node("Identity", [node.output[0]], [result], name=f"{node.name}_output"))
        if node.input[0] in stored:
            kind = helper.tensor_dtype_to_np_dtype(next(attribute.i for attribute in node.attribute if attribute.name == "to"))
            cast = numpy_helper.from_array(numpy_helper.to_array(stored[node.input[0]]).astype(kind), node.output[0])
            stored[cast.name] = cast
            graph.initializer.append(cast)
            graph.node.remove(node)


def doubles(graph: GraphProto) -> list[str]:
    """Layers with float64 weights, which have no Q/DQ pairs."""
    from onnx import TensorProto

    wide = {name for name, one in onnx_format.constants(graph).items() if one.data_type == TensorProto.DOUBLE}
    return [node.name for node in graph.node if not wide.isdisjoint(node.input)]


def separate_biases(graph: GraphProto) -> None:
    """Write each computed bias as an addition behind its layer: NNCF takes all biases for stored numbers (3.4), and fails.

    onnxruntime makes such biases itself, where it fuses a product and the addition of something computed into a Gemm.
    Raises StepError for a convolution whose weights are computed: NNCF cannot read those at all.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    stored = onnx_format.constants(graph)
    made: list[NodeProto] = []
    for node in graph.node:
        made.append(node)
        convolves = node.op_type in ("Conv", "ConvTranspose")
        if convolves and node.input[1] not in stored:
            raise StepError(f"NNCF reads no convolution whose weights are computed, as those of '{node.name}' are", remedy=_UNREADABLE)
        scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute)
        if not (convolves or node.op_type == "Gemm") or len(node.input) < 3 or not node.input[2] or node.input[2] in stored or scaled:
            continue
        bias, result = node.input.pop(), node.output[0]
        node.output[0] = f"{result}_product"
        if convolves:
            shape = np.array([1, -1, *[1] * (len(stored[node.input[1]].dims) - 2)], np.int64)
            graph.initializer.append(numpy_helper.from_array(shape, f"{node.name}_bias_shape"))
            made.append(
                helper.make_node("Reshape", [bias, f"{node.name}_bias_shape"], [f"{result}_bias"], name=f"{node.name}_bias_reshape")
            )
            bias = f"{result}_bias"
        made.append(helper.make_node("Add", [node.output[0], bias], [result], name=f"{node.name}_bias"))
    del graph.node[:]
    graph.node.extend(made)


def make_signed(model: ModelProto) -> None:
    """Retype every activation's Q/DQ pair to S8 around 0, with a scale that reaches as far as the range did.

    NNCF makes U8 with a zero point of 0 behind a ReLU, and cannot be asked not to (3.4). Such a pair gets
    255/127 of its scale: read as S8 with the old one, as TensorRT does, it would clip at half its range.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    stored = {tensor.name: tensor for graph in onnx_format.graphs(model.graph) for tensor in graph.initializer}
    added: set[str] = set()
    retyped: set[str] = set()
    for node in [one for one in model.graph.node if one.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        if len(node.input) < 3 or node.input[0] in stored or any(name not in stored for name in node.input[1:3]):
            continue
        scale, zero = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
        if zero.dtype == np.int8 and not zero.any():
            continue
        retyped.update(node.output if node.op_type == "QuantizeLinear" else ())
        limits, offset = np.iinfo(zero.dtype), zero.astype(np.int64)
        reach = np.maximum(offset - limits.min, limits.max - offset)
        for index, value in ((1, (scale * (reach / 127)).astype(scale.dtype)), (2, np.zeros_like(zero, dtype=np.int8))):
            name = f"{node.input[index]}_signed"
            if name not in added:
                model.graph.initializer.append(numpy_helper.from_array(value, name))
                added.add(name)
            node.input[index] = name
    for value in model.graph.value_info:
        if value.name in retyped:
            value.type.tensor_type.elem_type = TensorProto.INT8
