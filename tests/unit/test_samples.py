"""The gate that every sample goes through: what it casts, what it refuses, and where it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import PAIR, VECTOR, signature, take

from edgeopt.core import samples
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Dataset, Sample


def conformed(raw: Any, wanted: Signature = VECTOR, label: Any = None) -> Sample:
    return samples.conform(raw, label, 4, wanted, "here")


def unfit(raw: Any, wanted: Signature, *words: str, label: Any = None) -> None:
    with pytest.raises(UsageError) as caught:
        conformed(raw, wanted, label)
    assert caught.value.remedy and caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("float32", np.ones(3)),
        ("float32", np.ones(3, np.float16)),
        ("float32", np.ones(3, ">f4")),
        ("float32", [1.0, 2.0, 3.0]),
        ("float16", np.ones(3)),
        ("int32", np.arange(3)),
        ("int64", np.arange(3, dtype=np.uint8)),
        ("uint8", [0, 128, 255]),
        ("bool", [True, False, True]),
        ("float64", np.ones(3, np.float32)),
    ],
)
def test_numbers_are_cast_where_none_changes(dtype: str, array: Any) -> None:
    found = conformed(array, signature(x=(dtype, ("N", 3)))).inputs["x"]
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative and found.flags.c_contiguous
    assert found.tolist() == np.asarray(array).tolist()


@pytest.mark.parametrize(
    ("dtype", "array", "words"),
    [
        ("float32", np.arange(3), ("input 'x' is int64, and the model wants float32", "astype('float32')")),
        ("float32", np.zeros(3, np.uint8), ("is uint8", "scale of training")),
        ("float32", [True, False, True], ("is bool",)),
        ("int64", np.ones(3), ("is float64, and the model wants int64",)),
        ("bool", [0, 1, 0], ("is int64, and the model wants bool",)),
        ("int32", [0, 1, 2**31], ("holds 2147483648, which does not fit int32",)),
        ("uint8", [0, -1, 2], ("holds -1, which does not fit uint8", "0 … 255")),
        ("float16", [1.0, 2.0, 7e4], ("70000, too large for float16",)),
        ("float32", [1.0, 2.0, 1e300], ("too large for float32",)),
        ("float32", ["a", "b", "c"], ("not numbers",)),
        ("float32", [1 + 2j, 0, 0], ("complex128, not numbers",)),
        ("float32", np.array([None, 1, 2], dtype=object), ("not numbers",)),
        ("float32", [[1.0], [1.0, 2.0], []], ("is no array",)),
        ("float32", None, ("not numbers",)),
        ("float32", [1.0, float("nan"), 1.0], ("sample 4 of here: input 'x' holds NaN",)),
        ("float32", [1.0, float("-inf"), 1.0], ("sample 4 of here: input 'x' holds infinity",)),
        ("bfloat16", np.ones(3), ("bfloat16, which numpy has no numbers for",)),
        ("str", ["a", "b", "c"], ("not numbers",)),
    ],
)
def test_numbers_that_would_change_are_refused(dtype: str, array: Any, words: tuple[str, ...]) -> None:
    unfit(array, signature(x=(dtype, ("N", 3))), *words)


def test_a_tensor_with_gradients_is_refused_in_words() -> None:
    import torch

    unfit(torch.ones(3, requires_grad=True), VECTOR, "is no array", "give a numpy array")
    assert conformed(torch.ones(3)).inputs["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "array", "words"),
    [
        (("N", 3), (4,), ("has the shape [4], and the model wants [3] per sample", "reshape")),
        (("N", 3), (2, 3), ("has the shape [2, 3]", "without the batch axis")),
        (("N", 3), (), ("has the shape []",)),
        (("N", "T"), (0,), ("is empty",)),
        ((1, 3, 4), (4, 3), ("wants [3, 4]",)),
        ((8, 3), (8, 3), ("wants [3] per sample", "without the batch axis")),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int | str, ...], array: tuple[int, ...], words: tuple[str, ...]) -> None:
    unfit(np.ones(array), signature(x=("float32", shape)), "sample 4 of here: input 'x'", *words)


@pytest.mark.parametrize(
    ("shape", "array", "kept"),
    [
        (("N", 3), (3,), (3,)),
        (("N", 3), (1, 3), (3,)),
        ((1, 3), (1, 3), (3,)),
        (("L",), (7,), (7,)),
        (("N", "T", 2), (7, 2), (7, 2)),
    ],
)
def test_one_sample_may_bring_a_batch_axis_of_one(shape: tuple[int | str, ...], array: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert conformed(np.ones(array), signature(x=("float32", shape))).inputs["x"].shape == kept


def test_numbers_alone_are_a_sample_s_where_there_are_several() -> None:
    found = conformed({"x": 1.0, "y": 2.0}, signature(x=("float32", ("N",)), y=("float32", ("N",)))).inputs
    assert [found[name].shape for name in ("x", "y")] == [(), ()]


def test_an_input_without_a_batch_axis_keeps_all_axes() -> None:
    wanted = signature(x=("float32", ("N", 3)), table=("float32", (2, 3)), scale=("float32", ()))
    found = conformed({"x": np.ones(3), "table": np.ones((2, 3)), "scale": 2.0}, wanted).inputs
    assert [found[name].shape for name in ("x", "table", "scale")] == [(3,), (2, 3), ()]


def test_an_axis_has_one_size_within_a_sample() -> None:
    assert conformed({"ids": [1, 2], "mask": [1, 1]}, PAIR).inputs["mask"].dtype == np.int32
    unfit({"ids": [1, 2], "mask": [1, 1, 1]}, PAIR, "input 'mask' has 3 for the axis 'T', and input 'ids' has 2")


def test_names_of_inputs_must_be_met() -> None:
    unfit({"idz": [1], "mask": [1]}, PAIR, "no input 'idz'", "did you mean 'ids'?")
    unfit({"ids": [1]}, PAIR, "no array for the input 'mask'", "ids, mask")
    unfit([1], PAIR, "2 inputs", "give a dict with ids, mask")
    unfit({1: [1]}, PAIR, "no input '1'")


def test_a_sample_is_a_copy() -> None:
    buffer = np.ones(3, np.float32)
    found = conformed(buffer).inputs["x"]
    buffer[:] = 5
    assert found.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, None), (3, 3), (np.int64(3), 3), (np.array(2.5), 2.5), ("cat", "cat"), ({"box": np.float32(1)}, {"box": 1.0})],
)
def test_labels_are_kept(given: Any, kept: Any) -> None:
    assert conformed(np.ones(3), label=given).label == kept


def test_labels_that_are_no_numbers_are_refused() -> None:
    unfit(np.ones(3), VECTOR, "label holds NaN", label=float("nan"))
    unfit(np.ones(3), VECTOR, "the label", "not numbers", label=object())
    assert conformed(np.ones(3), label=np.ones((0, 4))).label.shape == (0, 4)


def test_the_limit_of_samples_reads_no_further(tmp_path: Path) -> None:
    class Endless(Dataset):
        """Samples without end, the third of which cannot be made."""

        def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
            yield Sample({"x": np.ones(3)})
            yield Sample({"x": np.ones(3)})
            raise AssertionError("read too far")

    assert len(take(Endless(source="here", samples=2), tmp_path, VECTOR)) == 2
