"""The search for the fastest mix within the budget: cheap statistics order the layers, real scores and real times decide.

Noise of quantized layers adds up (nearly), so layers are given up in the order of the noise that they make
for the time that they save, as few as the budget allows. What is left to doubt is measured.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Candidate, Context
from edgeopt.passes.mixed_precision_judge import Judge, Verdict
from edgeopt.passes.mixed_precision_mix import Found, Mix, Unit

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]

# Shares of the time that the search may take: its statistics, giving layers up and taking them back, timing the finalists.
STATISTICS, TRIALS, TIMING = 0.2, 0.45, 0.35
# After so many layers that did not fit in again, no other is tried.
MISSES = 6
NOISE_SAMPLES = 4
# What a mix must save to be preferred to one with fewer quantized layers: timings differ by this much for no reason.
INDIFFERENT = 0.01


class Engine(Protocol):
    """A model whose units can be switched, on one runtime.

    `executions`: how its float rest may execute, f32 first. `untimed`: those among them of which the first that
    keeps to the budget is taken where nobody can time them.
    """

    units: list[Unit]
    executions: tuple[str, ...]
    untimed: tuple[str, ...]

    def load(self) -> Any:
        """The model that came in."""
        ...

    def build(self, mix: Mix) -> Any:
        """The model of a mix, as it is shipped."""

    def sums(self, mix: Mix) -> bool:
        """Whether additions beside the mix's quantized layers read in float what those read quantized."""
        ...

    def runner(self, made: Any, execution: str) -> Callable[[Feeds], Feeds]: ...

    def alone(self, unit: Unit) -> Callable[[Feeds], Feeds]:
        """Runs the model with one unit in INT8 and the rest in f32."""
        ...

    def macs(self, feeds: Feeds) -> dict[str, int]:
        """Multiply-accumulates by unit."""
        ...

    def times(self, made: Any, execution: str, feeds: Feeds) -> dict[str, float]:
        """Microseconds by unit, from the runtime's profile, as far as it names them."""
        ...

    def candidate(self, made: Any, execution: str, folder: Path) -> Candidate:
        """The model on disk, to be timed."""
        ...

    def save(self, made: Any, folder: Path) -> Path:
        """The model as the pass's result."""
        ...

    def close(self) -> None: ...


