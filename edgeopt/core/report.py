"""The report: sessions compared, gates judged. Written as report.json; every key is always there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgeopt.core.comparison import Comparison
from edgeopt.core.errors import UsageError
from edgeopt.core.profile import Peaks, Profile
from edgeopt.core.protocols import Options
from edgeopt.core.session import Interval, Latency, Mlperf, ScoreValue, Speedup

Status = Literal["measured", "built", "bundled", "unavailable", "failed"]
GateVerdict = Literal["pass", "fail", "inconclusive", "not_measured"]

# What flags say to a reader. A row with one of the first two is never picked, one with the third only where no steady one is left.
FLAGS = {
    "slower-than-reference": "slower than the reference",
    "larger-than-reference": "larger than the reference",
    "unstable": "the machine's clock or load moved while it was measured: measure again on a quiet machine",
    "none-in-int8": "quantized, but the runtime executes no layer in 8 bits",
    "scored-on-cpu": "scored on the CPU as it went into the compiler; not measured on the target",
    "synthetic-data": "scored on synthetic data: the scores say nothing about accuracy",
}


class ArtifactInfo(Options):
    """Where a row's artifact lies (relative to report.json), and what it is."""

    format: str
    path: str
    digest: str
    size_bytes: int


class RecipeInfo(Options):
    name: str
    digest: str
    file: str


class TargetInfo(Options):
    """How a target was measured."""

    name: str
    backend: str
    scenario: str
    threads: int
    on_gpu: bool = Field(default=False, description="it executes on a GPU, and the threads compute nothing")
    batch: int
    need: str
    noise_percent: float | None
    session: str | None = Field(description="folder of the session, relative to report.json")
    data_digest: str | None
    conditions: dict[str, Any]
    peaks: Peaks | None = Field(default=None, description="what the machine can do at best with these threads: measured, not a data sheet")


class StepInfo(Options):
    """One step of a row's history."""

    step: str
    seconds: float
    options: dict[str, Any]
    notes: dict[str, Any]
    parity: dict[str, Any] | None


class Row(Options):
    """One variant on one target."""

    variant: str
    target: str
    status: Status
    reason: str | None
    flags: list[str]
    artifact: ArtifactInfo | None
    latency_ms: Latency | None
    throughput_per_s: float | None
    throughput_ci95: Interval | None
    load_ms: float | None
    first_ms: float | None
    peak_rss_mb: float | None
    scores: dict[str, ScoreValue]
    speedup: Speedup | None
    precision: dict[str, int] | None
    runtime: str | None = Field(default=None, description="the library that executed it, with its version")
    device: dict[str, Any] | None = Field(
        default=None,
        description="how an accelerator was driven (CUDA graph, spin-wait, transfers), its own clock's times in ms and what they warn of",
    )
    mlperf: Mlperf | None = Field(default=None, description="LoadGen's verdict, where the target's scenario is one of MLPerf's")
    profile: Profile | None = Field(default=None, description="where the time goes; the session's profile.json holds every layer")
    pareto: bool
    qualifies: bool | None
    picked: bool
    pick_basis: str | None
    exit_code: int
    history: list[StepInfo]


class GateResult(Options):
    """One gate on one row. `wanted` and `got` are in the gate's own unit."""

    gate: dict[str, Any]
    variant: str
    target: str
    verdict: GateVerdict
    wanted: float
    got: float | None
    ci95: Interval | None
    reason: str | None


class Report(Options):
    """What to take for each target, with the evidence."""

    schema_version: Literal[1] = 1
    edgeopt: str
    recipe: RecipeInfo
    machine: dict[str, Any]
    created_at: str
    reference: str
    pick: str
    exit_code: int
    exit_reasons: list[str]
    targets: list[TargetInfo]
    rows: list[Row]
    gates: list[GateResult]
    versions: dict[str, str] | None = Field(default=None, description="the packages that made and ran the artifacts, and Python")
    baseline: Comparison | None = Field(default=None, description="held against the recipe's baseline")

    def picked(self, target: str) -> Row | None:
        return next((row for row in self.rows if row.target == target and row.picked), None)

    def write(self, folder: Path) -> Path:
        path = folder / "report.json"
        path.write_text(self.model_dump_json(indent=1) + "\n")
        return path

    @staticmethod
    def read(path: Path) -> Report:
        """The report at a path: a run folder, or its report.json. Raises UsageError when there is none."""
        file = path / "report.json" if path.is_dir() else path
        try:
            return Report.model_validate_json(file.read_text())
        except FileNotFoundError:
            missing = f"{path} holds no report.json" if path.is_dir() else f"no such file or folder: {path}"
            raise UsageError(missing, remedy="name a run folder that `edgeopt report` was called on, or a report.json") from None
        except (ValidationError, UnicodeDecodeError):
            remedy = "name a report.json; `edgeopt report RUN-FOLDER` writes it anew"
            raise UsageError(f"{file} is no report, or one of another version of edgeopt", remedy=remedy) from None
