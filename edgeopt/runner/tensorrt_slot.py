"""One inference at a time on a TensorRT engine: an execution context with its stream, its buffers and the graph of its launch.

Written against the documented API of TensorRT 10.13 to 11.4 and of TensorRT for RTX 1.7. Nothing here ran on a GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import Problem, tensorrt_cuda
from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_library import trt

if TYPE_CHECKING:
    from edgeopt.runner import Feeds
    from edgeopt.runner.tensorrt import TensorrtSession

_WIDEN = "widen it, options: {profiles: {AXIS: [min, opt, max]}} (the batch axis: the target's `batch`), and build again"


class Slot:
    """One inference at a time: a context, a stream, buffers, and the graph of its launch."""

    def __init__(self, session: TensorrtSession, graphs: bool) -> None:
        self.record, self.inputs, self.outputs = session.record, session.inputs, session.outputs
        self._rtx = self.record["product"] == "rtx"
        self._asked, self._cache = graphs, session.cache
        self.graphs = graphs and not self._rtx  # RTX records its own, by its runtime's settings
        self.why_no_graph = ""
        self.stream = tensorrt_cuda.Stream()
        self.context: trt.IExecutionContext = session.cache.context(graphs) if self._rtx else session.engine.create_execution_context()
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
        if new:  # only now: the first run must not see what the GPU's memory held before, as indices it may be anything
            self._first_run()

    def start(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """Put the inference on the stream as it is, without a graph."""
        with log.collected() as said:
            done = self.context.execute_async_v3(int(self.stream))
        if not done or (said and log.all_errors(said)):
            raise log.problem("running the engine", log.all_errors(said), log.RUN)

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
        self._infer(shapes)
        for port in (*self.inputs, *self.outputs):
            dims: Any = self.context.get_tensor_shape(port.name)
            shape = tuple(dims)
            if -1 in shape:
                raise Problem("step", f"the size of the output '{port.name}' depends on the data", "leave that part to the application")
            self.buffers[port.name] = tensorrt_cuda.Buffer(shape, port.dtype)
            if not self.context.set_tensor_address(port.name, self.buffers[port.name].device):
                raise Problem("step", f"TensorRT takes no buffer for '{port.name}'", "build the engine again")

    def _infer(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Have TensorRT work out the shapes. It raises where inputs do not go together, as two of another batch, and logs why."""
        with log.collected() as said:
            try:
                missing = self.context.infer_shapes()
            except RuntimeError:
                told = ", ".join(f"'{name}' of {list(shape)}" for name, shape in shapes.items())
                why = log.meaning(log.all_errors(said))[0]
                raise Problem("usage", f"inputs that do not go together: {told} ({why})", "feed shapes that the model takes") from None
        if missing:
            raise Problem("step", f"TensorRT cannot tell the shapes: {', '.join(missing)} are not given", "build the engine again")

    def _first_run(self) -> None:
        """One plain run, in which RTX compiles its kernels, and which TensorRT needs before it is recorded as one CUDA graph.

        What cannot be recorded is launched plainly.
        """
        self.enqueue()
        self.stream.wait()
        self._cache.keep_new()
        if not self.graphs:
            return
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
