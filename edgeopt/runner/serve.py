"""The serving child: one model open, one request at a time, in frames on stdin and stdout.

It keeps a private copy of stdout for frames and points the real one at stderr, because libraries
print. It dies with its parent, also while it is stopped (SIGSTOP), and ends in silence when stdin does.
Every request has "do"; the reply is {"ok": true, …} or {"ok": false, "error": {kind, cause, remedy}}.
The clock is ours, around the session's steps; the runtime never times itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeopt.runner import RUNTIMES, Port, Problem, Session, check, frames, nvml, understood
from edgeopt.runner.children import die_with_parent

Arrays = frames.Arrays
Reply = tuple[dict[str, Any], Arrays]
REQUESTS = ("open", "feeds", "first", "time", "flood", "infer", "facts", "profile", "loadgen", "usage", "close")
_INSTALLED_BY = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}


def serve(parent: int | None = None) -> None:
    """Answer requests until `close` or the end of stdin. `parent` is the process that this one was forked of."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    child, open_ = Child(), True
    # A broken pipe means that the parent is gone. There is nobody to tell.
    with contextlib.suppress(EOFError, BrokenPipeError):
        while open_:
            header, arrays = frames.read(requests)
            reply, results = child.answer(header, arrays)
            frames.write(replies, reply, results)
            open_ = header.get("do") != "close"
    sys.stderr.flush()
    os._exit(0)  # the exit handlers of the runtimes may hang or crash, and nothing here needs them


