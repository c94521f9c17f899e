"""Samples for quantization, one at a time: some to find ranges with, others to judge the result by."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgeopt.core.errors import EdgeoptError, StepError, UsageError
from edgeopt.core.protocols import Context, Split

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]
    Run = Callable[[Feeds], Feeds]

FEWEST, ENOUGH, JUDGED = 8, 64, 64
# A candidate replaces an earlier, plainer one only if it is better by this much on samples that it has not seen.
MARGIN_DB = 1.0
_BEST_DB = 150.0

S = TypeVar("S", bound=Hashable)  # what an engine lets one choose; str() tells it in words
T = TypeVar("T")  # what it makes


@dataclass(frozen=True)
class Choice(Generic[S, T]):
    """The chosen candidate, and what each one tried reached in dB SQNR."""

    settings: S
    made: T
    reached: dict[S, float]

    @property
    def title(self) -> str:
        return str(self.settings)

    @property
    def tried_db(self) -> dict[str, float]:
        """The trials as plain JSON; empty when there was no choice."""
        return {str(settings): value for settings, value in self.reached.items()} if len(self.reached) > 1 else {}


class Calibration:
    """What the split `calibrate` gives, streamed; `held` samples are never among those that set ranges.

    With a split `tune` the judging samples come from there. Otherwise the last ones of `calibrate` are held back.
    """

    def __init__(self, ctx: Context, samples: int, judge: bool) -> None:
        self.split, self.tune, self.progress = ctx.data["calibrate"], ctx.data.get("tune"), ctx.progress
        refuse_few(self.split, "quantization", "100 to 500 typical ones are good")
        seen = sum(1 for _ in islice(self.split, samples + JUDGED))
        spare = seen // 5 if judge and self.tune is None else 0
        self.count = min(samples, seen - spare)
        self.spare_from = self.count if self.count < seen else 0
        ctx.note("calibration_samples", self.count)
        if self.count < ENOUGH:
            ctx.note("warning", f"only {self.count} calibration samples: ranges found on fewer than {ENOUGH} seldom hold")

    def __iter__(self) -> Iterator[Feeds]:
        done = 0
        for feeds, labels in self.split.batches(1):
            if done >= self.count:
                return
            done += len(labels)
            self.progress(min(done, self.count), self.count, "calibrating")
            yield feeds

    def held(self) -> Iterator[tuple[Feeds, list[Any]]]:
        """Samples that set no range, with their labels; where none is spare, the first ones all the same."""
        return _after(self.tune, 0) if self.tune else _after(self.split, self.spare_from)

    def first(self, count: int) -> Calibration:
        """The same with at most so many samples that set ranges."""
        fewer = copy.copy(self)
        fewer.count = min(count, self.count)
        return fewer

    def choose(
        self,
        candidates: Mapping[S, Callable[[], T]],
        reference: Callable[[], Run],
        runner: Callable[[T], Run],
        since: Choice[S, T] | None = None,
        alone: bool = False,
    ) -> Choice[S, T]:
        """The first candidate (or an earlier choice), or a later one that is clearly better on the held samples.

        A candidate that stands `alone` is only run once, to see that it works.
        Candidates that fail are passed over; when all do, the first error is raised.
        """
        best, reached = since, dict(since.reached) if since else {}
        failures: list[Exception] = []
        for settings, build in candidates.items():
            gc.collect()  # quantizers leave models of their own behind
            try:
                made = build()
                reached[settings] = round(self._decibels(reference(), runner(made), 1 if alone else JUDGED), 2)
            except Exception as error:  # what runtimes raise shares no other base
                if isinstance(error, (EdgeoptError, MemoryError, OSError)) and not isinstance(error, StepError):
                    raise
                failures.append(error)
                continue
            if best is None or reached[settings] >= reached[best.settings] + MARGIN_DB:
                best = Choice(settings, made, {})
            del made
        if best is None:
            raise failures[0]
        return Choice(best.settings, best.made, reached)

    def _decibels(self, reference: Run, candidate: Run, count: int) -> float:
        """SQNR of the candidate on the held samples: that of the worst of its real-valued outputs where they are of one shape.

        An output that is zero throughout is held against the power of all, as the score `sqnr` does it.
        """
        import numpy as np

        sums: dict[str, np.ndarray[Any, Any]] = {}
        for feeds, _ in islice(self.held(), count):
            after = candidate(feeds)
            for name, exact in reference(feeds).items():
                if np.issubdtype(exact.dtype, np.floating) and exact.shape == after[name].shape:
                    x = exact.astype(np.float64)
                    sums[name] = sums.get(name, 0) + np.array([(x**2).sum(), ((x - after[name]) ** 2).sum()])
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = sum(signal for signal, _ in sums.values())
            found = [_BEST_DB if noise == 0 else 10 * float(np.log10((signal or whole) / noise)) for signal, noise in sums.values()]
        return min(-_BEST_DB if np.isnan(one) else max(-_BEST_DB, min(_BEST_DB, one)) for one in found) if found else 0.0


def refuse_few(split: Split, what: str, otherwise: str) -> None:
    """Raises UsageError when a split has fewer samples than anything can be found on."""
    seen = sum(1 for _ in islice(split, FEWEST))
    if seen < FEWEST:
        raise UsageError(
            f"{what} needs at least {FEWEST} samples, and '{split.name}' has {seen}",
            remedy=f"give more under `data: {split.name}`; {otherwise}",
        )


def _after(split: Split, skipped: int) -> Iterator[tuple[Feeds, list[Any]]]:
    done = 0
    for feeds, labels in split.batches(1):
        if done >= skipped:
            yield feeds, labels
        done += len(labels)
