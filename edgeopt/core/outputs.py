"""What scores need of a model's outputs and labels: each sample's share, the one that is judged, a class index, the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.protocols import fixed_batch

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


ANY = 2**31  # classes, where the model does not say how many there are


def apart(outputs: dict[str, Array], count: int, signature: Signature) -> list[dict[str, Array]]:
    """A batch's outputs sample by sample, by the signature's names and without the batch axis; the batch may be filled up beyond `count`.

    What is not as long as the batch along that axis counts something else (boxes that a detector found): each sample gets it whole.
    """
    import numpy as np

    ran = fixed_batch(signature) or count
    samples: list[dict[str, Array]] = [{} for _ in range(count)]
    for spec, array in zip(signature.outputs, outputs.values(), strict=True):
        axis = signature.batch_axis(spec)
        counts = axis is not None and axis < array.ndim and array.shape[axis] == ran
        shares = np.moveaxis(array, axis or 0, 0)[:count] if counts else [array] * count
        for sample, share in zip(samples, shares, strict=True):
            sample[spec.name] = np.asarray(share)
    return samples


def chosen(outputs: dict[str, Array], name: str | None) -> Array:
    """The output that is judged: the named one, or the first."""
    if name is None:
        return next(iter(outputs.values()))
    if name not in outputs:
        raise UsageError(f"the model has no output '{name}'", remedy=did_you_mean(name, outputs))
    return outputs[name]


def classes(output: Array) -> Array:
    """An output as rows of values per class. Raises UsageError when a row has fewer than two."""
    if output.ndim == 0 or output.shape[-1] < 2:
        raise UsageError(
            f"an output of shape {list(output.shape)} has no values per class to take the best of",
            remedy="choose another with `output`, or use sqnr, mse or a python score",
        )
    return output.reshape(-1, output.shape[-1])


def best(output: Array) -> Array:
    """The class that a model decides for, in every row: where it gives indices itself (32 or 64 bit), those.

    Raises UsageError when a row has fewer than two values.
    """
    if output.dtype.kind == "b" or (output.dtype.kind in "iu" and output.dtype.itemsize >= 4):
        return output.reshape(-1)
    found: Array = classes(output).argmax(axis=-1)
    return found


def class_row(output: Array) -> Array:
    """The values per class of a sample that has one label."""
    rows = classes(output)
    if len(rows) != 1:
        raise UsageError(
            f"an output of shape {list(output.shape)} has {len(rows)} rows of values, and a sample has one label",
            remedy="choose another with `output`, or judge it with a python score",
        )
    row: Array = rows[0]
    return row


def class_index(label: Any, count: int) -> int:
    """A label as the index of one of `count` classes. Raises UsageError for anything else."""
    import numpy as np

    if label is None:
        raise UsageError("the sample has no label", remedy="give labels with the data, or use agreement or sqnr, which need none")
    array = np.asarray(label)
    if array.size != 1 or array.dtype.kind not in "iufb":
        shown = f"an array of shape {list(array.shape)}" if array.size != 1 else repr(label)
        raise UsageError(f"the label is {shown}, not the index of a class", remedy=f"give one whole number, 0 … {count - 1}")
    value = array.reshape(()).item()
    if not float(value).is_integer():
        raise UsageError(f"the label {value} is not a whole number", remedy=f"give the index of the class, 0 … {count - 1}")
    if not 0 <= value < count:
        raise UsageError(
            f"the label {int(value)} is out of range: the model has {count} classes", remedy=f"labels go from 0 to {count - 1}"
        )
    return int(value)


def class_indices(label: Any, count: int, size: int, ignore: int | None) -> Array:
    """A label as one class index for each of `size` places, int64 [size]; `ignore` may stand in it. Raises UsageError."""
    import numpy as np

    if label is None:
        raise UsageError("the sample has no label", remedy="give the class of each place as labels with the data")
    array = np.asarray(label)
    if array.dtype.kind not in "iub":
        raise UsageError(f"the label is {array.dtype}, not the indices of classes", remedy=f"give whole numbers, 0 … {count - 1}")
    if array.size != size:
        raise UsageError(
            f"the label has the shape {list(array.shape)}, and the output has {size} places", remedy="give one class for each place"
        )
    indices: Array = array.reshape(-1).astype(np.int64)
    wrong = indices[((indices < 0) | (indices >= count)) & (indices != ignore)]
    if len(wrong):
        raise UsageError(f"the label {wrong[0]} is out of range: there are {count} classes", remedy=f"labels go from 0 to {count - 1}")
    return indices


def difference(output: Array, label: Any) -> Array:
    """Output minus label, float64. Raises UsageError unless their shapes are the same but for axes of size 1."""
    import numpy as np

    if label is None:
        raise UsageError("the sample has no label", remedy="give the true values as labels with the data")
    truth = np.asarray(label)
    if truth.dtype.kind not in "iufb":
        raise UsageError(f"the label {label!r} is not a number", remedy="give the true values as labels")
    if np.squeeze(truth).shape != np.squeeze(output).shape:
        raise UsageError(
            f"the label has the shape {list(truth.shape)}, and the output {list(output.shape)}",
            remedy="give labels shaped like the output, or choose one with `output`",
        )
    return np.squeeze(output).astype(np.float64) - np.squeeze(truth).astype(np.float64)
