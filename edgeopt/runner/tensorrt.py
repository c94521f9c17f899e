"""TensorRT on a GPU: engines of both products, checked before they are loaded, each slot with a stream of its own.

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

if TYPE_CHECKING:
    from edgeopt.runner import Feeds

RECORD = "build.json"
_AUTO_SLOTS = 2
_WIDEN = "widen it, options: {profiles: {AXIS: [min, opt, max]}} (the batch axis: the target's `batch`), and build again"


def library() -> None:
    """Nothing to import yet: which product an engine needs stands in its record, which `open` reads."""


def ready(path: Path) -> None:
    """All that comes before loading: a child looks at the machine, and the product of the engine is imported. Raises what `open` would."""
    product = verified(path)["product"]
    if reason := tensorrt_library.why_not_run(product):
        raise Problem("missing", reason, "open the engine on the machine that it was built for")
    tensorrt_library.load(product)


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> TensorrtSession:
    """Open an engine that lies beside its build record. Raises a Problem when it is not what was built, or not for this machine.

    options: `cuda_graph` and `spin_wait` (default: both). requests "auto" makes two slots: one copies while one computes.
    """
    record = verified(path)
    if reason := tensorrt_library.why_not_run(record["product"]):
        raise Problem("missing", reason, "open the engine on the machine that it was built for")
    if reason := foreign(record, tensorrt_library.look(record["product"])):
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

    on_gpu = True

    def __init__(self, path: Path, record: dict[str, Any], slots: int, options: dict[str, Any]) -> None:
        self.record, self.slots = record, slots
        self.graphs = bool(options.get("cuda_graph", True))
        self.spinning = bool(options.get("spin_wait", True))
        self.inputs, self.outputs = _ports(record["inputs"]), _ports(record["outputs"])
        tensorrt_library.load(record["product"])
        with log.collected() as said:
            self._runtime = trt.Runtime(log.logger())
            self.engine = _deserialized(self._runtime, path, record)
            if self.engine is None or log.errors(said):
                raise log.problem(f"opening {path.name}", log.errors(said))
            self._check_ports()
            self._cache = RuntimeCache(self.engine, record["sha256"])
            self._slots = [Slot(self.engine, self._cache, self) for _ in range(slots)]
            if found := log.errors(said):
                raise log.problem(f"opening {path.name}", found)

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
        asides = [self._slots[0].why_no_graph, self._cache.keep()]
        return {
            "runtime": f"{tensorrt_library.TITLES[self.record['product']].lower()} {trt.__version__}",
            "precision": counts,
            "layers": None if counts is None else sum(counts.values()),
            "gpu": tensorrt_library.look(self.record["product"]).gpus[0],
            "cuda_graph": self._slots[0].by_graph,
            "spin_wait": self.spinning,
            "transfers": "timed apart",
            "tf32": bool(self.record["options"].get("tf32")),
            "runtime_cache": self._cache.state,
            "events_ms": timed,
            "warnings": [*tensorrt_timing.warnings(timed), *filter(None, asides)],
        }

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        return tensorrt_timing.profile(self._slots[0], feeds, self.layers())

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


def _deserialized(runtime: Any, path: Path, record: dict[str, Any]) -> Any:
    """The engine, or None. One that runs on other versions carries code of its own, which TensorRT loads only where it is told to."""
    if record["options"].get("version_compatible"):
        runtime.engine_host_code_allowed = True  # these bytes are the ones that were built: `verified` saw to it
    return runtime.deserialize_cuda_engine(path.read_bytes())


class Slot:
    """One inference at a time: a context, a stream, buffers, and the graph of its launch."""

    def __init__(self, engine: trt.ICudaEngine, cache: RuntimeCache, session: TensorrtSession) -> None:
        self.record, self.inputs, self.outputs = session.record, session.inputs, session.outputs
        self._rtx = self.record["product"] == "rtx"
        self._asked = session.graphs
        self.graphs = session.graphs and not self._rtx  # RTX records its own, by its runtime's settings
        self.why_no_graph = ""
        self.stream = tensorrt_cuda.Stream()
        self.context: trt.IExecutionContext = cache.context(session.graphs) if self._rtx else engine.create_execution_context()
        if self.context is None:
            raise Problem(
                "resource", "TensorRT makes no execution context; the GPU's memory may be full", "use fewer slots or a smaller batch"
            )
        self.buffers: dict[str, tensorrt_cuda.Buffer] = {}
        self._graph: tensorrt_cuda.Graph | None = None

    @property
    def by_graph(self) -> bool:
        """Whether it really is launched as a CUDA graph; of RTX, whether its runtime was told to."""
        return self._asked if self._rtx else self._graph is not None

    def load(self, feeds: Feeds) -> None:
        """Copy in; returns when the GPU has it, so that copy and compute are apart."""
        new = any(port.name not in self.buffers or self.buffers[port.name].shape != feeds[port.name].shape for port in self.inputs)
        if new:
            self._reshape({port.name: feeds[port.name].shape for port in self.inputs})
        for port in self.inputs:
            buffer = self.buffers[port.name]
            np.copyto(buffer.host, feeds[port.name])
            buffer.to_device(self.stream)
        self.stream.wait()
        if new and self.graphs:  # only now: the first run must not see what the GPU's memory held before, as indices it may be anything
            self._record()

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
        """New shapes: buffers and addresses are made anew, the graph is gone."""
        if reason := outside(self.record, shapes):
            raise Problem("usage", reason, _WIDEN)
        self._release()
        try:
            self._bind(shapes)
        except Problem:
            self._release()  # half of the buffers would pass for all of them the next time
            raise

    def _bind(self, shapes: dict[str, tuple[int, ...]]) -> None:
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
            if not self.context.set_tensor_address(port.name, self.buffers[port.name].device):
                raise Problem("step", f"TensorRT takes no buffer for '{port.name}'", "build the engine again")

    def _record(self) -> None:
        """The launch as one CUDA graph, after one plain run, which TensorRT needs. What cannot be recorded is launched plainly."""
        self.enqueue()
        self.stream.wait()
        try:
            self._graph = tensorrt_cuda.Graph(self.stream, self.enqueue)
        except Problem as problem:
            self.graphs, self.why_no_graph = False, f"no CUDA graph: {problem.cause}"

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


def _ports(rows: list[list[Any]]) -> list[Port]:
    return [Port(name, dtype, tuple(shape)) for name, dtype, shape in rows]
