"""Frames: a JSON header and raw arrays on a byte stream.

A frame is the header's length (8 bytes, little-endian), the header (UTF-8 JSON), then the bytes of the
arrays that `header["arrays"]` lists as [name, dtype, shape], back to back in C order. Numbers and
booleans only: nothing in a frame can run code.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 64 << 20
_KINDS = "biufc"


def write(stream: BinaryIO, header: dict[str, Any], arrays: Arrays | None = None) -> None:
    """Write one frame and flush. Raises ValueError for arrays that are not numbers or booleans."""
    # np.asarray keeps 0-d arrays 0-d, which np.ascontiguousarray does not.
    plain = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    for name, array in plain.items():
        if array.dtype.kind not in _KINDS:
            raise ValueError(f"the array '{name}' is {array.dtype}, not numbers")
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in plain.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    _put(stream, memoryview(_LENGTH.pack(len(text)) + text))
    for array in plain.values():
        _put(stream, array.reshape(-1).view(np.uint8).data)
    stream.flush()


def read(stream: BinaryIO) -> tuple[dict[str, Any], Arrays]:
    """The next frame. Raises EOFError at the stream's end, ValueError when it holds no frame."""
    head = np.empty(_LENGTH.size, np.uint8)
    _fill(stream, head)
    (length,) = _LENGTH.unpack(head.tobytes())
    if length > _LONGEST_HEADER:
        raise ValueError("this is no frame: its header would be longer than 64 MiB")
    text = np.empty(length, np.uint8)
    _fill(stream, text)
    header = json.loads(text.tobytes())
    arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        if np.dtype(dtype).kind not in _KINDS:
            raise ValueError(f"the array '{name}' is {dtype}, not numbers")
        arrays[name] = np.empty(shape, dtype)
        _fill(stream, arrays[name].reshape(-1).view(np.uint8))
    return header, arrays


def _put(stream: BinaryIO, view: memoryview) -> None:
    while len(view):
        view = view[stream.write(view) :]


def _fill(stream: BinaryIO, array: np.ndarray[Any, Any]) -> None:
    view = array.data
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the stream ended")
        view = view[count:]
