"""Mean intersection over union of a segmentation."""

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


class Miou(Score):
    """Intersection over union of each class over all samples, averaged over the classes that are labelled or found.

    The output is [classes, height, width] values, one channel that is class 1 above `threshold`, or, of
    whole numbers, [height, width] classes with `classes` given. The label is [height, width] classes.
    """

    needs_labels: ClassVar[bool] = True

    classes: int | None = Field(default=None, gt=1, description="how many there are, for an output that is a map of classes")
    ignore: int | None = Field(default=255, description="label of pixels that do not count")
    threshold: float = Field(default=0.5, description="for an output of one channel; 0 where that is a logit")
    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[intersection of each class …, union of each class …] in pixels."""
        import numpy as np

        found, count = self._map(judged.chosen(outputs, self.output))
        truth = judged.class_indices(label, count, found.size, self.ignore)
        if np.squeeze(np.asarray(label)).shape != np.squeeze(found).shape:
            raise UsageError(
                f"the label has the shape {list(np.asarray(label).shape)}, and the output's map {list(found.shape)}",
                remedy="give labels of the output's height and width",
            )
        counted = truth != self.ignore
        own, truth = found.reshape(-1)[counted], truth[counted]
        shared = np.bincount(own[own == truth], minlength=count)
        union = np.bincount(own, minlength=count) + np.bincount(truth, minlength=count) - shared
        return [float(value) for value in (*shared, *union)]

    def _map(self, output: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
        """The class of each pixel, and how many classes there are."""
        import numpy as np

        if output.dtype.kind in "iub":
            if self.classes is None:
                raise UsageError("the output is a map of classes", remedy="say how many there are: {miou: {classes: 21}}")
            if output.size and not 0 <= int(output.min()) <= int(output.max()) < self.classes:
                raise UsageError(f"the output holds class {int(output.max())}, and `classes` is {self.classes}", remedy="correct `classes`")
            return output.astype(np.int64), self.classes
        if output.ndim < 2:
            raise UsageError(f"an output of shape {list(output.shape)} is no segmentation", remedy="choose another with `output`")
        if output.ndim == 2 or output.shape[0] == 1:
            return (output > self.threshold).astype(np.int64), 2
        return output.argmax(axis=0), int(output.shape[0])

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        """Not a number when no pixel counts."""
        shared, union = samples.sum(axis=0).reshape(2, -1)
        there = union > 0
        return float((shared[there] / union[there]).mean()) if there.any() else math.nan
