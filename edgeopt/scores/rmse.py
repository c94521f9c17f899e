"""Root mean squared error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds


class Rmse(Score):
    """Root of the mean squared difference between output and label over all samples, in units of the label."""

    higher_is_better: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float:
        """The sample's mean squared difference; the root is taken once, at the end."""
        return float((judged.difference(judged.chosen(outputs, self.output), label) ** 2).mean())

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        return math.sqrt(samples.mean())
