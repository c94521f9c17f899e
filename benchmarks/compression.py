"""Compression that pays? edgeopt's picks against its peers' defaults on six trained models, each in one interleaved session.

    python benchmarks/compression.py                            # about an hour on two cores that have nothing else to do
    python benchmarks/compression.py --quick --models lstm      # a look, not a measurement
    python benchmarks/compression.py --olive VENV/bin/python    # with Olive, where a Python has it

The models and their data are those of tests/zoo. All start from the same ONNX file with static shapes (batch
1), the same calibration samples and the same number of threads. edgeopt walks its variants on both CPU
runtimes and picks by its own sessions; then everything, peers and variants, is scored on the same
evaluation samples and timed in one session by the same code.

How the comparison is made fair: a peer's file runs on every runtime that takes it, with what stays float in
f32 and in bf16, and the fastest that keeps the budget counts; the fastest of all peers, FP32 among them, is
what edgeopt is held against. edgeopt has its pick on each runtime, and the faster one counts. Speed-ups are
against FP32 on the faster runtime. Both sides are judged by the same figures: the score as measured, not
its interval (edgeopt's own gate asks for the interval, and is harder on itself).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np

import edgeopt
from edgeopt.core import machine, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.plan import Plan
from edgeopt.core.recipe import Measuring
from edgeopt.core.report import Report
from edgeopt.stages import score, statistics, survey, timing
from edgeopt.stages.build import Build, artifact_of
from edgeopt.stages.children import environment
from tests import zoo

MODELS = ("efficientnet_lite0", "mnist_cnn", "detector", "lstm", "minilm", "magika")
TARGETS = {"x86-openvino": "openvino", "x86-onnxruntime": "onnxruntime"}
# What edgeopt chooses from. BUDGET stands for the model's budget, as a gate has it.
VARIANTS: dict[str, list[Any]] = {
    "fp32": [],
    "bf16": ["execute-bf16"],
    "int8": ["simplify", "quantize-int8"],
    "int8-bf16": ["simplify", "quantize-int8", "execute-bf16"],
    "mixed": ["simplify", {"mixed-precision": {"budget": "BUDGET"}}],
}
# Where a peer's file runs: the runtime, and how the rest that is float executes.
ANYWHERE = (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))
PEERS = {
    "fp32-onnx": (("onnxruntime", "f32"),),
    "fp32-openvino": (("openvino", "f32"), ("openvino", "bf16")),
    "quantize_static": ANYWHERE,
    "nncf-onnx": ANYWHERE,
    "nncf-openvino": (("openvino", "f32"), ("openvino", "bf16")),
    "olive": ANYWHERE,
}
REFERENCE = "fp32-onnx · onnxruntime"
FP32 = (REFERENCE, "fp32-openvino · openvino")
MEAN, LEAST = 1.10, 0.97  # what is asked of edgeopt's picks against the fastest peer
ENOUGH, POINT, DECIBELS = 600, 0.01, 25.0  # labelled samples, the drop they may prove, and the SQNR where there are fewer


def budget(model: zoo.Model) -> dict[str, Any]:
    """At most one point of the first score where enough labelled samples judge it, otherwise at least 25 dB SQNR."""
    if model.labelled >= ENOUGH:
        return {"score": next(iter(model.about["fp32"])), "max_drop": POINT}
    return {"score": "sqnr", "min": DECIBELS}


class Bench:
    """One model: its files, edgeopt's walk over it, the peers' files and the session of all."""

    def __init__(self, name: str, folder: Path, given: argparse.Namespace) -> None:
        self.model, self.folder, self.given = zoo.get(name), folder, given
        self.budget = budget(self.model)
        self.static = static(self.model, folder / "static.onnx")
        self.artifacts: dict[str, Artifact] = {}
        self.seconds: dict[str, float] = {}
        self.failures: dict[str, str] = {}

    def walk(self) -> Report:
        """edgeopt's own run: builds its variants, measures them, judges them by the budget and picks."""
        counts = {"calibrate": 32, "tune": 32, "evaluate": 40} if self.given.quick else {}
        variants = {
            name: [self._filled(use) for use in passes]
            for name, passes in VARIANTS.items()
            if all(isinstance(use, str) or next(iter(use)) in registry.names("passes") for use in passes)
        }
        recipe = self.model.recipe(
            model={"onnx": str(self.static)},
            data=self.model.data(**counts),
            variants=variants,
            targets=list(TARGETS),
            gates=[self.budget],
            measure={"budget_s": 2.0 if self.given.quick else 20.0},
        )
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(recipe, indent=1))
        report = edgeopt.run(path, self.folder / "ours")
        built = Build.read(self.folder / "ours")
        for row in report.rows:
            title = f"{row.variant} · {TARGETS[row.target]}"
            if row.artifact:
                self.artifacts[title] = artifact_of(self.folder / "ours", built.of(row.variant, row.target))
                self.seconds[title] = round(sum(step.seconds for step in row.history), 1)
            if row.status != "measured":
                self.failures[title] = " ".join((row.reason or row.status).split())
        return report

    def _filled(self, use: Any) -> Any:
        """A pass with the budget in its place."""
        if isinstance(use, str):
            return use
        [(name, options)] = use.items()
        options = {key: self.budget if value == "BUDGET" else value for key, value in options.items()}
        if name == "mixed-precision" and self.given.quick:
            options["seconds"] = 10
        return {name: options}

    def build_peers(self) -> None:
        """The peers' files, each made in a process of its own by default settings."""
        bf16 = set(machine.BF16_FLAGS) & set(machine.fingerprint()["isa"])
        for name, places in PEERS.items():
            if name == "olive" and not self.given.olive:
                self.failures[name] = "not asked for: give --olive PYTHON"
                continue
            made = self._build_peer(name)
            if made is None:
                continue
            for runtime, execution in places:
                if execution == "bf16" and not bf16:
                    continue
                title = f"{name} · {runtime}" + (" bf16" if execution == "bf16" else "")
                self.artifacts[title] = Artifact(
                    made.root, runtime, made.main, title, "", made.size_bytes, made.signature, {"float": execution}
                )
                self.seconds[title] = self.seconds[name]

    def _build_peer(self, name: str) -> Artifact | None:
        root = self.folder / "peers" / name
        files = root / "files"
        files.mkdir(parents=True)
        python = self.given.olive if name == "olive" else sys.executable
        command = [python, str(CLONE / "benchmarks/compression_peers.py"), name, str(self.static), str(self._calibration()), str(files)]
        # Olive sends word of itself before it looks at its own switch; not so where CI runs.
        quiet = {**environment(), "OLIVE_DISABLE_TELEMETRY": "1", "CI": "true"}
        with (self.folder / f"{name}.log").open("w") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env=quiet, text=True, check=False)
        if done.returncode:
            said = (self.folder / f"{name}.log").read_text().strip().splitlines() or ["it said nothing"]
            self.failures[name] = f"was not made: {said[-1][:200]}"
            return None
        self.seconds[name] = json.loads(done.stdout.splitlines()[-1])["seconds"]
        main = next(path for path in (files / "model.xml", files / "model.onnx") if path.is_file())
        size = sum(path.stat().st_size for path in files.iterdir() if path.is_file())
        signature = registry.load("formats", "onnx")().signature(self.static)
        return Artifact(root, "onnx", main.name, name, "", size, signature)

    def _calibration(self) -> Path:
        """What edgeopt's passes calibrate on, for the peers."""
        if not self.given.quick:
            return self.model.folder / "calibrate.npz"
        path = self.folder / "calibrate.npz"
        if not path.is_file():
            np.savez(path, **{name: array[:32] for name, array in np.load(self.model.folder / "calibrate.npz").items()})
        return path

    def session(self) -> tuple[dict[str, Any], timing.Timed, dict[str, Any]]:
        """Scores, timings and log levels by round of everything that was built, in one session."""
        ours = self.folder / "ours"
        measuring = Measuring(precision_percent=0.5, budget_s=self.given.seconds)
        plan = Plan.read(ours).model_copy(update={"reference": REFERENCE, "measure": measuring})
        rows = {}
        for title, artifact in self.artifacts.items():  # each in a folder of its own, as score wants it
            place = self.folder / "session" / title.replace(" ", "")
            place.mkdir(parents=True)
            (place / "files").symlink_to(artifact.files)
            artifact = artifact.at(place)
            artifact.write()
            rows[title] = artifact
        scored = score.score(plan, "x86-openvino", {title: one.root for title, one in rows.items()}, ours, self.folder, lambda *_: None)
        self.failures |= {title: " ".join(error["cause"].split())[:200] for title, error in scored["errors"].items()}
        sound = {title: one for title, one in rows.items() if title in scored["scores"]}
        samples = survey.load_samples(ours / "samples.npz")
        timed = timing.time(plan, plan.target_of("x86-openvino"), sound, samples, self.folder, self.folder, lambda *_: None)
        self.failures |= {title: " ".join(str(error).split())[:200] for title, error in timed.errors.items()}
        raw = np.load(self.folder / "latency.npz")
        medians = {}
        for title in timed.rows:
            found, blocks, rounds = (raw[f"{title}/{name}"] for name in ("compute_ms", "block", "round"))
            medians[title] = [
                np.log([np.median(found[blocks == block]) for block in np.unique(blocks[rounds == one])]) for one in np.unique(rounds)
            ]
        return scored["scores"], timed, medians


