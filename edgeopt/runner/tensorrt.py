"""TensorRT on a GPU: engines of both products, checked before they are loaded, each slot with a stream of its own.

Written against the documented API of TensorRT 10.13 to 11.4 and of TensorRT for RTX 1.7. Nothing here ran on a GPU yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import Port, Problem, tensorrt_cuda, tensorrt_timing
from edgeopt.runner import tensorrt_library as library
from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_library import trt

if TYPE_CHECKING:
    from edgeopt.runner import Feeds

RECORD = "build.json"
_AUTO_SLOTS = 2
_WIDEN = "widen it, options: {profiles: {AXIS: [min, opt, max]}} (the batch axis: the target's `batch`), and build again"


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> TensorrtSession:
    """Open an engine that lies beside its build record. Raises a Problem when it is not what was built, or not for this machine.

    options: `cuda_graph` and `spin_wait` (default: both). requests "auto" makes two slots: one copies while one computes.
    """
    record = verified(path)
    if reason := library.why_not_run(record["product"]):
        raise Problem("missing", reason, "open the engine on the machine that it was built for")
    if reason := foreign(record, library.look(record["product"])):
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
    if product not in library.PACKAGES or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise Problem("usage", f"{path.name} is not the engine that its record describes; it was changed or cut short", "build it again")
    return record


def foreign(record: dict[str, Any], here: library.Finding) -> str:
    """Why an engine is not for this machine, in plain words, or an empty string."""
    title = library.TITLES[record["product"]]
    options = record["options"]
    if record["version"] != here.version and not options.get("version_compatible"):
        return f"the engine was built by {title} {record['version']}, here is {here.version}"
    gpu = here.gpus[0]
    wanted = record["compute_capabilities"]
    if gpu["compute_capability"] in wanted or options.get("hardware_compatibility") == "ampere_plus":
        return ""
    return f"the engine is for compute capability {' or '.join(wanted)}, the GPU here ({gpu['name']}) has {gpu['compute_capability']}"


def outside(record: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str:
    """Which axis of which input leaves the range that the engine was built for, in plain words, or an empty string."""
    for name, _, axes in record["inputs"]:
        if name not in record["profile"]:
            continue
        least, _, most = record["profile"][name]
        for index, (size, low, high) in enumerate(zip(shapes[name], least, most, strict=True)):
            if not low <= size <= high:
                axis = f"axis '{axes[index]}'" if isinstance(axes[index], str) else f"axis {index}"
                takes = f"{low} to {high}" if low < high else f"{low} only"
                return f"{axis} of the input '{name}' is {size}; the engine was built for {takes}"
    return ""


class TensorrtSession:
    """One engine; each slot is an execution context with its stream and buffers."""

    def __init__(self, path: Path, record: dict[str, Any], slots: int, options: dict[str, Any]) -> None:
        self.record, self.slots = record, slots
        self.graphs = bool(options.get("cuda_graph", True))
        self.spinning = bool(options.get("spin_wait", True))
        self.inputs, self.outputs = _ports(record["inputs"]), _ports(record["outputs"])
        library.load(record["product"])
        with log.collected() as said:
            self._runtime = trt.Runtime(log.logger())
            self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self.engine is None or log.errors(said):
                raise log.problem(f"opening {path.name}", log.errors(said))
            self._check_ports()
            self._cache = RuntimeCache(self.engine, record["sha256"])
            self._slots = [Slot(self.engine, self._cache, self) for _ in range(slots)]

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
        self._cache.keep()
        return {
            "runtime": f"{library.TITLES[self.record['product']].lower()} {trt.__version__}",
            "precision": counts,
            "layers": sum(counts.values()),
            "gpu": library.look(self.record["product"]).gpus[0],
            "cuda_graph": self.graphs,
            "spin_wait": self.spinning,
            "transfers": "timed apart",
            "runtime_cache": self._cache.state,
            "events_ms": timed,
            "warnings": tensorrt_timing.warnings(timed),
            "conditions": tensorrt_cuda.conditions(),
        }

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        return tensorrt_timing.profile(self._slots[0], feeds, self.layers())

    def layers(self) -> list[dict[str, Any]]:
        """What the engine executes, as its inspector tells it; empty where it tells no more than names."""
        inspector = self.engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        return [layer for layer in told.get("Layers", []) if isinstance(layer, dict)]

    def close(self) -> None:
        for slot in self._slots:
            slot.close()
        del self._slots, self.engine, self._runtime

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


class Slot:
    """One inference at a time: a context, a stream, buffers, and the graph of its launch."""

    def __init__(self, engine: trt.ICudaEngine, cache: RuntimeCache, session: TensorrtSession) -> None:
        self.record, self.inputs, self.outputs = session.record, session.inputs, session.outputs
        self._rtx = self.record["product"] == "rtx"
        self.graphs = session.graphs and not self._rtx  # RTX records its own, by its runtime's settings
        self.stream = tensorrt_cuda.Stream()
        self.context: trt.IExecutionContext = cache.context(session.graphs) if self._rtx else engine.create_execution_context()
        if self.context is None:
            raise Problem(
                "resource", "TensorRT makes no execution context; the GPU's memory may be full", "use fewer slots or a smaller batch"
            )
        self.buffers: dict[str, tensorrt_cuda.Buffer] = {}
        self._graph: tensorrt_cuda.Graph | None = None

    def load(self, feeds: Feeds) -> None:
        """Copy in; returns when the GPU has it, so that copy and compute are apart."""
        if any(port.name not in self.buffers or self.buffers[port.name].shape != feeds[port.name].shape for port in self.inputs):
            self._reshape({port.name: feeds[port.name].shape for port in self.inputs})
        for port in self.inputs:
            buffer = self.buffers[port.name]
            np.copyto(buffer.host, feeds[port.name])
            buffer.to_device(self.stream)
        self.stream.wait()

    def start(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """Put the inference on the stream as it is, without a graph."""
        with log.collected() as said:
            done = self.context.execute_async_v3(int(self.stream))
        if not done or (said and log.errors(said)):
            raise log.problem("running the engine", log.errors(said))

    def read(self) -> Feeds:
        for port in self.outputs:
            self.buffers[port.name].to_host(self.stream)
        self.stream.wait()
        return {port.name: self.buffers[port.name].host.copy() for port in self.outputs}

    def _reshape(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """New shapes: buffers, addresses and graph are made anew; TensorRT needs one plain run before it can be recorded."""
        if reason := outside(self.record, shapes):
            raise Problem("usage", reason, _WIDEN)
        self._release()
        for name, shape in shapes.items():
            with log.collected():
                fits = self.context.set_input_shape(name, shape)
            if not fits:
                raise Problem("usage", f"the input '{name}' of {list(shape)} is outside the engine's profile", _WIDEN)
        if missing := self.context.infer_shapes():
            raise Problem("step", f"TensorRT cannot tell the shapes: {', '.join(missing)} are not given", "build the engine again")
        for port in (*self.inputs, *self.outputs):
            dims: Any = self.context.get_tensor_shape(port.name)
            shape = tuple(dims)
            if -1 in shape:
                raise Problem("usage", f"the size of the output '{port.name}' depends on the data", "leave that part to the application")
            self.buffers[port.name] = tensorrt_cuda.Buffer(shape, port.dtype)
            self.context.set_tensor_address(port.name, self.buffers[port.name].device)
        if self.graphs:
            self.enqueue()
            self.stream.wait()
            self._graph = tensorrt_cuda.Graph(self.stream, self.enqueue)

    def _release(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for buffer in self.buffers.values():
            buffer.close()
        self.buffers = {}

    def close(self) -> None:
        self.stream.wait()
        self._release()
        del self.context
        self.stream.close()


class RuntimeCache:
    """The kernels that RTX compiles on the first run, kept between processes; full TensorRT has none."""

    def __init__(self, engine: Any, sha256: str) -> None:
        self._engine = engine
        self._cache: Any = None
        self.state = "none"
        root = os.environ.get("EDGEOPT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "edgeopt")  # noqa: PTH118
        self._path = Path(root).expanduser() / "tensorrt" / f"{sha256}.runtime-cache"

    def context(self, graphs: bool) -> Any:
        """An RTX context: kernels for dynamic shapes compiled before the first run returns, not behind the back of a measurement."""
        rtx: Any = trt
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy = rtx.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self.state = "warm" if self._path.is_file() and self._cache.deserialize(self._path.read_bytes()) else "cold"
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def keep(self) -> None:
        """Write what was compiled so far, whole or not at all."""
        if self._cache is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        part.write_bytes(memoryview(self._cache.serialize()))
        part.replace(self._path)


def _ports(rows: list[list[Any]]) -> list[Port]:
    return [Port(name, dtype, tuple(shape)) for name, dtype, shape in rows]
