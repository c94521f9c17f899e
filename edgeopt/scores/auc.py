"""Area under the ROC curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds

ROUNDING = 0.05  # how far from 1 the sum of probabilities may be: INT8 softmax is coarse


class Auc(Score):
    """Chance that a sample of a class is rated above one of another class, equal ratings counting half.

    Of an output of one value or of two classes: that of class 1. Of more: one class against the rest,
    averaged over the classes that have samples on both sides; by the softmax of the values where they are not
    probabilities already.
    """

    needs_labels: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[labelled class, rating of class 1], or [labelled class, value of each class]."""
        output = judged.chosen(outputs, self.output)
        if output.size == 1:
            return [float(judged.class_index(label, 2)), float(output.reshape(()))]
        row = judged.class_row(output).astype(float)
        own = float(judged.class_index(label, len(row)))
        return [own, float(row[1] - row[0])] if len(row) == 2 else [own, *map(float, row)]

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        """Not a number when no class has samples on both sides."""
        from scipy import special, stats

        truth, ratings = samples[:, 0], samples[:, 1:]
        if ratings.shape[1] == 1:
            return _area(truth == 1, stats.rankdata(ratings[:, 0]))
        if ratings.min() < 0 or abs(ratings.sum(axis=1) - 1).max() > ROUNDING:
            ratings = special.softmax(ratings, axis=1)
        ranks = stats.rankdata(ratings, axis=0)
        areas = [_area(truth == index, ranks[:, index]) for index in range(ratings.shape[1])]
        known = [area for area in areas if not math.isnan(area)]
        return sum(known) / len(known) if known else math.nan


def _area(own: np.ndarray[Any, Any], ranks: np.ndarray[Any, Any]) -> float:
    """Mann and Whitney's U of the own samples, as a share of all pairs."""
    here = int(own.sum())
    pairs = here * (len(own) - here)
    return (float(ranks[own].sum()) - here * (here + 1) / 2) / pairs if pairs else math.nan
