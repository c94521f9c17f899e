"""Sessions in rounds: new processes each time, variants that fail or do not fit into the memory, what the machine did."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import small_onnx as small

import edgeopt
from edgeopt.backends.onnxruntime import Onnxruntime
from edgeopt.core import machine, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import ResourceError, StepError
from edgeopt.core.plan import Plan
from edgeopt.core.protocols import Candidate, Context, Sample
from edgeopt.core.recipe import Measuring, load
from edgeopt.core.session import Mlperf
from edgeopt.core.store import Store
from edgeopt.formats.onnx import Onnx
from edgeopt.runner import loadgen
from edgeopt.stages import survey, timing, trial, words
from edgeopt.stages.children import Child, Template
from edgeopt.stages.conditions import Conditions
from edgeopt.stages.lane import Lane

pytestmark = pytest.mark.skipif(bool(why := registry.load("backends", "onnxruntime")().probe()), reason=why or "-")
official = pytest.mark.skipif(
    not importlib.util.find_spec("mlperf_loadgen"), reason="MLPerf's LoadGen is not here: pip install 'edgeopt[mlperf]'"
)
RECIPE = """\
edgeopt: 1
name: rounds
model: {onnx: model.onnx}
data: {evaluate: {random: normal, samples: 4}}
variants: {fp32: []}
targets:
  - x86-onnxruntime
  - {extends: x86-onnxruntime, name: loaded, scenario: throughput}
  - {extends: x86-onnxruntime, name: single, scenario: mlperf-singlestream}
  - {extends: x86-onnxruntime, name: offline, scenario: mlperf-offline}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    small.write(small.mlp(), tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    made = edgeopt.plan(load(tmp_path / "recipe.yaml"))
    return made.model_copy(update={"reference": "a", "measure": Measuring(precision_percent=50, budget_s=1.0)})


@pytest.fixture
def model(plan: Plan, tmp_path: Path) -> Artifact:
    (tmp_path / "files").mkdir()
    path = small.write(small.mlp(), tmp_path / "files")
    return Artifact(tmp_path, "onnxruntime", path.name, "", "", 0, Onnx().signature(path))


def timed(plan: Plan, folder: Path, artifacts: dict[str, Artifact], target: str = "x86-onnxruntime", **more: Any) -> timing.Timed:
    spec = next(iter(artifacts.values())).signature.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in spec.shape[1:]]
    samples = [Sample({spec.name: np.ones(shape, np.float32)}) for _ in range(4)]
    return timing.time(plan, plan.target_of(target), artifacts, samples, folder, folder, lambda *_: None, **more)


def test_every_round_opens_every_variant_in_a_new_process(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[int] = []
    fork = Template.fork
    monkeypatch.setattr(Template, "fork", lambda self: (one := fork(self), forked.append(one.pid))[0])
    found = timed(plan, tmp_path, {"a": model, "b": model}, layers=True)
    rounds = found.conditions["rounds"]
    assert rounds >= timing.FEWEST and len(set(forked)) == 3 * rounds and not found.errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in forked)
    row = found.rows["b"]
    assert row.latency_ms and row.latency_ms.rounds == rounds and row.speedup and found.noise_percent is not None
    assert row.latency_ms.p50_ci95[0] <= row.latency_ms.p50 <= row.latency_ms.p50_ci95[1]
    assert found.layers["b"] and not found.conditions["one_at_a_time"]
    raw = np.load(tmp_path / "latency.npz")
    assert set(raw["b/round"]) == set(range(rounds)) and len(raw["b/round"]) == len(raw["b/compute_ms"]) == row.latency_ms.samples


