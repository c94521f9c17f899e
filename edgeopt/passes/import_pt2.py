"""The import of a `.pt2` file, which torch.export.save wrote: a traced program, that can only be exported.

torch.export.load unpickles what the archive calls pickled and evaluates text of its graph, so the
archive is examined first: what could run code is refused.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UntrustedError, UsageError
from edgeopt.core.model import FileRef
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Feeds = dict[str, np.ndarray[Any, Any]]

OPSET = 18  # what torch's exporter writes without converting
_AGAIN = "write it again with torch.export.save, of torch 2.9 or later"
# Parts of an archive that hold no machine code.
_KNOWN = (
    "models/",
    "data/weights/",
    "data/constants/",
    "data/sample_inputs/",
    "extra/",
    ".data/",
    "archive_",
    "byteorder",
    "version",
    ".format_version",
    ".storage_alignment",
)
# What a node may call. `load_library` and the callers of methods would reach out of the graph.
_TARGET = re.compile(
    r"torch\.ops\.(?!load_library|import_module)\w+\.\w+(\.\w+)?|_operator\.(?!attrgetter|methodcaller|itemgetter|call)\w+|math\.\w+|torch\.sym_\w+"
)
# Sizes are sums and products of symbols, written as calls: Mul(Integer(8), Symbol('s27', positive=True, integer=True)).
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_WORD = re.compile(r"[A-Z][A-Za-z]*|[a-z]{1,3}\d+")


class ImportPt2(Pass, FileRef, produces="onnx", needs=("torch", "onnx", "onnxscript")):
    """Export a traced torch program to ONNX. Torch passes (pruning, fine-tuning) need the model's factory instead."""

    extra: ClassVar[str] = "torch"

    def user_files(self, base: Path) -> list[Path]:
        return [self.locate(base)]

    def run(self, model: Artifact, ctx: Context) -> Path:
        torch = registry.need("torch", "torch")
        registry.need("onnxscript", "torch")
        path = self.locate(ctx.base)
        program = load(path)
        try:
            inputs, outputs = names(program)
            exported = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, opset_version=OPSET, verbose=False)
        except Exception as error:
            raise StepError(
                f"{path.name} cannot be exported to ONNX: {_line(error)}", remedy="export it yourself and give it as `onnx`"
            ) from error
        proto: ModelProto = exported.model_proto
        onnx_format.strip(proto)
        onnx_format.name_nodes(proto)
        name_batch(proto)
        reason = _disagrees(proto, program)
        if reason:
            raise StepError(f"{path.name}: the exported {reason} than the program", remedy="export it yourself and give it as `onnx`")
        return onnx_format.save(proto, ctx.folder / onnx_format.MAIN)

    def original(self, base: Path) -> Callable[[Feeds], Feeds]:
        """The traced program itself, in torch."""
        program = load(self.locate(base))
        inputs, outputs = names(program)
        return lambda feeds: dict(zip(outputs, _results(program, [feeds[name] for name in inputs]), strict=True))


