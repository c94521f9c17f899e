"""The search for the fastest mix within the budget: cheap statistics order the layers, real scores and real times decide.

Noise of quantized layers adds up (nearly), so layers are given up in the order of the noise that they make
for the time that they save, as few as the budget allows. What is left to doubt is measured.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Candidate, Context
from edgeopt.passes.mixed_precision_judge import Judge, Verdict
from edgeopt.passes.mixed_precision_rules import Layer, groups

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


@dataclass(frozen=True)
class Unit:
    """Layers that can only be switched together, with their types."""

    name: str
    layers: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Mix:
    """How the float rest executes, and the units that compute in INT8."""

    execution: str
    units: frozenset[str] = frozenset()

    def layers(self, units: list[Unit]) -> set[str]:
        """The layers that compute in INT8."""
        return {layer for unit in units if unit.name in self.units for layer in unit.layers}


def units_of(layers: Mapping[str, Layer]) -> list[Unit]:
    """Layers as units, those that share a quantizer of what they read in one."""
    return [Unit(group[0].name, tuple(one.name for one in group), tuple(one.kind for one in group)) for group in groups(layers)]


class Engine(Protocol):
    """A model whose units can be switched, on one runtime. `executions`: how its float rest may execute, f32 first."""

    units: list[Unit]
    executions: tuple[str, ...]

    def load(self) -> Any:
        """The model that came in."""
        ...

    def build(self, mix: Mix) -> Any:
        """The model of a mix, as it is shipped."""

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


@dataclass
class Found:
    """The chosen mix, what it reached, and what was looked at on the way."""

    mix: Mix
    verdict: Verdict
    noise: dict[str, float]
    gains: dict[str, float]
    macs: dict[str, int]
    times_ms: dict[str, float]
    trials: list[str] = field(default_factory=list)

    def notes(self, engine: Engine, budget: str) -> dict[str, Any]:
        """What the history keeps: the decision layer by layer, what was tried, and what was timed."""
        total = sum(len(unit.layers) for unit in engine.units)
        quantized = sum(len(unit.layers) for unit in engine.units if unit.name in self.mix.units)
        layers = []
        for unit in engine.units:
            inside = unit.name in self.mix.units
            saved, noise = self.gains.get(unit.name, 0.0), self.noise[unit.name]
            why = "" if inside else "INT8 saves nothing here" if saved <= 0 else "too noisy for what it saves"
            for layer, kind in zip(unit.layers, unit.kinds, strict=True):
                precision = "int8" if inside else self.mix.execution
                layers.append(
                    {
                        "layer": layer,
                        "type": kind,
                        "precision": precision,
                        "why": why,
                        "noise_db": _decibels(noise),
                        "saves_us": round(saved, 1),
                    }
                )
        return {
            "budget": budget,
            "reached": f"{self.verdict.got:.4g}, {self.verdict.bound:.4g} with its margin",
            "int8_layers": f"{quantized} of {total}",
            "rest": self.mix.execution,
            "timed_ms": {name: round(spent, 4) for name, spent in self.times_ms.items()},
            "trials": self.trials,
            "layers": layers,
        }


def _decibels(noise: float) -> float | None:
    return round(-10 * math.log10(noise), 1) if noise > 0 else None


class Search:
    """One search over the mixes of an engine; `seconds` is what it may take."""

    def __init__(self, engine: Engine, judge: Judge, ctx: Context, seconds: float) -> None:
        self.engine, self.judge, self.ctx, self.seconds = engine, judge, ctx, seconds
        self.units = {unit.name: unit for unit in engine.units}
        self.verdicts: dict[Mix, Verdict] = {}
        self.trials: list[str] = []
        self.macs: dict[str, int] = {}
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
        for execution in self.engine.executions:
            if self._verdict(Mix(execution)).fits:
                gains[execution] = self._gains(execution)
                finalists |= self._within(execution, noise, gains[execution])
        times = self._times(finalists)
        name = self._fastest(finalists, times, gains)
        mix = finalists[name]
        return Found(mix, self._verdict(mix), noise, gains[mix.execution], self.macs, times, self.trials)

    def _verdict(self, mix: Mix) -> Verdict:
        if mix not in self.verdicts:
            gc.collect()
            self.ctx.progress(0, 0, f"trying {len(mix.units)} of {len(self.units)} in INT8, the rest in {mix.execution}")
            verdict = self.judge(self.engine.runner(self.engine.build(mix), mix.execution))
            self.verdicts[mix] = verdict
            self.trials.append(f"{len(mix.units)} of {len(self.units)} in INT8, the rest in {mix.execution}: {verdict}")
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

    def _within(self, execution: str, noise: Mapping[str, float], gains: Mapping[str, float]) -> dict[str, Mix]:
        """Mixes within the budget that may be the fastest with this rest."""
        deadline = self.began + (STATISTICS + TRIALS) * self.seconds
        found = {f"all {execution}": Mix(execution)}
        paying = [name for name in self.units if gains[name] > 0]
        every = Mix(execution, frozenset(self.units))
        if self._verdict(every).fits:
            found[f"all INT8, rest {execution}"] = every
        order = sorted(paying, key=lambda name: noise[name] / gains[name], reverse=True)
        low, high = 0, len(order)  # giving up `high` fits; find the fewest
        while low < high:
            middle = (low + high) // 2
            if self._verdict(Mix(execution, frozenset(order[middle:]))).fits:
                high = middle
            else:
                low = middle + 1
        kept = set(order[high:])
        misses = 0
        for name in reversed(order[: high - 1]):
            if time.monotonic() > deadline or misses == MISSES:
                break
            if self._verdict(Mix(execution, frozenset(kept | {name}))).fits:
                kept.add(name)
            else:
                misses += 1
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
            if fewer and mix not in found.values() and self._verdict(mix).fits:
                found[f"{len(fewer)} INT8, rest {execution}"] = mix
        return found

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
