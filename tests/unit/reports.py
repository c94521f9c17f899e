"""Reports as a run writes them, for the tests of everything that shows one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core.profile import Bandwidth, LayerTime, Peak, Peaks, Profile
from edgeopt.core.report import ArtifactInfo, GateResult, RecipeInfo, Report, Row, StepInfo, TargetInfo
from edgeopt.core.session import Latency, ScoreValue, Speedup
from edgeopt.stages import profile
from edgeopt.stages.work import Layer, Work

VARIANTS = ("fp32", "fp16", "bf16", "int8", "pruned", "pruned-int8")
GATES: list[dict[str, Any]] = [
    {"score": "top1", "max_drop": 0.01},
    {"latency": "p90", "max_ms": 5},
    {"speedup": {"min": 1.5}},
    {"size": {"max_mb": 20}},
]
FIGURES = {  # p50 on OpenVINO, bytes, top1
    "fp32": (5.69, 19_700_000, 0.983),
    "fp16": (5.71, 9_880_000, 0.983),
    "bf16": (3.58, 19_700_000, 0.982),
    "int8": (2.71, 5_049_972, 0.981),
    "pruned": (3.02, 8_100_000, 0.9713),
    "pruned-int8": (1.61, 2_150_000, 0.9567),
}
PEAKS = Peaks(
    threads=2,
    gops=[Peak(precision=name, gops=gops, by="openvino 2026.4.1") for name, gops in (("fp32", 232.0), ("bf16", 448.0), ("int8", 761.0))],
    bandwidth=[Bandwidth(bytes=2 << 20, gb_per_s=180.0), Bandwidth(bytes=128 << 20, gb_per_s=54.0)],
    measured_at="2026-01-31T11:58:00+00:00",
    seconds=4.4,
)
DEVICE = {  # as a TensorRT session tells it
    "gpu": {"name": "NVIDIA H100", "compute_capability": "9.0"},
    "cuda_graph": False,
    "spin_wait": True,
    "transfers": "timed apart",
    "tf32": False,
    "runtime_cache": "none",
    "events_ms": {"h2d": 0.012, "compute": 0.21, "d2h": 0.008, "enqueue": 0.19, "compute_variation": 0.011, "runs": 100},
    "warnings": ["enqueue-bound: launching takes over 80 % of computing; use a CUDA graph"],
}
NASTY = '<script>alert("1")</script> & |pipe| `tick` *star* \x1b[31m]]>'


def step(name: str, seconds: float = 0.4, **notes: Any) -> StepInfo:
    parity = {"max_abs": 3.1e-6, "sqnr_db": 118.4, "not_finite": None, "samples": 4, "tolerance_db": 60.0}
    return StepInfo(step=name, seconds=seconds, options={"per_channel": True} if "int8" in name else {}, notes=notes, parity=parity)


def history(variant: str) -> list[StepInfo]:
    steps = [step("import-torch", 2.91, opset=20)]
    if "pruned" in variant:
        channels = {"conv1": [16, 8], "conv2": [32, 24], "conv3": [64, 40]}
        steps += [
            step("prune-channels", 1.7, macs=[5_600_000, 1_500_000], channels=channels),
            step("fine-tune", 31.5, losses=[0.31, 0.12, 0.08], warning="only 40 samples to learn from"),
        ]
    steps.append(step("export-onnx", 3.3))
    if "int8" in variant:
        kept = [
            {"layer": "attention/softmax", "type": "Softmax", "precision": "fp32", "why": "no INT8 kernel", "noise_db": None, "us": 61.0},
            {"layer": "conv_stem", "type": "Convolution", "precision": "fp32", "why": "below 20 dB alone", "noise_db": 18.4, "us": 210.0},
        ]
        steps.append(step("quantize-int8", 4.25, calibrated_on=256, layers=kept, tried_db={"minmax": 31.3, "mean": 25.2}))
    return [*steps, step("compile openvino", 0.8)]


def executed(variant: str, p50: float) -> list[dict[str, Any]]:
    """Layers as a runtime times them: an INT8 model has a softmax in FP32 among its layers."""
    precision = "int8" if "int8" in variant else "bf16" if variant == "bf16" else "fp32"
    raw = [{"name": "image_reorder", "type": "Reorder", "precision": "other", "us": 30 * p50}]
    raw += [{"name": f"conv{n}", "type": "Convolution", "precision": precision, "us": (190 - 8 * n) * p50} for n in range(6)]
    if precision == "int8":
        raw[4:4] = [
            {"name": "attention/dequantize", "type": "Convert", "precision": "other", "us": 12 * p50},
            {"name": "attention/softmax", "type": "Softmax", "precision": "fp32", "us": 25 * p50},
            {"name": "attention/quantize", "type": "FakeQuantize", "precision": "other", "us": 9 * p50},
        ]
    raw += [{"name": "flatten", "type": "Reshape", "precision": "other", "us": 0.4 * p50}]
    return [*raw, {"name": "classifier", "type": "FullyConnected", "precision": precision, "us": 40 * p50}]


def work() -> Work:
    """What the model behind `executed` multiplies."""
    made = Work()
    for n in range(6):
        made.add(Layer(f"conv{n}", "convolution", 60_000_000, 300_000, 70_000 * (n + 1)), f"conv{n}")
    made.add(Layer("classifier", "matrix", 1_280_000, 2280, 1_280_000), "classifier")
    return made


def profiled(variant: str, p50: float) -> tuple[Profile, list[LayerTime]]:
    return profile.profile(executed(variant, p50), work(), PEAKS, p50)


def run_folder(made: Report, folder: Path, samples: int = 960) -> Path:
    """What a run leaves beside its report that the page reads: raw timings and every layer."""
    rng = np.random.default_rng(0)
    for one in made.targets:
        if one.session is None:
            continue
        place = folder / one.session
        place.mkdir(parents=True)
        rows = {row.variant: row.latency_ms.p50 for row in made.rows if row.target == one.name and row.latency_ms}
        timings = {f"{name}/compute_ms": (p50 * rng.lognormal(0, 0.03, samples)).astype(np.float32) for name, p50 in rows.items()}
        np.savez_compressed(place / "latency.npz", **timings)
        profile.write(place, one.name, PEAKS, {name: profiled(name, p50)[1] for name, p50 in rows.items()})
    return folder


def latency(p50: float, spread: float = 0.008, samples: int = 960) -> Latency:
    few = samples < 64
    return Latency(
        p50=p50,
        p50_ci95=(p50 * (1 - spread), p50 * (1 + spread)),
        p90=None if few else p50 * 1.04,
        p90_ci95=None if few else (p50 * 1.035, p50 * 1.052),
        p95=None if few else p50 * 1.07,
        p99=p50 * 1.21 if samples > 662 else None,
        p99_9=None,
        mean=p50 * 1.01,
        samples=samples,
        blocks=20,
        copy_in_p50=0.02,
        copy_out_p50=0.004,
    )


def scores(top1: float, reference: float = 0.983, samples: int = 1500) -> dict[str, ScoreValue]:
    drop, half = reference - top1, 0.005
    same = top1 == reference
    decibels = 150.0 if same else 38.2 - 400 * drop
    return {
        "top1": ScoreValue(
            value=top1,
            ci95=(top1 - 0.0064, min(1.0, top1 + 0.0064)),
            samples=samples,
            drop=drop,
            drop_ci95=(drop - half, drop + half),
            changed=0.006,
            p_value=0.61,
        ),
        "agreement": ScoreValue(value=1 - abs(drop) * 1.6, ci95=(0.97, 0.998), samples=samples, drop=abs(drop) * 1.6, drop_ci95=None),
        "sqnr": ScoreValue(
            value=decibels, ci95=(decibels - 0.7, decibels + 0.8), samples=samples, drop=150 - decibels, drop_ci95=None, unit="dB"
        ),
    }


def row(variant: str, target: str, p50: float | None, size: int | None, top1: float | None, base: float = 5.69, **changes: Any) -> Row:
    """A measured row, or a built one where there is no p50; `changes` are fields as they are."""
    times = base / p50 if p50 else None
    verdict = "indistinguishable" if times is None or 0.98 < times < 1.02 else "faster" if times > 1 else "slower"
    fields: dict[str, Any] = {
        "variant": variant,
        "target": target,
        "status": "measured" if p50 else "built",
        "reason": None,
        "flags": ["slower-than-reference"] if verdict == "slower" else [],
        "artifact": size
        and ArtifactInfo(
            format="openvino", path=f"artifacts/{target}/{variant}/files/model.xml", digest="sha256:" + "5e" * 32, size_bytes=size
        ),
        "latency_ms": p50 and latency(p50),
        "throughput_per_s": p50 and 1000 / p50,
        "throughput_ci95": p50 and (992 / p50, 1008 / p50),
        "load_ms": p50 and 210.0,
        "first_ms": p50 and 9.1,
        "peak_rss_mb": p50 and 60 + (size or 0) / 1e6 * 2.4,
        "scores": scores(top1) if top1 else {},
        "speedup": Speedup(value=times, ci95=(times * 0.976, times * 1.028), verdict=verdict) if times and variant != "fp32" else None,
        "profile": profiled(variant, p50)[0] if p50 else None,
        "precision": {"int8": 52, "bf16": 0, "fp16": 0, "fp32": 3} if "int8" in variant else {"int8": 0, "bf16": 0, "fp16": 0, "fp32": 55},
        "pareto": False,
        "qualifies": None,
        "picked": False,
        "pick_basis": None,
        "exit_code": 0,
        "history": history(variant),
    }
    return Row(**{**fields, **changes})


def gate(
    demand: dict[str, Any], one: Row, verdict: str, wanted: float, got: float | None, ci: Any = None, reason: str | None = None
) -> GateResult:
    return GateResult(gate=demand, variant=one.variant, target=one.target, verdict=verdict, wanted=wanted, got=got, ci95=ci, reason=reason)  # type: ignore[arg-type]


def judged(one: Row) -> list[GateResult]:
    """The four gates on a row, by its figures."""
    why = "the 95 % interval holds the limit: more samples or a longer measurement would decide it"
    top1, p90, times = one.scores.get("top1"), one.latency_ms and one.latency_ms.p90, one.speedup
    absent = one.reason or f"{one.variant} has no such figure on {one.target}"
    found = []
    if top1 and top1.drop is not None and top1.drop_ci95:
        verdict = "pass" if top1.drop_ci95[1] <= 0.01 else "fail" if top1.drop_ci95[0] > 0.01 else "inconclusive"
        found.append(gate(GATES[0], one, verdict, 0.01, top1.drop, top1.drop_ci95, why if verdict == "inconclusive" else None))
    else:
        found.append(gate(GATES[0], one, "not_measured", 0.01, None, None, absent))
    found.append(
        gate(GATES[1], one, "not_measured", 5, None, None, absent)
        if not p90
        else gate(GATES[1], one, "pass" if p90 <= 5 else "fail", 5, p90, (p90 * 0.99, p90 * 1.01))
    )
    if one.variant == "fp32":
        found.append(gate(GATES[2], one, "pass", 1.5, 1.5))
    elif times:
        found.append(gate(GATES[2], one, "pass" if times.ci95[0] >= 1.5 else "fail", 1.5, times.value, times.ci95))
    else:
        found.append(gate(GATES[2], one, "not_measured", 1.5, None, None, absent))
    size = one.artifact and one.artifact.size_bytes / 1e6
    found.append(gate(GATES[3], one, "pass", 20, size) if size else gate(GATES[3], one, "not_measured", 20, None, None, absent))
    return found


def target(name: str, **changes: Any) -> TargetInfo:
    fields: dict[str, Any] = {
        "name": name,
        "backend": "openvino",
        "scenario": "latency",
        "threads": 2,
        "batch": 1,
        "need": "measured",
        "noise_percent": 0.42,
        "session": f"sessions/{name}",
        "data_digest": "sha256:" + "ab" * 32,
        "conditions": {
            "seconds": 21.4,
            "load_before": 0.31,
            "load_after": 1.92,
            "mhz": [2594.0, 2600.0, 2600.0],
            "steal_percent": 0.02,
        },
        "peaks": PEAKS if changes.get("session", "here") else None,
    }
    return TargetInfo(**{**fields, **changes})


def settled(rows: list[Row], gates: list[GateResult]) -> list[Row]:
    """Rows with what the report stage adds: qualifies, the front, the pick."""
    done = []
    for one in rows:
        mine = [result.verdict for result in gates if (result.variant, result.target) == (one.variant, one.target)]
        others = [
            (other.latency_ms.p50, -other.scores["top1"].value)
            for other in rows
            if other.target == one.target and other.latency_ms and other.scores
        ]
        point = (one.latency_ms.p50, -one.scores["top1"].value) if one.latency_ms and one.scores else None
        front = point is not None and not any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in others)
        done.append(one.model_copy(update={"qualifies": one.status == "measured" and set(mine) <= {"pass"}, "pareto": front}))
    for name in {one.target for one in done}:
        able = [one for one in done if one.target == name and one.qualifies and one.latency_ms and not one.flags]
        if able:
            best = min(able, key=lambda one: one.latency_ms.p50 if one.latency_ms else 0.0)
            done[done.index(best)] = best.model_copy(update={"picked": True, "pick_basis": "latency"})
    return done


def report(targets: list[TargetInfo], rows: list[Row], gates: list[GateResult], **changes: Any) -> Report:
    machine = {
        "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "isa": ["avx2", "avx512_vnni", "avx512_bf16"],
        "arch": "x86_64",
        "cores_visible": 44,
        "cores_allowed": 2,
        "memory_mb": 8192,
        "system": "Linux",
        "kernel": "6.1.0",
        "governor": None,
        "container": "docker",
        "virtual": True,
        "id": "sha256:" + "0c" * 32,
    }
    fields: dict[str, Any] = {
        "edgeopt": "0.1.0",
        "recipe": RecipeInfo(name="mnist-cnn", digest="sha256:" + "1d" * 32, file="recipes/mnist-cnn.yaml"),
        "machine": machine,
        "created_at": "2026-01-31T12:00:00+00:00",
        "reference": "fp32",
        "pick": "latency",
        "exit_code": 0,
        "exit_reasons": [],
        "targets": targets,
        "rows": rows,
        "gates": gates,
        "versions": {"python": "3.11.9", "onnx": "1.20.0", "openvino": "2026.4.1"},
    }
    return Report(**{**fields, **changes})


def plain() -> Report:
    """Six variants on two targets, one pick each: what a good run looks like."""
    rows = [row(variant, "x86-openvino", *FIGURES[variant]) for variant in VARIANTS]
    slow = {"fp16": 6.02, "bf16": None, "int8": 3.44}
    for variant in VARIANTS:
        p50, size, top1 = FIGURES[variant]
        p50 = slow.get(variant, p50 * 1.1)
        if p50 is None:
            refused = "this runtime executes f32 here, not bf16"
            rows.append(row(variant, "x86-onnxruntime", None, None, None, status="unavailable", reason=refused, history=[]))
        else:
            rows.append(row(variant, "x86-onnxruntime", p50, size, top1, base=5.69 * 1.1))
    gates = [result for one in rows for result in judged(one)]
    return report(
        [target("x86-openvino"), target("x86-onnxruntime", backend="onnxruntime", noise_percent=1.1)], settled(rows, gates), gates
    )


def troubled() -> Report:
    """Every status, flags, missing percentiles, gates of all verdicts, a target with nothing to take."""
    first = plain()
    rows, gates = list(first.rows), list(first.gates)
    rate = target("x86-openvino-throughput", scenario="throughput", noise_percent=None)
    few = row(
        "int8",
        rate.name,
        4.4,
        5_049_972,
        0.981,
        latency_ms=latency(4.4, 0.2, samples=40),
        throughput_per_s=12345.6,
        throughput_ci95=(12100.0, 12590.0),
    )
    new = [
        row("fp32", rate.name, 9.1, 19_700_000, 0.983, base=9.1),
        few.model_copy(update={"flags": ["unstable"]}),
        row(
            "bf16", rate.name, 12.0, 19_800_000, 0.982, base=9.1, flags=["slower-than-reference", "larger-than-reference", "synthetic-data"]
        ),
        row(
            "pruned",
            rate.name,
            None,
            None,
            None,
            status="failed",
            reason="fine-tune: ValueError: NaN in the loss\n  → lower the learning rate",
            exit_code=8,
        ),
    ]
    gates += [result for one in new for result in judged(one)]
    rows += settled(new, gates)
    rtx = target("rtx-ada", backend="tensorrt_rtx", need="built", noise_percent=None, session=None, data_digest=None, conditions={})
    built = row("int8", "rtx-ada", None, 6_100_000, None, qualifies=True, picked=True, pick_basis="accuracy gates; no latency was measured")
    rows += [row("fp32", "rtx-ada", None, 21_000_000, None, qualifies=True), built]
    orin = target("jetson-orin", backend="tensorrt", need="bundled", noise_percent=None, session=None, data_digest=None, conditions={})
    rows += [
        row(name, "jetson-orin", None, None, None, status="unavailable", reason="the package 'tensorrt' is not installed", exit_code=5)
        for name in ("fp32", "int8")
    ]
    rows.append(row("pruned-int8", "jetson-orin", None, 900, None, status="bundled"))
    reasons = [
        "pruned on x86-openvino-throughput: fine-tune: ValueError: NaN in the loss",
        "x86-openvino-throughput: no variant passes every gate",
    ]
    return report([*first.targets, rate, rtx, orin], rows, gates, exit_code=8, exit_reasons=reasons)


def nasty() -> Report:
    """A good run whose texts try to break every format they are written into."""
    first = plain()
    rows = [one.model_copy(update={"variant": NASTY if one.variant == "int8" else one.variant}) for one in first.rows]
    rows[5] = rows[5].model_copy(
        update={"status": "failed", "reason": NASTY, "exit_code": 8, "history": [step(NASTY, note=NASTY)], "latency_ms": None}
    )
    gates = [one.model_copy(update={"variant": NASTY if one.variant == "int8" else one.variant, "reason": NASTY}) for one in first.gates]
    named = first.recipe.model_copy(update={"name": NASTY})
    return first.model_copy(update={"rows": rows, "gates": gates, "exit_reasons": [NASTY], "recipe": named})


def large(count: int = 500) -> Report:
    """So many rows on two targets, each with four gates and a full history."""
    rng = random.Random(0)
    rows = []
    for index in range(count):
        where = ("x86-openvino", "x86-onnxruntime")[index % 2]
        if index < 2:
            rows.append(row("fp32", where, *FIGURES["fp32"]))
            continue
        p50 = rng.uniform(1.2, 6.5)
        name = f"{'pruned-' if index % 3 else ''}int8-{index // 2:03d}"
        rows.append(row(name, where, p50, rng.randint(1_000_000, 22_000_000), min(0.983, 0.95 + p50 * 0.01 + rng.uniform(-0.01, 0.01))))
    gates = [result for one in rows for result in judged(one)]
    return report([target("x86-openvino"), target("x86-onnxruntime", backend="onnxruntime")], settled(rows, gates), gates)
