"""peaks: what this machine can do at best: measured once, kept in the store.

Operations per second: the fastest of many runs of a model that does little else than multiply, opened by
each runtime that is here with the target's threads, in each precision that it really executes. Bytes per
second: arrays copied by as many threads, counted as STREAM does (McCalpin, 1995): read and written.
"""

from __future__ import annotations

import datetime
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.core import digest, machine, registry
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.profile import Bandwidth, Peak, Peaks
from edgeopt.core.protocols import Backend
from edgeopt.core.store import Store
from edgeopt.stages.children import Child

if TYPE_CHECKING:
    from onnx import ModelProto

OPENS_ONNX = ("onnxruntime", "openvino")  # other runtimes compile first, for devices of their own
LAYERS = 2  # in a row: what stands around them weighs little, and a run is short enough to find both cores free
RUN_S = 0.15  # each model
COPY_S = 0.05  # each footprint
FOOTPRINTS = (2 << 20, 8 << 20, 32 << 20)  # bytes; one far beyond the caches comes after them
_CASES = (("fp32", False, "f32"), ("bf16", False, "bf16"), ("int8", True, "f32"))


def peaks(threads: int, store: Store, *, fresh: bool = False) -> Peaks | None:
    """The machine's peaks with so many threads, from the store or, when new or `fresh`, measured in a few seconds.

    What was reached once stays: a busy machine never lowers a peak. None where no runtime is here that can tell.
    """
    plugs: dict[str, Backend] = {name: registry.load("backends", name)() for name in OPENS_ONNX}
    here = {name: plug for name, plug in plugs.items() if not plug.probe()}
    if not here:
        return None
    rooms = Path(__file__).parent.parent
    told = {
        "threads": threads,
        "versions": {name: [registry.version(package) for package in plug.needs] for name, plug in here.items()},
        "code": [digest.of_file(rooms / "stages" / "peaks.py"), *(digest.of_file(rooms / "runner" / f"{name}.py") for name in here)],
        "machine": machine.fingerprint()["id"],
    }
    key = digest.of_value(told)
    held = store.get("peaks", key)
    known = Peaks.model_validate_json((held / "peaks.json").read_text()) if held else None
    if known and not fresh:
        return known
    found = _best(_measured(here, threads), known)
    with store.scratch() as scratch:
        (scratch / "peaks.json").write_text(found.model_dump_json(indent=1) + "\n")
        store.drop("peaks", key)
        store.put("peaks", key, scratch)
    return found


def _best(found: Peaks, known: Peaks | None) -> Peaks:
    if known is None:
        return found
    gops = [max(one, known.peak(one.precision) or one, key=lambda peak: peak.gops) for one in found.gops]
    gops += [one for one in known.gops if found.peak(one.precision) is None]
    before = {one.bytes: one.gb_per_s for one in known.bandwidth}
    bandwidth = [Bandwidth(bytes=one.bytes, gb_per_s=max(one.gb_per_s, before.get(one.bytes, 0.0))) for one in found.bandwidth]
    return found.model_copy(update={"gops": gops, "bandwidth": bandwidth})


