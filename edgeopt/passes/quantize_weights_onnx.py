"""Weight-only quantization by onnxruntime on ONNX models: products become MatMulNBits, tables of embeddings rows of 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.quantize_int8_onnx_prepare import lift_constants
from edgeopt.passes.quantize_weights_openvino import note

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from edgeopt.passes.quantize_weights import QuantizeWeights

# 1: in float. Left unsaid or higher, a runtime may round activations to 8 bits on the fly: MiniLM loses 6 dB by that.
_ACCURACY = 1
_DOMAIN = "com.microsoft"


def quantize(model: Artifact, options: QuantizeWeights, ctx: Context) -> Path:
    """The quantized model's file. Raises StepError when nothing in it could be quantized."""
    registry.need("onnxruntime.quantization", "onnxruntime")
    proto = onnx_format.load(model.path)
    if any(onnx_format.quantized(node) for node in onnx_format.nodes(proto)):
        raise StepError("the model is quantized already", remedy="leave quantize-weights out, or give the model before quantization")
    onnx_format.name_nodes(proto)
    kept = onnx_format.matching(options.keep, {node.name: node.op_type for node in onnx_format.nodes(proto)})
    lift_constants(proto.graph)
    _split_gemms(proto.graph, kept)
    found: dict[str, tuple[str, int]] = {}
    by_bits = _products(proto.graph, options.bits, kept)
    try:
        for bits, names in by_bits.items():
            if names:
                proto = _quantized(proto, bits, names, options)
                found |= dict.fromkeys(names, ("MatMul", bits))
    except Exception as error:
        raise StepError(
            f"onnxruntime cannot quantize the weights of this model: {type(error).__name__}: {onnx_format.cause(error)}",
            remedy="leave quantize-weights out",
        ) from error
    found |= dict.fromkeys(_quantize_tables(proto, options.group_size, kept), ("Gather", 8))
    if not found:
        raise StepError(
            "nothing was quantized: the model has no product with a stored float32 matrix and no embedding, or all are kept",
            remedy="leave quantize-weights out",
        )
    note(ctx, "onnxruntime", options, found, kept)
    path = onnx_format.save(proto, ctx.folder / onnx_format.MAIN)
    onnx_format.Onnx().runner(path)
    return path


def _split_gemms(graph: GraphProto, kept: list[str]) -> None:
    """Write each plain Gemm as MatMul and Add: onnxruntime quantizes the weights of products only."""
    from onnx import helper, numpy_helper

    made: list[NodeProto] = []
    stored = _matrices(graph)
    for node in graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        scaled = given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0)
        if node.op_type != "Gemm" or node.name in kept or scaled or node.input[1] not in stored:
            made.append(node)
            continue
        weight, bias, output = node.input[1], node.input[2] if len(node.input) > 2 else "", node.output[0]
        if given.get("transB", 0):
            turned = f"{weight}_transposed"
            if turned not in stored:
                stored[turned] = numpy_helper.from_array(numpy_helper.to_array(stored[weight]).T.copy(), turned)
                graph.initializer.append(stored[turned])
            weight = turned
        product = f"{output}_product" if bias else output
        made.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if bias:
            made.append(helper.make_node("Add", [product, bias], [output], name=f"{node.name}_bias"))
    del graph.node[:]
    graph.node.extend(made)


def _matrices(graph: GraphProto) -> dict[str, TensorProto]:
    """The stored float32 matrices by name."""
    return {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2}


def _products(graph: GraphProto, bits: int, kept: list[str]) -> dict[int, list[str]]:
    """Names of products with a stored matrix by the bits that they get: the last layer has 8, and whoever shares its weights."""
    stored = _matrices(graph)
    found = [node for node in graph.node if node.op_type == "MatMul" and node.name not in kept and node.input[1] in stored]
    last = {node.input[1] for node in found[-1:]} if bits == 4 else set()
    return {
        bits: [node.name for node in found if node.input[1] not in last],
        8 if last else 0: [node.name for node in found if node.input[1] in last],
    }


def _quantized(proto: ModelProto, bits: int, names: list[str], options: QuantizeWeights) -> ModelProto:
    """The model with the products of these names quantized, each weight rounded to the nearest of its group's numbers."""
    with _silent():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        others = [node.name for node in onnx_format.nodes(proto) if node.name not in names]
        quantizer = MatMulNBitsQuantizer(
            proto,
            bits=bits,
            block_size=options.group_size,
            is_symmetric=options.symmetric,
            accuracy_level=_ACCURACY,
            nodes_to_exclude=others,
        )
        quantizer.process()
    made: ModelProto = quantizer.model.model
    once = {tensor.name: tensor for tensor in made.graph.initializer}  # layers that share a weight bring it twice
    kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in once.values()]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def _quantize_tables(proto: ModelProto, group_size: int, kept: list[str]) -> list[str]:
    """Store tables that are only looked up in 8 bits, in place, symmetric, by groups along a row; names of the look-ups.

    By hand, as onnxruntime's operator defines it: its quantizer makes tables of 4 bits only.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    found: list[str] = []
    graph = proto.graph
    stored, outputs = _matrices(graph), {value.name for value in graph.output}
    readers = {name: [node for node in graph.node if name in onnx_format.reads(node)] for name in stored}
    for name, tensor in stored.items():
        if not readers[name] or name in outputs or not all(_looks_up(node, name) and node.name not in kept for node in readers[name]):
            continue
        table = numpy_helper.to_array(tensor)
        rows, width = table.shape
        groups = np.pad(table, ((0, 0), (0, -width % group_size))).reshape(rows, -1, group_size)
        scales = np.abs(groups).max(-1) / np.float32(127)
        scales[scales == 0] = 1
        numbers = (np.round(groups / scales[..., None]) + 128).astype(np.uint8).reshape(rows, -1)[:, :width]
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(numbers), f"{name}_Q8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
        for node in readers[name]:
            attributes: dict[str, Any] = {"bits": 8, "block_size": group_size, "gather_axis": 0, "quantize_axis": 1}
            inputs = [f"{name}_Q8", node.input[1], f"{name}_scales"]
            made = helper.make_node("GatherBlockQuantized", inputs, node.output, name=node.name, domain=_DOMAIN, **attributes)
            node.CopyFrom(made)
            found.append(node.name)
    listed = {tensor.name for tensor in graph.initializer} | {value.name for value in onnx_format.inputs(proto)}
    for value in [value for value in graph.input if value.name in stored and value.name not in listed]:
        graph.input.remove(value)
    if found and all(entry.domain != _DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return found


def _looks_up(node: NodeProto, name: str) -> bool:
    """Whether a node takes rows out of the table and does nothing else with it."""
    return node.op_type == "Gather" and node.input[0] == name and not any(a.name == "axis" and a.i for a in node.attribute)


@contextmanager
def _silent() -> Iterator[None]:
    """Importing onnxruntime's quantizer makes the root logger print, and running it tells of every layer."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        logging.disable(logging.INFO)
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
