"""time: latency of all variants of a target, interleaved in blocks, each in a process of its own, in several rounds.

A process keeps the layout of memory that it was born with, and that is worth up to some percents of
its speed: one process per variant, however long it runs, is one draw. Each round therefore opens
every variant in a new process, warms it up and visits all of them block by block, in a new random
order; intervals are over rounds. Only one process runs at a time; the others are frozen, so that
the spinning threads of an idle runtime cannot falsify their neighbour. The reference is there twice:
how far its two copies read apart is the session's noise.
"""

from __future__ import annotations

import random
import time as clock
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError, ResourceError
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.protocols import Sample
from edgeopt.core.session import NEEDED, Measured
from edgeopt.stages import statistics
from edgeopt.stages.children import Template
from edgeopt.stages.conditions import Conditions
from edgeopt.stages.lane import Lane

TWIN = "reference again"  # the second copy of the reference: the A/A pair
ROUNDS = 12  # that the time is dealt out for: what processes differ by shrinks with their number, not with time
LEAST, FEWEST, MOST = 8, 3, 40  # rounds however precise they are; however late it is; however much time there is
MOST_BLOCKS = 12  # of a round
LOADGEN_S = 1.0  # a variant's run of MLPerf's LoadGen at least; half of the budget is dealt out to all
MEMORY = 0.6  # share of the machine's memory that all variants may take together
# What the runtime of an accelerator tells beside what we time, kept with the row; its clocks and power are the session's conditions.
DEVICE = ("gpu", "cuda_graph", "spin_wait", "transfers", "tf32", "runtime_cache", "events_ms", "warnings")


@dataclass
class Timed:
    """What timing found: rows without scores, errors, the noise between two copies of the reference."""

    rows: dict[str, Measured] = field(default_factory=dict)
    errors: dict[str, EdgeoptError] = field(default_factory=dict)
    noise_percent: float | None = None
    batch: int = 1
    warmup_runs: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # the runtime's own times, taken after ours


def time(
    plan: Plan,
    used: PlanTarget,
    artifacts: dict[str, Artifact],
    samples: list[Sample],
    folder: Path,
    scratch: Path,
    progress: Callable[..., None],
    layers: bool = False,
) -> Timed:
    """Time all artifacts of one target together on the samples. Raw times go to `scratch/latency.npz`.

    With `layers`, the runtimes are asked for their own times of each layer once all else is done.
    """
    names = [*artifacts, TWIN] if plan.reference in artifacts else list(artifacts)
    lanes = [Lane(name, artifacts[plan.reference if name == TWIN else name], used) for name in names]
    with ExitStack() as exits, (folder / "log.txt").open("ab") as log:
        session = _Rounds(plan, lanes, samples, exits.enter_context(Template(used.target.backend, log)), progress)
        exits.callback(session.close)
        session.run()
        facts = {lane.name: session.facts(lane, layers, scratch) for lane in session.here() if lane.name != TWIN}
    result = Timed(errors={name: error for name, error in session.errors.items() if name != TWIN})
    sound = [lane for lane in session.here() if lane.name == TWIN or lane.name in facts]
    result.batch = lanes[-1].batch if lanes else used.target.batch
    result.warmup_runs = sum(lane.warmup_runs for lane in sound)
    result.conditions = session.conditions.read() | {
        "rounds": len(sound[0].rounds) if sound else 0,
        "idle_cpu_percent_max": round(100 * max((lane.idle_cpu_s / lane.idle_s for lane in sound if lane.idle_s), default=0.0), 2),
        "one_at_a_time": session.one_at_a_time,
        "gpu": next((one["conditions"] for one in facts.values() if one.get("conditions")), None),
    }
    noise, reference = _reference(sound, plan.reference)
    result.noise_percent = None if noise is None else round(100 * noise, 3)
    for lane in sound:
        if lane.name != TWIN:
            row = _row(lane, facts[lane.name], None if lane.name == plan.reference else reference, noise or 0.0)
            result.rows[lane.name] = row.model_copy(update={"flags": row.flags + session.conditions.flags()})
            if layers:
                result.layers[lane.name] = facts[lane.name]["profiled"]
    _keep(sound, scratch)
    return result


