"""spread: how the raw timings of a session lie, small enough to draw: a histogram and quantiles for each variant."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core.session import NEEDED
from edgeopt.stages.numbers import NONE, measured

FILE = "latency.npz"
BINS = 48
DRAWN = 99.5  # percent of the timings that the histogram holds; the slowest are told by their number
HEAD = ["variant", "least", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "most", "timings"]


@dataclass(frozen=True)
class Spread:
    """The timings of one variant in ms. `counts` are of BINS at most, equally wide on a logarithmic scale from `low` to `high`."""

    low: float
    high: float
    counts: list[int]
    quantiles: dict[str, float | None]
    most: float
    beyond: int
    samples: int

    def cells(self, variant: str) -> list[str]:
        told = [measured(value, None, "ms") if value is not None else NONE for value in (self.quantiles.get(name) for name in HEAD[2:9])]
        return [variant, measured(self.low, None, "ms"), *told, measured(self.most, None, "ms"), f"{self.samples:,}"]


def spread(folder: Path, session: str | None, variants: list[str]) -> dict[str, Spread]:
    """The spread of these variants' timings in a session's folder (relative to the report); empty where the raw timings are not here."""
    if session is None:
        return {}
    path = (folder / session / FILE).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return {}
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[f"{name}/compute_ms"].astype(np.float64) for name in variants if f"{name}/compute_ms" in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    return {name: _spread(samples) for name, samples in held.items() if len(samples) and (samples > 0).all() and np.isfinite(samples).all()}


def _spread(samples: Any) -> Spread:
    import numpy as np

    high = float(np.percentile(samples, DRAWN))
    inside = samples[samples <= high]
    low = float(inside.min())
    bins = max(1, min(BINS, round(2 * len(samples) ** (1 / 3))))  # Rice's rule
    counts = np.histogram(np.log(inside), bins=bins, range=(np.log(low), np.log(high)))[0] if high > low else np.array([len(inside)])
    asked = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
    enough = {name: len(samples) >= NEEDED.get(float(at), NEEDED[95.0] if at == 5 else 8) for name, at in asked.items()}
    return Spread(
        low=low,
        high=high,
        counts=[int(one) for one in counts],
        quantiles={name: float(np.percentile(samples, at)) if enough[name] else None for name, at in asked.items()},
        most=float(samples.max()),
        beyond=len(samples) - len(inside),
        samples=len(samples),
    )
