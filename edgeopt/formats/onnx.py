"""The ONNX format: how a model is read, described, walked, executed exactly and written.

Every walk here sees the bodies of If, Loop and Scan too: real models keep weights and whole layers in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine, registry
from edgeopt.core.artifact import Numbers, Signature, TensorSpec
from edgeopt.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

    from edgeopt.core.inner import Inner

    Feeds = dict[str, np.ndarray[Any, Any]]

MAIN = "model.onnx"
WEIGHTS = "model.onnx.data"
# Protobuf ends at 2 GiB; shape inference and the checker want room below that.
LARGEST_FILE, LARGEST_PROTOBUF = 1_500_000_000, 2**31 - 1
# Old files keep weights among the inputs only because IR 3 demanded it; the converter needs them out of there.
OLDEST_IR = 8
DEFAULT_DOMAINS = ("", "ai.onnx")
FLOAT, INT64, FLOAT16, BFLOAT16 = 1, 7, 10, 16  # ONNX's own numbers of its types


class Onnx:
    """A model as one protobuf, with its larger weights beside it where it would pass 1.5 GB."""

    def signature(self, path: Path) -> Signature:
        return signature_of(load(path, weights=False))

    def rounds(self, path: Path) -> bool:
        """Whether activations are quantized: then runtimes agree roughly only."""
        return any(rounds(node) for node in nodes(load(path, weights=False)))

    def coarsest(self, path: Path) -> Numbers:
        """The coarsest numbers that the model computes with: they say how far two runtimes may lie apart."""
        model = load(path, weights=False)
        if any(quantized(node) for node in nodes(model)):
            return "int8"
        kinds = {tensor.data_type for tensor in tensors(model)} | {value.type.tensor_type.elem_type for value in model.graph.input}
        kinds |= {one.i for node in nodes(model) if node.op_type == "Cast" for one in node.attribute if one.name == "to"}
        return "bf16" if BFLOAT16 in kinds else "fp16" if FLOAT16 in kinds else "f32"

    def runner(self, path: Path) -> Callable[[Feeds], Feeds]:
        """Plain CPU execution: basic rewrites only, so that Q/DQ pairs act as written."""
        return runner_of(str(path))

    def inner(self, path: Path, execution: str = "f32") -> Inner:
        """The model to be looked into; it executes in the types that stand in it."""
        from edgeopt.formats.onnx_inner import OnnxInner

        return OnnxInner(path)


def runner_of(model: str | bytes) -> Callable[[Feeds], Feeds]:
    """The same of a file's name, or of a model in memory."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feeds: dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
    options = session_options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def session_options(level: Any) -> Any:
    """How models are run where no time is taken: on few threads that wait asleep."""
    onnxruntime = registry.need("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = min(2, machine.threads())
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _refuse_oversize(path: Path) -> None:
    """Raises UsageError for a file that no protobuf may be: read, it would look like one that is cut off."""
    if path.stat().st_size > LARGEST_PROTOBUF:
        remedy = "save it with its weights beside it: onnx.save_model(model, path, save_as_external_data=True)"
        raise UsageError(f"{path.name} is over 2 GB, which no ONNX file may be", remedy=remedy)


def read(path: Path) -> ModelProto:
    """The parsed file, external data not loaded. Raises UsageError when it is no ONNX model."""
    onnx = registry.need("onnx", "all")
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UsageError(f"no such file: {path}", remedy="paths are relative to the recipe's folder")
    _refuse_oversize(path)
    data = path.read_bytes()
    if not data:
        raise UsageError(f"{path.name} is empty", remedy="export or copy the model again")
    if data.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path.name} is a Git LFS pointer, not a model", remedy="fetch the file itself: git lfs pull")
    model: ModelProto
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise UsageError(f"{path.name} is no ONNX model, or is cut off", remedy="export or copy the model again") from None
    if not model.HasField("graph") or not model.opset_import:
        raise UsageError(f"{path.name} is no ONNX model, or is cut off: no graph or no opset", remedy="export or copy the model again")
    return model


def load(path: Path, weights: bool = True) -> ModelProto:
    """The model behind a file that edgeopt wrote; `weights=False` leaves external data on disk. Raises as `read` does."""
    model = read(path)
    if weights:
        registry.need("onnx", "all").load_external_data_for_model(model, str(path.parent))
    return model


def too_large(model: ModelProto) -> bool:
    """Whether a model in memory passes 1.5 GB: it goes neither into one file nor through onnx's checker and inference."""
    from google.protobuf.message import EncodeError

    try:
        return bool(model.ByteSize() > LARGEST_FILE)
    except EncodeError:  # it counts by writing, which ends at 2 GiB
        return True