def _measured(plugs: dict[str, Backend], threads: int) -> Peaks:
    began, best = time.monotonic(), dict[str, Peak]()
    with tempfile.TemporaryDirectory(prefix="edgeopt-peaks-") as folder:
        for precision, quantized, execution in _CASES:
            for drill in _drills(max(1, threads // 2)):
                path = Path(folder) / f"{drill.operator}-{precision}.onnx"
                registry.need("onnx", "all").save(drill.model(quantized), path)
                for name, plug in plugs.items():
                    if plug.refuses({"float": execution}):
                        continue
                    try:
                        facts, seconds = _fastest(path, drill, name, threads, execution)
                    except EdgeoptError:  # what the runtime cannot run has no peak
                        continue
                    reached = Peak(precision=precision, gops=_short(2e-9 * LAYERS * drill.macs / seconds), by=facts["runtime"])
                    if facts["precision"][precision] >= LAYERS and (precision not in best or reached.gops > best[precision].gops):
                        best[precision] = reached
    return Peaks(
        threads=threads,
        gops=list(best.values()),
        bandwidth=[Bandwidth(bytes=size, gb_per_s=_short(_copied(size, threads) / 1e9)) for size in _footprints()],
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 2),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class _Drill:
    """A layer that runtimes are best at: its input, its weights, its multiply-accumulates."""

    operator: str
    data: tuple[int, ...]
    weights: tuple[int, ...]
    macs: int

    def model(self, quantized: bool) -> ModelProto:
        """LAYERS of it in a row; quantized with Q/DQ pairs of unsigned data and signed weights, which every runtime takes here."""
        onnx = registry.need("onnx", "all")
        node, rng = onnx.helper.make_node, np.random.default_rng(0)
        stored: dict[str, Any] = {"scale": np.float32(0.02), "middle": np.uint8(128), "fine": np.float32(0.001), "zero": np.int8(0)}
        nodes, flow = [], "x"
        attributes: dict[str, Any] = {"pads": [1, 1, 1, 1]} if self.operator == "Conv" else {}
        for index in range(LAYERS):
            weights = rng.integers(-127, 127, self.weights, np.int8)
            stored[f"w{index}"] = weights if quantized else (weights / np.float32(1000)).astype(np.float32)
            taken = [flow, f"w{index}"]
            if quantized:
                nodes += [*_rounded(node, flow, f"q{index}"), node("DequantizeLinear", [f"w{index}", "fine", "zero"], [f"v{index}"])]
                taken = [f"q{index}", f"v{index}"]
            nodes.append(node(self.operator, taken, [f"y{index}"], name=f"layer{index}", **attributes))
            flow = f"y{index}"
        if quantized:
            nodes, flow = nodes + _rounded(node, flow, "y"), "y"
        float32, info = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            nodes,
            "peak",
            [info("x", float32, self.data)],
            [info(flow, float32, None)],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)  # type: ignore[no-any-return]


def _rounded(node: Any, taken: str, given: str) -> list[Any]:
    """A tensor rounded to 8 bits and back."""
    eight = f"{given}_8"
    return [node("QuantizeLinear", [taken, "scale", "middle"], [eight]), node("DequantizeLinear", [eight, "scale", "middle"], [given])]


def _drills(batch: int) -> tuple[_Drill, ...]:
    channels, side, width = 128, 28, 512
    return (
        _Drill("Conv", (batch, channels, side, side), (channels, channels, 3, 3), batch * side**2 * channels**2 * 9),
        _Drill("MatMul", (batch * width, width), (width, width), batch * width**3),
    )


def _fastest(path: Path, drill: _Drill, backend: str, threads: int, execution: str) -> tuple[dict[str, Any], float]:
    """What the runtime says of a model, and the seconds of its fastest run."""
    with Child(f"{backend} peak") as child:
        child.ask("open", path=str(path), backend=backend, threads=threads, requests=1, options={}, execution={"float": execution})
        child.ask("feeds", {"0/x": np.random.default_rng(0).standard_normal(drill.data).astype(np.float32)})
        child.ask("time", runs=2, seconds=None)
        _, arrays = child.ask("time", runs=None, seconds=RUN_S)
        return child.ask("facts")[0], float(arrays["compute_ns"].min()) / 1e9


def _footprints() -> tuple[int, ...]:
    """FOOTPRINTS, and four times the last cache, but never more than an eighth of the memory."""
    return (*FOOTPRINTS, max(2 * FOOTPRINTS[-1], min(max(4 * machine.cache_bytes(), 128 << 20), 1 << 30, machine.memory_bytes() // 8)))


def _copied(footprint: int, threads: int) -> float:
    """Bytes read and written per second by so many threads, each copying one half of its share of the footprint to the other."""
    pairs = [(np.ones(footprint // threads // 16), np.ones(footprint // threads // 16)) for _ in range(threads)]
    counts = [0.0] * threads
    ready = threading.Barrier(threads)

    def copy(index: int) -> None:
        taken, given = pairs[index]
        ready.wait()
        best, end = 0.0, time.perf_counter() + COPY_S
        while (began := time.perf_counter()) < end:
            np.copyto(given, taken)
            best = max(best, (taken.nbytes + given.nbytes) / (time.perf_counter() - began))
        counts[index] = best

    workers = [threading.Thread(target=copy, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts)
