"""time: latency of all variants of a target, interleaved in blocks, each in a process of its own.

Only one process runs at a time; the others are frozen, so that the spinning threads of an idle
runtime cannot falsify their neighbour. Every block visits all variants in a new random order, the
reference twice: how far its two copies read apart is the session's noise.
"""

from __future__ import annotations

import random
import time as clock
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.protocols import Sample, fixed_batch, stack
from edgeopt.core.session import Measured
from edgeopt.stages import statistics
from edgeopt.stages.children import Child

TWIN = "reference again"  # the second copy of the reference: the A/A pair
BLOCK_S = 0.03  # one variant's share of a block: long against clock and scheduler, short against drift
MIN_BLOCKS, MAX_BLOCKS = 16, 400
SETTLED = 0.03  # warm-up ends when the last two block medians agree this well
MAX_WARMUP = 12
DISCARDED = 2  # runs after a thaw that are not counted: caches are cold, threads asleep


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


class _Lane:
    """One variant while it is timed: its process and its raw samples in milliseconds."""

    def __init__(self, child: Child, opened: dict[str, Any]) -> None:
        self.child, self.opened = child, opened
        self.first_ms = 0.0
        self.runs = 1
        self.blocks: list[Any] = []
        self.copy_in: list[Any] = []
        self.copy_out: list[Any] = []
        self.rates: list[float] = []
        self.idle_cpu_s = 0.0
        self.left_at: tuple[float, float] | None = None

    def medians(self) -> Any:
        """One figure per block: median latency, or time per inference under load."""
        if self.rates:
            return np.array([1000.0 / rate for rate in self.rates])
        return np.array([np.median(block) for block in self.blocks])


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
    result = Timed(batch=used.target.batch)
    throughput = used.target.scenario == "throughput"
    conditions = _Conditions()
    with ExitStack() as exits, (folder / "log.txt").open("ab") as log:
        lanes: dict[str, _Lane] = {}
        names = [*artifacts, TWIN] if plan.reference in artifacts else list(artifacts)
        for name in names:
            artifact = artifacts[plan.reference if name == TWIN else name]
            child = exits.enter_context(Child(name, log))
            try:
                lane = _Lane(child, child.open(artifact, used))
                result.batch = fixed_batch(artifact.signature) or used.target.batch
                _feed(lane, samples, artifact, result.batch)
                lanes[name] = lane
            except EdgeoptError as error:
                result.errors[name] = error
            child.freeze()
        result.warmup_runs = sum(_warm_up(lane, throughput) for lane in lanes.values())
        _blocks(plan, lanes, throughput, progress)
        noise = _noise(lanes, plan.reference)
        result.noise_percent = None if noise is None else round(100 * noise, 3)
        reference = lanes[plan.reference].medians() if plan.reference in lanes else None
        for name, lane in lanes.items():
            if name != TWIN:
                result.rows[name] = _row(name, lane, reference, noise or 0.0, result.batch, throughput, name == plan.reference)
        result.errors.pop(TWIN, None)
        _keep(lanes, scratch)
        result.conditions = conditions.read() | {"idle_cpu_percent_max": _idle(lanes)}
        if layers:
            result.layers = {name: _profiled(lane) for name, lane in lanes.items() if name != TWIN}
    return result


def _feed(lane: _Lane, samples: list[Any], artifact: Artifact, batch: int) -> None:
    """Give the child its inputs and run the first inference."""
    alike = [one for one in samples if all(one.inputs[name].shape == array.shape for name, array in samples[0].inputs.items())]
    sets = [
        stack([alike[(start + offset) % len(alike)] for offset in range(batch)], artifact.signature)
        for start in range(0, len(alike), batch)
    ]
    lane.child.ask("feeds", arrays={f"{index}/{name}": array for index, feeds in enumerate(sets) for name, array in feeds.items()})
    lane.first_ms = lane.child.ask("first")[0]["first_ms"]


def _turn(lane: _Lane, throughput: bool, keep: bool) -> float:
    """Give one child its share of a block; returns its median in milliseconds."""
    child = lane.child
    if lane.left_at is not None and keep:
        lane.idle_cpu_s = max(lane.idle_cpu_s, (child.cpu_seconds() - lane.left_at[0]) / max(clock.monotonic() - lane.left_at[1], 1e-3))
    child.thaw()
    child.ask("time", runs=DISCARDED, seconds=None)
    if throughput:
        flood = child.ask("flood", seconds=5 * BLOCK_S)[0]
        rate = flood["count"] / flood["seconds"]
        median = 1000.0 / rate
        if keep:
            lane.rates.append(rate)
    _, arrays = child.ask("time", runs=lane.runs, seconds=None)
    compute = arrays["compute_ns"] / 1e6
    if keep:
        lane.blocks.append(compute)
        lane.copy_in.append(arrays["load_ns"] / 1e6)
        lane.copy_out.append(arrays["read_ns"] / 1e6)
    if not throughput:
        median = float(np.median(compute))
    child.freeze()
    lane.left_at = (child.cpu_seconds(), clock.monotonic())
    return float(median)


