"""What the tests of data sources share: small signatures, and walks that must work or must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeopt.core import registry, samples
from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.protocols import Dataset, Sample


def signature(**inputs: tuple[str, tuple[int | str, ...]]) -> Signature:
    return Signature(tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in inputs.items()), ())


VECTOR = signature(x=("float32", ("N", 3)))
PAIR = signature(ids=("int64", ("N", "T")), mask=("int32", ("N", "T")))


def make(kind: str, source: Any, **options: Any) -> Dataset:
    made: Dataset = registry.load("datasets", kind).model_validate({"source": source, **options})
    return made


def take(dataset: Dataset, base: Path, wanted: Signature) -> list[Sample]:
    return list(samples.walk(dataset, base, wanted))


def refused(kind: type[EdgeoptError], dataset: Dataset, base: Path, wanted: Signature, *words: str) -> EdgeoptError:
    with pytest.raises(EdgeoptError) as caught:
        take(dataset, base, wanted)
    assert type(caught.value) is kind, caught.value
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return caught.value
