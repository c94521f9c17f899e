"""Samples made of random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Dataset, Sample
from edgeopt.core.samples import dtype_of, sample_shape

if TYPE_CHECKING:
    import numpy as np


def _kind(value: Any) -> Any:
    return "normal" if value is None or value is True else value


class Random(Dataset):
    """Random numbers shaped like the model's inputs: for speed and size only, they say nothing about accuracy.

    Floats are drawn from N(0, 1) or, `uniform`, from [0, 1); integers uniformly from [0, high).
    A sample depends on `seed` and its own number alone.
    """

    source: Annotated[Literal["normal", "uniform"], BeforeValidator(_kind)] = Field(default="normal", description="how floats are drawn")
    samples: int = Field(default=64, gt=0, description="how many")
    seed: int = Field(default=0, ge=0)
    sizes: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict, description="sizes of axes that may vary, by name")
    high: int = Field(default=2, gt=0, description="integers are drawn below it: the size of the vocabulary")

    def user_files(self, base: Path) -> list[Path]:
        return []

    def packages(self, base: Path) -> list[str]:
        return ["numpy"]

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        import numpy as np

        shapes = [(spec, self._shape(spec, signature)) for spec in signature.inputs]
        for index in range(self.samples):
            draw = np.random.default_rng([self.seed, index])
            yield Sample({spec.name: self._array(draw, spec, shape) for spec, shape in shapes})

    @property
    def synthetic(self) -> str:
        return "the data are random numbers: figures on them say nothing about accuracy"

    def _shape(self, spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
        shape = sample_shape(spec, signature)
        for name in shape:
            if isinstance(name, str) and name not in self.sizes:
                raise UsageError(
                    f"data: the axis '{name}' of input '{spec.name}' may vary, and random data need a size for it",
                    remedy=f"write {{random: {self.source}, sizes: {{{name}: 20}}}}",
                )
        return tuple(self.sizes[size] if isinstance(size, str) else size for size in shape)

    def _array(self, draw: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        import numpy as np

        dtype = dtype_of(spec)
        if dtype.kind == "f":
            values = draw.standard_normal(shape, np.float32) if self.source == "normal" else draw.random(shape, np.float32)
            return values.astype(dtype)
        if dtype.kind == "b":
            return draw.integers(0, 2, shape).astype(dtype)
        return draw.integers(0, self.high, shape)
