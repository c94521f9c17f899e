"""Whether a mix still does its job: the budget, judged on samples that set no range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from edgeopt.core import outputs as judged
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, Options, Score

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]
    Run = Callable[[Feeds], Feeds]

FEWEST, MOST = 8, 2000
FOLDS = 4
# One look at the samples takes at most so long, and they take at most so much memory.
LOOK_S, LARGEST_BYTES = 3.0, 400_000_000
# SQNR on one set of samples does not carry over to another: so much more is asked of it than the budget says.
MARGIN_DB = 1.0


class Budget(Options):
    """What the mix may cost: one limit on one score of the recipe, or on `sqnr`."""

    score: str = Field(default="sqnr", description="a score of the recipe by its label; sqnr in any case")
    max_drop: float | None = Field(default=None, ge=0, description="in the score's own unit, against the model that comes in")
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(limit is not None for limit in (self.max_drop, self.min, self.max)) != 1:
            raise ValueError("a budget has exactly one of max_drop, min, max → {score: top1, max_drop: 0.01}")
        return self

    def __str__(self) -> str:
        limits = {"drop at most": self.max_drop, "at least": self.min, "at most": self.max}
        return next(f"{self.score} {name} {limit:g}" for name, limit in limits.items() if limit is not None)


@dataclass(frozen=True)
class Verdict:
    """What a mix reached; `bound`, which must be within the budget, is worse by one standard error (by `MARGIN_DB` at least for sqnr).

    `over` is how far the bound is outside the budget, in the score's unit; within it is negative.
    """

    got: float
    bound: float
    over: float

    @property
    def fits(self) -> bool:
        return self.over <= 0

    def __str__(self) -> str:
        return f"{self.got:.4g}" + ("" if self.fits else " (over the budget)")


class Judge:
    """The budget's samples, held with the outputs of the model that comes in."""

    def __init__(
        self, ctx: Context, budget: Budget, signature: Signature, samples: Callable[[], Iterator[tuple[Feeds, list[Any]]]], exact: Run
    ) -> None:
        if budget.score not in ctx.scores:
            raise UsageError(f"mixed-precision: no score is called '{budget.score}'", remedy=did_you_mean(budget.score, ctx.scores))
        self.budget, self.signature = budget, signature
        self.score: Score = ctx.scores[budget.score]
        self.batches: list[tuple[Feeds, list[Any]]] = []
        self.references: list[list[Feeds]] = []
        began, held, count = time.monotonic(), 0, 0
        for feeds, labels in samples():
            if self.score.needs_labels and labels[0] is None:
                raise UsageError(
                    f"mixed-precision: the score '{budget.score}' needs labels, and the samples to judge by have none",
                    remedy="give labels under `data: tune`, or set a budget on sqnr or agreement",
                )
            self.batches.append((feeds, labels))
            self.references.append(self._apart(exact(feeds), len(labels)))
            _refuse_infinite(self.references[-1])
            held += sum(array.nbytes for array in feeds.values()) + sum(
                array.nbytes for one in self.references[-1] for array in one.values()
            )
            count += len(labels)
            looked = count >= FEWEST * FOLDS and time.monotonic() - began > LOOK_S
            if looked or (count >= FEWEST and held > LARGEST_BYTES) or count >= MOST:
                break
        if count < FEWEST:
            raise UsageError(
                f"mixed-precision needs at least {FEWEST} samples to judge by, and there are {count}",
                remedy="give more under `data: tune`; 100 to 1,000 are good",
            )
        self.reference = self._values(self.references)

    def __call__(self, run: Run) -> Verdict:
        """The verdict on a model that `run` runs."""
        import numpy as np

        finite = True

        def outputs() -> Iterator[list[Feeds]]:
            nonlocal finite
            for feeds, labels in self.batches:
                found = self._apart(run(feeds), len(labels))
                finite &= all(np.isfinite(array).all() for one in found for array in one.values() if array.dtype.kind == "f")
                yield found

        try:
            values = self._values(outputs())
        except UsageError:  # outputs unlike the float model's, boxes in another number: what cannot be judged does not fit
            return Verdict(float("nan"), float("nan"), float("inf"))
        if not finite:
            return Verdict(float("nan"), float("nan"), float("inf"))
        got = self._figure(values, self.reference)
        folds = [self._figure(values[fold::FOLDS], self.reference[fold::FOLDS]) for fold in range(FOLDS)]
        error = float(np.std(folds, ddof=1) / np.sqrt(FOLDS)) if np.isfinite(folds).all() else 0.0
        slack = max(error, MARGIN_DB) if self.budget.score == "sqnr" else error
        if self.budget.min is not None:
            return Verdict(got, got - slack, self.budget.min - (got - slack))
        limit = self.budget.max if self.budget.max is not None else self.budget.max_drop
        assert limit is not None
        return Verdict(got, got + slack, got + slack - limit)

    @property
    def feeds(self) -> list[Feeds]:
        return [feeds for feeds, _ in self.batches]

    def noise(self, run: Run, count: int) -> float:
        """Noise power over signal power on the first samples, the mean of all outputs."""
        import numpy as np

        sums: dict[str, np.ndarray[Any, Any]] = {}
        for (feeds, labels), reference in zip(self.batches[:count], self.references, strict=False):
            for one, other in zip(self._apart(run(feeds), len(labels)), reference, strict=True):
                for name, exact in other.items():
                    if exact.dtype.kind == "f":
                        x, y = exact.astype(np.float64), one[name].astype(np.float64)
                        off = x - y if x.shape == y.shape else x  # in another number: as bad as none
                        sums[name] = sums.get(name, 0) + np.array([np.square(off).sum(), np.square(x).sum()])
        powers = np.array([power for power in sums.values() if power[1] > 0])
        if not len(powers):
            return 0.0
        return float((powers[:, 0] / powers[:, 1]).mean())

    def _figure(self, own: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
        value = float(self.score.finish(own))
        if self.budget.max_drop is None:
            return value
        drop = float(self.score.finish(reference)) - value
        return drop if self.score.higher_is_better else -drop

    def _values(self, found: Iterable[list[Feeds]]) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.asarray(
            [
                self.score.sample(one, label, other)
                for outputs, (_, labels), references in zip(found, self.batches, self.references, strict=True)
                for one, label, other in zip(outputs, labels, references, strict=True)
            ],
            dtype=np.float64,
        )

    def _apart(self, outputs: Feeds, count: int) -> list[Feeds]:
        """Outputs sample by sample, as arrays of their own: a runtime may fill the same buffer again."""
        import numpy as np

        return [{name: np.array(one) for name, one in sample.items()} for sample in judged.apart(outputs, count, self.signature)]


def _refuse_infinite(samples: list[Feeds]) -> None:
    """Raises StepError where the float model itself gives what no error can be measured against."""
    import numpy as np

    for name, one in (pair for sample in samples for pair in sample.items()):
        if one.dtype.kind == "f" and not np.isfinite(one).all():
            raise StepError(
                f"the float model gives NaN or infinity in output '{name}'",
                remedy="look at the model and its data; masks of infinity belong behind what is compared, or inside the model",
            )
