"""anatomy: what stands in a model file, format by format: inputs, weights, operators. Nothing of it is run."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import registry
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.stages import work
from edgeopt.stages.anatomy_keras import keras

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# Stored tensors of these types are weights; the others are shapes, indices and axes.
WEIGHTS = ("float", "bfloat", "int8", "uint8", "int4", "uint4", "double")
MAX_JSON = 500_000_000
# An axis that may vary where the format gives it no name.
UNNAMED = "?"
# torch.export numbers its dtypes (the schema's ScalarType).
_TORCH_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
}


def signature_json(signature: Signature) -> dict[str, Any]:
    """A signature as plain JSON."""

    def specs(side: Any) -> list[dict[str, Any]]:
        return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in side]

    return {"inputs": specs(signature.inputs), "outputs": specs(signature.outputs)}


def _parameters(stored: dict[str, int]) -> int:
    return sum(count for dtype, count in stored.items() if dtype.startswith(WEIGHTS))


def _onnx(path: Path) -> dict[str, Any]:
    onnx = registry.need("onnx", "all")
    signature = registry.load("formats", "onnx")().signature(path)
    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise UsageError(f"{path.name} computes nothing: its graph has no nodes", remedy="export it again")
    stored: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    files: set[str] = set()
    for graph in _graphs(model.graph):
        constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
        for tensor in [*graph.initializer, *constants]:
            known = tensor.data_type in onnx.TensorProto.DataType.values()
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower() if known else f"type {tensor.data_type}"
            stored[kind] += math.prod(tensor.dims)
            files |= {entry.value for entry in tensor.external_data if entry.key == "location"}
        operators.update(f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type for node in graph.node)
    stored = Counter({{"float": "float32", "double": "float64"}.get(name, name): count for name, count in stored.items()})
    beside = sum(file.stat().st_size for name in files if (file := path.parent / name).is_file())
    return {
        "format": "onnx",
        "size_bytes": path.stat().st_size + beside,
        "signature": signature_json(signature),
        "parameters": _parameters(stored),
        "macs": _macs(model),
        "stored": dict(stored.most_common()),
        "operators": dict(operators.most_common()),
        "facts": {
            "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            "ir_version": model.ir_version,
            "producer": f"{model.producer_name} {model.producer_version}".strip() or None,
            "external_data": sorted(files) or None,
        },
    }


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _macs(model: ModelProto) -> int | None:
    """Multiply-accumulates of one sample; None when a shape stays open or layers stand in a loop's body."""
    counted = work.of_onnx(model)
    return counted.macs if counted else None


def _openvino(path: Path) -> dict[str, Any]:
    """An OpenVINO IR, from its XML: only multiply-accumulates need the runtime, and are not told without it."""
    from importlib.util import find_spec
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UsageError(f"{path.name}: not an OpenVINO model: {error}", remedy="name the .xml file of the model") from None
    if root.tag != "net":
        raise UsageError(f"{path.name}: not an OpenVINO model: its root is <{root.tag}>", remedy="name the .xml file of the model")
    names = {
        "f32": "float32",
        "f16": "float16",
        "bf16": "bfloat16",
        "f64": "float64",
        "i8": "int8",
        "u8": "uint8",
        "i4": "int4",
        "u4": "uint4",
    }
    names |= {"i32": "int32", "i64": "int64", "boolean": "bool"}
    stored: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    specs: dict[str, list[dict[str, Any]]] = {"Parameter": [], "Result": []}
    for layer in root.iter("layer"):
        kind, data = layer.get("type", "?"), layer.find("data")
        if kind == "Const" and data is not None:
            shape = [int(size) for size in (data.get("shape") or "").split(",") if size.strip()]
            stored[names.get(data.get("element_type", ""), data.get("element_type", "?"))] += math.prod(shape)
            continue
        if kind in specs:
            port = layer.find("./output/port" if kind == "Parameter" else "./input/port")
            sizes = [int(dim.text or -1) for dim in port.findall("dim")] if port is not None else []
            given = (data.get("element_type", "") if data is not None else "") or ""
            name = (port.get("names") if port is not None else None) or layer.get("name") or "?"
            dtype = names.get(given, given) or {"FP32": "float32", "FP16": "float16", "I64": "int64"}.get(
                port.get("precision", "") if port is not None else "", ""
            )
            specs[kind].append(
                {"name": name.split(",")[0], "dtype": dtype or None, "shape": [size if size >= 0 else UNNAMED for size in sizes]}
            )
            continue
        operators[kind] += 1
    weights = path.with_suffix(".bin")
    counted = work.work(path) if weights.is_file() and find_spec("openvino") else None
    return {
        "format": "openvino",
        "size_bytes": path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0),
        "signature": {"inputs": specs["Parameter"], "outputs": specs["Result"]},
        "parameters": _parameters(stored),
        "macs": counted.macs if counted else None,
        "stored": dict(stored.most_common()),
        "operators": dict(operators.most_common()),
        "facts": {"ir_version": root.get("version"), "weights": weights.name if weights.is_file() else None},
    }


