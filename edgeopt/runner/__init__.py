"""The runner: opens, feeds, steps and reads one model on one runtime, in a process of its own.

What is measured is what is shipped, so this room imports the standard library, numpy and one runtime,
and nothing else of edgeopt. `python -m edgeopt.runner serve` answers frames on stdin (`serve`); each
runtime is one module with `library()`, which imports the runtime, and
`open(path, *, threads, requests, options, execution) -> Session`; where it has `ready(path)`, that is called
before the clock of loading starts. A name that is not in RUNTIMES is
looked up among installed entry points of the group `edgeopt.runner`, whose values are modules.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]

RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "null")


class Problem(Exception):
    """A failure that is not a bug of ours: kind (usage, missing, untrusted, resource, step), cause in one line, remedy."""

    def __init__(self, kind: str, cause: str, remedy: str = "") -> None:
        self.kind, self.cause, self.remedy = kind, " ".join(cause.split())[:600], remedy
        super().__init__(self.cause)


def understood(error: BaseException, doing: str) -> Problem | None:
    """What an exception means to the user where it is a Problem, or where memory or disk ran out; None for any other."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, MemoryError):
        return Problem("resource", f"{doing}: out of memory", "use a smaller batch, or a larger machine")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem("resource", f"{doing}: the disk is full", "free space")
    return None


class Port(NamedTuple):
    """One input or output: numpy's name of the dtype; sizes, or names for axes that may vary.

    An empty shape is a scalar, or a rank that the model leaves open.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Session(Protocol):
    """An opened model with `slots` places for an inference in flight, each with its own tensors.

    `load` copies the feeds in, `start` and `wait` compute, `read` copies the outputs out: copy and
    compute can be timed apart. Where a runtime computes in the calling thread (onnxruntime always,
    openvino with one slot) `start` returns when the result is ready; whoever wants several slots busy
    gives each a thread. One that computes on CUDA's first GPU says so by an attribute `on_gpu`: NVML is
    then asked about it after each timing.
    """

    inputs: list[Port]
    outputs: list[Port]
    slots: int

    def load(self, feeds: Feeds, slot: int = 0) -> None:
        """Copy one array per input, of its dtype, into the slot."""

    def start(self, slot: int = 0) -> None:
        """Start the inference."""

    def wait(self, slot: int = 0) -> None:
        """Return when the result is ready."""

    def read(self, slot: int = 0) -> Feeds:
        """The outputs as arrays of the caller's own."""
        ...

    def facts(self, feeds: Feeds) -> dict[str, Any]:
        """What the runtime really executes: layers that compute, by precision, read back from it.

        Layers that only move or re-represent data (reorder, reshape, transpose, concat, gather, cast,
        quantize, dequantize, …) and integer arithmetic on shapes and indices do not count. A layer
        counts as `int8` when its data are 8-bit, not when only its weights are stored so.
        """
        ...

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        """The runtime's own times of each executed layer, in order of execution, over several runs (`profiled`).

        name, type, precision (int8, bf16, fp16, fp32; `other` where it does not compute), us (`steady`), and
        where the runtime tells them made_of, the names of the model's own nodes.
        """
        ...

    def close(self) -> None:
        """Give the runtime's memory and threads back."""


PROFILE_S = 0.5  # after so long no further run is profiled, once there are PROFILE_RUNS[0]
PROFILE_RUNS = (5, 100)
PROFILE_WARM_UP = 2


def profiled() -> Iterator[int]:
    """Counts the runs of a profile: enough for a steady figure, and no more than PROFILE_S where that is many."""
    least, most = PROFILE_RUNS
    end = time.monotonic() + PROFILE_S
    for run in range(most):
        if run >= least and time.monotonic() > end:
            return
        yield run


def steady(times: Sequence[float]) -> float:
    """The mean of the middle half: times come in whole µs, and a run in which the system took the core away says nothing of a layer."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


def check(feeds: Feeds, inputs: list[Port]) -> None:
    """Raise a usage Problem when feeds do not fit the inputs by name, dtype or shape."""
    told = "the inputs are " + (", ".join(f"{name}: {dtype}[{', '.join(map(str, shape))}]" for name, dtype, shape in inputs) or "none")
    wrong = [name for name in feeds if name not in {port.name for port in inputs}]
    if wrong:
        raise Problem("usage", f"the model has no input '{wrong[0]}'", told)
    for port in inputs:
        array = feeds.get(port.name)
        if array is None:
            raise Problem("usage", f"nothing is fed to the input '{port.name}'", told)
        if array.dtype.name != port.dtype:
            raise Problem("usage", f"the input '{port.name}' takes {port.dtype}, not {array.dtype.name}", told)
        fits = len(port.shape) == array.ndim and all(
            isinstance(want, str) or want == got for want, got in zip(port.shape, array.shape, strict=True)
        )
        if port.shape and not fits:
            raise Problem("usage", f"the input '{port.name}' takes [{', '.join(map(str, port.shape))}], not {list(array.shape)}", told)
