"""Are edgeopt's numbers honest? Real sessions with a known difference, simulations with a known truth, other tools' clocks.

    python benchmarks/honesty.py            # at most 60 minutes on two cores that have nothing else to do
    python benchmarks/honesty.py --quick    # a look at each part, 3 minutes
    python benchmarks/honesty.py --only trials --trials 50

Every finished trial is a line in --results; a run that was stopped goes on where it was. Lines that were
measured by other code or on another machine do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import synthetic

import edgeopt
from edgeopt.core import digest, machine, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.protocols import Sample
from edgeopt.core.recipe import Measuring, load
from edgeopt.stages import timing
from edgeopt.stages.children import Child

PARTS = ("trials", "traces", "pairs", "tools", "cost")
WIDTH, ROWS = 96, 64  # one layer: 64 rows through 96 × 96 weights, which stay in the cache
BASE = 100  # layers of the reference
# A session holds the reference and a variant of each: layers of the variant, verdict that is right, how many of 200 must be right.
TRIALS = {"A/A": (100, "indistinguishable", 184), "5 %": (105, "slower", 184), "2 %": (102, "slower", 150)}
TRIAL_S = 4.9  # a trial's share of a session's budget; at most 5 s with all that is around it
TOOLS = {"onnxruntime": "a bare onnxruntime loop", "openvino": "OpenVINO's benchmark_app"}
SIZES = {"under 1 ms": 80, "over 5 ms": 600}  # layers; benchmark_app may tell hundredths of a millisecond, so the first is near 1 ms
RECIPE = """\
edgeopt: 1
name: honesty
model: {onnx: 1.onnx}
data:
  evaluate: {random: normal, samples: 8}
variants:
  fp32: []
targets: [x86-onnxruntime, x86-openvino, "null"]
"""
BARE_LOOP = """
import sys, time, numpy as np, onnxruntime as ort
path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
settings = ort.SessionOptions()
settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
feeds = {one.name: np.random.default_rng(0).normal(size=one.shape).astype(np.float32) for one in session.get_inputs()}
found, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    began = time.perf_counter_ns()
    session.run(None, feeds)
    found.append(time.perf_counter_ns() - began)
