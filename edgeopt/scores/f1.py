"""F1 of a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds


class F1(Score):
    """Harmonic mean of precision and recall: per class and averaged, or of class 1 alone (binary).

    A class that is neither labelled nor found does not count; one that is never right counts 0. An
    output of one value is class 1 above `threshold`.
    """

    needs_labels: ClassVar[bool] = True

    average: Literal["macro", "micro", "weighted", "binary"] = Field(default="macro", description="how classes become one figure")
    threshold: float = Field(default=0.5, description="for an output of one value; 0 where that is a logit")
    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[labelled class, found class]."""
        output = judged.chosen(outputs, self.output)
        if output.size == 1:
            return [float(judged.class_index(label, 2)), float(output.reshape(()) > self.threshold)]
        row = judged.class_row(output)
        return [float(judged.class_index(label, len(row))), float(row.argmax())]

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        import numpy as np

        truth, found = samples.astype(np.int64).T
        count = int(samples.max()) + 1
        hits = np.bincount(truth[truth == found], minlength=count)
        labelled, claimed = np.bincount(truth, minlength=count), np.bincount(found, minlength=count)
        if self.average == "micro":
            return float(2 * hits.sum() / (labelled.sum() + claimed.sum()))
        share = 2 * hits / np.maximum(labelled + claimed, 1)
        if self.average == "binary":
            return float(share[1]) if count > 1 else 0.0
        if self.average == "weighted":
            return float((share * labelled).sum() / labelled.sum())
        return float(share[labelled + claimed > 0].mean())
