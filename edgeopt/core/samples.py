"""The one gate through which data enters: samples that fit the model's inputs, or an error that says why not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.protocols import Dataset, Sample

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def walk(dataset: Dataset, base: Path, signature: Signature) -> Iterator[Sample]:
    """The samples of a data set in order, each checked against the model's inputs; at most its `samples`.

    Raises UsageError for the first sample that does not fit, and when there is none at all.
    """
    found = False
    for index, sample in enumerate(itertools.islice(dataset.read(base, signature), dataset.samples)):
        yield conform(sample.inputs, sample.label, index, signature, dataset.source)
        found = True
    if not found:
        raise UsageError(f"data: {dataset.source} holds no samples", remedy="name a source that has at least one")


def conform(raw: Any, label: Any, index: int, signature: Signature, where: str) -> Sample:
    """Sample `index` of `where` as arrays of its own, in the model's types, finite, without the batch axis.

    `raw` is {input: array-like}, or one array-like for a model with one input. Floats are narrowed
    (float64 → float32) and integers recast where every value fits; integers never become floats: whether
    255 means 255.0 or 1.0 is not ours to guess.
    """
    what = f"data: sample {index} of {where}"
    given = named(raw, signature, what)
    sizes: dict[str, tuple[int, str]] = {}
    inputs = {}
    for spec in signature.inputs:
        array = _array(given[spec.name], f"{what}: input '{spec.name}'")
        array = _cast(array, spec, f"{what}: input '{spec.name}'")
        inputs[spec.name] = _shaped(array, spec, signature.batch_axis(spec), sizes, f"{what}: input '{spec.name}'")
    return Sample(inputs, _label(label, what))


def named(raw: Any, signature: Signature, what: str) -> Mapping[str, Any]:
    """Inputs by name; a bare array is the one input of the model. Raises UsageError unless all names are met."""
    names = [spec.name for spec in signature.inputs]
    if not isinstance(raw, Mapping):
        if len(names) != 1:
            remedy = f"give a dict with {', '.join(names)}"
            raise UsageError(f"{what} is one {type(raw).__name__}, and the model has {len(names)} inputs", remedy=remedy)
        return {names[0]: raw}
    for name in raw:
        if name not in names:
            raise UsageError(f"{what}: the model has no input '{name}'", remedy=did_you_mean(str(name), names))
    for name in names:
        if name not in raw:
            remedy = f"give an array for each of the model's inputs: {', '.join(names)}"
            raise UsageError(f"{what}: no array for the input '{name}'", remedy=remedy)
    return raw


def sample_shape(spec: TensorSpec, signature: Signature) -> tuple[int | str, ...]:
    """The shape of one sample of an input: without its batch axis where it has one."""
    axis = signature.batch_axis(spec)
    return spec.shape if axis is None else (*spec.shape[:axis], *spec.shape[axis + 1 :])


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy type of an input. Raises UsageError for one that numpy has no numbers for (text, bfloat16)."""
    import numpy as np

    try:
        wanted = np.dtype(spec.dtype)
    except TypeError:
        wanted = np.dtype(object)
    if wanted.kind not in "fiub":
        raise UsageError(
            f"the model's input '{spec.name}' is {spec.dtype}, which numpy has no numbers for",
            remedy="give the model an input of another type, and cast inside it",
        )
    return wanted


def _array(value: Any, what: str) -> Array:
    import numpy as np

    try:
        array = np.array(np.asarray(value), order="C")  # a copy: a generator may fill the same buffer again
    except Exception as error:  # noqa: BLE001 (ragged lists, tensors with gradients, whatever an __array__ may raise)
        text = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"{what} is no array: {type(error).__name__}: {text}", remedy="give a numpy array") from None
    if array.dtype.kind not in "fiub":
        kind = type(value).__name__ if array.dtype.kind == "O" else str(array.dtype)
        raise UsageError(f"{what} holds {kind}, not numbers", remedy="give a numpy array of numbers")
    return array


def _cast(array: Array, spec: TensorSpec, what: str) -> Array:
    """The array in the input's type, native byte order. Raises UsageError when values would change or are not finite."""
    import numpy as np

    wanted = dtype_of(spec)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise UsageError(f"{what} holds {bad}", remedy="clean the data: outputs for such a sample mean nothing")
    refused = UsageError(f"{what} is {array.dtype}, and the model wants {wanted}", remedy=_recipe_for(array.dtype.kind, wanted))
    if wanted.kind == "f":
        if array.dtype.kind != "f":
            raise refused
        with np.errstate(over="ignore"):
            cast = array.astype(wanted, copy=False)
        if not np.isfinite(cast).all():
            raise UsageError(f"{what} holds {np.abs(array).max():.6g}, too large for {wanted}", remedy="scale the data as in training")
        return cast
    if array.dtype.kind == "f" or (wanted.kind == "b") != (array.dtype.kind == "b"):
        raise refused
    if wanted.kind in "iu" and array.size:
        limits, low, high = np.iinfo(wanted), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            worst = low if low < limits.min else high
            raise UsageError(f"{what} holds {worst}, which does not fit {wanted}", remedy=f"keep values in {limits.min} … {limits.max}")
    return array.astype(wanted, copy=False)


def _recipe_for(have: str, wanted: np.dtype[Any]) -> str:
    if wanted.kind == "f" and have in "iu":
        return f"say how numbers become floats: array.astype('{wanted}') with the scale of training; for images give `scale`, `mean`, `std`"
    return f"give the array as {wanted}"


def _shaped(array: Array, spec: TensorSpec, axis: int | None, sizes: dict[str, tuple[int, str]], what: str) -> Array:
    """The array without its batch axis. `sizes` holds what each named axis has measured so far in this sample."""
    wanted = spec.shape
    if axis is not None:
        if array.ndim == len(wanted) and array.shape[axis] == 1:
            array = array.reshape(array.shape[:axis] + array.shape[axis + 1 :])
        wanted = (*wanted[:axis], *wanted[axis + 1 :])
    shown = f"[{', '.join(map(str, wanted))}]"
    got = f"[{', '.join(map(str, array.shape))}]"
    if array.ndim != len(wanted) or any(isinstance(size, int) and size != real for size, real in zip(wanted, array.shape, strict=True)):
        per = " per sample" if axis is not None else ""
        remedy = "give one sample at a time, without the batch axis" if array.ndim > len(wanted) else "reshape or resize the data to it"
        raise UsageError(f"{what} has the shape {got}, and the model wants {shown}{per}", remedy=remedy)
    if 0 in array.shape:
        raise UsageError(f"{what} is empty: its shape is {got}", remedy="leave such samples out")
    for name, real in zip(wanted, array.shape, strict=True):
        if isinstance(name, str):
            known, owner = sizes.setdefault(name, (real, spec.name))
            if known != real:
                raise UsageError(
                    f"{what} has {real} for the axis '{name}', and input '{owner}' has {known}",
                    remedy=f"'{name}' must have one size within a sample",
                )
    return array


def _label(label: Any, what: str) -> Any:
    """The label as it came, arrays as arrays of their own; refused when it is not finite or not plain."""
    import numpy as np

    if label is None or isinstance(label, (str, int)):
        return label
    if isinstance(label, Mapping):
        return {name: _label(value, what) for name, value in label.items()}
    array = _array(label, f"{what}: the label")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{what}: the label holds NaN or infinity", remedy="clean the labels")
    return array.item() if array.ndim == 0 else array
