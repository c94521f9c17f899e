"""Ranges of the axes that may vary: TensorRT builds for a least, a usual and a largest size of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.core.artifact import Signature

Range = tuple[int, int, int]


def ranges(signature: Signature, batch: int, given: Mapping[str, Any]) -> dict[str, Range]:
    """Axis name to (min, opt, max), as far as known: what the target gives, else 1 to `batch` for the batch axis."""
    found = {axis: (value, value, value) if isinstance(value, int) else tuple(value) for axis, value in given.items()}
    if signature.batch_symbol is not None:
        found.setdefault(signature.batch_symbol, (1, batch, batch))
    return found


def open_axes(signature: Signature, known: Mapping[str, Range]) -> dict[str, str]:
    """Axes that may vary and have no range, each with the first input that has it."""
    found: dict[str, str] = {}
    for spec in signature.inputs:
        for axis in spec.shape:
            if isinstance(axis, str) and axis not in known:
                found.setdefault(axis, spec.name)
    return found


def shapes(signature: Signature, known: Mapping[str, Range]) -> dict[str, list[list[int]]]:
    """Input name to its min, opt and max shape, for the inputs that may vary; every axis must have its range."""
    found = {}
    for spec in signature.inputs:
        if any(isinstance(axis, str) for axis in spec.shape):
            found[spec.name] = [[axis if isinstance(axis, int) else known[axis][which] for axis in spec.shape] for which in range(3)]
    return found
