"""Top-1 accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    from edgeopt.core.protocols import Feeds


class Top1(Score):
    """Share of samples whose largest value is that of the labelled class; of equal values the first counts.

    An output of one whole number (32 or 64 bit) is the index of the class itself.
    """

    needs_labels: ClassVar[bool] = True
    binary: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float:
        output = judged.chosen(outputs, self.output)
        if output.size == 1 and output.dtype.kind in "iu":
            return float(judged.best(output)[0] == judged.class_index(label, judged.ANY))
        row = judged.class_row(output)
        return float(row.argmax() == judged.class_index(label, len(row)))
