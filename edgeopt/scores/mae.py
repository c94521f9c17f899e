"""Mean absolute error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    from edgeopt.core.protocols import Feeds


class Mae(Score):
    """Mean absolute difference between output and label, in units of the label."""

    higher_is_better: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float:
        return float(abs(judged.difference(judged.chosen(outputs, self.output), label)).mean())
