"""The cast of weights and arithmetic to float16; inputs and outputs keep their types."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats.onnx_inner import OnnxInner

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Scales of quantized layers stay float: as float16 (opset 19) EfficientNet-Lite0 fell from 17 to −12 dB in onnxruntime, to 0 in OpenVINO.
_ALWAYS_FLOAT = ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"]


# A layer stays float where calibration shows half of what float16 can hold: other samples may show more.
_LARGEST = 65504 / 2


class CastFp16(Pass, accepts=("onnx",), produces="onnx", needs=("onnx", "onnxruntime"), data=("calibrate?",), tolerance_db=30.0):
    """Cast weights and arithmetic to float16; inputs, outputs and the layers under `keep` stay float32.

    With a split `calibrate`, layers that read or make values near the end of float16's range (±65504) stay float32
    too; bodies of If and Loop are not looked into. Without one, such values are cut off, and where that breaks the
    outputs the step fails and says so.
    """

    extra: ClassVar[str] = "onnxruntime"

    keep: list[str] = Field(
        default_factory=list, description="names, operator types or patterns of layers that stay float32: Softmax, head*"
    )

    samples: int = Field(default=32, ge=1, description="at most so many calibration samples show how large values get")

    def run(self, model: Artifact, ctx: Context) -> Path:
        proto = onnx_format.load(model.path)
        kept = onnx_format.matching(self.keep, {node.name: node.op_type for node in onnx_format.nodes(proto)})
        large = outgrown(model.path, ctx, self.samples)
        floats = sum(tensor.data_type == tensor.FLOAT for tensor in onnx_format.tensors(proto))
        try:
            made = cast(proto, {*kept, *large})
            path = onnx_format.save(made, ctx.folder / onnx_format.MAIN)
            onnx_format.Onnx().runner(path)
        except Exception as error:  # the caster raises whatever it meets, the runtime kinds of its own
            raise StepError(
                f"this model cannot be cast to float16: {type(error).__name__}: {onnx_format.cause(error)}",
                remedy="name the layers it complains about under `keep`, or leave cast-fp16 out",
            ) from error
        left = sum(tensor.data_type == tensor.FLOAT for tensor in onnx_format.tensors(made))
        ctx.note("tensors_cast", floats - left)
        return path


def cast(proto: ModelProto, kept: Collection[str]) -> ModelProto:
    """The model with weights and arithmetic in float16, but for the nodes named in `kept`; `proto` is used up."""
    float16 = registry.need("onnxruntime.transformers.float16", "onnxruntime")
    _separate(proto)
    own = {node.name for node in onnx_format.nodes(proto)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger(float16.__name__).setLevel(logging.ERROR)
        made: ModelProto = float16.convert_float_to_float16(
            proto,
            keep_io_types=True,
            disable_shape_infer=proto.ByteSize() > onnx_format.LARGEST_FILE,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_ALWAYS_FLOAT],
            node_block_list=list(kept),
        )
    for graph in onnx_format.graphs(made.graph):
        _drop_round_trips(graph, own)
    onnx_format.sort_nodes(made.graph)
    onnx_format.name_nodes(made)
    return made


def outgrown(path: Path, ctx: Context, samples: int) -> dict[str, float]:
    """Layers that read or make values too large for float16 on calibration samples, with the largest of them; noted.

    A model whose inner tensors cannot be had is not looked at, and the report says so.
    """
    try:
        found = _too_large(path, ctx, samples)
    except StepError as error:
        ctx.note("warning", f"ranges were not looked at: {error.cause}")
        return {}
    if found:
        ctx.note("kept_float32", {name: f"reaches {most:.3g}" for name, most in found.items()})
    return found


def _too_large(path: Path, ctx: Context, samples: int) -> dict[str, float]:
    import numpy as np

    if "calibrate" not in ctx.data:
        return {}
    inner = OnnxInner(path)
    most: dict[str, float] = {}
    tensors = [*inner.graph.inputs.values(), *(name for node in inner.graph.nodes for name in node.makes)]
    with tempfile.TemporaryDirectory() as scratch:
        run = inner.runner(tensors, Path(scratch))
        for number, (feeds, _) in enumerate(islice(ctx.data["calibrate"].batches(1), samples)):
            ctx.progress(number, samples, "looking at ranges")
            for name, array in run(feeds).items():
                if getattr(array, "dtype", None) is not None and array.dtype.kind == "f" and array.size:  # sequences are lists
                    finite = np.abs(array[np.isfinite(array)])  # what is infinite stays so in float16
                    most[name] = max(most.get(name, 0.0), float(finite.max(initial=0.0)))
    found = {node.name: _largest(node.reads, node.makes, most) for node in inner.graph.nodes}
    return {name: largest for name, largest in found.items() if largest > _LARGEST}


def _largest(reads: Iterable[str], makes: Iterable[str], most: Mapping[str, float]) -> float:
    """The largest value that a layer reads or makes."""
    return max((most.get(name, 0.0) for name in (*reads, *makes)), default=0.0)


def _separate(model: ModelProto) -> None:
    """Two habits that the caster trips over: weights of bodies that share a name, and outputs that are weights."""
    from onnx import helper

    seen: set[str] = set()
    for number, graph in enumerate(onnx_format.graphs(model.graph)):
        for tensor in graph.initializer:
            if tensor.name in seen:
                _rename(graph, tensor.name, f"{tensor.name}_body{number}")
            seen.add(tensor.name)
    outputs = {value.name for value in model.graph.output}
    for tensor in model.graph.initializer:
        if tensor.name in outputs:
            name = tensor.name
            model.graph.node.append(helper.make_node("Identity", [f"{name}_stored"], [name], name=f"{name}_output"))
            _rename(model.graph, name, f"{name}_stored", outputs=False)


def _rename(graph: GraphProto, old: str, new: str, outputs: bool = True) -> None:
    """Rename a stored tensor wherever the graph and its bodies read it."""
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for inner in onnx_format.graphs(graph):
        for node in inner.node:
            node.input[:] = [new if name == old else name for name in node.input]
        if outputs:
            for value in inner.output:
                value.name = new if value.name == old else value.name


def _drop_round_trips(graph: GraphProto, own: set[str]) -> None:
    """Between two layers that stay float32 the caster goes through float16 and back: read the float32 itself.

    `own` are the names of the model's nodes: a cast among them may take anything.
    """
    source = {node.output[0]: node.input[0] for node in graph.node if node.name not in own and _casts(node, "FLOAT16")}
    for node in graph.node:
        if _casts(node, "FLOAT") and node.input[0] in source:
            node.input[0] = source[node.input[0]]
            node.op_type = "Identity"
            node.ClearField("attribute")
    read = {value.name for value in graph.output}.union(*map(onnx_format.reads, graph.node))
    dead = [node for node in graph.node if node.output[0] in source and node.output[0] not in read]
    for node in dead:
        graph.node.remove(node)


def _casts(node: NodeProto, kind: str) -> bool:
    from onnx import TensorProto

    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == TensorProto.DataType.Value(kind) for attribute in node.attribute
    )
