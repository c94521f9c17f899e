"""TensorRT and its neighbours on this machine's NVIDIA GPU: first the timing code is checked, then each runtime that is here is timed.

python benchmarks/gpu.py             # everything that is here; a few minutes
python benchmarks/gpu.py --check     # the timing code only: needs torch with CUDA, nothing else

Ends with 5 and says what is missing where there is no GPU. It was written without one: no figure of it is known yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gpu_timing import RUNS, WARM_UP, check_timing
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends.tensorrt import Tensorrt, TensorrtOptions
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.runner import nvml, onnxruntime
from edgeopt.runner import tensorrt_library as library
from edgeopt.stages.children import Child

EXIT_MISSING, EXIT_WRONG = 5, 8
PROVIDERS = ("cuda", "tensorrt", "tensorrt-rtx")  # as a target's options name them
UNSTEADY = 0.025  # trtexec's own limit on the coefficient of variation
Model = Callable[[], Artifact]


def main() -> int:
    parser = argparse.ArgumentParser(description="TensorRT and its neighbours on this machine's GPU")
    parser.add_argument("--check", action="store_true", help="check the timing code only")
    asked = parser.parse_args()
    reason, cuda, gpus = library.gpu_problem()
    print_here(reason, cuda, gpus)
    if reason:
        print("\nnothing can be measured here: run this on a machine with an NVIDIA GPU and its driver", file=sys.stderr)
        return EXIT_MISSING
    sound = check_timing()
    if asked.check or not sound:
        return 0 if sound else EXIT_WRONG
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(Path(folder)).items():
            rows += [row(f"onnxruntime {provider}", name, by_provider, provider, model) for provider in PROVIDERS]
            rows += [row(library.TITLES[product], name, by_tensorrt, product, model) for product in library.PACKAGES]
    table(rows)
    return 0


def print_here(reason: str, cuda: int, gpus: list[dict[str, Any]]) -> None:
    """What is here and what is missing."""
    shown = ", ".join(f"{gpu['name']} ({gpu['compute_capability']})" for gpu in gpus)
    print(f"{'GPU':<22}{reason or f'{shown}; the driver has CUDA {cuda // 1000}.{cuda % 1000 // 10}'}")
    for product, title in library.TITLES.items():
        found = library.look(product)
        print(f"{title:<22}{found.library or found.version}")
    try:
        import torch

        print(f"{'torch':<22}{torch.__version__}{'' if torch.cuda.is_available() else ', without CUDA'}")
    except ImportError:
        print(f"{'torch':<22}not installed")
    try:
        runtime = onnxruntime.library()
        here = [provider for provider in PROVIDERS if not onnxruntime.why_not(provider)]
        print(f"{'onnxruntime':<22}{runtime.__version__}, with {', '.join(here) or 'no provider for NVIDIA GPUs'}")
    except Exception as error:  # noqa: BLE001  (what is broken raises what it likes)
        print(f"{'onnxruntime':<22}cannot be imported: {error}")


def models(folder: Path) -> dict[str, Model]:
    """A plain CNN of 8 residual blocks on a 224² image, as it is and in FP16: each made when a row first asks for it."""

    @cache
    def full() -> Artifact:
        return artifact(folder / "fp32", residual_cnn())

    @cache
    def half() -> Artifact:
        (folder / "cast").mkdir(parents=True, exist_ok=True)
        return artifact(folder / "fp16", onnx.load(CastFp16().run(full(), Context(folder=folder / "cast"))))

    return {"CNN fp32": full, "CNN fp16": half}


def residual_cnn(width: int = 64, blocks: int = 8) -> onnx.ModelProto:
    numbers = np.random.default_rng(0)
    tensors, nodes = [], []

    def conv(source: str, result: str, inputs: int, stride: int = 1) -> None:
        weight = numbers.standard_normal((width, inputs, 3, 3)).astype(np.float32) * (2 / (inputs * 9)) ** 0.5
        tensors.append(numpy_helper.from_array(weight, f"{result}_w"))
        nodes.append(helper.make_node("Conv", [source, f"{result}_w"], [result], name=result, pads=[1] * 4, strides=[stride] * 2))

    conv("x", "stem", 3, stride=2)
    last = "stem"
    for block in range(blocks):
        conv(last, f"c{block}", width)
        nodes.append(helper.make_node("Relu", [f"c{block}"], [f"r{block}"], name=f"relu{block}"))
        nodes.append(helper.make_node("Add", [f"r{block}", last], [f"a{block}"], name=f"add{block}"))
        last = f"a{block}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["p"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"], name="flatten"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 3, 224, 224]), ("y", [1, width]))]
    made = helper.make_graph(nodes, "cnn", ends[:1], ends[1:], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def artifact(root: Path, proto: onnx.ModelProto) -> Artifact:
    (root / "files").mkdir(parents=True, exist_ok=True)
    path = root / "files" / "model.onnx"
    onnx.save(proto, path)
    return Artifact(root, "onnx", path.name, "", "", path.stat().st_size, Onnx().signature(path))


def feeds() -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)}


def by_provider(provider: str, model: Model) -> dict[str, Any]:
    """One provider of onnxruntime, opened as a target opens it; a node that fell back to the CPU is an error."""
    if reason := onnxruntime.why_not(provider):
        return {"note": reason}
    found, facts = timed("onnxruntime", model().path, {"provider": provider})
    return {**found, "note": "; ".join([found["note"], f"executes {facts['precision']}"])}


def by_tensorrt(product: str, model: Model) -> dict[str, Any]:
    """One flavour of TensorRT: built here, opened in a process of its own, timed by our clock and by the GPU's."""
    look = library.look(product)
    if reason := library.why_not_run(product):
        return {"note": reason}
    options = TensorrtOptions(product=product, compute_capabilities=(look.gpus[0]["compute_capability"],)).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as folder:
        target = {"batch": 1, "compile_on": "host", "int8": "s8s8", "options": options}
        engine = Tensorrt().compile(model(), Context(folder=Path(folder), target=target))
        found, facts = timed("tensorrt", engine, options)
    events = facts["events_ms"]
    told = f"CUDA graph {'on' if facts['cuda_graph'] else 'off'}, spin-wait {'on' if facts['spin_wait'] else 'off'}"
    return {
        **found,
        "events_ms": events["compute"],
        "h2d_ms": events["h2d"],
        "d2h_ms": events["d2h"],
        "enqueue_ms": events["enqueue"],
        "note": "; ".join([told, found["note"], *facts["warnings"]]),
    }