class Search:
    """One search over the mixes of an engine; `seconds` is what it may take."""

    def __init__(self, engine: Engine, judge: Judge, ctx: Context, seconds: float) -> None:
        self.engine, self.judge, self.ctx, self.seconds = engine, judge, ctx, seconds
        self.units = {unit.name: unit for unit in engine.units}
        self.verdicts: dict[Mix, Verdict] = {}
        self.trials: list[str] = []
        self.macs: dict[str, int] = {}
        self.over: dict[str, frozenset[str]] = {}
        self.began = time.monotonic()

    def run(self) -> Found:
        """Raises StepError when not even the float model meets the budget."""
        plain = Mix(self.engine.executions[0])
        if not self._verdict(plain).fits:
            raise StepError(
                f"the budget ({self.judge.budget}) is met by no mix: the float model itself reaches {self._verdict(plain).got:.4g}, "
                f"{self._verdict(plain).bound:.4g} with its margin",
                remedy="set a budget that the float model meets on these samples, or give more samples under `tune`",
            )
        self.macs = self.engine.macs(self.judge.feeds[0])
        noise = self._noise()
        finalists: dict[str, Mix] = {}
        gains: dict[str, dict[str, float]] = {}
        tried = self.engine.executions if self.ctx.measure is not None else self.engine.untimed
        fitting = [execution for execution in tried if self._verdict(Mix(execution)).fits]
        if self.ctx.measure is None:
            fitting = fitting[:1]
        for number, execution in enumerate(fitting, 1):
            gains[execution] = self._gains(execution)
            deadline = self.began + (STATISTICS + TRIALS * number / len(fitting)) * self.seconds
            finalists |= self._within(execution, noise, gains[execution], deadline)
        if self.ctx.measure is not None:
            finalists |= self._with_sums(finalists)
        times = self._times(finalists)
        name = self._fastest(finalists, times, gains)
        mix = finalists[name]
        return Found(mix, self._verdict(mix), noise, gains[mix.execution], times, self.over[mix.execution], self.trials, self._nearest())

    def take(self, execution: str, layers: Collection[str], sums: bool) -> Found:
        """A mix that was decided before; layers that can only be switched together are."""
        if execution not in self.engine.executions:
            raise UsageError(
                f"mixed-precision: the rest can execute as {' or '.join(self.engine.executions)} here, not as {execution}",
                remedy="name one of them under `mix: {rest: …}`, or give each target a variant of its own",
            )
        mix = Mix(execution, frozenset(unit.name for unit in self.engine.units if not set(unit.layers).isdisjoint(layers)))
        if sums and not self.engine.sums(mix):
            raise UsageError("mixed-precision: no sum beside a quantized layer is float here", remedy="leave `sums` out of `mix`")
        mix = replace(mix, sums=sums)
        return Found(mix, self._verdict(mix), {}, {}, {}, frozenset(), self.trials)

    def _nearest(self) -> str:
        """The mix with INT8 layers that misses the budget by the least, where none keeps to it."""
        tried = {mix: verdict for mix, verdict in self.verdicts.items() if mix.units}
        if not tried or any(verdict.fits for verdict in tried.values()):
            return ""
        mix = min(tried, key=lambda one: tried[one].over)
        return f"{mix.told(len(self.units))}: {tried[mix]}"

    def _verdict(self, mix: Mix) -> Verdict:
        if mix not in self.verdicts:
            gc.collect()
            self.ctx.progress(0, 0, f"trying {mix.told(len(self.units))}")
            verdict = self.judge(self.engine.runner(self.engine.build(mix), mix.execution))
            self.verdicts[mix] = verdict
            self.trials.append(f"{mix.told(len(self.units))}: {verdict}")
        return self.verdicts[mix]

    def _noise(self) -> dict[str, float]:
        """Noise power over signal power of each unit alone, on as many samples as time allows."""
        deadline = self.began + STATISTICS * self.seconds
        found: dict[str, float] = {}
        count = NOISE_SAMPLES
        for index, unit in enumerate(self.engine.units):
            self.ctx.progress(index, len(self.engine.units), "noise of single layers")
            began = time.monotonic()
            found[unit.name] = self.judge.noise(self.engine.alone(unit), count)
            left = max(deadline - time.monotonic(), 0) / (len(self.engine.units) - index)
            if time.monotonic() - began > left:
                count = max(1, count - 1)
        return found

    def _gains(self, execution: str) -> dict[str, float]:
        """Microseconds that each unit saves in INT8, by the runtime's own profile; by its work where the profile does not name it."""
        known: dict[str, float] = {}
        if self.ctx.measure is not None:
            every, feeds = Mix(execution, frozenset(self.units)), self.judge.feeds[0]
            slow, fast = (self.engine.times(self.engine.build(mix), execution, feeds) for mix in (Mix(execution), every))
            known = {name: slow[name] - fast[name] for name in self.units if name in slow and name in fast}
        total = sum(self.macs[name] for name in known)
        rate = max(sum(known.values()) / total, 0.0) if total else 1e-6
        return {name: known.get(name, self.macs[name] * rate) for name in self.units}

    def _within(self, execution: str, noise: Mapping[str, float], gains: Mapping[str, float], deadline: float) -> dict[str, Mix]:
        """Mixes within the budget that may be the fastest with this rest; nothing is tried after the deadline."""
        found = {f"all {execution}": Mix(execution)}
        paying = [name for name in self.units if gains[name] > 0]
        every = Mix(execution, frozenset(self.units))
        if not self.units:
            self.over[execution] = frozenset()
            return found
        if self._verdict(every).fits:
            found[f"all INT8, rest {execution}"] = every
        order = sorted(paying, key=lambda name: noise[name] / gains[name], reverse=True)
        # Giving up the first `high` fits; find the fewest.
        low, high = 0, 0 if self._verdict(Mix(execution, frozenset(order))).fits else len(order)
        while low < high and time.monotonic() < deadline:
            middle = (low + high) // 2
            if self._verdict(Mix(execution, frozenset(order[middle:]))).fits:
                high = middle
            else:
                low = middle + 1
        kept = set(order[high:])
        misses = 0
        for name in reversed(order[: max(high - 1, 0)]):
            if time.monotonic() > deadline or misses == MISSES:
                break
            if self._verdict(Mix(execution, frozenset(kept | {name}))).fits:
                kept.add(name)
            else:
                misses += 1
        self.over[execution] = frozenset(order) - kept
        if not kept:
            return found
        found[f"{len(kept)} INT8, rest {execution}"] = Mix(execution, frozenset(kept))
        # Layers that save little cost conversions around them: without them it may be faster still.
        total = sum(gains[name] for name in kept)
        for share in (0.05, 0.15, 0.35):
            lost, fewer = 0.0, set(kept)
            for name in sorted(kept, key=lambda name: gains[name]):
                lost += gains[name]
                if lost > share * total:
                    break
                fewer.discard(name)
            mix = Mix(execution, frozenset(fewer))
            late = time.monotonic() > deadline and mix not in self.verdicts
            if fewer and mix not in found.values() and not late and self._verdict(mix).fits:
                found[f"{len(fewer)} INT8, rest {execution}"] = mix
        return found

    def _with_sums(self, finalists: Mapping[str, Mix]) -> dict[str, Mix]:
        """The largest finalist of each execution with its sums in INT8, where that keeps to the budget.

        It saves a quantization of its own before each such layer, and half of what the sum reads.
        """
        largest: dict[str, tuple[str, Mix]] = {}
        for name, mix in finalists.items():
            if mix.units and (mix.execution not in largest or len(mix.units) >= len(largest[mix.execution][1].units)):
                largest[mix.execution] = name, mix
        made = {f"{name}, sums too": replace(mix, sums=True) for name, mix in largest.values() if self.engine.sums(mix)}
        return {name: mix for name, mix in made.items() if self._verdict(mix).fits}

    def _times(self, finalists: Mapping[str, Mix]) -> dict[str, float]:
        """Milliseconds of each finalist on the target; empty where it cannot be timed here."""
        if self.ctx.measure is None or len(finalists) < 2:
            return {}
        with tempfile.TemporaryDirectory() as scratch:
            candidates = {
                name: self.engine.candidate(self.engine.build(mix), mix.execution, Path(scratch) / str(index))
                for index, (name, mix) in enumerate(finalists.items())
            }
            left = self.seconds - (time.monotonic() - self.began)
            return self.ctx.measure(candidates, max(left, TIMING * self.seconds / 2))

    def _fastest(self, finalists: Mapping[str, Mix], times: Mapping[str, float], gains: Mapping[str, Mapping[str, float]]) -> str:
        if not times:  # by the profile, or by what computes in INT8
            return max(finalists, key=lambda name: sum(gains[finalists[name].execution][unit] for unit in finalists[name].units))
        best = min(times.values())
        close = [name for name, spent in times.items() if spent <= best * (1 + INDIFFERENT)]
        return min(close, key=lambda name: (len(finalists[name].units), times[name]))
