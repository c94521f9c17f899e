"""Agreement with the reference variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    from edgeopt.core.protocols import Feeds


class Agreement(Score):
    """Share of samples whose best class is that of the reference variant; with rows of classes, in every row.

    Where the output holds indices of classes already (whole numbers of 32 or 64 bits), those are compared.
    """

    needs_reference: ClassVar[bool] = True
    binary: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float:
        own = judged.chosen(outputs, self.output)
        other = judged.chosen(reference or {}, self.output or next(iter(outputs)))
        if own.shape != other.shape:
            raise UsageError(
                f"the output has the shape {list(own.shape)}, and the reference's {list(other.shape)}",
                remedy="choose an output of one shape with `output`, or judge it with a python score",
            )
        return float((judged.best(own) == judged.best(other)).all())
