"""ONNX models before they are quantized: constants where the quantizers look for weights, biases and shapes as they want them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_FUSED_SHAPE = re.compile(r"gemm_(input|output)_shape")


def prepare(proto: ModelProto, folder: Path, model: Artifact, kept: list[str], ctx: Context) -> Path:
    """The model with constants as initializers, normalizations folded and all shapes inferred, as far as that goes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    lift_constants(proto.graph)
    onnx_format.name_nodes(proto)
    source, target = onnx_format.save(proto, folder / "source.onnx"), folder / "prepared.onnx"
    for skip_optimization in (False, True):
        try:
            # Symbolic inference would name more axes, of which nothing here has need, and imports torch for it.
            quant_pre_process(str(source), str(target), skip_optimization=skip_optimization, skip_symbolic_shape=True)
            made = onnx_format.load(target)
            if onnx_format.signature_of(made) == model.signature and {node.name for node in made.graph.node}.issuperset(kept):
                part_biases(made.graph)
                flatten_biases(made.graph)
                rename_shapes(made.graph)
                onnx_format.save(made, target)
                onnx_format.Onnx().runner(target)
                return target
        except Exception:  # noqa: BLE001  (inference and optimizer fail on some models, in their own ways)
            continue
    ctx.note("warning", "the model could not be prepared for quantization: layers without known shapes stay float")
    part_biases(proto.graph)
    flatten_biases(proto.graph)
    return onnx_format.save(proto, source)


def part_biases(graph: GraphProto) -> None:
    """Give each layer a bias of its own: onnxruntime calls copies of a shared one by names that others may have (1.32)."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2]
    readers = Counter(node.input[2] for node in layers)
    for node in layers:
        if readers[node.input[2]] > 1 and node.input[2] in stored:
            own = graph.initializer.add()
            own.CopyFrom(stored[node.input[2]])
            own.name = node.input[2] = f"{own.name}_of_{node.name}"


def flatten_biases(graph: GraphProto) -> None:
    """Give each Gemm a bias of one number per output: ONNX allows other shapes that broadcast, the quantizer does not."""
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[1] not in stored or node.input[2] not in stored:
            continue
        bias, transposed = stored[node.input[2]], any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        wanted = stored[node.input[1]].dims[0 if transposed else 1]
        values = numpy_helper.to_array(bias)
        if values.shape != (wanted,) and values.size in (1, wanted) and (values.ndim < 2 or values.shape[0] == 1):
            node.input[2] = f"{bias.name}_flat_{node.name}"
            graph.initializer.append(numpy_helper.from_array(np.broadcast_to(values.reshape(-1), (wanted,)).copy(), node.input[2]))


def rename_shapes(graph: GraphProto) -> None:
    """Rename the shapes that onnxruntime's fusion into Gemm adds: a second fusion takes their names again, and fails (1.32)."""
    renamed = {tensor.name: f"prepared_{tensor.name}" for tensor in graph.initializer if _FUSED_SHAPE.match(tensor.name)}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in (node for inner in onnx_format.graphs(graph) for node in inner.node):
        node.input[:] = [renamed.get(name, name) for name in node.input]


def lift_constants(graph: GraphProto) -> None:
    """Turn Constant nodes into initializers: the quantizer takes only those for weights."""
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None and node.output[0] not in outputs:
            lifted = graph.initializer.add()
            lifted.CopyFrom(value)
            lifted.name = node.output[0]
            graph.node.remove(node)
