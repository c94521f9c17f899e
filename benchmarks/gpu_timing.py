"""Whether the clocks that the GPU benchmark uses tell the truth: torch makes the work, its own events are the judge."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from edgeopt.runner import tensorrt_cuda

RUNS, WARM_UP = 100, 20


def check_timing() -> bool:
    """Whether our clocks tell work of a known ratio, and CUDA graphs what they save. Skipped, in words, without torch with CUDA."""
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]  # a module elsewhere; None says that it is not here
    if torch is None or not torch.cuda.is_available():
        print("\nthe timing code is not checked: torch with CUDA is not here")
        return True
    print("\nthe timing code:")
    matrix = torch.randn(2048, 2048, device="cuda")

    def work(times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                torch.mm(matrix, matrix)

        return run

    one, ten = by_events(torch, work(5)), by_events(torch, work(50))
    host = by_clock(torch, work(50))
    small = torch.zeros(16, device="cuda")

    def launches() -> None:
        for _ in range(200):
            small.add_(1.0)

    plain, recorded = by_clock(torch, launches), by_clock(torch, graph(torch, launches))
    verdicts = {
        f"ten times the work takes ten times as long: {ten / one:.2f}": 9 < ten / one < 11,
        f"our clock and the GPU's agree on long work: {host:.3f} and {ten:.3f} ms": abs(host - ten) < 0.1 * ten,
        f"a CUDA graph saves launches: 200 take {plain:.3f} ms, recorded {recorded:.3f} ms": recorded < plain,
    }
    ours = by_stopwatch(torch, work(50))
    if ours is not None:
        verdicts[f"our events and torch's agree: {ours:.3f} and {ten:.3f} ms"] = abs(ours - ten) < 0.05 * ten
    for text, right in verdicts.items():
        print(f"  {'ok   ' if right else 'WRONG'} {text}")
    return all(verdicts.values())


def by_events(torch: Any, run: Callable[[], None]) -> float:
    """Median milliseconds by torch's CUDA events."""
    laps = []
    for index in range(WARM_UP + RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if index >= WARM_UP:
            laps.append(start.elapsed_time(end))
    return statistics.median(laps)


def by_clock(torch: Any, run: Callable[[], None]) -> float:
    """Median milliseconds by the host's clock, from launch to result."""
    laps = []
    for index in range(WARM_UP + RUNS):
        torch.cuda.synchronize()
        began = time.perf_counter_ns()
        run()
        torch.cuda.synchronize()
        if index >= WARM_UP:
            laps.append((time.perf_counter_ns() - began) / 1e6)
    return statistics.median(laps)


def by_stopwatch(torch: Any, run: Callable[[], None]) -> float | None:
    """Median milliseconds by the events that the runner uses; None without cuda-bindings."""
    try:
        tensorrt_cuda.runtime()
    except Exception as error:  # noqa: BLE001  (missing or broken bindings raise what they like; the line says what)
        print(f"  --    our own events: {error}")
        return None

    class Stream:
        handle = torch.cuda.current_stream().cuda_stream

    watch, laps = tensorrt_cuda.Stopwatch(Stream(), 2), []  # type: ignore[arg-type]  # torch's stream has the one attribute it reads
    for index in range(WARM_UP + RUNS):
        watch.mark(0)
        run()
        watch.mark(1)
        if index >= WARM_UP:
            laps.append(watch.laps()[0])
        else:
            watch.laps()
    watch.close()
    return statistics.median(laps)


def graph(torch: Any, run: Callable[[], None]) -> Callable[[], None]:
    """A function's launches recorded as one CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        run()
    replay: Callable[[], None] = recorded.replay
    return replay