class _Rounds:
    """One session, round by round. Lanes that fail leave it with their error."""

    def __init__(self, plan: Plan, lanes: list[Lane], samples: list[Sample], template: Template, progress: Callable[..., None]) -> None:
        self.plan, self.lanes, self.samples, self.template, self.progress = plan, lanes, samples, template, progress
        self.errors: dict[str, EdgeoptError] = {}
        self.one_at_a_time = False
        self.conditions = Conditions()
        self.random = random.Random(plan.seed)

    def here(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.name not in self.errors]

    def run(self) -> None:
        """Rounds until every p50 is known to the precision asked, or the time is up."""
        budget, wanted = self.plan.measure.budget_s, self.plan.measure.precision_percent / 100
        end, longest = clock.monotonic() + budget, 0.0
        for done in range(1, MOST + 1):
            began = clock.monotonic()
            self._round(began + budget / ROUNDS)
            longest = max(longest, clock.monotonic() - began)
            if not self.here():
                return
            widest = max(_width(lane) for lane in self.here())
            self.progress(done, 0, f"round {done}" + (f": p50 known to ±{100 * widest:.1f} %" if done > 1 else ""))
            enough = all(sum(map(len, lane.blocks())) >= NEEDED[90.0] for lane in self.here())
            if done >= LEAST and enough and widest <= wanted:
                return
            if done >= FEWEST and clock.monotonic() + 0.8 * longest > end:
                return

    def _round(self, end: float) -> None:
        """Open all, then block after block until the round's end."""
        self.close()
        if not self.one_at_a_time:
            self._open_all()
        if self.one_at_a_time:
            return self._one_by_one(end)
        began = clock.monotonic()
        for done in range(1, MOST_BLOCKS + 1):
            for lane in self._shuffled():
                self._turn(lane)
            self.conditions.block()
            now = clock.monotonic()
            if now + (now - began) / done > end:
                return

    def _one_by_one(self, end: float) -> None:
        """A round in which each variant is closed before the next one opens."""
        lanes = self._shuffled()
        for left, lane in zip(range(len(lanes), 0, -1), lanes, strict=True):
            share = clock.monotonic() + (end - clock.monotonic()) / left
            self._attempt(lane, partial(lane.open, self.template, self.samples))
            for done in range(MOST_BLOCKS):
                if lane.name in self.errors or (done and clock.monotonic() > share):
                    break
                self._turn(lane)
                self.conditions.block()
            lane.close()

    def _open_all(self) -> None:
        """Open every lane, unless they prove to be too much for the memory."""
        limit, held = MEMORY * machine.memory_bytes() / 1e6, 0.0
        for lane in self._shuffled():
            self._attempt(lane, partial(lane.open, self.template, self.samples))
            held += lane.peak_rss_mb[-1] if lane.peak_rss_mb else 0.0
            if held > limit or self._crowded(lane):
                self.close()
                for one in self.lanes:
                    one.forget()
                self.one_at_a_time = True
                return

    def _crowded(self, lane: Lane) -> bool:
        """Whether a lane found no memory beside those that are open, as on a GPU of few gigabytes: alone it may find enough."""
        crowded = isinstance(self.errors.get(lane.name), ResourceError) and any(one.child for one in self.lanes)
        if crowded:
            del self.errors[lane.name]
        return crowded

    def _turn(self, lane: Lane) -> None:
        self._attempt(lane, lane.turn)
        self.conditions.turn(lane.name, lane.gpu)

    def _shuffled(self) -> list[Lane]:
        lanes = self.here()
        self.random.shuffle(lanes)
        return lanes

    def _attempt(self, lane: Lane, do: Callable[[], None]) -> None:
        try:
            do()
        except EdgeoptError as error:
            self.errors[lane.name] = error
            lane.close()

    def facts(self, lane: Lane, layers: bool, scratch: Path) -> dict[str, Any]:
        """After all that we time: what the runtime executed, LoadGen's verdict, and with `layers` the runtime's own times of them."""
        found: dict[str, Any] = {}

        def ask() -> None:
            if lane.child is None:
                lane.open(self.template, self.samples)
                lane.forget()
            seconds = max(LOADGEN_S, self.plan.measure.budget_s / 2 / len(self.lanes))
            found.update(lane.facts(), mlperf=lane.loadgen(seconds, scratch / "loadgen" / lane.name))
            found["profiled"] = lane.profile() if layers else []
            if self.one_at_a_time:
                lane.close()

        self._attempt(lane, ask)
        return found

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()