def _warm_up(lane: _Lane, throughput: bool) -> int:
    """Run until two block medians in a row agree; sets how many runs make a block."""
    last = _turn(lane, throughput, keep=False)
    runs = lane.runs
    for _ in range(MAX_WARMUP):
        lane.runs = max(1, min(2000, int(BLOCK_S * 1000 / max(last, 1e-3))))
        now = _turn(lane, throughput, keep=False)
        runs += lane.runs
        if abs(now - last) <= SETTLED * last:
            break
        last = now
    return runs


def _blocks(plan: Plan, lanes: dict[str, _Lane], throughput: bool, progress: Callable[..., None]) -> None:
    """Blocks over all lanes until every p50 is known to the precision asked, or the time is up."""
    order, rng = list(lanes), random.Random(plan.seed)
    deadline = clock.monotonic() + plan.measure.budget_s
    wanted = plan.measure.precision_percent / 100
    for block in range(MAX_BLOCKS):
        rng.shuffle(order)
        for name in order:
            _turn(lanes[name], throughput, keep=True)
        widest = max((_width(lane.medians()) for lane in lanes.values()), default=0.0)
        progress(block + 1, 0, f"block {block + 1}: p50 known to ±{100 * widest:.1f} %" if block > 1 else f"block {block + 1}")
        enough = all(sum(map(len, lane.blocks)) >= statistics.NEEDED[90.0] for lane in lanes.values())
        if block + 1 >= MIN_BLOCKS and enough and widest <= wanted:
            return
        if clock.monotonic() > deadline and block + 1 >= 3:
            return


def _width(medians: Any) -> float:
    """Half-width of the interval of a lane's level, as a share of it."""
    if len(medians) < 3:
        return float("inf")
    _, (low, high) = statistics.t_interval(np.log(medians))
    return (high - low) / 2


def _noise(lanes: dict[str, _Lane], reference: str) -> float | None:
    """How far apart two copies of the reference read, as a log ratio: the outer end of its interval's half nearer to zero."""
    if TWIN not in lanes or reference not in lanes:
        return None
    mean, _ = statistics.t_interval(np.log(lanes[reference].medians() / lanes[TWIN].medians()))
    return abs(mean)


def _row(name: str, lane: _Lane, reference: Any, noise: float, batch: int, throughput: bool, is_reference: bool) -> Measured:
    child = lane.child
    child.thaw()
    usage = child.ask("usage")[0]
    facts = child.ask("facts")[0]
    rates = np.array(lane.rates) * batch if throughput else 1000.0 * batch / lane.medians()
    _, (low, high) = statistics.t_interval(np.log(rates))
    speedup = None if reference is None or is_reference else statistics.speedup(reference, lane.medians(), noise)
    return Measured(
        variant=name,
        latency_ms=statistics.latency(lane.blocks, np.concatenate(lane.copy_in), np.concatenate(lane.copy_out)),
        throughput_per_s=float(np.exp(np.log(rates).mean())),
        throughput_ci95=(float(np.exp(low)), float(np.exp(high))),
        speedup=speedup,
        load_ms=lane.opened["load_ms"],
        first_ms=lane.first_ms,
        peak_rss_mb=max(0.0, usage["peak_rss_mb"] - lane.opened["bare_rss_mb"]),
        precision=facts["precision"],
        layers=facts.get("layers"),
        runtime=facts.get("runtime"),
        flags=["slower-than-reference"] if speedup and speedup.verdict == "slower" else [],
    )


def _profiled(lane: _Lane) -> list[dict[str, Any]]:
    """The runtime's own times of each layer; none where it cannot tell, which is no reason to lose what was measured."""
    lane.child.thaw()
    try:
        layers: list[dict[str, Any]] = lane.child.ask("profile")[0]["layers"]
    except EdgeoptError:
        layers = []
    lane.child.freeze()
    return layers


def _keep(lanes: dict[str, _Lane], scratch: Path) -> None:
    """Raw samples: every run of every block, as float32 milliseconds with the block's number."""
    arrays: dict[str, Any] = {}
    for name, lane in lanes.items():
        arrays[f"{name}/compute_ms"] = np.concatenate(lane.blocks).astype(np.float32)
        arrays[f"{name}/block"] = np.repeat(np.arange(len(lane.blocks), dtype=np.int32), [len(block) for block in lane.blocks])
        if lane.rates:
            arrays[f"{name}/inferences_per_s"] = np.array(lane.rates)
    np.savez_compressed(scratch / "latency.npz", **arrays)


def _idle(lanes: dict[str, _Lane]) -> float:
    return round(100 * max((lane.idle_cpu_s for lane in lanes.values()), default=0.0), 2)


class _Conditions:
    """Load, steal time and clock of the machine while a session runs."""

    def __init__(self) -> None:
        self.start = self._now()

    def _now(self) -> dict[str, Any]:
        stat = machine.cpu_times()
        return {"at": clock.monotonic(), "load": machine.load(), "mhz": machine.mhz(), **stat}

    def read(self) -> dict[str, Any]:
        end = self._now()
        total = max(end["total_s"] - self.start["total_s"], 1e-9)
        return {
            "seconds": round(end["at"] - self.start["at"], 1),
            "load_before": self.start["load"],
            "load_after": end["load"],
            "mhz_before": self.start["mhz"],
            "mhz_after": end["mhz"],
            "steal_percent": round(100 * (end["steal_s"] - self.start["steal_s"]) / total, 2),
        }
