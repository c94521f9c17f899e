"""Spearman's rank correlation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds


class Spearman(Score):
    """How well the order of the outputs is that of the labels: 1 the same, −1 reversed. One value per sample."""

    needs_labels: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[output, label]."""
        output = judged.chosen(outputs, self.output)
        if output.size != 1:
            raise UsageError(
                f"an output of shape {list(output.shape)} has no single value to order samples by",
                remedy="choose another with `output`, or judge it with a python score",
            )
        away = judged.difference(output * 0, label)  # from zero: equal labels must stay equal to the last bit
        return [float(output.reshape(())), -float(away.reshape(()))]

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        """0 when all outputs are equal; not a number when all labels are."""
        import numpy as np
        from scipy import stats

        own, truth = stats.rankdata(samples, axis=0).T
        if truth.min() == truth.max():
            return math.nan
        if own.min() == own.max():
            return 0.0
        return float(np.corrcoef(own, truth)[0, 1])