def _pt2(path: Path) -> dict[str, Any]:
    """An exported torch program, from the JSON in its archive: nothing of torch is imported, no pickle opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(
                item for item in archive.infolist() if item.filename.endswith(("/models/model.json", "serialized_exported_program.json"))
            )
            if entry.file_size > MAX_JSON:
                raise UntrustedError(f"{path.name}: its graph expands to {entry.file_size:,} bytes", remedy="export it again")
            program = json.loads(archive.read(entry))
        graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
        values = graph["tensor_values"]
        inputs = [spec["user_input"]["arg"] for spec in signature["input_specs"] if "user_input" in spec]
        outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
        weights = [spec["parameter"]["arg"]["name"] for spec in signature["input_specs"] if "parameter" in spec]
    except (zipfile.BadZipFile, StopIteration, ValueError, KeyError, TypeError):
        raise UsageError(f"{path.name}: not a torch export (.pt2)", remedy="write it with torch.export.save") from None

    def spec(argument: dict[str, Any]) -> dict[str, Any]:
        name = argument.get("as_tensor", {}).get("name", "?")
        value = values.get(name, {})
        return {
            "name": name,
            "dtype": _TORCH_DTYPES.get(value.get("dtype")),
            "shape": [size.get("as_int", UNNAMED) for size in value.get("sizes", [])],
        }

    stored: Counter[str] = Counter()
    for name in weights:
        one = spec({"as_tensor": {"name": name}})
        stored[one["dtype"] or "?"] += math.prod(one["shape"])
    operators = Counter(node["target"].removeprefix("torch.ops.").removesuffix(".default") for node in graph["nodes"])
    return {
        "format": "pt2",
        "signature": {"inputs": [spec(argument) for argument in inputs], "outputs": [spec(argument) for argument in outputs]},
        "parameters": _parameters(stored),
        "stored": dict(stored.most_common()),
        "operators": dict(operators.most_common()),
        "facts": {"torch": program.get("torch_version")},
    }


def _safetensors(path: Path) -> dict[str, Any]:
    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I8": "int8",
        "U8": "uint8",
        "I64": "int64",
        "I32": "int32",
    }
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(size))
        stored: Counter[str] = Counter()
        for name, entry in header.items():
            if name != "__metadata__":
                stored[names.get(entry["dtype"], entry["dtype"])] += math.prod(entry["shape"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path.name}: not a safetensors file, or truncated", remedy="write it again with safetensors") from None
    return {
        "format": "safetensors",
        "parameters": _parameters(stored),
        "stored": dict(stored.most_common()),
        "facts": {"tensors": len(header) - ("__metadata__" in header)},
    }


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
    ".pt2": _pt2,
    ".keras": keras,
    ".h5": keras,
    ".hdf5": keras,
    ".safetensors": _safetensors,
}
