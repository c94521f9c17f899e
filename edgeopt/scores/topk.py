"""Top-k accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    from edgeopt.core.protocols import Feeds


class Topk(Score):
    """Share of samples whose labelled class is among the k largest values; of equal values the first count."""

    needs_labels: ClassVar[bool] = True
    binary: ClassVar[bool] = True

    k: int = Field(default=5, gt=0)
    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float:
        import numpy as np

        row = judged.class_row(judged.chosen(outputs, self.output)).astype(np.float64)
        if self.k >= len(row):
            raise UsageError(f"k is {self.k} and there are {len(row)} classes: every answer would be right", remedy="give a smaller k")
        best = np.argsort(-row, kind="stable")[: self.k]
        return float(judged.class_index(label, len(row)) in best)
