"""A gate: one demand of a recipe on its rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgeopt.core.protocols import Options


class SpeedupLimit(Options):
    min: float = Field(gt=0)


class SizeLimit(Options):
    max_mb: float = Field(gt=0, description="MB are 10⁶ bytes")


class RateLimit(Options):
    min_per_s: float = Field(gt=0)


class Gate(Options):
    """One demand. Rows that fail it do not qualify; `variants` makes it a demand on just those."""

    score: str | None = None
    max_drop: float | None = Field(default=None, ge=0, description="in the score's own unit, against the reference")
    min: float | None = None
    max: float | None = None
    latency: Literal["p50", "p90", "p95", "p99", "p99.9"] | None = None
    max_ms: float | None = Field(default=None, gt=0)
    speedup: SpeedupLimit | None = None
    size: SizeLimit | None = None
    memory: SizeLimit | None = None
    throughput: RateLimit | None = None
    targets: list[str] | None = None
    variants: list[str] | None = None
    inconclusive: Literal["fail", "pass"] = "fail"

    @property
    def kind(self) -> str:
        return next(name for name in ("score", "latency", "speedup", "size", "memory", "throughput") if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one(self) -> Gate:
        kinds = ("score", "latency", "speedup", "size", "memory", "throughput")
        if sum(getattr(self, name) is not None for name in kinds) != 1:
            raise ValueError(f"a gate judges exactly one of {', '.join(kinds)} → write one gate for each demand")
        limits = [name for name in ("max_drop", "min", "max") if getattr(self, name) is not None]
        if (self.score is not None) != (len(limits) == 1):
            raise ValueError("a score gate, and only that, has exactly one of max_drop, min, max → {score: NAME, max_drop: 0.01}")
        if (self.latency is not None) != (self.max_ms is not None):
            raise ValueError("a latency gate has a percentile and max_ms → {latency: p90, max_ms: 5}")
        return self
