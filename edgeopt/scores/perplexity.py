"""Perplexity of a language model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeopt.core import outputs as judged
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds

LIMIT = 700.0  # of the mean loss: e to it is still a number


class Perplexity(Score):
    """e to the mean loss per token: as many tokens the model wavers between. Outputs are logits or log-probabilities.

    The output is [tokens, vocabulary]; the label holds the token that is right at each place. `shift`
    is for labels that repeat the input: place n is judged by token n + 1.
    """

    higher_is_better: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    ignore: int = Field(default=-100, description="label of places that do not count")
    shift: bool = Field(default=False, description="judge each place by the token after it")
    output: str | None = Field(default=None, description="which output; default: the first")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[summed loss, tokens]."""
        import numpy as np
        from scipy import special

        rows = judged.classes(judged.chosen(outputs, self.output)).astype(np.float64)
        tokens = judged.class_indices(label, rows.shape[1], len(rows), self.ignore)
        if self.shift:
            rows, tokens = rows[:-1], tokens[1:]
        counted = tokens != self.ignore
        rows, tokens = rows[counted], tokens[counted]
        losses = special.logsumexp(rows, axis=1) - rows[np.arange(len(tokens)), tokens] if len(tokens) else np.zeros(0)
        return [float(losses.sum()), float(len(tokens))]

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        """Not a number when no token counts."""
        loss, tokens = (float(total) for total in samples.sum(axis=0))
        return math.exp(min(loss / tokens, LIMIT)) if tokens else math.nan