class Child:
    """The state between requests: the session, and the feeds kept for timing. Each of REQUESTS is a method."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._sets: list[Arrays] = []

    def answer(self, header: dict[str, Any], arrays: Arrays) -> Reply:
        """Do one request. Never raises for what a request or a model can cause."""
        do = str(header.get("do", ""))
        try:
            if do not in REQUESTS:
                raise Problem("usage", f"no such request: '{do}'", f"known: {', '.join(REQUESTS)}")
            request: Callable[..., Reply] = getattr(self, do)
            fields, results = request(arrays, **{name: value for name, value in header.items() if name != "do"})
        except Exception as error:  # noqa: BLE001 (whatever a runtime raises becomes a reply)
            if not isinstance(error, Problem):
                traceback.print_exc()
            problem = _problem(error, do)
            return {"ok": False, "error": {"kind": problem.kind, "cause": problem.cause, "remedy": problem.remedy}}, {}
        return {"ok": True, **fields}, results

    def open(
        self, arrays: Arrays, path: str, backend: str, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]
    ) -> Reply:
        if self._session is not None:
            raise Problem("usage", "a model is open already", "one child opens one model")
        if not Path(path).is_file():
            raise Problem("usage", f"no such file: {path}", "build the artifact again")
        bare = _status_mb("VmRSS")
        runtime = runtime_of(backend)
        if ready := getattr(runtime, "ready", None):
            ready(Path(path))
        start = time.perf_counter_ns()
        self._session = runtime.open(Path(path), threads=threads, requests=requests, options=options, execution=execution)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        opened = self._opened
        return {"load_ms": load_ms, "bare_rss_mb": bare, "inputs": opened.inputs, "outputs": opened.outputs, "slots": opened.slots}, {}

    def feeds(self, arrays: Arrays) -> Reply:
        sets: dict[int, Arrays] = {}
        for label, array in arrays.items():
            index, _, name = label.partition("/")
            sets.setdefault(int(index), {})[name] = array
        if not sets:
            raise Problem("usage", "no feeds were sent", "name the arrays 0/INPUT, 1/INPUT, …")
        for feeds in sets.values():
            check(feeds, self._opened.inputs)
        self._sets = [sets[index] for index in sorted(sets)]
        return {"sets": len(self._sets)}, {}

    def first(self, arrays: Arrays) -> Reply:
        session, feeds = self._opened, self._feeds[0]
        start = time.perf_counter_ns()
        session.load(feeds)
        session.start()
        session.wait()
        session.read()
        return {"first_ms": (time.perf_counter_ns() - start) / 1e6}, {}

    def time(self, arrays: Arrays, runs: int | None = None, seconds: float | None = None, cold: int = 0) -> Reply:
        if runs is None and seconds is None:
            raise Problem("usage", "neither runs nor seconds are given", "give one of them, or both")
        if cold:
            _clocked(self._opened, self._feeds, cold, None)
        load, compute, read = _clocked(self._opened, self._feeds, sys.maxsize if runs is None else runs, seconds)
        arrays = {"compute_ns": np.array(compute, np.int64), "load_ns": np.array(load, np.int64), "read_ns": np.array(read, np.int64)}
        return {"gpu": nvml.reading() if self._on_gpu else None}, arrays

    def flood(self, arrays: Arrays, seconds: float) -> Reply:
        count, took = _flooded(self._opened, self._feeds, seconds)
        return {"count": count, "seconds": took}, {}

    def infer(self, arrays: Arrays) -> Reply:
        session = self._opened
        check(arrays, session.inputs)
        session.load(arrays)
        session.start()
        session.wait()
        return {}, session.read()

    def facts(self, arrays: Arrays) -> Reply:
        found = self._opened.facts(self._sets[0] if self._sets else _zeros(self._opened.inputs))
        return {**found, **({"conditions": nvml.conditions()} if self._on_gpu else {})}, {}

    def profile(self, arrays: Arrays) -> Reply:
        return {"layers": self._opened.profile(self._sets[0] if self._sets else _zeros(self._opened.inputs))}, {}

    def loadgen(self, arrays: Arrays, scenario: str, batch: int, seconds: float, folder: str) -> Reply:
        from edgeopt.runner import loadgen

        found = loadgen.run(self._opened, self._feeds, batch, scenario, seconds, Path(folder))
        return found, {"ours_ns": np.array(found.pop("ours_ns"), np.int64)}

    def usage(self, arrays: Arrays) -> Reply:
        spent = os.times()
        return {"cpu_s": spent.user + spent.system, "rss_mb": _status_mb("VmRSS"), "peak_rss_mb": _status_mb("VmHWM")}, {}

    def close(self, arrays: Arrays) -> Reply:
        if self._session is not None:
            self._session.close()
            self._session = None
        return {}, {}

    @property
    def _opened(self) -> Session:
        if self._session is None:
            raise Problem("usage", "no model is open", "send `open` first")
        return self._session

    @property
    def _on_gpu(self) -> bool:
        return bool(getattr(self._opened, "on_gpu", False))

    @property
    def _feeds(self) -> list[Arrays]:
        if not self._sets:
            raise Problem("usage", "there is nothing to feed", "send `feeds` first")
        return self._sets


def runtime_of(backend: str) -> ModuleType:
    """The module of a runtime, with the runtime imported."""
    name = f"edgeopt.runner.{backend}"
    if backend not in RUNTIMES:
        from importlib.metadata import entry_points

        found = [entry.value for entry in entry_points(group="edgeopt.runner") if entry.name == backend]
        if not found:
            raise Problem("usage", f"no runtime is named '{backend}'", f"known here: {', '.join(RUNTIMES)}")
        name = found[0]
    try:
        module = importlib.import_module(name)
        module.library()
        return module
    except ImportError as error:
        remedy = f"pip install 'edgeopt[{_INSTALLED_BY[backend]}]'" if backend in _INSTALLED_BY else "mend or remove that package"
        raise Problem("missing", f"the runtime '{backend}' cannot be imported: {error}", remedy) from error


def _problem(error: Exception, do: str) -> Problem:
    """What any exception means to the user."""
    if found := understood(error, do):
        return found
    if isinstance(error, TypeError) and f"Child.{do}()" in str(error):
        return Problem("usage", f"{do}: {str(error).partition('() ')[2]}", "see the docstring of edgeopt.runner.serve")
    return Problem("step", f"{do}: {type(error).__name__}: {error}", "the full traceback is in the run's log")


def _zeros(inputs: list[Port]) -> Arrays:
    return {name: np.zeros([axis if isinstance(axis, int) else 1 for axis in shape], dtype) for name, dtype, shape in inputs}


def _status_mb(field: str) -> float:
    """A line of /proc/self/status in MB (10⁶ bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise Problem("missing", f"this system does not tell {field}", "measure memory on Linux")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _clocked(session: Session, sets: list[Arrays], runs: int, seconds: float | None) -> tuple[list[int], list[int], list[int]]:
    """Nanoseconds of load, compute and read, one inference at a time, until `runs` or `seconds`; at least one."""
    clock, load, start, wait, read = time.perf_counter_ns, session.load, session.start, session.wait, session.read
    loads: list[int] = []
    computes: list[int] = []
    reads: list[int] = []
    with _no_garbage_collection():
        end = clock() + int(seconds * 1e9) if seconds is not None else sys.maxsize
        while True:
            feeds = sets[len(loads) % len(sets)]
            began = clock()
            load(feeds)
            loaded = clock()
            start()
            wait()
            ready = clock()
            read()
            done = clock()
            loads.append(loaded - began)
            computes.append(ready - loaded)
            reads.append(done - ready)
            if done >= end or len(loads) >= runs:
                return loads, computes, reads


def _flooded(session: Session, sets: list[Arrays], seconds: float) -> tuple[int, float]:
    """Inferences done and seconds taken with every slot always busy. Copies are not part of it: each slot is loaded once."""
    counts, failed = [0] * session.slots, list[Exception]()
    for slot in range(session.slots):
        session.load(sets[slot % len(sets)], slot)

    def keep_busy(slot: int) -> None:
        start, wait, clock = session.start, session.wait, time.perf_counter
        try:
            while True:
                start(slot)
                wait(slot)
                counts[slot] += 1
                if clock() >= end or failed:
                    return
        except Exception as error:  # noqa: BLE001 (raised again by the thread that asked)
            failed.append(error)

    others = [threading.Thread(target=keep_busy, args=(slot,)) for slot in range(1, session.slots)]
    with _no_garbage_collection():
        began = time.perf_counter()
        end = began + seconds
        for thread in others:
            thread.start()
        keep_busy(0)
        for thread in others:
            thread.join()
        took = time.perf_counter() - began
    if failed:
        raise failed[0]
    return sum(counts), took
