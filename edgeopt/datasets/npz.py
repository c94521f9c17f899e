"""Samples from arrays in an .npz file."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import Field

from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UntrustedError, UsageError, did_you_mean
from edgeopt.core.protocols import Dataset, Sample

if TYPE_CHECKING:
    import numpy as np

LABELS = "labels"


@dataclass
class _Array:
    """One array inside the file, opened behind its header; `stream` yields its bytes in order."""

    name: str
    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype[Any]
    stream: IO[bytes]


class Npz(Dataset):
    """An .npz file of arrays named like the model's inputs, the first axis counting samples; `labels` may stand beside them.

    The single array for a model with one input may have any name. Arrays are read as samples are
    asked for, compressed or not, so that the file may be larger than memory (unless an array is
    stored in Fortran order). An input without a batch axis may be given once, for all samples.
    """

    source: str = Field(description="the file")

    def user_files(self, base: Path) -> list[Path]:
        return [base / self.source]

    def packages(self, base: Path) -> list[str]:
        return []

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        try:
            with ExitStack() as stack:
                yield from self._samples(self._open(base / self.source, stack), signature)
        except OSError as error:
            raise UsageError(f"{self.source} cannot be read: {error.strerror or error}", remedy="check the path and the file") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"{self.source} is damaged: {error}", remedy="write it again with numpy.savez") from None

    def _open(self, path: Path, stack: ExitStack) -> dict[str, _Array]:
        """The arrays of the file by name. Raises UntrustedError for anything pickled."""
        with path.open("rb") as file:
            start = file.read(6)
        if start[:1] == b"\x80":
            raise UntrustedError(f"{self.source} is a pickle, which can run code", remedy="write arrays with numpy.savez")
        if start[:2] != b"PK":
            hint = "numpy.save wrote it: use numpy.savez" if start == b"\x93NUMPY" else "write it with numpy.savez"
            raise UsageError(f"{self.source} is not an .npz file", remedy=hint)
        archive = stack.enter_context(zipfile.ZipFile(path))
        found = {}
        for member in archive.infolist():
            if member.filename.endswith(".pkl"):
                raise UntrustedError(f"{self.source} holds a pickle, which can run code", remedy="write arrays with numpy.savez")
            if member.filename.endswith(".npy"):
                array = self._header(member.filename[:-4], stack.enter_context(archive.open(member)), member.file_size)
                found[array.name] = array
        return found

    def _header(self, name: str, stream: IO[bytes], size: int) -> _Array:
        import numpy as np

        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(stream)
        except (ValueError, TypeError, SyntaxError) as error:
            text = str(error).splitlines()[0]
            raise UsageError(f"{self.source}: the array '{name}' is damaged: {text}", remedy="write it again with numpy.savez") from None
        if dtype.hasobject:
            raise UntrustedError(
                f"{self.source}: the array '{name}' holds pickled objects, which can run code", remedy="save plain numbers"
            )
        if min(shape, default=0) < 0 or size - stream.tell() != math.prod(shape) * dtype.itemsize:
            raise UsageError(f"{self.source}: the array '{name}' is truncated", remedy="write it again with numpy.savez")
        return _Array(name, shape, by_column, dtype, stream)

    def _samples(self, arrays: dict[str, _Array], signature: Signature) -> Iterator[Sample]:
        specs = {spec.name: spec for spec in signature.inputs}
        given = {name: array for name, array in arrays.items() if name != LABELS or name in specs}
        if len(specs) == len(given) == 1:
            given = dict(zip(specs, given.values(), strict=True))
        for name in given:
            if name not in specs:
                raise UsageError(f"{self.source}: the model has no input '{name}'", remedy=did_you_mean(name, specs))
        for name in specs:
            if name not in given:
                raise UsageError(f"{self.source}: no array for the input '{name}'", remedy=did_you_mean(name, [*arrays, LABELS]))
        if LABELS in arrays and LABELS not in specs:
            given[LABELS] = arrays[LABELS]
        shared = {
            name: self._whole(array)
            for name, array in given.items()
            if name in specs and signature.batch_axis(specs[name]) is None and len(array.shape) == len(specs[name].shape)
        }
        rows = {name: self._rows(array) for name, array in given.items() if name not in shared}
        for _ in range(self._count({name: given[name].shape for name in rows})):
            row = {name: next(values) for name, values in rows.items()}
            label = row.pop(LABELS) if LABELS not in specs and LABELS in row else None
            yield Sample({**shared, **row}, label)

    def _count(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """How many samples there are. Raises UsageError unless all arrays agree."""
        for name, shape in shapes.items():
            if not shape:
                raise UsageError(f"{self.source}: the array '{name}' is a single number", remedy="its first axis must count the samples")
        counts = {name: shape[0] for name, shape in shapes.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise UsageError(f"{self.source}: the arrays have unlike numbers of samples ({shown})", remedy="make their first axes equal")
        return max(counts.values(), default=1)

    def _rows(self, array: _Array) -> Iterator[Any]:
        """The array sample by sample."""
        import numpy as np

        if array.by_column:  # a sample's values lie scattered over the whole file
            yield from self._whole(array)
            return
        shape = array.shape[1:]
        size = math.prod(shape) * array.dtype.itemsize
        for _ in range(array.shape[0]):
            yield np.frombuffer(self._bytes(array, size), array.dtype).reshape(shape) if size else np.empty(shape, array.dtype)

    def _whole(self, array: _Array) -> Any:
        import numpy as np

        flat = np.frombuffer(self._bytes(array, math.prod(array.shape) * array.dtype.itemsize), array.dtype)
        return flat.reshape(array.shape, order="F" if array.by_column else "C")

    def _bytes(self, array: _Array, size: int) -> bytes:
        data = array.stream.read(size)
        if len(data) != size:
            raise UsageError(f"{self.source}: the array '{array.name}' is truncated", remedy="write it again with numpy.savez")
        return data
