"""Times of a TensorRT slot by CUDA events, what trtexec would warn of, and what the engine executes in which precision.

Thresholds are trtexec's. Nothing here ran on a GPU yet, the words about an engine's layers among it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import tensorrt_cuda
from edgeopt.runner.tensorrt_library import trt

if TYPE_CHECKING:
    from edgeopt.runner import Feeds
    from edgeopt.runner.tensorrt_slot import Slot

RUNS, WARM_UP = 100, 20
_PROFILED_RUNS = 5
# Layer types that move or re-represent data.
_MOVES = re.compile(
    r"Reformat|NoOp|Constant|Shuffle|Slice|Concat\w*|Gather|Scatter|Cast|Quantize|Dequantize|Resize|Padding|Identity|ShapeHostToDevice|signal|wait",
    re.IGNORECASE,
)
_TYPE_ENTRIES = ("format/datatype", "format", "datatype")
_PRECISIONS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("float8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)


def timed(slot: Slot, feeds: Feeds) -> dict[str, Any]:
    """Milliseconds of copying in, computing and copying out by the GPU's own clock, and of the launch by ours: medians of 100 runs.

    `compute_variation` is the standard deviation of computing over its mean.
    """
    slot.load(feeds)
    watch = tensorrt_cuda.Stopwatch(slot.stream, 4)
    laps, launches = [], []
    for _ in range(WARM_UP + RUNS):
        watch.mark(0)
        for port in slot.inputs:
            slot.buffers[port.name].to_device(slot.stream)
        watch.mark(1)
        began = time.perf_counter_ns()
        slot.start()
        launches.append((time.perf_counter_ns() - began) / 1e6)
        watch.mark(2)
        for port in slot.outputs:
            slot.buffers[port.name].to_host(slot.stream)
        watch.mark(3)
        laps.append(watch.laps())
    watch.close()
    kept = np.array(laps[WARM_UP:])
    middle = np.median(kept, axis=0)
    return {
        "h2d": round(float(middle[0]), 6),
        "compute": round(float(middle[1]), 6),
        "d2h": round(float(middle[2]), 6),
        "enqueue": round(float(np.median(launches[WARM_UP:])), 6),
        "compute_variation": round(float(kept[:, 1].std() / kept[:, 1].mean()), 6),
        "runs": RUNS,
    }


def warnings(times: dict[str, Any], graph: bool) -> list[str]:
    """What trtexec warns of: figures that say more about the host, the bus or the clocks than about the engine. `graph`: it is one."""
    found = []
    if times["enqueue"] > 0.8 * times["compute"]:
        mend = "a larger batch tells more" if graph else "use a CUDA graph"
        found.append(f"enqueue-bound: launching takes over 80 % of computing; {mend}")
    if max(times["h2d"], times["d2h"]) >= times["compute"]:
        found.append("transfer-bound: copying takes longer than computing")
    if times["compute_variation"] > 0.025:
        found.append(f"unsteady: computing varies by {times['compute_variation']:.1%}; lock the GPU's clocks")
    return found


def precisions(layers: list[dict[str, Any]]) -> dict[str, int] | None:
    """Layers that compute, by the type of what they take; None where the inspector tells no types, as of engines built without them."""
    if not any(_types(layer) for layer in layers):
        return None
    counts = {"int8": 0, "bf16": 0, "fp16": 0, "fp32": 0}
    for layer in layers:
        if found := precision(layer):
            counts[found] = counts.get(found, 0) + 1
    return counts


def precision(layer: dict[str, Any]) -> str:
    """int8, fp8, bf16, fp16 or fp32 for a layer that computes; empty for one that moves data or tells no type."""
    if _MOVES.fullmatch(str(layer.get("LayerType", ""))):
        return ""
    told = _types(layer)
    return next((name for word, name in _PRECISIONS if word in told), "")


def _types(layer: dict[str, Any]) -> str:
    """What the inspector says of a layer's inputs: one entry up to TensorRT 10, apart since then."""
    ports = [port for port in layer.get("Inputs", []) if isinstance(port, dict)]
    return " ".join(str(text) for port in ports for name, text in port.items() if name.lower() in _TYPE_ENTRIES).lower()


def profile(slot: Slot, feeds: Feeds, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TensorRT's own times by layer, without a CUDA graph: its profiler sees none inside one."""
    spent: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            spent[layer_name] = spent.get(layer_name, 0.0) + ms

    slot.load(feeds)
    slot.enqueue()
    slot.stream.wait()
    slot.context.profiler = Profiler()
    for _ in range(_PROFILED_RUNS):
        slot.enqueue()
        slot.stream.wait()
    slot.context.profiler = None  # type: ignore[assignment, unused-ignore]
    known = {str(layer.get("Name")): layer for layer in layers}
    return [
        {
            "name": name,
            "type": str(known.get(name, {}).get("LayerType", "")),
            "precision": precision(known.get(name, {})) or "other",
            "us": round(ms * 1000 / _PROFILED_RUNS, 1),
        }
        for name, ms in spent.items()
    ]
