"""The search for the fastest mix: which layers stay float, judged by the real model and timed on the target.

Layers are ordered by what they add to the noise over what INT8 gains there; bisection finds how many of them must stay float. Noise
of single layers only orders them: every candidate is judged by running it, on one half of the samples, and confirmed on the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Feeds = dict[str, Array]
    Run = Callable[[Feeds], list[Array]]

LIMIT_DB = 150.0
FEWEST = 8  # samples: fewer than four to choose on and four to confirm on tell nothing
_SAME = 0.02  # timings nearer than this are called equal, and the more exact model wins
_BYTES_HELD = 512_000_000


@dataclass
class Layer:
    """A layer that may be quantized: its share of noise in the outputs when alone, and µs that INT8 saves against each float rest."""

    name: str
    kind: str
    noise: float = math.nan
    gain_us: dict[str, float] = field(default_factory=dict)

    @property
    def noise_db(self) -> float:
        return decibels(self.noise)


class Mixes(Protocol):
    """A model that can be had with any of its layers float. `rests` are the ways in which float may execute here, f32 first."""

    layers: dict[str, Layer]
    rests: tuple[str, ...]

    def run(self, floats: frozenset[str], rest: str) -> Run:
        """The model with these layers float, compiled for execution."""
        ...

    def weigh(self, until: float) -> None:
        """Fill in noise and gain of the layers."""
        ...

    def save(self, floats: frozenset[str], folder: Path) -> Path:
        """Write the model with these layers float; returns its main file."""
        ...


@dataclass
class Candidate:
    """One mix with what is known of it: SQNR on both halves of the samples, and latency."""

    name: str
    floats: frozenset[str]
    rest: str
    choose_db: float
    confirm_db: float | None = None
    p50_ms: float | None = None

    @property
    def least_db(self) -> float:
        return self.choose_db if self.confirm_db is None else min(self.choose_db, self.confirm_db)

    def told(self, layers: int) -> dict[str, Any]:
        rounded = {name: None if value is None else round(value, 2) for name, value in vars(self).items() if name.endswith("_db")}
        latency = None if self.p50_ms is None else round(self.p50_ms, 4)
        return {"name": self.name, "int8_layers": layers - len(self.floats), "float": self.rest, **rounded, "p50_ms": latency}


def decibels(noise: float) -> float:
    """A noise-to-signal ratio of powers as SQNR."""
    return LIMIT_DB if noise <= 0 else max(-LIMIT_DB, min(LIMIT_DB, -10 * math.log10(noise))) if noise < math.inf else -LIMIT_DB


class Judge:
    """The float model's outputs on samples, in two halves: the first to choose on, the second to confirm on."""

    def __init__(self, run: Run, samples: Sequence[Feeds]) -> None:
        self.samples = list(samples)
        self._wanted = [_floats(run(feeds)) for feeds in self.samples]
        middle = (len(self.samples) + 1) // 2
        self._halves = (range(middle), range(middle, len(self.samples)))

    def sqnr(self, run: Run, half: int) -> float:
        """SQNR in dB of the worst output, over the samples of one half."""
        return decibels(self.noise(run, self._halves[half]))

    def noise(self, run: Run, indices: Sequence[int]) -> float:
        """Power of the difference over power of the signal, of the worst output; infinite when it is not finite or has another shape."""
        import numpy as np

        signal, noise = np.zeros(len(self._wanted[0])), np.zeros(len(self._wanted[0]))
        for index in indices:
            for output, (wanted, found) in enumerate(zip(self._wanted[index], _floats(run(self.samples[index])), strict=True)):
                if wanted.shape != found.shape:
                    return math.inf
                finite = np.isfinite(wanted)
                signal[output] += float(np.square(wanted[finite], dtype=np.float64).sum())
                noise[output] += float(np.square(wanted[finite] - found[finite], dtype=np.float64).sum())
        if not np.isfinite(noise).all():
            return math.inf
        return float((noise / np.where(signal > 0, signal, 1)).max())

    def hardest(self, run: Run, count: int) -> list[int]:
        """Of the first half the samples that this run gets most wrong, and as many others."""
        order = sorted(self._halves[0], key=lambda index: -self.noise(run, [index]))
        hard = order[: (count + 1) // 2]
        others = [index for index in self._halves[0] if index not in hard]
        step = max(1, len(others) // max(1, count - len(hard)))
        return sorted(hard + others[::step][: count - len(hard)])


def _floats(outputs: list[Array]) -> list[Array]:
    """The real-valued outputs; all of them where none is."""
    return [one for one in outputs if one.dtype.kind == "f"] or [one.astype("f8") for one in outputs]


def held(batches: Any, most: int) -> list[Feeds]:
    """Up to `most` feeds of a split, as many as memory is meant for. Raises UsageError when there are too few."""
    found: list[Feeds] = []
    size = 0
    for feeds, _ in batches:
        found.append(feeds)
        size += sum(array.nbytes for array in feeds.values())
        if len(found) == most or size > _BYTES_HELD:
            break
    return found


def enough(split: str, found: int) -> None:
    if found < FEWEST:
        raise UsageError(
            f"data: '{split}' holds {found} samples, and mixed-precision needs at least {FEWEST}",
            remedy=f"give more samples under `data: {split}`",
        )


class Search:
    """Finds candidates within the budget; each mix is run once."""

    def __init__(self, mixes: Mixes, judge: Judge, least_db: float, margin_db: float, until: float) -> None:
        self.mixes, self.judge, self.until = mixes, judge, until
        self.wanted_db = least_db + margin_db
        self.seen: dict[tuple[frozenset[str], str], Candidate] = {}

    def candidate(self, floats: frozenset[str], rest: str, name: str = "", confirm: bool = False) -> Candidate:
        """One mix, judged; with `confirm` on both halves."""
        found = self.seen.get((floats, rest))
        if found is None or (confirm and found.confirm_db is None):
            run = self.mixes.run(floats, rest)
            if found is None:
                found = self.seen[floats, rest] = Candidate(name or self._named(floats, rest), floats, rest, self.judge.sqnr(run, 0))
            if confirm:
                found.confirm_db = self.judge.sqnr(run, 1)
        return found

    def _named(self, floats: frozenset[str], rest: str) -> str:
        layers = len(self.mixes.layers)
        if len(floats) == layers:
            return {"f32": "FP32", "bf16": "all BF16"}.get(rest, rest)
        return f"{layers - len(floats)} of {layers} layers INT8, rest {rest}" if floats else f"INT8, rest {rest}"

    def fits(self, floats: frozenset[str], rest: str) -> bool:
        """Within the budget on both halves; the second is looked at only when the first fits."""
        if self.candidate(floats, rest).choose_db < self.wanted_db:
            return False
        return (self.candidate(floats, rest, confirm=True).confirm_db or 0.0) >= self.wanted_db

    def in_time(self) -> bool:
        return time.monotonic() < self.until

    def mixed(self, rest: str, always: frozenset[str]) -> None:
        """Find the fewest layers to keep float, in the order of what they cost; `always` are kept float in any case."""
        order = [name for name in ranked(self.mixes.layers, rest) if name not in always]
        low, high = -1, len(order)  # -1 layers is known not to fit, all are taken to fit
        while high - low > 1 and self.in_time():
            middle = (low + high) // 2 if low >= 0 or high < len(order) else self._guess(order)
            if self.fits(always | frozenset(order[:middle]), rest):
                high = middle
            else:
                low = middle
        if high < len(order):
            self._bring_back(always | frozenset(order[:high]), always, rest)

    def _guess(self, order: list[str]) -> int:
        """How many layers must be float if noises add up: where bisection starts."""
        allowed = 10 ** (-self.wanted_db / 10)
        left = sum(self.mixes.layers[name].noise for name in order)
        for count, name in enumerate(order):
            if left <= allowed:
                return min(count, len(order) - 1)
            left -= self.mixes.layers[name].noise
        return len(order) // 2

    def _bring_back(self, floats: frozenset[str], always: frozenset[str], rest: str) -> None:
        """Return layers to INT8 one by one where the budget has room, the greatest gain first."""
        layers = self.mixes.layers
        for name in sorted(floats - always, key=lambda one: -layers[one].gain_us.get(rest, 0.0))[:6]:
            if not self.in_time():
                return
            if layers[name].gain_us.get(rest, 0.0) > 0 and self.fits(floats - {name}, rest):
                floats -= {name}

    def finalists(self, most: int) -> list[Candidate]:
        """Mixes within the budget that are worth timing: for each rest those that promise to be the fastest."""
        within = [one for one in self.seen.values() if one.confirm_db is not None and one.least_db >= self.wanted_db]
        return sorted(within, key=self._promise)[:most]

    def _promise(self, one: Candidate) -> float:
        return sum(self.mixes.layers[name].gain_us.get(one.rest, 0.0) for name in one.floats)

    def nearest(self) -> Candidate | None:
        """The quantized mix that comes nearest to a budget that none fits."""
        mixed = [one for one in self.seen.values() if len(one.floats) < len(self.mixes.layers)]
        return max(mixed, key=lambda one: one.least_db, default=None)


def ranked(layers: Mapping[str, Layer], rest: str) -> list[str]:
    """Layers in the order in which they are given up: INT8 brings nothing there, or costs the most noise for what it gains."""

    def key(layer: Layer) -> tuple[bool, float, str]:
        gain = layer.gain_us.get(rest, 1.0)
        return (gain > 0, -layer.noise / gain if gain > 0 else -layer.noise, layer.name)

    return [layer.name for layer in sorted(layers.values(), key=key)]


def fastest(timed: Mapping[str, Sequence[float]], candidates: Mapping[str, Candidate]) -> str:
    """The name of the fastest; among those that are as fast as makes no difference, the most exact."""
    import numpy as np

    levels = {name: float(np.exp(np.log(blocks).mean())) for name, blocks in timed.items()}
    best = min(levels.values())
    equal = [name for name, level in levels.items() if level <= best * (1 + _SAME)]
    return max(equal, key=lambda name: (candidates[name].least_db, -levels[name], name))
