"""TensorRT on a GPU: engines of both products, checked before they are loaded, and opened as a session of slots.

Written against the documented API of TensorRT 10.13 to 11.4 and of TensorRT for RTX 1.7. Nothing here ran on a GPU yet.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import Port, Problem, tensorrt_cuda, tensorrt_library, tensorrt_timing
from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_cache import RuntimeCache
from edgeopt.runner.tensorrt_library import trt
from edgeopt.runner.tensorrt_slot import Slot

if TYPE_CHECKING:
    from edgeopt.runner import Feeds

RECORD = "build.json"
_AUTO_SLOTS = 2
_AMPERE = 8.0  # the least compute capability of `ampere_plus`


def library() -> None:
    """Nothing to import yet: which product an engine needs stands in its record, which `open` reads."""


def ready(path: Path) -> None:
    """All that comes before loading: the product of the engine is imported and the machine looked at. Raises what `open` would."""
    product = verified(path)["product"]
    if reason := tensorrt_library.seen(product).why_not_run:
        raise Problem("missing", reason, "open the engine on the machine that it was built for")
    tensorrt_library.load(product)


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> TensorrtSession:
    """Open an engine that lies beside its build record. Raises a Problem when it is not what was built, or not for this machine.

    options: `cuda_graph` and `spin_wait` (default: both). requests "auto" makes two slots: one copies while one computes.
    """
    record = verified(path)
    here = tensorrt_library.seen(record["product"])
    if reason := here.why_not_run:
        raise Problem("missing", reason, "open the engine on the machine that it was built for")
    if reason := foreign(record, here):
        raise Problem("usage", reason, "build it here: python -m edgeopt.runner build BUNDLE, or `edgeopt run` on this machine")
    tensorrt_cuda.wait_by(spinning=options.get("spin_wait", True))
    return TensorrtSession(path, record, _AUTO_SLOTS if requests == "auto" else int(requests), options)


def verified(path: Path) -> dict[str, Any]:
    """The build record of an engine whose bytes are those that were built. An engine is native code: it is not loaded otherwise."""
    try:
        record: dict[str, Any] = json.loads(path.with_name(RECORD).read_text())
        wanted, product = record["sha256"], record["product"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Problem("usage", f"{path.name} has no build record ({RECORD}) beside it", "build the engine again") from None
    if product not in tensorrt_library.PACKAGES or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise Problem("usage", f"{path.name} is not the engine that its record describes; it was changed or cut short", "build it again")
    return record


def foreign(record: dict[str, Any], here: tensorrt_library.Finding) -> str:
    """Why an engine is not for this machine, in plain words, or an empty string."""
    title = tensorrt_library.TITLES[record["product"]]
    options = record["options"]
    portable = options.get("version_compatible") and _parts(record["version"]) < _parts(here.version)
    if record["version"] != here.version and not portable:
        only = "; what is version-compatible runs on newer ones only" if options.get("version_compatible") else ""
        return f"the engine was built by {title} {record['version']}, here is {here.version}{only}"
    gpu = here.gpus[0]
    wanted, found = record["compute_capabilities"], gpu["compute_capability"]
    if found in wanted or (options.get("hardware_compatibility") == "ampere_plus" and float(found) >= _AMPERE):
        return ""
    return f"the engine is for compute capability {' or '.join(wanted)}, the GPU here ({gpu['name']}) has {found}"


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


class TensorrtSession:
    """One engine; each slot is an execution context with its stream and buffers."""

    on_gpu = True

    def __init__(self, path: Path, record: dict[str, Any], slots: int, options: dict[str, Any]) -> None:
        self.record, self.slots = record, slots
        self.graphs = bool(options.get("cuda_graph", True))
        self.spinning = bool(options.get("spin_wait", True))
        self.inputs, self.outputs = _ports(record["inputs"]), _ports(record["outputs"])
        tensorrt_library.load(record["product"])
        with log.collected() as said:
            self._runtime = log.started(trt.Runtime, said)
            self.engine = _deserialized(self._runtime, path, record)
            if self.engine is None or log.all_errors(said):
                raise log.problem(f"opening {path.name}", log.all_errors(said), log.RUN)
            self._check_ports()
            self.cache = RuntimeCache(self.engine, record["sha256"])
            self._slots = [Slot(self, self.graphs) for _ in range(slots)]
            if found := log.all_errors(said):
                raise log.problem(f"opening {path.name}", found, log.RUN)

    def load(self, feeds: Feeds, slot: int = 0) -> None:
        self._slots[slot].load(feeds)

    def start(self, slot: int = 0) -> None:
        self._slots[slot].start()

    def wait(self, slot: int = 0) -> None:
        self._slots[slot].stream.wait()

    def read(self, slot: int = 0) -> Feeds:
        return self._slots[slot].read()

    def facts(self, feeds: Feeds) -> dict[str, Any]:
        counts = tensorrt_timing.precisions(self.layers())
        timed = tensorrt_timing.timed(self._slots[0], feeds)
        asides = [self._slots[0].why_no_graph, self.cache.keep()]
        return {
            "runtime": f"{tensorrt_library.TITLES[self.record['product']].lower()} {trt.__version__}",
            "precision": counts,
            "layers": None if counts is None else sum(counts.values()),
            "gpu": tensorrt_library.seen(self.record["product"]).gpus[0],
            "cuda_graph": self._slots[0].by_graph,
            "spin_wait": self.spinning,
            "transfers": "timed apart",
            "tf32": bool(self.record["options"].get("tf32")),
            "runtime_cache": self.cache.state,
            "events_ms": timed,
            "warnings": [*tensorrt_timing.warnings(timed, self._slots[0].by_graph), *filter(None, asides)],
        }

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        """In a slot of its own that launches plainly: TensorRT's profiler sees nothing inside a CUDA graph, one of RTX's own either."""
        slot = Slot(self, graphs=False)
        try:
            return tensorrt_timing.profile(slot, feeds, self.layers())
        finally:
            slot.close()

    def layers(self) -> list[dict[str, Any]]:
        """What the engine executes, as its inspector tells it; empty where it tells no more than names, or nothing at all."""
        inspector = self.engine.create_engine_inspector()
        try:
            told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        except (ValueError, TypeError):
            return []
        found = told.get("Layers", []) if isinstance(told, dict) else []
        return [layer for layer in found if isinstance(layer, dict)]

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        del self._slots, self.cache, self.engine, self._runtime

    def _check_ports(self) -> None:
        """The engine takes and gives what the model did, by name and type."""
        nptype: Any = trt.nptype
        known = {self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)}
        for port in (*self.inputs, *self.outputs):
            if port.name not in known:
                raise Problem("step", f"the engine has no '{port.name}', only {', '.join(sorted(known))}", "build it again")
            try:
                dtype = np.dtype(nptype(self.engine.get_tensor_dtype(port.name))).name
            except TypeError:
                raise Problem("usage", f"'{port.name}' has a type that numpy cannot hold", "cast it to float32 in the model") from None
            if dtype != port.dtype:
                raise Problem("step", f"'{port.name}' is {dtype} in the engine and {port.dtype} in the model", "export it as float32")


def _deserialized(runtime: Any, path: Path, record: dict[str, Any]) -> Any:
    """The engine, or None. One that runs on other versions carries code of its own, which TensorRT loads only where it is told to."""
    if record["options"].get("version_compatible"):
        runtime.engine_host_code_allowed = True  # these bytes are the ones that were built: `verified` saw to it
    return runtime.deserialize_cuda_engine(path.read_bytes())


def _ports(rows: list[list[Any]]) -> list[Port]:
    return [Port(name, dtype, tuple(shape)) for name, dtype, shape in rows]
