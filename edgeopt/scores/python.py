"""A score that the user writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, PrivateAttr

from edgeopt.core import usercode
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds


class Python(Score):
    """A function of yours: function(outputs, label, reference) → one number per sample, or a list of statistics.

    `outputs` and `reference` are {name: array} without the batch axis. The score is the mean of the
    numbers, unless `finish` names a function that makes it of the float64 array [samples] or
    [samples, statistics].
    """

    # The facts of other scores are options here; their fields have names of their own because a
    # field cannot bear the name of a class attribute of its parent.
    model_config = ConfigDict(serialize_by_alias=True)

    source: str = Field(description="file.py:function or package.module:function")
    higher: bool = Field(default=True, alias="higher_is_better", description="whether a smaller value is a drop")
    units: str = Field(default="", alias="unit", description="stands behind the value in the report")
    labels: bool = Field(default=False, alias="needs_labels", description="refuse samples without a label")
    references: bool = Field(default=False, alias="needs_reference", description="compare with the reference variant's outputs")
    finished_by: str | None = Field(default=None, alias="finish", description="file.py:function that makes the score of all values")
    reads: list[str] = Field(default_factory=list, description="files that the functions read")

    _function: Callable[..., Any] | None = PrivateAttr(default=None)
    _finish: Callable[..., Any] | None = PrivateAttr(default=None)
    _width: int | None = PrivateAttr(default=None)

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.higher

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.units

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        return self.labels

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.references

    def user_files(self, base: Path) -> list[Path]:
        own = [path for reference in self._references() for path in usercode.files(reference, base)]
        return list(dict.fromkeys([*own, *usercode.read_files(self.reads, base)]))

    def packages(self, base: Path) -> list[str]:
        return sorted({name for reference in self._references() for name in usercode.packages(reference, base)})

    def ready(self, base: Path) -> None:
        self._function = usercode.load(self.source, base)
        self._finish = usercode.load(self.finished_by, base) if self.finished_by else None
        self._width = None

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float | list[float]:
        function = self._function
        assert function is not None, "ready() comes first"
        value = usercode.call(lambda: function(outputs, label, reference), f"the score {self.source}")
        values = _numbers(value, self.source)
        if self._finish is None and len(values) != 1:
            raise UsageError(f"{self.source} returned {len(values)} values", remedy="return one number, or name a `finish` function")
        self._width = self._width or len(values)
        if len(values) != self._width:
            raise UsageError(f"{self.source} returned {len(values)} values, and {self._width} before", remedy="return as many each time")
        return values if self._finish and self._width > 1 else values[0]

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        function = self._finish
        if function is None:
            return super().finish(samples)
        [value, *more] = _numbers(usercode.call(lambda: function(samples), f"the score {self.finished_by}"), str(self.finished_by))
        if more:
            raise UsageError(f"{self.finished_by} returned {1 + len(more)} values", remedy="return one number")
        return value

    def _references(self) -> list[str]:
        return [self.source, *([self.finished_by] if self.finished_by else [])]


def _numbers(value: Any, source: str) -> list[float]:
    """What the function `source` returned, as finite floats."""
    import numpy as np

    try:
        array = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        array = np.empty(0)
    if value is None or not array.size:
        raise UsageError(f"{source} returned {type(value).__name__}, not a number", remedy="return one number, or a list of numbers")
    if not np.isfinite(array).all():
        raise UsageError(f"{source} returned {float(array[~np.isfinite(array)][0])}", remedy="return finite numbers")
    return [float(one) for one in array]
