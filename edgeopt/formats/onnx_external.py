"""External data of an ONNX model that edgeopt did not write: it names files, and none is opened before it is checked."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import ModelProto


# The protobuf entry (key "location", then its value) that points at a file of external data.
_LOCATION = re.compile(rb"\x0a\x08location\x12")


def named(path: Path) -> set[str]:
    """What may be names of external data in a file of any size: a superset, found by a scan."""
    if path.stat().st_size == 0:
        return set()
    names = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _LOCATION.finditer(data):
            size, start, shift = 0, match.end(), 0
            for byte in data[start : start + 2]:  # a varint; names longer than 16 kB are not files
                size |= (byte & 127) << shift
                start, shift = start + 1, shift + 7
                if byte < 128:
                    break
            names.add(data[start : start + size].decode(errors="replace"))
    return names


def escapes(folder: Path, name: str) -> str:
    """Why external data of that name may not be opened, or an empty string."""
    if not name or "\0" in name:
        return "is no file name"
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "is an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "leaves the model's folder"
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        return "leads out of the model's folder through a link"
    return ""


def files(model: ModelProto, path: Path) -> set[str]:
    """Names of the external data that the model refers to, each checked to lie in its folder."""
    names = set()
    for tensor in onnx_format.tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        reason = escapes(path.parent, name)
        if reason:
            raise UntrustedError(f"{path.name}: external data '{name}' {reason}", remedy="keep it beside the model")
        file = path.parent / name
        if not file.is_file():
            raise UsageError(f"{path.name}: its external data '{name}' is missing", remedy=f"put it beside the model, as {file}")
        if not _fits(entries, file.stat().st_size):
            raise UsageError(
                f"{path.name}: its external data '{name}' is too short for the tensor '{tensor.name}'", remedy="copy both files again"
            )
        names.add(name)
    return names


def _fits(entries: dict[str, str], size: int) -> bool:
    numbers = [entries.get("offset") or "0", entries.get("length") or "0"]
    return all(number.isdecimal() for number in numbers) and sum(map(int, numbers)) <= size


def load(model: ModelProto, path: Path) -> None:
    """Put the external data into the model. Raises UntrustedError for what onnx does not open."""
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in onnx_format.tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            try:
                load_external_data_for_tensor(tensor, str(path.parent))
            except Exception as error:  # noqa: BLE001  (onnx has its own checks, and raises half a dozen kinds)
                raise UntrustedError(
                    f"{path.name}: external data refused: {onnx_format.cause(error)}", remedy="write the file anew with onnx.save_model"
                ) from None
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]
