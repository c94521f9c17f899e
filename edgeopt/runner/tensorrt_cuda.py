"""CUDA as the TensorRT session needs it, by cuda-bindings: streams, events, graphs, and buffers that live on both sides.

Written against cuda-bindings 12.9 and 13.5. Nothing here ran on a GPU yet.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeopt.runner import Problem


def runtime() -> Any:
    """cuda-bindings' module of the CUDA runtime; `tensorrt_library.why_not_run` has told where it is not installed."""
    return importlib.import_module("cuda.bindings.runtime")


def call(doing: str, answer: tuple[Any, ...]) -> Any:
    """The results of a CUDA call, whose first is an error code. Raises a Problem with CUDA's own words."""
    code, *results = answer
    if int(code) != 0:
        kind = "resource" if code.name == "cudaErrorMemoryAllocation" else "step"
        remedy = "use a smaller batch or another GPU" if kind == "resource" else "see the run's log; nvidia-smi tells how the GPU is"
        raise Problem(kind, f"{doing}: {code.name}: {_words(code)}", remedy)
    return results[0] if len(results) == 1 else results


def _words(code: Any) -> str:
    _, text = runtime().cudaGetErrorString(code)
    return text.decode() if isinstance(text, bytes) else str(text)


class Stream:
    """One CUDA stream."""

    def __init__(self) -> None:
        self._cuda = runtime()
        self.handle = call("making a stream", self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))

    def __int__(self) -> int:
        return int(self.handle)

    def wait(self) -> None:
        call("computing on the GPU", self._cuda.cudaStreamSynchronize(self.handle))

    def close(self) -> None:
        self._cuda.cudaStreamDestroy(self.handle)


class Buffer:
    """A tensor on the GPU with its page-locked twin in main memory."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._cuda = runtime()
        self.shape, self.size = shape, max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._locked = int(call("allocating page-locked memory", self._cuda.cudaHostAlloc(self.size, self._cuda.cudaHostAllocDefault)))
        try:
            self.device = int(call("allocating on the GPU", self._cuda.cudaMalloc(self.size)))
        except Problem:
            self._cuda.cudaFreeHost(self._locked)
            raise
        memory: Any = (ctypes.c_byte * self.size).from_address(self._locked)
        self.host: np.ndarray[Any, Any] = np.ndarray(shape, dtype, buffer=memory)

    def to_device(self, stream: Stream) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call("copying to the GPU", self._cuda.cudaMemcpyAsync(self.device, self._locked, self.size, kind, stream.handle))

    def to_host(self, stream: Stream) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("copying from the GPU", self._cuda.cudaMemcpyAsync(self._locked, self.device, self.size, kind, stream.handle))

    def close(self) -> None:
        self._cuda.cudaFree(self.device)
        self._cuda.cudaFreeHost(self._locked)


class Graph:
    """What a function puts on a stream, recorded once and launched as a whole. A Problem leaves the stream as usable as it was."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        self._cuda, self._stream = runtime(), stream
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("recording a CUDA graph", self._cuda.cudaStreamBeginCapture(stream.handle, mode))
        try:
            enqueue()
        except BaseException:
            code, *left = self._cuda.cudaStreamEndCapture(stream.handle)  # a stream left in capture could never be used again
            if int(code) == 0:
                self._cuda.cudaGraphDestroy(*left)
            self._cuda.cudaGetLastError()  # or who asks next takes it for its own
            raise
        try:
            recorded = call("recording a CUDA graph", self._cuda.cudaStreamEndCapture(stream.handle))
            try:
                self._executable = call("making a CUDA graph", self._cuda.cudaGraphInstantiate(recorded, 0))
            finally:
                self._cuda.cudaGraphDestroy(recorded)
        except Problem:
            self._cuda.cudaGetLastError()
            raise

    def launch(self) -> None:
        call("launching a CUDA graph", self._cuda.cudaGraphLaunch(self._executable, self._stream.handle))

    def close(self) -> None:
        self._cuda.cudaGraphExecDestroy(self._executable)


class Stopwatch:
    """Milliseconds between marks on a stream, by CUDA events."""

    def __init__(self, stream: Stream, marks: int) -> None:
        self._cuda, self._stream = runtime(), stream
        self._events = [call("making an event", self._cuda.cudaEventCreate()) for _ in range(marks)]

    def mark(self, index: int) -> None:
        call("recording an event", self._cuda.cudaEventRecord(self._events[index], self._stream.handle))

    def laps(self) -> list[float]:
        """Milliseconds from each mark to the next; waits for the last."""
        call("waiting for an event", self._cuda.cudaEventSynchronize(self._events[-1]))
        pairs = zip(self._events, self._events[1:], strict=False)
        return [float(call("reading an event", self._cuda.cudaEventElapsedTime(one, other))) for one, other in pairs]

    def close(self) -> None:
        for event in self._events:
            self._cuda.cudaEventDestroy(event)


def wait_by(spinning: bool) -> None:
    """How this process waits for the GPU: polling, or asleep. To be said before anything else uses the GPU."""
    cuda = runtime()
    flag = cuda.cudaDeviceScheduleSpin if spinning else cuda.cudaDeviceScheduleBlockingSync
    call("choosing how to wait", cuda.cudaSetDeviceFlags(flag))