def save(model: ModelProto, path: Path) -> Path:
    """Write the model, its weights in one file beside it when it is too large for a single protobuf."""
    onnx = registry.need("onnx", "all")
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx would write behind what an earlier save left there
    if too_large(model):
        onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)
        onnx.load_external_data_for_model(model, str(path.parent))  # saving took the weights out of the model
    else:
        onnx.save_model(model, path)
    return path


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body inside it, outer ones first."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def bodies(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node carries in its attributes."""
    return [body for attribute in node.attribute for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)]


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, those in bodies included."""
    for graph in graphs(model.graph):
        yield from graph.node


def rounds(node: NodeProto) -> bool:
    """Whether a node makes activations of 8 bits, or computes on such."""
    return node.op_type in ("QuantizeLinear", "MatMulInteger", "ConvInteger") or node.op_type.startswith(("QLinear", "DynamicQuantize"))


def quantized(node: NodeProto) -> bool:
    """Whether a node rounds activations or computes on weights of 8 or 4 bits."""
    return rounds(node) or node.op_type in ("DequantizeLinear", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers, sparse ones, attributes of nodes, in all bodies and functions."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attributes(graph.node)
    for function in model.functions:
        yield from _attributes(function.node)
        for body in (body for node in function.node for body in bodies(node)):
            for graph in graphs(body):
                yield from graph.initializer
                yield from _attributes(graph.node)


def _attributes(found: Any) -> Iterator[TensorProto]:
    for node in found:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def constants(graph: GraphProto | FunctionProto) -> dict[str, TensorProto]:
    """Name to tensor of what is stored in this graph, be it an initializer or a Constant node; a function has only the latter."""
    found = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            for attribute in node.attribute:
                if (tensor := _constant(attribute)) is not None:
                    found[node.output[0]] = tensor
    return found


def _constant(attribute: AttributeProto) -> TensorProto | None:
    """The tensor of a Constant node, be it spelt as numbers."""
    if attribute.name == "value":
        return attribute.t
    from onnx import helper

    kind = FLOAT if attribute.name.startswith("value_float") else INT64
    if attribute.name in ("value_float", "value_int"):
        return helper.make_tensor("", kind, [], [attribute.f if kind == FLOAT else attribute.i])
    if attribute.name in ("value_floats", "value_ints"):
        numbers = attribute.floats if kind == FLOAT else attribute.ints
        return helper.make_tensor("", kind, [len(numbers)], numbers)
    return None


def spell_constants(model: ModelProto) -> None:
    """Give every Constant node that is written as numbers a tensor instead, in bodies too."""
    for node in nodes(model):
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            for attribute in node.attribute:
                if attribute.name != "value" and (tensor := _constant(attribute)) is not None:
                    attribute.CopyFrom(type(attribute)(name="value", type=attribute.TENSOR, t=tensor))


def cause(error: Exception) -> str:
    """What an error of onnx or onnxruntime says, in one line: without codes, and without the path of a file of ours."""
    text = re.sub(
        r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Load model from \S+ failed: ?|/onnxruntime_src/\S+:\d+ (.*?\) )?", "", str(error)
    )
    return " ".join(text.split())[:300] or type(error).__name__


def opset(model: ModelProto) -> int:
    """The version of the standard operators that the model is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def foreign_domains(model: ModelProto) -> list[str]:
    """Domains of operators that ONNX does not define."""
    return sorted({node.domain for node in nodes(model)} - {*DEFAULT_DOMAINS, "ai.onnx.ml"})


def inputs(model: ModelProto) -> list[ValueInfoProto]:
    """What a caller has to feed: old models list their weights among the inputs."""
    stored = {tensor.name for tensor in model.graph.initializer} | {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in stored]


def signature_of(model: ModelProto) -> Signature:
    """Names, numpy dtypes and shapes; axes without a name get a stable one.

    A first axis that no input names is `N`, the batch; any other unnamed axis is `<tensor>_d<axis>`.
    """
    fed = inputs(model)
    firsts = [value.type.tensor_type.shape.dim[0] for value in fed if value.type.tensor_type.shape.dim]
    open_firsts = [dim for dim in firsts if not dim.dim_value > 0]
    batch = "N" if open_firsts and not any(_axis_name(dim) for dim in open_firsts) else ""
    return Signature(tuple(_spec(value, batch) for value in fed), tuple(_spec(value, "") for value in model.graph.output))


def _axis_name(dim: Any) -> str:
    """The name of an open axis; what exporters write for any size is none, or all such axes would be one."""
    return "" if dim.dim_param in ("?", "-1", "None", "dynamic") else str(dim.dim_param)