print(np.median(found[len(found) // 10 :]) / 1e6)
"""


class Bench:
    """The models, the plan and the finished lines of one run of this script."""

    def __init__(self, folder: Path, results: Path, backend: str) -> None:
        self.folder, self.results, self.backend = folder, results, backend
        self.told: list[str] = []  # sentences of the part that runs
        rooms = CLONE / "edgeopt"
        code = [
            digest.of_folder(rooms / "runner"),
            *(digest.of_file(rooms / f"stages/{name}.py") for name in ("timing", "lane", "statistics", "children")),
        ]
        self.identity = digest.of_value([code, machine.fingerprint()["id"], backend, WIDTH, ROWS, BASE, TRIALS, TRIAL_S, SIZES])
        self.lines = self._read()
        chain(folder / "1.onnx", 1)
        (folder / "recipe.yaml").write_text(RECIPE)
        self.plan: Plan = edgeopt.plan(load(folder / "recipe.yaml"))
        rng = np.random.default_rng(0)
        samples = [Sample({"x": rng.normal(size=WIDTH).astype(np.float32)}) for _ in range(8)]
        self.samples = samples

    def _read(self) -> list[dict[str, Any]]:
        if not self.results.is_file():
            return []
        lines = (json.loads(line) for line in self.results.read_text().splitlines() if line.endswith("}"))
        return [line for line in lines if line["identity"] == self.identity]

    def keep(self, line: dict[str, Any]) -> None:
        self.lines.append({**line, "identity": self.identity})
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")

    def tell(self, sentence: str) -> None:
        """Print a finding at once; --json keeps it."""
        self.told.append(sentence.strip())
        print(sentence, flush=True)

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if all(line.get(name) == value for name, value in wanted.items())]

    def target(self, backend: str) -> PlanTarget:
        return self.plan.target_of("null" if backend == "null" else f"x86-{backend}")

    def artifact(self, layers: int, backend: str) -> Artifact:
        """A chain of layers as it would stand in the store, compiled for a backend."""
        root = self.folder / f"{layers}-{backend}"
        source, files = self.folder / f"{layers}.onnx", root / "files"
        if not source.is_file():
            chain(source, layers)
        signature = registry.load("formats", "onnx")().signature(source)
        main = {"onnxruntime": "model.onnx", "openvino": "model.xml", "null": "null.json"}[backend]
        if not files.is_dir():
            files.mkdir(parents=True)
            if backend == "onnxruntime":
                (files / main).write_bytes(source.read_bytes())
            elif backend == "openvino":
                openvino = registry.need("openvino", "openvino")
                openvino.save_model(openvino.convert_model(source), files / main, compress_to_fp16=False)
            else:
                ports = {name: [[one.name, one.dtype, one.shape] for one in getattr(signature, name)] for name in ("inputs", "outputs")}
                (files / main).write_text(json.dumps(ports))
        return Artifact(root, backend, main, str(layers), "", 0, signature)

    def session(self, artifacts: dict[str, Artifact], backend: str, seconds: float, seed: int) -> timing.Timed:
        """A session as `edgeopt measure` makes it; the first artifact is the reference."""
        measuring = Measuring(precision_percent=0.1, budget_s=seconds)
        plan = self.plan.model_copy(update={"reference": next(iter(artifacts)), "seed": seed, "measure": measuring})
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            timed = timing.time(plan, self.target(backend), artifacts, self.samples, self.folder, Path(scratch), lambda *_: None)
        for error in timed.errors.values():
            raise error
        return timed


def chain(path: Path, layers: int) -> None:
    """So many equal layers in a row: Gemm and Relu, so that no runtime can fold one into the next."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)).astype(np.float32), f"w{layer}")
        for layer in range(layers)
    ]
    nodes = []
    for layer in range(layers):
        before, after = "x" if not layer else f"r{layer - 1}", f"r{layer}" if layer < layers - 1 else "y"
        nodes += [helper.make_node("Gemm", [before, f"w{layer}"], [f"g{layer}"]), helper.make_node("Relu", [f"g{layer}"], [after])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, f"chain{layers}", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


# ---- real sessions with a known difference


def trials(bench: Bench, count: int) -> bool:
    for index in range(count):
        if not bench.of(part="trials", index=index):
            trial(bench, index)
    told = [told_of_trials(bench, name, count) for name in TRIALS]  # all of them, also after one that is not met
    return all(told)


def trial(bench: Bench, index: int) -> None:
    """One session, and so one trial of each kind."""
    began = time.perf_counter()
    layers = {"reference": BASE} | {name: own for name, (own, _, _) in TRIALS.items()}
    artifacts = {name: bench.artifact(one, bench.backend) for name, one in layers.items()}
    timed = bench.session(artifacts, bench.backend, len(TRIALS) * TRIAL_S, seed=index)
    found = {name: timed.rows[name].speedup for name in TRIALS}
    bench.keep(
        {
            "part": "trials",
            "index": index,
            "verdicts": {name: one.verdict for name, one in found.items() if one},
            "speedups": {name: one.value for name, one in found.items() if one},
            "ci95": {name: one.ci95 for name, one in found.items() if one},
            "noise_percent": timed.noise_percent,
            "conditions": timed.conditions,
            "p50": timed.rows["reference"].latency_ms.p50,  # type: ignore[union-attr]  # every row here was timed
            "seconds": time.perf_counter() - began,
        }
    )
    line = bench.lines[-1]
    told = ", ".join(f"{name} {one.verdict} {one.value:.4f} [{one.ci95[0]:.4f}, {one.ci95[1]:.4f}]" for name, one in found.items() if one)
    print(f"  {index}: {told}, noise {line['noise_percent']:.2f} %, {line['seconds']:.1f} s", flush=True)


def told_of_trials(bench: Bench, name: str, count: int) -> bool:
    own, right, needed = TRIALS[name]
    truth = BASE / own
    found = [line for line in bench.of(part="trials") if line["index"] < count]
    hits = sum(line["verdicts"][name] == right for line in found)
    wrong_sign = sum(line["verdicts"][name] == "faster" for line in found) if right == "slower" else 0
    intervals = [line["ci95"][name] for line in found]
    inside = sum(low <= truth <= high for low, high in intervals)
    mean = 100 * (np.exp(-np.mean(np.log([line["speedups"][name] for line in found]))) - 1)
    share = np.array([line["seconds"] for line in found]) / len(TRIALS)
    good = hits >= needed * len(found) / 200 and not wrong_sign and np.median(share) <= 5.0
    bench.tell(f"{name}: {hits} of {len(found)} {right} (at least {needed} of 200), {wrong_sign} with the wrong sign: {verdict(good)}")
    idle = [line["conditions"]["idle_cpu_percent_max"] for line in found]
    noise, rounds = (
        np.median(column) for column in zip(*((one["noise_percent"], one["conditions"]["rounds"]) for one in found), strict=True)
    )
    bench.tell(
        f"    {own - BASE} % more layers, mean of all {mean:+.2f} %; interval ±{np.median([50 * (high - low) for low, high in intervals]):.2f} %, "
        f"holds {truth:.3f} in {100 * inside / len(found):.0f} %; noise {noise:.2f} %, {rounds:.0f} rounds, "
        f"{np.median(share):.1f} s a trial, {max(share):.1f} s at most, frozen processes on {max(idle):.1f} % of a core at most"
    )
    return bool(good)


# ---- simulations


def traces(bench: Bench, count: int) -> bool:
    held = synthetic.coverage(count)
    good = 0.93 <= held["all"] <= 0.97
    bench.tell(f"intervals on {count:,} synthetic traces hold the truth in {100 * held['all']:.1f} % (93 to 97 %): {verdict(good)}")
    bench.tell("    " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in held.items() if name != "all"))
    return good


def pairs(bench: Bench, count: int) -> bool:
    found = [
        synthetic.right_or_wrong(*one, count) for one in ((620, 0.05, 0.02), (2000, 0.02, 0.008), (2000, 0.1, 0.02), (5000, 0.01, 0.004))
    ]
    found.append(synthetic.measured(200, 0.2, count // 3))
    for one in found:
        good = one.false_alarms <= 0.07 and abs(one.power - one.formula) <= 0.03
        alarms = f"false alarms {100 * one.false_alarms:.1f} % (at most 5 + 2)"
        power = f"power {100 * one.power:.1f} %, by the formula {100 * one.formula:.1f} % (within 3)"
        bench.tell(f"{one.what}: {alarms}, {power}: {verdict(good)}")
    return all(one.false_alarms <= 0.07 and abs(one.power - one.formula) <= 0.03 for one in found)


# ---- other tools' clocks


def tools(bench: Bench, rounds: int) -> bool:
    """edgeopt and the other tool in turn, each time in new processes, on the same artifact and threads."""
    good = True
    for backend, tool in TOOLS.items():
        for size, layers in SIZES.items():
            artifact, threads = bench.artifact(layers, backend), bench.target(backend).threads
            for index in range(len(bench.of(part="tools", backend=backend, size=size)), rounds):
                figures: dict[str, float] = {}
                for who in random.Random(index).sample(["ours", "theirs"], 2):
                    figures[who] = _ours(bench, artifact, backend, index) if who == "ours" else _theirs(backend, artifact.path, threads)
                bench.keep({"part": "tools", "backend": backend, "size": size, "index": index, **figures})
            lines = bench.of(part="tools", backend=backend, size=size)[:rounds]
            # Whatever else runs on the machine only ever adds time: the quieter rounds are what the two can be compared by.
            ours, theirs = (float(np.percentile([line[who] for line in lines], 25)) for who in ("ours", "theirs"))
            apart = ours / theirs - 1
            fits = abs(apart) <= 0.03 and (ours < 1 if size == "under 1 ms" else ours > 5)
            told = f"{theirs:.4f} ms, edgeopt {ours:.4f} ms, {100 * apart:+.1f} % (within 3 %)"
            bench.tell(f"{tool}, {size}: {told}, lower quartile of {len(lines)} medians each: {verdict(fits)}")
            good &= fits
    return good


def _ours(bench: Bench, artifact: Artifact, backend: str, seed: int) -> float:
    row = bench.session({"model": artifact}, backend, 2.0, seed).rows["model"]
    assert row.latency_ms
    return row.latency_ms.p50


def _theirs(backend: str, path: Path, threads: int) -> float:
    """The other tool's median of two seconds, in milliseconds."""
    if backend == "onnxruntime":
        command = [sys.executable, "-c", BARE_LOOP, str(path), str(threads), "2"]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    settings = ["-api", "sync", "-hint", "none", "-nthreads", str(threads), "-nstreams", "1", "-infer_precision", "f32", "-t", "2"]
    tool = Path(sys.executable).parent / "benchmark_app"
    said = subprocess.run([str(tool), "-m", str(path), "-d", "CPU", *settings], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s*([0-9.]+) ([mu]s)", said)
    if not found:
        raise SystemExit(f"benchmark_app told no median:\n{said[-2000:]}")
    return float(found[1]) * (1e-3 if found[2] == "us" else 1)


# ---- our own cost


def cost(bench: Bench, runs: int) -> bool:
    """What the harness itself takes of a call: a runtime that computes nothing, timed from outside."""
    with Child("cost") as child:
        child.open(bench.artifact(1, "null"), bench.target("null"))
        sample = {"0/x": np.zeros((ROWS, WIDTH), np.float32)}
        child.ask("feeds", arrays=sample)
        child.ask("time", runs=1000, seconds=None)
        found = []
        for _ in range(7):
            began = time.perf_counter()
            _, arrays = child.ask("time", runs=runs, seconds=None)
            found.append((1e6 * (time.perf_counter() - began) / runs, np.median(arrays["compute_ns"]) / 1e3))
    whole, inside = (float(np.median(column)) for column in zip(*found, strict=True))
    good = whole <= 20
    bench.tell(
        f"the harness's own cost: {whole:.2f} µs a call (at most 20), {inside:.2f} µs of it within what is told as latency: {verdict(good)}"
    )
    return good


def verdict(good: Any) -> str:
    return "ok" if good else "NOT MET"


def main() -> Iterator[bool]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few of each")
    parser.add_argument("--trials", type=int, help="real sessions of each kind (200)")
    parser.add_argument("--only", action="append", choices=PARTS, help="just these parts")
    parser.add_argument("--backend", choices=list(TOOLS), default="onnxruntime", help="runtime of the real sessions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found, part by part, with every line of it")
    parser.add_argument("--results", type=Path, default=Path("runs/honesty.jsonl"))
    given = parser.parse_args()
    counts = (
        {"trials": 3, "traces": 500, "pairs": 300, "tools": 1, "cost": 2000}
        if given.quick
        else {"trials": 200, "traces": 2000, "pairs": 2000, "tools": 12, "cost": 20000}
    )
    counts["trials"] = given.trials or counts["trials"]
    facts = machine.fingerprint()
    told = (facts["cpu"], f"{facts['cores_allowed']} cores", *facts["isa"], facts["kernel"], f"Python {platform.python_version()}")
    print(f"{', '.join(told)}, load {machine.load()}\n")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.results, given.backend)
        outcome: dict[str, Any] = {}
        for part in given.only or PARTS:
            began = time.perf_counter()
            good = {"trials": trials, "traces": traces, "pairs": pairs, "tools": tools, "cost": cost}[part](bench, counts[part])
            outcome[part] = {"met": bool(good), "seconds": round(time.perf_counter() - began, 1), "told": bench.told[:]}
            bench.told.clear()
            print(f"    ({part}: {outcome[part]['seconds']:.0f} s)\n", flush=True)
            if given.json:
                given.json.write_text(json.dumps({"machine": facts, "parts": outcome, "lines": bench.lines}, indent=1) + "\n")
            yield bool(good)


if __name__ == "__main__":
    sys.exit(0 if all(list(main())) else 1)
