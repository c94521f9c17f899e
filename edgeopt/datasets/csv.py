"""Samples from a table in a text file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import Place, UsageError, did_you_mean
from edgeopt.core.protocols import Dataset, Sample
from edgeopt.core.samples import sample_shape


class Csv(Dataset):
    """A text file with a header and one sample per row, all cells numbers. Read row by row, never held whole.

    The columns of an input make a vector, in the order given; an input of fixed shape with as many
    values is filled from it row-major (784 columns fill [1, 28, 28]).
    """

    source: str = Field(description="the file")
    inputs: dict[str, list[str]] | None = Field(
        default=None, description="columns of each input; default: all but the label, when the model has one input"
    )
    label: str | None = Field(default=None, description="the column that holds the label")
    delimiter: str = Field(default=",", min_length=1, max_length=1)

    def user_files(self, base: Path) -> list[Path]:
        return [base / self.source]

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        path = base / self.source
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from self._rows(csv.reader(file, delimiter=self.delimiter, strict=True), signature)
        except OSError as error:
            raise UsageError(
                f"{self.source} cannot be read: {error.strerror}", remedy="paths are relative to the recipe's folder"
            ) from None
        except UnicodeDecodeError:
            raise UsageError(f"{self.source} is not UTF-8 text", remedy="save it as UTF-8") from None

    def _rows(self, rows: Any, signature: Signature) -> Iterator[Sample]:
        import numpy as np

        header = self._next(rows)
        if header is None:
            return
        columns = self._columns([name.strip() for name in header], signature)
        specs = {spec.name: spec for spec in signature.inputs}
        label = self._position(self.label, header) if self.label else None
        while (row := self._next(rows)) is not None:
            if not row:
                continue  # a blank line
            place = Place(self.source, rows.line_num)
            if len(row) != len(header):
                remedy = "give every row a cell for each column; check the `delimiter`"
                raise UsageError(f"{len(row)} cells, and the header has {len(header)}", place=place, remedy=remedy)
            inputs = {}
            for name, positions in columns.items():
                parse, dtype = _parser(specs[name])
                values = [_number(row[at], header[at], parse, place) for at in positions]
                inputs[name] = _filled(np.array(values, dtype=dtype), sample_shape(specs[name], signature))
            yield Sample(inputs, None if label is None else _number(row[label], header[label], _any_number, place))

    def _next(self, rows: Any) -> list[str] | None:
        try:
            return next(rows, None)
        except csv.Error as error:
            place = Place(self.source, rows.line_num)
            raise UsageError(f"not a CSV file: {error}", place=place, remedy="mend the quotes or characters there") from None

    def _columns(self, header: list[str], signature: Signature) -> dict[str, list[int]]:
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise UsageError(f"two columns are named '{twice[0]}'", place=Place(self.source, 1), remedy="rename one of them")
        names = [spec.name for spec in signature.inputs]
        if self.inputs is None:
            if len(names) != 1:
                remedy = f"write inputs: {{{names[0]}: [COLUMN, …], …}}"
                raise UsageError(f"data: the model has {len(names)} inputs, and nothing says which columns feed which", remedy=remedy)
            return {names[0]: [at for at, name in enumerate(header) if name != self.label]}
        for name in self.inputs:
            if name not in names:
                raise UsageError(f"data: the model has no input '{name}'", remedy=did_you_mean(name, names))
        return {name: [self._position(column, header) for column in columns] for name, columns in self.inputs.items()}

    def _position(self, column: str, header: list[str]) -> int:
        names = [name.strip() for name in header]
        if column not in names:
            raise UsageError(f"no column '{column}'", place=Place(self.source, 1), remedy=did_you_mean(column, names))
        return names.index(column)


def _parser(spec: TensorSpec) -> tuple[Callable[[str], float], str]:
    """How cells of an input are read, and the numpy type that holds them."""
    if spec.dtype == "bool":
        return _truth, "bool"
    return (float, "float64") if spec.dtype.startswith("float") else (_whole, "int64")


def _truth(cell: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[cell.lower()]


def _whole(cell: str) -> int:
    """A whole number, also written 3.0."""
    try:
        return int(cell)
    except ValueError:
        if not float(cell).is_integer():
            raise
        return int(float(cell))


def _any_number(cell: str) -> float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _number(cell: str, column: str, parse: Callable[[str], float], place: Place) -> float:
    text = cell.strip()
    try:
        value = parse(text)
        if "_" not in text and math.isfinite(value) and abs(value) < 2**63:  # Python reads 1_000 as a number, no table means it
            return value
    except (ValueError, KeyError, OverflowError):
        pass
    kind = {_whole: "a whole number", _truth: "0 or 1"}.get(parse, "a finite number")  # type: ignore[arg-type]  # any parser may ask
    raise UsageError(f"'{text[:40]}' in column '{column}' is not {kind}", place=place, remedy="mend the cell, or leave the column out")


def _filled(values: Any, shape: tuple[int | str, ...]) -> Any:
    """A vector in the shape of the input, where that is fixed and holds as many values."""
    fixed = [size for size in shape if isinstance(size, int)]
    return values.reshape(fixed) if len(fixed) == len(shape) and math.prod(fixed) == values.size else values
