"""The checker: why TensorRT would not build an ONNX model, or would run it wrongly. Layer A reads, layer B asks a parser.

Layer A is pure ONNX and always there. Layer B is the parser of TensorRT for RTX, where it is installed:
it knows more operators' corners than A, and nothing of wrong scales. Layer C is the build itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.backends import tensorrt_check_nodes, tensorrt_check_quantization
from edgeopt.backends.tensorrt_check_scopes import scopes
from edgeopt.core import registry
from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.core.protocols import Finding, Level
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import onnx_external

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PARSER_LIMIT_S = 300


def check(path: Path, target: Mapping[str, Any]) -> list[Finding]:
    """Findings of layer A, and of layer B where a parser is installed; errors first."""
    found = read(path, target)
    if not any(one.level == "error" for one in found if one.node == path.name):  # a file that onnx cannot read goes to no parser
        level: Level = "error" if target.get("options", {}).get("product") == "rtx" else "warning"  # TensorRT's own parser knows more
        found += [replace(one, level=level) for one in ask_parser(path)]
    return sorted(found, key=lambda one: (one.level, one.layer))


def read(path: Path, target: Mapping[str, Any]) -> list[Finding]:
    """Layer A. `target` holds a target's fields; of its options `product`, `compute_capabilities` and `profiles` count."""
    onnx = registry.need("onnx", "all")
    try:
        model = onnx_format.read(path)
        onnx_external.files(model, path)
    except (UsageError, UntrustedError) as error:
        return [Finding("A", "error", path.name, error.cause, error.remedy)]
    with contextlib.suppress(Exception):  # a function that cannot be put in place is read by itself
        model = _inlined(model)
    with contextlib.suppress(Exception):  # an odd model has fewer known types; the rules that need none still hold
        model = onnx.shape_inference.infer_shapes(model)
    if reason := _invalid(model):  # the rules below take a node's inputs for granted, and so do parsers
        return [Finding("A", "error", path.name, f"it is no valid ONNX: {reason}", "export it again, or mend what made it")]
    found = tensorrt_check_nodes.ends(model, target)
    for scope in scopes(model, path.parent):
        for node in scope.nodes:
            found += tensorrt_check_quantization.node(scope, node)
            found += tensorrt_check_nodes.node(scope, node, target, {function.name for function in model.functions})
    return list(dict.fromkeys(found))  # a function that is called twice has its faults once


def _invalid(model: ModelProto) -> str:
    """Why onnx's own checker refuses a model, or an empty string. Weights are left out, and what only old forms lack is let pass."""
    from onnx.checker import ValidationError, check_model

    if onnx_format.too_large(model):
        return ""
    looked = type(model)()
    looked.CopyFrom(model)
    looked.ir_version = max(looked.ir_version, onnx_format.OLDEST_IR)
    for value in (*looked.graph.input, *looked.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    for tensor in onnx_format.tensors(looked):
        if tensor.data_type not in tensor.DataType.values():
            return f"the tensor '{tensor.name}' has a type that ONNX does not know ({tensor.data_type})"
        if tensor.data_location == tensor.EXTERNAL:  # it stands beside the model, of which the checker knows not where it is
            tensor.CopyFrom(type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    try:
        check_model(looked)
    except ValidationError as error:
        return onnx_format.cause(error)
    return ""


def _inlined(model: ModelProto) -> ModelProto:
    """The model with its own functions in the place of their calls: a scale may be what a call hands over. Nodes become `FUNCTION/NODE`."""
    from onnx.inliner import inline_local_functions

    homes = {node.name: function.name for function in model.functions for node in _nodes(function) if node.name}
    if not model.functions:
        return model
    before = {node.name for node in onnx_format.nodes(model)}
    made: ModelProto = inline_local_functions(model)
    for node in onnx_format.nodes(made):
        name = node.name
        while name not in homes and (shorter := re.sub(r"__\d+$", "", name)) != name:  # what the inliner appends
            name = shorter
        if name in homes and node.name not in before:
            node.name = f"{homes[name]}/{name}"
    return made


def _nodes(function: Any) -> Iterator[NodeProto]:
    for graph in onnx_format.graphs(function):
        yield from graph.node


def ask_parser(path: Path) -> list[Finding]:
    """Layer B: what the parser of TensorRT for RTX refuses; nothing where it is not installed."""
    from edgeopt.runner import Problem, tensorrt_engine, tensorrt_library

    if tensorrt_library.why_not_build("rtx"):
        return []
    try:
        answer = tensorrt_engine.ask({"do": "support", "product": "rtx", "model": str(path.resolve())}, PARSER_LIMIT_S)
    except Problem as problem:
        return [Finding("B", "error", path.name, problem.cause, problem.remedy)]
    return [Finding("B", "error", one["node"] or path.name, one["cause"], one["remedy"]) for one in answer["refused"]]