def load(path: Path) -> Any:
    """The traced program of a file that holds no code. Raises UsageError or UntrustedError."""
    torch = registry.need("torch", "torch")
    refuse_code(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        raise UsageError(f"{path.name} cannot be loaded: {_line(error)}", remedy=_AGAIN) from error


def refuse_code(path: Path) -> None:
    """Raises UsageError when the file is no `.pt2` archive, UntrustedError when loading it could run code."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}", remedy="paths are relative to the recipe's folder")
    try:
        with zipfile.ZipFile(path) as archive:
            _examine(path.name, archive)
    except (zipfile.BadZipFile, ValueError, KeyError, AttributeError, TypeError, EOFError, NotImplementedError, RecursionError):
        raise UsageError(f"{path.name} is no .pt2 archive, or is cut off", remedy=_AGAIN) from None


def _examine(file: str, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    root = names[0].partition("/")[0] + "/" if names else ""
    inside = [name.removeprefix(root) for name in names]
    if "data.pkl" in inside:
        raise UntrustedError(f"{file} is a pickle of torch.save", remedy="use torch.export.save, or give the factory and its weights")
    if "archive_format" not in inside or "models/model.json" not in inside:
        raise UsageError(f"{file} is no .pt2 archive of one program", remedy=_AGAIN)
    # torch finds names in an archive without regard to case, and takes the first of two.
    if len({name.lower() for name in names}) < len(names) or not all(name.startswith(root) for name in names):
        raise UntrustedError(f"{file} holds two files of one name, or two archives", remedy=_AGAIN)
    strange = next((name for name in inside if not name.startswith(_KNOWN)), None)
    if strange:
        raise UntrustedError(f"{file} holds '{strange}', which is no part of a traced program", remedy=_AGAIN)
    for name in inside:
        if name.endswith("_config.json"):
            for entry in json.loads(archive.read(root + name))["config"].values():
                if not entry["path_name"].startswith(("weight_", "tensor_")):
                    raise UntrustedError(f"{file} holds objects that are no tensors", remedy="export a program of tensors only")
                if entry["use_pickle"]:
                    _only_tensors(file, archive.read(f"{root}{name.rpartition('/')[0]}/{entry['path_name']}"))
        elif name.endswith(".pt"):
            _only_tensors(file, archive.read(root + name))
        elif name.startswith("models/"):
            _plain_graph(file, json.loads(archive.read(root + name)))


def _only_tensors(file: str, data: bytes) -> None:
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UntrustedError(f"{file} holds a pickle that may run code and is not opened: {_line(error)}", remedy=_AGAIN) from None


def _plain_graph(file: str, value: Any) -> None:
    for owner, key, text in _texts(value):
        if key in ("target", "as_operator") and (key == "as_operator" or "inputs" in owner) and not _TARGET.fullmatch(text):
            raise UntrustedError(f"{file}: its graph calls '{text[:80]}', which is no tensor operation", remedy=_AGAIN)
        if key == "expr_str":
            rest = _SYMBOL.sub("s0", text)
            if re.search(r"[^\w\s(),.+*/<>=!-]|\.\s*[A-Za-z_]|_", rest) or not all(map(_WORD.fullmatch, re.findall(r"[A-Za-z_]\w*", rest))):
                raise UntrustedError(f"{file}: its graph has a size that is no formula: '{text[:80]}'", remedy=_AGAIN)
        if key in ("in_spec", "out_spec") and ("default_factory" in text or "enum" in text.lower()):
            raise UntrustedError(
                f"{file}: its inputs or outputs are of types of their own", remedy="export a program that takes and returns plain tensors"
            )


def _texts(value: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every text in nested JSON, with the object it stands in and its key there."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                yield value, key, item
            else:
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def names(program: Any) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs as the program has them; an output that is an input, or returned twice, gets its own."""
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    outputs: list[str] = []
    for number, name in enumerate(program.graph_signature.user_outputs):
        taken = name is None or name in inputs or name in outputs
        outputs.append(f"output_{number}" if taken else str(name))
    return inputs, outputs


def name_batch(proto: ModelProto) -> None:
    """Call the first open axis of the first input N: torch numbers its symbols by a hash."""
    symbol = onnx_format.signature_of(proto).batch_symbol
    if symbol is None or not re.fullmatch(r"s\d+", symbol):
        return
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{symbol}\b", "N", dim.dim_param)


def _disagrees(proto: ModelProto, program: Any) -> str:
    """How the outputs on the program's own example inputs differ, if it brings any."""
    import torch

    if program.example_inputs is None:
        return ""
    flat = torch.utils._pytree.tree_leaves(program.example_inputs)
    names = [spec.name for spec in onnx_format.signature_of(proto).inputs]
    if len(flat) != len(names) or not all(map(torch.is_tensor, flat)):
        return ""
    given = [one.detach().numpy() for one in flat]
    with tempfile.TemporaryDirectory() as folder:
        found = onnx_format.Onnx().runner(onnx_format.save(proto, Path(folder) / onnx_format.MAIN))(dict(zip(names, given, strict=True)))
    return onnx_format.difference(dict(zip(found, _results(program, given), strict=True)), found)


def _results(program: Any, flat: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The program's outputs in order; `flat` are its inputs in order, however it nests them."""
    import torch

    args, kwargs = torch.utils._pytree.tree_unflatten([torch_format.tensor(one) for one in flat], program.call_spec.in_spec)
    with torch.inference_mode():
        found = torch.utils._pytree.tree_leaves(program.module()(*args, **kwargs))
    return list(torch_format.arrays({str(index): one for index, one in enumerate(found) if torch.is_tensor(one)}).values())


def _line(error: BaseException) -> str:
    """The innermost reason, in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