def test_candidates_of_a_search_are_timed_as_the_target_s_compiler_makes_them(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of TensorRT is what is timed, not the ONNX that goes into its builder; what that refuses is no candidate."""
    monkeypatch.setattr(survey, "first_samples", lambda *_: [Sample({"x": np.ones(8, np.float32)})])
    opened: list[Path] = []
    open_, compile_ = Child.open, Onnxruntime.compile

    def compiled(self: Onnxruntime, given: Artifact, ctx: Context) -> Path:
        assert ctx.target["arch"] == "x86_64" and given.format == "onnx"
        if given.root.name == "refused":
            raise StepError("no kernel")
        main = compile_(self, given, ctx)
        return main.rename(main.with_name("engine.plan"))

    monkeypatch.setattr(Onnxruntime, "compile", compiled)
    monkeypatch.setattr(Child, "open", lambda self, artifact, used: (opened.append(artifact.path), open_(self, artifact, used))[1])
    candidates = {}
    for name in ("refused", "taken"):
        (tmp_path / name / "files").mkdir(parents=True)
        candidates[name] = Candidate(small.write(small.mlp(), tmp_path / name / "files"))
    row = plan.rows_of("x86-onnxruntime")[0]
    onnx_model = replace(model, format="onnx")
    door = trial.measure(plan, plan.steps[row.steps[-1]], onnx_model, Store(tmp_path / "store"), tmp_path, lambda *_: None)
    assert door and set(door(candidates, 0.5)) == {"taken"}
    assert opened and {path.name for path in opened} == {"engine.plan"}
    with pytest.raises(StepError, match="no kernel"):
        door({"refused": candidates["refused"]}, 0.5)


def test_throughput_goes_in_rounds_too(plan: Plan, model: Artifact, tmp_path: Path) -> None:
    row = timed(plan, tmp_path, {"a": model, "b": model}, "loaded").rows["b"]
    assert row.throughput_per_s and row.throughput_ci95 and row.throughput_ci95[0] <= row.throughput_per_s <= row.throughput_ci95[1]


def watch(monkeypatch: pytest.MonkeyPatch, opening: Callable[[str, set[str]], None]) -> None:
    """Call `opening` before each variant is opened, with its name and the names of those that are open."""
    open_, close = timing.Lane.open, timing.Lane.close
    now: set[str] = set()

    def opened(self: timing.Lane, *given: Any) -> None:
        opening(self.name, set(now))
        now.add(self.name)
        open_(self, *given)

    def closed(self: timing.Lane) -> None:
        now.discard(self.name)
        close(self)

    monkeypatch.setattr(timing.Lane, "open", opened)
    monkeypatch.setattr(timing.Lane, "close", closed)


def test_what_does_not_fit_into_the_memory_is_open_one_at_a_time(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2)
    alive: list[int] = []
    watch(monkeypatch, lambda name, others: alive.append(len(others | {name})))
    found = timed(plan, tmp_path, {"a": model, "b": model}, layers=True)
    assert found.conditions["one_at_a_time"] and max(alive[1:]) == 1 and found.layers["b"]
    assert found.rows["b"].latency_ms and found.rows["b"].latency_ms.rounds == found.conditions["rounds"] >= timing.FEWEST


@pytest.mark.parametrize("fits_alone", [True, False])
def test_who_finds_no_memory_beside_the_others_is_opened_alone(
    fits_alone: bool, plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: its memory is none of the machine's, which is counted before."""

    def full(name: str, others: set[str]) -> None:
        if name == "b" and (others or not fits_alone):
            raise ResourceError("b: the GPU's memory is full")

    watch(monkeypatch, full)
    monkeypatch.setattr(timing._Rounds, "_shuffled", lambda self: sorted(self.here(), key=lambda lane: lane.name))
    found = timed(plan, tmp_path, {"a": model, "b": model})
    assert found.conditions["one_at_a_time"] and found.rows["a"].latency_ms
    assert ("b" in found.rows) == fits_alone and ("b" in found.errors) != fits_alone


def test_a_variant_whose_process_dies_leaves_and_the_others_go_on(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = timing.Lane.turn

    def dying(self: timing.Lane) -> None:
        if self.name == "b" and len(self.rounds) == 2 and self.child:
            os.killpg(self.child.process.pid, signal.SIGKILL)
        turn(self)

    monkeypatch.setattr(timing.Lane, "turn", dying)
    found = timed(plan, tmp_path, {"a": model, "b": model, "c": model})
    assert set(found.errors) == {"b"} and "SIGKILL" in str(found.errors["b"]) and set(found.rows) == {"a", "c"}


def test_a_container_is_told_by_what_it_leaves_in_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"/proc/1/cgroup": "0::/kubepods.slice/pod1"}
    monkeypatch.setattr(machine, "_text", lambda path: held.get(path, ""))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.delenv("container", raising=False)
    assert machine.container() == "kubepods"
    held["/run/systemd/container"] = "lxc"
    assert machine.container() == "lxc"
    held.clear()
    assert machine.container() is None


# ---- MLPerf's LoadGen


@official
def test_loadgen_judges_a_single_stream_and_reads_the_same_p90(plan: Plan, model: Artifact, tmp_path: Path) -> None:
    """Of the same queries, our clock and LoadGen's detail log agree; ours stands inside LoadGen's, by microseconds."""
    found = timed(plan, tmp_path, {"a": model}, "single")
    assert not found.errors
    told = found.rows["a"].mlperf
    assert told and told.valid and not told.missed and told.queries >= 64 and told.scenario == "mlperf-singlestream"
    assert told.p90_ms and told.our_p90_ms and told.samples_per_s is None and told.min_duration_s >= 1
    assert told.our_p90_ms == pytest.approx(told.p90_ms, rel=0.03, abs=0.02)
    assert (tmp_path / "loadgen" / "a" / "mlperf_log_detail.txt").is_file()


@official
def test_loadgen_offline_keeps_all_slots_busy(plan: Plan, model: Artifact, tmp_path: Path) -> None:
    row = timed(plan, tmp_path, {"a": model}, "offline").rows["a"]
    assert row.mlperf and row.mlperf.samples_per_s and row.mlperf.p90_ms is None and row.throughput_per_s
    assert row.mlperf.valid or row.mlperf.missed


def test_a_run_that_loadgen_calls_invalid_is_said_to_be_so(tmp_path: Path) -> None:
    told = {"result_validity": "INVALID", "result_min_duration_met": True, "result_min_queries_met": False, "early_stopping_met": False}
    told |= {"result_query_count": 12, "result_90.00_percentile_latency_ns": 2_500_000, "effective_min_duration_ms": 1000}
    lines = [f":::MLLOG {json.dumps({'key': key, 'value': value})}" for key, value in told.items()]
    (tmp_path / "mlperf_log_detail.txt").write_text("\n".join(lines))
    found = loadgen.read(tmp_path, single=True)
    assert (found["valid"], found["missed"], found["p90_ms"]) == (False, ["minimum of queries", "early stopping"], 2.5)
    some = next(one for one in reports.plain().rows if one.picked)
    mlperf = Mlperf(scenario="mlperf-singlestream", our_p90_ms=2.4, version="5.1", **found)
    row = some.model_copy(update={"mlperf": mlperf})
    told_so = "LoadGen singlestream INVALID, not met: minimum of queries, early stopping: p90 2.50 ms, 12 queries in at least 1"
    assert words.loadgen(row).startswith(told_so)
    assert words.Words(reports.plain()).why_not(row.model_copy(update={"picked": False}))[-1].startswith(told_so)


# ---- the template


@pytest.fixture
def template() -> Iterator[Template]:
    with Template("onnxruntime") as made:
        yield made


def test_children_of_a_template_are_processes_of_their_own(template: Template, model: Artifact) -> None:
    with Child("one", template=template) as one, Child("other", template=template) as other:
        assert one.process.pid != other.process.pid
        for child in (one, other):
            child.ask("open", path=str(model.path), backend="onnxruntime", threads=1, requests=1, options={}, execution={})
        one.freeze()
        assert other.ask("usage")[0]["rss_mb"] > 0
        one.thaw()
        assert one.ask("usage")[0]["rss_mb"] > 0
        os.killpg(one.process.pid, signal.SIGKILL)
        with pytest.raises(StepError, match=r"one: .* killed by SIGKILL"):
            one.ask("usage")


def test_children_die_with_their_template() -> None:
    template = Template("null")
    child = Child("one", template=template)
    child.ask("usage")
    template.close()
    with pytest.raises(StepError):  # the system kills it soon, not at once
        for _ in range(200):
            child.ask("usage")
            clock.sleep(0.05)
    child.close()
    with pytest.raises(StepError, match="the process that imports the runtime ended"):
        Child("late", template=template)


def test_a_missing_runtime_is_told_by_the_child(tmp_path: Path) -> None:
    with Template("tensorrt") as template, Child("one", template=template) as child:
        assert child.ask("usage")[0]["rss_mb"] > 0


# ---- what the machine did


def conditions(monkeypatch: pytest.MonkeyPatch, **blocks: list[float]) -> Conditions:
    """Conditions of so many blocks of one second; values are those after each block."""
    count = len(next(iter(blocks.values())))
    states = [
        {"mhz": 3000.0, "celsius": 50.0, "throttled": 0, "total_s": 2.0 * index, "steal_s": 0.0}
        | {name: values[max(index - 1, 0)] for name, values in blocks.items()}
        for index in range(count + 1)
    ]
    following = itertools.chain(states, itertools.repeat(states[-1]))
    monkeypatch.setattr(machine, "state", lambda: dict(next(following)))
    seconds = itertools.count()
    monkeypatch.setattr(clock, "monotonic", lambda: float(next(seconds)))
    made = Conditions()
    for _ in range(count):
        made.block()
    return made


@pytest.mark.parametrize(
    ("what", "given", "disturbed", "unstable"),
    [
        ("clock", {"mhz": [3000.0] * 9 + [2700.0]}, 1, False),
        ("clock", {"mhz": [3000.0] * 7 + [2700.0] * 3}, 3, True),
        ("throttling", {"throttled": [0, 0, 0, 0, 1, 1, 2, 3, 3, 3]}, 3, True),
        ("steal", {"steal_s": [0.0, 0.0, *[0.2] * 8]}, 1, False),
        ("steal", {"steal_s": [0.2 * index for index in range(10)]}, 9, True),
    ],
)
def test_a_block_that_the_machine_disturbed_is_flagged(
    what: str, given: dict[str, list[float]], disturbed: int, unstable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = conditions(monkeypatch, **given)
    assert made.disturbed()[what] == made.disturbed()["any"] == disturbed
    assert made.flags() == (["unstable"] if unstable else [])
    told = made.read()
    assert told["blocks_disturbed"][what] == disturbed and told["blocks"] == 10


def on_gpu(blocks: list[dict[str, dict[str, Any]]]) -> Conditions:
    """Conditions of blocks on a GPU: for each variant what its reading has unlike a steady one."""
    made = Conditions()
    for block in blocks:
        for variant, changes in block.items():
            held = {"power": 0, "heat": 0, "board": None, "reliability": None} | changes.get("held_ns", {})
            made.turn(variant, {"mhz": 1980, "celsius": 60, "slowed": False, "at_power_limit": False, **changes, "held_ns": held})
        made.block()
    return made


STEADY: dict[str, Any] = {"fp32": {}, "int8": {}}


@pytest.mark.parametrize(
    ("what", "changes", "disturbed"),
    [
        ("throttling", {"slowed": True}, 1),
        ("throttling", {"held_ns": {"heat": 1}}, 1),
        ("clock", {"mhz": 1700}, 1),
        ("clock", {"mhz": 1700, "at_power_limit": True}, 0),
        ("clock", {"mhz": 1700, "held_ns": {"power": 1}}, 0),
        ("throttling", {"at_power_limit": True, "held_ns": {"power": 1}}, 0),
        ("clock", {"mhz": None, "slowed": None, "at_power_limit": None, "held_ns": {"power": None, "heat": None}}, 0),
    ],
)
def test_heat_disturbs_a_block_on_a_gpu_and_its_power_limit_is_told(what: str, changes: dict[str, Any], disturbed: int) -> None:
    made = on_gpu([STEADY] * 9 + [{"fp32": {}, "int8": changes}])
    told = made.read()
    assert told["blocks_disturbed"][what] == told["blocks_disturbed"]["any"] == disturbed
    limited = bool(changes.get("at_power_limit") or changes.get("held_ns", {}).get("power"))
    assert told["blocks_at_power_limit"] == int(limited) and told["throttled"] is None


def test_a_heavier_variant_s_own_clock_is_no_disturbance() -> None:
    made = on_gpu([{"fp32": {"mhz": 1400}, "int8": {"mhz": 1980, "celsius": 71}}] * 10)
    assert made.flags() == [] and made.read()["mhz"] == [1400, 1690, 1980] and made.read()["celsius_max"] == 71


def test_what_held_a_gpu_s_clock_is_summed_over_the_session() -> None:
    counted = [{"fp32": {"held_ns": {"power": 2_000_000 * index, "heat": 500_000}}} for index in range(1, 5)]
    assert on_gpu(counted).read()["gpu_held_ms"] == {"power": 6.0, "heat": 0.0}


def test_on_a_gpu_the_cpu_s_clock_has_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = itertools.cycle([3000.0, 1000.0])
    monkeypatch.setattr(machine, "state", lambda: {"mhz": next(clocks), "celsius": 99.0, "throttled": None, "total_s": 1.0, "steal_s": 0.0})
    told = on_gpu([STEADY] * 10).read()
    assert told["blocks_disturbed"]["any"] == 0 and told["mhz"] == [1980, 1980, 1980] and told["celsius_max"] == 60


def test_what_the_process_read_of_its_gpu_reaches_the_session(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Child.ask
    reading = {"mhz": 1410, "celsius": 55, "slowed": True, "at_power_limit": False, "held_ns": {"power": 0, "heat": 0}}

    def asked(child: Child, do: str, *given: Any, **fields: Any) -> Any:
        told, arrays = ask(child, do, *given, **fields)
        return ({**told, "gpu": reading} if do == "time" else told), arrays

    monkeypatch.setattr(Child, "ask", asked)
    found = timed(plan, tmp_path, {"a": model})
    assert (
        found.conditions["mhz"] == [1410, 1410, 1410] and found.conditions["blocks_disturbed"]["throttling"] == found.conditions["blocks"]
    )
    assert found.rows["a"].flags == ["unstable"]


def test_a_machine_that_tells_nothing_is_not_called_unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    made = conditions(monkeypatch, mhz=[None] * 4, celsius=[None] * 4, throttled=[None] * 4)  # type: ignore[list-item]
    assert made.flags() == [] and made.read()["mhz"] is None and made.read()["throttled"] is None


# --- what an accelerator tells


def test_how_a_gpu_was_driven_and_its_own_times_stay_with_the_row(
    plan: Plan, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, asked = {**reports.DEVICE, "conditions": {"driver": "580.65.06", "graphics_mhz": 1980}}, Lane.facts
    monkeypatch.setattr(Lane, "facts", lambda lane: {**asked(lane), **told, "precision": None, "layers": None})
    found = timed(plan, tmp_path, {"a": model})
    assert found.rows["a"].device == reports.DEVICE and found.rows["a"].precision is None
    assert found.conditions["gpu"] == told["conditions"]


def test_a_cpu_tells_none_of_it(plan: Plan, model: Artifact, tmp_path: Path) -> None:
    assert timed(plan, tmp_path, {"a": model}).rows["a"].device is None
