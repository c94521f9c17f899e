"""Types of an ONNX model's tensors, as cast-fp16 needs them: by ONNX's inference, and by the runtime where ONNX knows an operator not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeopt.core import registry
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

UNKNOWN, NO_TENSOR = 0, -1
_FEW = 1024  # numbers: what decides a shape has no more, and inference copies what it is given


def write(model: ModelProto) -> None:
    """Write the type of every tensor into the model. What nobody knows is left out."""
    _infer(model)
    known = of_graph(model.graph)
    unknown = [name for node in model.graph.node for name in node.output if name and name not in known]
    if unknown and not onnx_format.too_large(model):
        _ask(model, unknown)
        _infer(model)  # bodies read what is known now


def of_graph(graph: GraphProto) -> dict[str, int]:
    """ONNX's numbers of the types of a graph's own tensors, by name."""
    found = {value.name: kind for value in (*graph.input, *graph.value_info, *graph.output) if (kind := of_value(value)) != UNKNOWN}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found | {sparse.values.name: sparse.values.data_type for sparse in graph.sparse_initializer}


def of_value(value: ValueInfoProto) -> int:
    """The type that is written there; NO_TENSOR for a sequence and the like."""
    kind = value.type.WhichOneof("value")
    return value.type.tensor_type.elem_type if kind == "tensor_type" else UNKNOWN if kind is None else NO_TENSOR


def _infer(model: ModelProto) -> None:
    """By ONNX's inference, on a copy without the weights."""
    from onnx import helper, shape_inference

    looked = type(model)(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph, own = looked.graph, model.graph
    graph.node.extend(own.node)
    graph.input.extend(own.input)
    graph.output.extend(own.output)
    graph.value_info.extend(own.value_info)
    graph.sparse_initializer.extend(own.sparse_initializer)
    fed = {value.name for value in own.input}
    for tensor in own.initializer:
        if math.prod(tensor.dims) <= _FEW:
            graph.initializer.append(tensor)
        elif tensor.name not in fed:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    known = shape_inference.infer_shapes(looked)
    for mine, theirs in zip(onnx_format.graphs(own), onnx_format.graphs(known.graph), strict=True):
        del mine.value_info[:]
        mine.value_info.extend(theirs.value_info)


def _ask(model: ModelProto, names: list[str]) -> None:
    """By onnxruntime, which knows operators of its own."""
    from onnx import TensorProto, helper

    runtime = registry.need("onnxruntime", "onnxruntime")
    looked = type(model).FromString(model.SerializeToString())
    looked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnx_format.session_options(runtime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    session = runtime.InferenceSession(looked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    told = {output.name: output.type for output in session.get_outputs()}
    for name in names:
        if told[name].startswith("tensor("):
            kind = TensorProto.DataType.Value(told[name][len("tensor(") : -1].upper())
            model.graph.value_info.append(helper.make_tensor_value_info(name, kind, None))
