"""A session: one measuring of all variants of one target together, interleaved, on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgeopt.core.profile import Peaks, Profile
from edgeopt.core.protocols import Options

RECORD = "session.json"
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "indistinguishable", "not comparable"]
# Samples that a percentile needs before it may be told: MLPerf's early stopping at confidence .99.
NEEDED = {50.0: 2, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}


class Latency(Options):
    """Compute time of one inference in milliseconds. A percentile without enough samples is null."""

    p50: float
    p50_ci95: Interval
    p90: float | None
    p90_ci95: Interval | None
    p95: float | None
    p99: float | None
    p99_9: float | None
    mean: float
    samples: int
    blocks: int
    rounds: int | None = Field(default=None, description="processes that it was timed in, one after the other; intervals are over them")
    copy_in_p50: float = Field(description="copying the inputs to the runtime")
    copy_out_p50: float = Field(description="copying the outputs back")


class Speedup(Options):
    """Reference latency over this latency (throughput: the inverse), paired block by block."""

    value: float
    ci95: Interval
    verdict: Verdict


class Mlperf(Options):
    """What MLPerf's LoadGen says of a run that it drove, beside our clock's figure of the same queries."""

    scenario: str
    valid: bool
    missed: list[str] = Field(description="demands of LoadGen that the run did not meet")
    queries: int
    p90_ms: float | None = Field(description="single stream: 90th percentile of latency, LoadGen's own")
    our_p90_ms: float | None = Field(description="the same by our clock, of the same queries")
    samples_per_s: float | None = Field(description="offline")
    min_duration_s: float = Field(description="asked of LoadGen; an official run asks 600 s")
    version: str = Field(description="of mlcommons-loadgen")


class ScoreValue(Options):
    """A score of one variant, and how much it lost against the reference (positive: worse)."""

    value: float
    ci95: Interval | None
    samples: int
    drop: float | None
    drop_ci95: Interval | None
    changed: float | None = Field(default=None, description="share of samples whose value differs from the reference's")
    p_value: float | None = Field(default=None, description="exact McNemar for right/wrong scores, Holm-adjusted over the session")
    unit: str = ""
    higher_is_better: bool = True


class Measured(Options):
    """What a session found for one variant, or why it found nothing."""

    variant: str
    error: dict[str, Any] | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    throughput_ci95: Interval | None = None
    speedup: Speedup | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_rss_mb: float | None = None
    precision: dict[str, int] | None = None
    layers: int | None = None
    runtime: str | None = None
    device: dict[str, Any] | None = Field(default=None, description="how an accelerator was driven, and its own clock's times")
    mlperf: Mlperf | None = None
    profile: Profile | None = Field(default=None, description="where the time goes; profile.json beside this file holds every layer")
    scores: dict[str, ScoreValue] = Field(default_factory=dict)
    flags: list[str] = Field(default_factory=list)


class Session(Options):
    """All variants of one target, measured in turn in the same minutes on the same machine."""

    edgeopt_session: Literal[1] = 1
    key: str
    target: str
    backend: str
    scenario: str
    threads: int
    batch: int
    reference: str
    machine: dict[str, Any]
    conditions: dict[str, Any] = Field(default_factory=dict, description="load, clock, steal time before and after")
    data_digest: str
    synthetic: str = ""
    noise_percent: float | None = Field(default=None, description="how far two copies of the reference read apart")
    warmup_runs: int = 0
    peaks: Peaks | None = Field(default=None, description="what this machine can do at best with these threads")
    started_at: str
    seconds: dict[str, float] = Field(default_factory=dict)
    variants: list[Measured]

    def of(self, variant: str) -> Measured | None:
        return next((one for one in self.variants if one.variant == variant), None)

    def write(self, folder: Path) -> None:
        (folder / RECORD).write_text(self.model_dump_json(indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Session:
        return Session.model_validate_json((folder / RECORD).read_text())