def _width(lane: Lane) -> float:
    """Half-width of the interval of a lane's level, as a share of it."""
    _, (low, high) = statistics.interval(lane.levels())
    return (high - low) / 2


def _reference(lanes: list[Lane], name: str) -> tuple[float | None, list[Any] | None]:
    """How far the two copies of the reference read apart, as a log ratio, and the levels of both together."""
    levels = {lane.name: lane.levels() for lane in lanes if lane.name in (name, TWIN)}
    if name not in levels:
        return None, None
    if TWIN not in levels:
        return None, levels[name]
    apart = abs(statistics.interval(statistics.of_pairs(levels[name], levels[TWIN]))[0])
    both = [
        (one + other) / 2 if len(one) == len(other) else np.concatenate([one, other])
        for one, other in zip(levels[name], levels[TWIN], strict=True)
    ]
    return apart, both


def _row(lane: Lane, facts: dict[str, Any], reference: list[Any] | None, noise: float) -> Measured:
    levels = lane.levels()
    mean, (low, high) = statistics.interval(levels)
    rate = 1000.0 * lane.batch
    speedup = None if reference is None else statistics.speedup(statistics.of_pairs(reference, levels), noise)
    return Measured(
        variant=lane.name,
        latency_ms=statistics.latency(lane.rounds, np.concatenate(lane.copy_in), np.concatenate(lane.copy_out)),
        throughput_per_s=rate * float(np.exp(-mean)),
        throughput_ci95=(rate * float(np.exp(-high)), rate * float(np.exp(-low))),
        speedup=speedup,
        load_ms=float(np.median(lane.load_ms)),
        first_ms=float(np.median(lane.first_ms)),
        peak_rss_mb=max(lane.peak_rss_mb),
        precision=facts["precision"],
        layers=facts.get("layers"),
        runtime=facts.get("runtime"),
        device={name: facts[name] for name in DEVICE if name in facts} or None,
        mlperf=facts["mlperf"],
        flags=["slower-than-reference"] if speedup and speedup.verdict == "slower" else [],
    )


def _keep(lanes: list[Lane], scratch: Path) -> None:
    """Raw samples: every run as float32 milliseconds, with the numbers of its block and of its round."""
    arrays: dict[str, Any] = {}
    for lane in lanes:
        blocks = lane.blocks()
        sizes = [len(block) for block in blocks]
        rounds = [index for index, one in enumerate(lane.rounds) for _ in one]
        arrays[f"{lane.name}/compute_ms"] = np.concatenate(blocks).astype(np.float32)
        arrays[f"{lane.name}/block"] = np.repeat(np.arange(len(blocks), dtype=np.int32), sizes)
        arrays[f"{lane.name}/round"] = np.repeat(np.array(rounds, np.int32), sizes)
        if lane.throughput:
            arrays[f"{lane.name}/inferences_per_s"] = np.array([rate for rates in lane.rates for rate in rates])
    np.savez_compressed(scratch / "latency.npz", **arrays)
