"""Signal to quantization noise against the reference variant."""

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

LIMIT_DB = 150.0


class Sqnr(Score):
    """Power of the reference's output over the power of the difference, over all samples, in dB; at most 150 either way.

    Of several outputs the one that comes off worst counts: boxes of hundreds of pixels would hide what scores below 1 have lost.
    One that is zero throughout is held against the power of all.
    Indices and counts beside real-valued outputs are left out: one index off is no noise.
    """

    unit: ClassVar[str] = "dB"
    needs_reference: ClassVar[bool] = True

    output: str | None = Field(default=None, description="which output; default: the worst of all real-valued ones")

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """Signal power and noise power of each output, one after the other."""
        import numpy as np

        powers: list[float] = []
        real = [name for name, one in outputs.items() if one.dtype.kind == "f"]
        for name in [self.output] if self.output else real or list(outputs):
            own = judged.chosen(outputs, name).astype(np.float64)
            other = judged.chosen(reference or {}, name).astype(np.float64)
            if own.shape != other.shape:
                raise UsageError(
                    f"the output '{name}' has the shape {list(own.shape)}, and the reference's {list(other.shape)}",
                    remedy="choose an output of one shape with `output`, or judge it with a python score",
                )
            powers += [float(np.square(other).sum()), float(np.square(own - other).sum())]
        return powers

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        powers = samples.sum(axis=0).reshape(-1, 2)
        whole = float(powers[:, 0].sum())
        return min(_decibels(float(signal) or whole, float(noise)) for signal, noise in powers)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return LIMIT_DB
    if signal == 0:
        return -LIMIT_DB
    return max(-LIMIT_DB, min(LIMIT_DB, 10 * (math.log10(signal) - math.log10(noise))))