def static(model: zoo.Model, path: Path) -> Path:
    """The model with every open axis fixed to what the data have: a batch of 1, and the samples' own sizes."""
    import onnx
    import onnxruntime
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    proto, data = onnx.load(model.path), np.load(model.folder / "evaluate.npz")
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                make_dim_param_fixed(proto.graph, dim.dim_param, data[value.name].shape[axis] if axis else 1)
    del proto.graph.value_info[:]  # exporters leave sizes of their examples there
    feeds = {value.name: data[value.name][:1] for value in proto.graph.input}
    results = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    for value, array in zip(proto.graph.output, results, strict=True):  # inference does not get through all that counts sizes
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in array.shape)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def compare(bench: Bench, report: Report) -> dict[str, Any]:
    """Every row, edgeopt's pick, the best peer and how they stand to each other."""
    scores, timed, medians = bench.session()
    noise = (timed.noise_percent or 0.0) / 100
    latencies = {title: row.latency_ms for title, row in timed.rows.items() if row.latency_ms}
    base = min((title for title in FP32 if title in latencies), key=lambda title: latencies[title].p50)
    picked = {f"{row.variant} · {TARGETS[row.target]}" for row in report.rows if row.picked}
    rows: list[dict[str, Any]] = []
    for title, row in timed.rows.items():
        found = {label: (value["value"], value["drop"]) for label, value in scores[title].items()}
        value, drop = found[bench.budget["score"]]
        speed = statistics.speedup(statistics.of_pairs(medians[base], medians[title]), noise)
        rows.append(
            {
                "row": title,
                "ours": title.split(" · ")[0] in VARIANTS,
                "picked": title in picked,
                "p50_ms": latencies[title].p50,
                "p50_ci95": latencies[title].p50_ci95,
                "speedup": speed.value,
                "speedup_ci95": speed.ci95,
                "verdict": "–" if title == base else speed.verdict,
                "scores": {label: {"value": one, "drop": lost} for label, (one, lost) in found.items()},
                "keeps_budget": bool(drop <= POINT if "max_drop" in bench.budget else value >= DECIBELS),
                "precision": row.precision,
                "build_s": bench.seconds[title],
            }
        )
    ours = min((row for row in rows if row["picked"]), key=lambda row: row["p50_ms"], default=None)
    peer = min((row for row in rows if not row["ours"] and row["keeps_budget"]), key=lambda row: row["p50_ms"])
    result = {
        "about": bench.model.about,
        "budget": bench.budget,
        "base": base,
        "noise_percent": timed.noise_percent,
        "blocks": latencies[base].blocks,
        "conditions": timed.conditions,
        "rows": sorted(rows, key=lambda row: row["p50_ms"]),
        "failures": bench.failures,
        "pick": ours and ours["row"],
        "peer": peer["row"],
        "ratio": None,
    }
    if ours:
        against = statistics.speedup(statistics.of_pairs(medians[peer["row"]], medians[ours["row"]]), noise)
        result |= {
            "ratio": against.value,
            "ratio_ci95": against.ci95,
            "ratio_verdict": against.verdict,
            "picks_over_budget": [row["row"] for row in rows if row["picked"] and not row["keeps_budget"]],
            "picks_slower_than_fp32": [row["row"] for row in rows if row["picked"] and _slower(row, timed, medians, noise)],
        }
    return result


