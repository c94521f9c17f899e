"""lane: one variant while it is timed: its process of the round, what it does in its turn, and what all rounds found."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.plan import PlanTarget
from edgeopt.core.protocols import Sample, fixed_batch, stack
from edgeopt.core.session import Mlperf
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages.children import Child, Template

BLOCK_S = 0.03  # a lane's share of a block: long against clock and scheduler, short against drift
FLOOD_S = 5 * BLOCK_S  # the same under load, where filling and emptying the queue counts too
SHORT_S = 0.01  # a block of the warm-up
SETTLED = 0.03  # warm-up ends when two short blocks in a row agree this well
MAX_WARMUP, LATER_WARMUP = 12, 2  # short blocks at most: in the first round, in the others, where a restless machine would never agree
MAX_RUNS = 2000  # of a block


class Lane:
    """One variant: its process of this round, and the times that all rounds found, in milliseconds."""

    def __init__(self, name: str, artifact: Artifact, used: PlanTarget) -> None:
        self.name, self.artifact, self.used = name, artifact, used
        self.batch = fixed_batch(artifact.signature) or used.target.batch
        self.throughput = used.target.scenario in UNDER_LOAD
        self.child: Child | None = None
        self.runs = 1  # of a block
        self.last_ms = 0.0  # the last block's median
        self.gpu: dict[str, Any] | None = None  # as it was after the last block, where one computes
        self.warmup_runs = 0
        self.load_ms: list[float] = []
        self.first_ms: list[float] = []
        self.peak_rss_mb: list[float] = []
        self.rounds: list[list[Any]] = []  # compute times by round and block
        self.rates: list[list[float]] = []  # inferences per second under load, by round and block
        self.copy_in: list[Any] = []
        self.copy_out: list[Any] = []
        self.idle_s = self.idle_cpu_s = 0.0  # between its turns: seconds, and those on a processor
        self._left_at: tuple[float, float] | None = None

    def levels(self) -> list[Any]:
        """For each round the logarithms of its blocks' figures: median latency, or time per inference under load."""
        if self.throughput:
            return [np.log([1000.0 / rate for rate in rates]) for rates in self.rates]
        return [np.log([np.median(block) for block in blocks]) for blocks in self.rounds]

    def blocks(self) -> list[Any]:
        return [block for blocks in self.rounds for block in blocks]

    def open(self, template: Template, samples: list[Sample]) -> None:
        """Open the artifact in a new process, feed it, run the first inference and warm up; it is left frozen."""
        self.child = Child(self.name, template=template)
        opened = self.child.open(self.artifact, self.used)
        self.child.ask("feeds", arrays=self._feeds(samples))
        self.load_ms.append(opened["load_ms"])
        self.first_ms.append(self.child.ask("first")[0]["first_ms"])
        self._warm_up()
        self.peak_rss_mb.append(max(0.0, self._ask("usage")["peak_rss_mb"] - opened["bare_rss_mb"]))
        self.rounds.append([])
        self.rates.append([])

    def close(self) -> None:
        if self.child:
            self.child.close()
        self.child, self._left_at, self.gpu = None, None, None

    def forget(self) -> None:
        """Drop a round of which nothing was timed."""
        if self.rounds and not self.rounds[-1]:
            self.rounds.pop()
            self.rates.pop()

    def _feeds(self, samples: list[Sample]) -> dict[str, Any]:
        """Batches of all samples whose shapes are those of the first, by the wire's names."""
        alike = [one for one in samples if all(one.inputs[name].shape == array.shape for name, array in samples[0].inputs.items())]
        sets = [
            stack([alike[(start + offset) % len(alike)] for offset in range(self.batch)], self.artifact.signature)
            for start in range(0, len(alike), self.batch)
        ]
        return {f"{index}/{name}": array for index, feeds in enumerate(sets) for name, array in feeds.items()}

    def _ask(self, do: str) -> dict[str, Any]:
        assert self.child
        self.child.thaw()
        try:
            return self.child.ask(do)[0]
        finally:
            self.child.freeze()

    def facts(self) -> dict[str, Any]:
        return self._ask("facts")

    def profile(self) -> list[dict[str, Any]]:
        """The runtime's own times of each layer; none where it cannot tell, which is no reason to lose what was measured."""
        try:
            return list(self._ask("profile")["layers"])
        except EdgeoptError:
            return []

    def loadgen(self, seconds: float, folder: Path) -> Mlperf | None:
        """LoadGen's verdict on a run of about so many seconds, where the scenario is MLPerf's; its logs are left in `folder`."""
        scenario = self.used.target.scenario
        if not scenario.startswith("mlperf"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        assert self.child
        self.child.thaw()
        found, arrays = self.child.ask("loadgen", scenario=scenario, batch=self.batch, seconds=seconds, folder=str(folder))
        self.child.freeze()
        told = {name: found[name] for name in Mlperf.model_fields if name in found}
        ours = float(np.percentile(arrays["ours_ns"], 90)) / 1e6 if len(arrays["ours_ns"]) else None
        return Mlperf(scenario=scenario, our_p90_ms=ours, **told)

    def turn(self) -> None:
        """One block, kept."""
        assert self.child
        if self._left_at is not None:
            self.idle_cpu_s += self.child.cpu_seconds() - self._left_at[0]
            self.idle_s += clock.monotonic() - self._left_at[1]
        arrays, rate = self._run(self.runs, FLOOD_S)
        self.rounds[-1].append(arrays["compute_ns"] / 1e6)
        if rate is not None:
            self.rates[-1].append(rate)
        self.copy_in.append(arrays["load_ns"] / 1e6)
        self.copy_out.append(arrays["read_ns"] / 1e6)
        self._left_at = (self.child.cpu_seconds(), clock.monotonic())

    def _run(self, runs: int, flood_s: float) -> tuple[dict[str, Any], float | None]:
        """Thaw, run, freeze. Runs after a thaw are cold and do not count: two, or one where it is as long as a block.

        The timed ones follow on them with no word in between, in which the runtime's threads would fall asleep.
        """
        child = self.child
        assert child
        child.thaw()
        rate, cold = None, 1 if self.last_ms > 1000 * BLOCK_S else 2
        if self.throughput:
            child.ask("time", runs=cold, seconds=None)
            flood = child.ask("flood", seconds=flood_s)[0]
            rate = flood["count"] / flood["seconds"]
        told, arrays = child.ask("time", runs=runs, seconds=None, cold=cold)
        self.gpu = told["gpu"]
        child.freeze()
        self.last_ms = 1000.0 / rate if rate else float(np.median(arrays["compute_ns"])) / 1e6
        return arrays, rate

    def _warm_up(self) -> None:
        """Run short blocks until two in a row agree (in later rounds: one with the round before); sets the runs of a block."""
        before = self.last_ms
        for _ in range(LATER_WARMUP if self.rounds else MAX_WARMUP):
            runs = max(1, min(MAX_RUNS, int(SHORT_S * 1000 / max(before, 1e-3)))) if before else 1
            self._run(runs, SHORT_S)
            self.warmup_runs += runs
            if before and abs(self.last_ms - before) <= SETTLED * before:
                break
            before = self.last_ms
        if not self.rounds:
            self.runs = max(1, min(MAX_RUNS, int(BLOCK_S * 1000 / max(self.last_ms, 1e-3))))
