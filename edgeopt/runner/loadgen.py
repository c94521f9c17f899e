"""MLPerf's own LoadGen over an open session: the official traffic generator decides what is asked when, and whether a run is valid.

Single stream: one query of one sample at a time; its figure is the 90th percentile of latency. Offline:
one query with all samples; its figure is samples per second. An official run lasts OFFICIAL_S at
least; ours last as long as there is time for, and say so. Rules: MLPerf Inference, "Scenarios".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.runner import Problem, Session

OFFICIAL_S = 600
QUERIES = 64  # that a 90th percentile needs at least, by LoadGen's early stopping
PREFIX = "mlperf_log_"
_DEMANDS = {
    "result_min_duration_met": "minimum duration",
    "result_min_queries_met": "minimum of queries",
    "early_stopping_met": "early stopping",
}
Arrays = dict[str, np.ndarray[Any, Any]]


def run(session: Session, sets: list[Arrays], batch: int, scenario: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One LoadGen run of about so many seconds; its logs lie in `folder` then.

    Gives LoadGen's verdict with its reasons, its figure, and the latencies (ns) that our clock read
    of the same queries. Raises a Problem when LoadGen is not installed, or what the runtime raises.
    """
    try:
        import mlperf_loadgen as loadgen
    except ImportError as error:
        raise Problem("missing", f"MLPerf's LoadGen cannot be imported: {error}", "pip install 'edgeopt[mlperf]'") from error
    single = scenario == "mlperf-singlestream"
    served = _Served(loadgen, session, sets, batch)
    per_sample_s = served.calibrate()
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.scenario = loadgen.TestScenario.SingleStream if single else loadgen.TestScenario.Offline
    settings.min_duration_ms = int(1000 * seconds)
    settings.max_duration_ms = int(3000 * seconds)
    settings.min_query_count = QUERIES if single else 1
    settings.single_stream_expected_latency_ns = max(1, int(1e9 * per_sample_s))
    settings.single_stream_target_latency_percentile = 0.9
    settings.offline_expected_qps = 1 / per_sample_s
    output, logs = loadgen.LogOutputSettings(), loadgen.LogSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs.log_output, logs.enable_trace = output, False
    sut = loadgen.ConstructSUT(served.one_by_one if single else served.all_at_once, lambda: None)
    library = loadgen.ConstructQSL(len(sets) * batch, len(sets) * batch, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(sut, library, settings, logs, "")
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    if served.failed:
        raise served.failed[0]
    return {"version": version("mlcommons-loadgen"), "ours_ns": served.took_ns, **read(folder, single)}


def read(folder: Path, single: bool) -> dict[str, Any]:
    """What LoadGen's detail log says: validity, what was not met, queries, and the scenario's figure."""
    told: dict[str, Any] = {}
    for line in (folder / f"{PREFIX}detail.txt").read_text().splitlines():
        if line.startswith(":::MLLOG "):
            event = json.loads(line.removeprefix(":::MLLOG "))
            told[event["key"]] = event["value"]
    missed = [name for key, name in _DEMANDS.items() if told.get(key) is False]
    return {
        "valid": told["result_validity"] == "VALID" and not told.get("num_errors"),
        "missed": missed,
        "queries": told["result_query_count"],
        "p90_ms": told["result_90.00_percentile_latency_ns"] / 1e6 if single else None,
        "samples_per_s": None if single else told["result_samples_per_second"],
        "min_duration_s": told["effective_min_duration_ms"] / 1000,
    }


class _Served:
    """The session as LoadGen's system under test. Exceptions are kept: none may pass through LoadGen."""

    def __init__(self, loadgen: Any, session: Session, sets: list[Arrays], batch: int) -> None:
        self.loadgen, self.session, self.sets, self.batch = loadgen, session, sets, batch
        self.took_ns: list[int] = []
        self.failed: list[Exception] = []

    def calibrate(self) -> float:
        """Seconds that a sample takes when all slots are busy."""
        self._infer(0, 0)
        began = time.perf_counter()
        count = 0
        while count < 3 or time.perf_counter() - began < 0.1:
            self._infer(0, 0)
            count += 1
        return (time.perf_counter() - began) / count / self.batch / self.session.slots

    def one_by_one(self, queries: list[Any]) -> None:
        for query in queries:
            began = time.perf_counter_ns()
            if not self.failed:
                self._attempt(query.index // self.batch, 0)
            self.loadgen.QuerySamplesComplete([self.loadgen.QuerySampleResponse(query.id, 0, 0)])
            self.took_ns.append(time.perf_counter_ns() - began)

    def all_at_once(self, queries: list[Any]) -> None:
        """Samples in batches, on every slot at once. Which sample is in which batch does not change what it costs."""
        parts = iter([queries[start : start + self.batch] for start in range(0, len(queries), self.batch)])
        lock = threading.Lock()

        def taken() -> Iterator[list[Any]]:
            while True:
                with lock:
                    part = next(parts, None)
                if part is None:
                    return
                yield part

        def keep_busy(slot: int) -> None:
            for part in taken():
                if not self.failed:
                    self._attempt(part[0].index // self.batch, slot)
                self.loadgen.QuerySamplesComplete([self.loadgen.QuerySampleResponse(query.id, 0, 0) for query in part])

        threads = [threading.Thread(target=keep_busy, args=(slot,)) for slot in range(1, self.session.slots)]
        for thread in threads:
            thread.start()
        keep_busy(0)
        for thread in threads:
            thread.join()

    def _attempt(self, index: int, slot: int) -> None:
        try:
            self._infer(index, slot)
        except Exception as error:  # noqa: BLE001 (raised again when LoadGen is done)
            self.failed.append(error)

    def _infer(self, index: int, slot: int) -> None:
        self.session.load(self.sets[index % len(self.sets)], slot)
        self.session.start(slot)
        self.session.wait(slot)
        self.session.read(slot)