def _slower(row: dict[str, Any], timed: timing.Timed, medians: dict[str, Any], noise: float) -> bool:
    """Whether a row is slower than FP32 on its own runtime."""
    own = next(title for title in FP32 if row["row"].split(" · ")[1] == title.split(" · ")[1])
    return own in timed.rows and statistics.speedup(statistics.of_pairs(medians[own], medians[row["row"]]), noise).verdict == "slower"


def table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The rows of one model as Markdown."""
    limit = found["budget"]
    wanted = f"at most {100 * POINT:g} point of {limit['score']} lost" if "max_drop" in limit else f"at least {DECIBELS:g} dB SQNR"
    samples, noise = found["about"]["samples"]["evaluate"], found["noise_percent"]
    yield f"### {name}: {wanted}"
    yield ""
    yield f"{found['about']['about']} {samples} evaluation samples; {found['blocks']} blocks, two copies of FP32 apart by {noise:.2f} %."
    yield ""
    labels = list(found["about"]["fp32"])
    yield f"| row | p50 ms | against FP32 | {''.join(f'{label} | lost | ' for label in labels)}SQNR dB | budget | built in s |"
    yield f"|---|---|---|{'---|---|' * len(labels)}---|---|---|"
    for row in found["rows"]:
        title = f"**edgeopt {row['row']}**" if row["ours"] else row["row"]
        mark = (
            " ← pick"
            if row["row"] == found["pick"]
            else " (picked)"
            if row["picked"]
            else " ← best peer"
            if row["row"] == found["peer"]
            else ""
        )
        low, high = row["speedup_ci95"]
        speed = "–" if row["verdict"] == "–" else f"{row['speedup']:.2f}× [{low:.2f}, {high:.2f}]"
        told = "".join(f"{row['scores'][label]['value']:.4f} | {row['scores'][label]['drop']:+.4f} | " for label in labels)
        kept = "kept" if row["keeps_budget"] else "**broken**"
        yield f"| {title}{mark} | {row['p50_ms']:.3f} | {speed} | {told}{row['scores']['sqnr']['value']:.1f} | {kept} | {row['build_s']:.0f} |"
    yield ""
    for title, reason in found["failures"].items():
        yield f"- {title}: {reason}"
    if found["ratio"]:
        low, high = found["ratio_ci95"]
        yield f"- {found['pick']} against {found['peer']}: {found['ratio']:.2f}× [{low:.2f}, {high:.2f}]"
    else:
        yield "- edgeopt picked nothing"
    yield ""


def summary(models: dict[str, dict[str, Any]], asked: list[str]) -> Iterator[str]:
    """The demands, and whether they are met; a model without a pick, or that failed, meets none."""
    yield "### All models"
    yield ""
    none = [name for name in asked if name not in models or not models[name]["ratio"]]
    sound = {name: one for name, one in models.items() if one["ratio"]}
    wrong = none + [f"{name} {row}" for name, one in sound.items() for row in one["picks_over_budget"]]
    slow = none + [f"{name} {row}" for name, one in sound.items() for row in one["picks_slower_than_fp32"]]
    yield f"- Every pick keeps its budget: {_met(wrong)}; none is slower than FP32: {_met(slow)}."
    if sound:
        ratios = {name: one["ratio"] for name, one in sound.items()}
        mean, least = float(np.exp(np.mean(np.log(list(ratios.values()))))), min(ratios.values())
        yield f"- Against the fastest peer that keeps the same budget: {', '.join(f'{name} {ratio:.2f}×' for name, ratio in ratios.items())}."
        yield f"- Geometric mean {mean:.2f}× (at least {MEAN}, goal 1.25: {'ok' if mean >= MEAN else 'NOT MET'}), least {least:.2f}× (at least {LEAST}: {'ok' if least >= LEAST else 'NOT MET'})."
    broken = [f"{name} {row['row']}" for name, one in models.items() for row in one["rows"] if not row["ours"] and not row["keeps_budget"]]
    slower = [
        f"{name} {row['row']}" for name, one in models.items() for row in one["rows"] if not row["ours"] and row["verdict"] == "slower"
    ]
    yield f"- Peers' defaults that break the budget: {', '.join(broken) or 'none'}."
    yield f"- Peers' defaults slower than FP32: {', '.join(slower) or 'none'}."


def _met(against: list[str]) -> str:
    return "NO: " + ", ".join(against) if against else "yes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="few samples, a few seconds of timing")
    parser.add_argument("--seconds", type=float, help="longest timing of a model's session (180)")
    parser.add_argument("--olive", metavar="PYTHON", help="a Python that has olive-ai")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, written after each model")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="an empty folder to leave all files in")
    given = parser.parse_args()
    given.seconds = given.seconds or (3.0 if given.quick else 180.0)
    facts = machine.fingerprint()
    told = (facts["cpu"], f"{facts['cores_allowed']} cores", *facts["isa"], facts["kernel"], f"Python {platform.python_version()}")
    versions = {name: registry.version(name) for name in ("openvino", "onnxruntime", "nncf")}
    print(f"{', '.join(told)}, load {machine.load()}; {', '.join(f'{name} {version}' for name, version in versions.items())}\n")
    models: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.models:
            began = time.monotonic()
            folder = (given.keep or Path(scratch)).absolute() / name
            folder.mkdir(parents=True)
            try:
                bench = Bench(name, folder, given)
                report = bench.walk()
                bench.build_peers()
                models[name] = compare(bench, report)
            except Exception:  # noqa: BLE001  (an hour's other models are not lost with one)
                print(f"### {name}\n\nfailed: {traceback.format_exc()}\n", flush=True)
                continue
            models[name]["seconds"] = round(time.monotonic() - began)
            print("\n".join(table(name, models[name])), flush=True)
            if given.json:
                given.json.write_text(
                    json.dumps({"machine": facts, "versions": versions, "quick": given.quick, "models": models}, indent=1) + "\n"
                )
    print("\n".join(summary(models, given.models)))
    return 0 if len(models) == len(given.models) else 1


if __name__ == "__main__":
    sys.exit(main())