def _spec(value: ValueInfoProto, batch: str) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        kind = (value.type.WhichOneof("value") or "").removesuffix("_type").replace("_", " ")
        cause = f"is no tensor but {kind}" if kind else "has no type"
        raise UsageError(f"'{value.name}' {cause}", remedy="export a model whose inputs and outputs are plain tensors, with their types")
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    except KeyError as error:
        raise UsageError(f"'{value.name}' has a type that ONNX does not know ({error})", remedy="export the model again") from None
    shape: list[int | str] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        unnamed = batch if batch and axis == 0 else f"{value.name}_d{axis}"
        shape.append(dim.dim_value if dim.dim_value > 0 else _axis_name(dim) or unnamed)
    return TensorSpec(value.name, dtype, tuple(shape))


def name_axes(model: ModelProto, signature: Signature) -> None:
    """Write the signature's shapes into the model, so that every later reader sees the same names."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    for value in (*inputs(model), *model.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in specs[value.name].shape:
            dim = shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size


def examples(signature: Signature, seed: int = 0, sizes: Mapping[str, int] | None = None, other: int = 16) -> Feeds:
    """Made-up inputs that fit the signature: small reals, integers 0 and 1.

    An axis whose size is not given has 2 samples if it is the batch, else `other`.
    """
    import numpy as np

    numbers = np.random.default_rng(seed)
    known: dict[int | str | None, int] = {signature.batch_symbol: 2}
    known.update(sizes or {})
    feeds: Feeds = {}
    for spec in signature.inputs:
        shape = [size if isinstance(size, int) else known.get(size, other) for size in spec.shape]
        kind = np.dtype(spec.dtype).kind
        array = numbers.integers(0, 2, shape) if kind in "iub" else numbers.standard_normal(shape)
        feeds[spec.name] = np.asarray(array, dtype=spec.dtype)
    return feeds


def difference(before: Feeds, after: Feeds) -> str:
    """Why two runs on the same inputs cannot be of one function, or an empty string; rounding is let pass."""
    import numpy as np

    for name, one in before.items():
        if name not in after or after[name].shape != one.shape:
            return f"output '{name}' has another shape"
        x, y = one.astype(np.float64), after[name].astype(np.float64)
        if (np.isfinite(x) != np.isfinite(y)).any():
            return f"output '{name}' has NaN or infinity elsewhere"
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        if np.linalg.norm(x - y) > 1e-3 * np.linalg.norm(x) + 1e-6:
            return f"output '{name}' has other values"
    return ""


def name_nodes(model: ModelProto) -> None:
    """Give every node, in bodies too, a name of its own: quantizers and people find layers by it."""
    taken: set[str] = set()
    for number, node in enumerate(nodes(model)):
        wanted = node.name or f"{node.op_type}_{number}"
        name, copy = wanted, 1
        while name in taken:
            name, copy = f"{wanted}_{copy}", copy + 1
        node.name = name
        taken.add(name)


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes into an order in which each comes after those it reads from, through its bodies too."""
    from graphlib import TopologicalSorter

    found = list(graph.node)
    maker = {name: index for index, node in enumerate(found) for name in node.output if name}
    order: TopologicalSorter[int] = TopologicalSorter()
    for index, node in enumerate(found):
        order.add(index, *sorted({maker[name] for name in reads(node) if name in maker}))
    ordered = [type(found[index]).FromString(found[index].SerializeToString()) for index in order.static_order()]
    del graph.node[:]
    graph.node.extend(ordered)


def reads(node: NodeProto) -> set[str]:
    """Names of the tensors that a node reads, those that its bodies take from outside included."""
    found = set(node.input)
    for body in bodies(node):
        found |= {value.name for value in body.output}
        for inner in body.node:
            found |= reads(inner)
    return found


def matching(patterns: Sequence[str], kinds: Mapping[str, str], option: str = "keep") -> list[str]:
    """The nodes (name to operator type) that some pattern names, by name or type. Raises UsageError for one that names nothing."""
    found: dict[str, None] = {}
    for pattern in patterns:
        # A name may hold brackets of its own, as those that older exporters of torch write: Sequential[layer1]/Conv2d[conv].
        hits = [name for name, kind in kinds.items() if name == pattern or fnmatchcase(name, pattern) or fnmatchcase(kind, pattern)]
        if not hits:
            raise UsageError(f"{option}: no layer is named or of type '{pattern}'", remedy=did_you_mean(pattern, {*kinds, *kinds.values()}))
        found |= dict.fromkeys(hits)
    return list(found)


def strip(model: ModelProto) -> None:
    """Remove what only debugging reads: exporters leave stack traces, with paths of the machine they ran on."""
    for part in (model, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for graph in graphs(model.graph):
        for entry in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")