def timed(backend: str, path: Path, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row by our clock (copies apart from compute, the first run apart from the others), and the runtime's facts."""
    with Child(backend) as child:
        child.ask("open", path=str(path), backend=backend, threads=1, requests=1, options=options, execution={"float": "f32"})
        child.ask("feeds", {"0/x": feeds()["x"]})
        first = child.ask("first")[0]["first_ms"]
        facts = child.ask("facts")[0]
        child.ask("time", runs=WARM_UP)
        before = nvml.conditions()
        times = {name: array / 1e6 for name, array in child.ask("time", runs=RUNS)[1].items()}
        clocks = nvml.conditions()
    compute = times["compute_ns"]
    notes = [f"first run {first:.0f} ms", f"clocks before {json.dumps(before)}, after {json.dumps(clocks)}"]
    if (spread := float(compute.std() / compute.mean())) > UNSTEADY:
        notes.append(f"coefficient of variation {100 * spread:.1f} %: unsteady")
    copies = {"h2d_ms": float(np.median(times["load_ns"])), "d2h_ms": float(np.median(times["read_ns"]))}
    return {"compute_ms": float(np.median(compute)), **copies, "note": "; ".join(notes)}, facts


def row(runtime: str, model: str, measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """One line of the table; a runtime that fails says why, and the others go on."""
    try:
        return {"runtime": runtime, "model": model, **measure(*given)}
    except Exception as error:  # noqa: BLE001  (a package that is missing, a model that cannot be made, whatever a runtime raises)
        return {"runtime": runtime, "model": model, "note": f"ERROR: {' '.join(f'{type(error).__name__}: {error}'.split())[:160]}"}


def table(rows: list[dict[str, Any]]) -> None:
    columns = ("compute_ms", "events_ms", "h2d_ms", "d2h_ms", "enqueue_ms")
    print(f"\n{'runtime':<26}{'model':<10}" + "".join(f"{name:>12}" for name in columns) + "  note")
    for one in rows:
        figures = "".join(f"{one[name]:>12.3f}" if name in one else f"{'':>12}" for name in columns)
        print(f"{one['runtime']:<26}{one['model']:<10}{figures}  {one.get('note', '')}")


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.exit(main())
