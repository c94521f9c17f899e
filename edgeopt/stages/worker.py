"""The worker: `python -m edgeopt.stages.worker RUN STORE`, one JSON job per line in, events out; RUN holds a plan, or nothing.

It is the only process of a run that imports frameworks. What libraries print goes to the run's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from edgeopt.core.errors import EdgeoptError, from_exception
from edgeopt.core.plan import Plan
from edgeopt.core.store import Store
from edgeopt.stages import apply, noise, score, survey, work


def main() -> None:
    """Serve jobs until stdin ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print lands in the log
    folder, root = Path(sys.argv[1]), Path(sys.argv[2])
    plan = Plan.read(folder) if (folder / "plan.json").is_file() else None
    store = Store(root)
    for line in sys.stdin:
        job = json.loads(line)
        events = Events(out)
        print(f"--- {job.get('label') or job['do']}", file=sys.stderr, flush=True)
        try:
            result = _do(job, plan, store, events) if plan else _do_alone(job, events)
        except Exception as error:  # noqa: BLE001 (whatever a library raises becomes an event for the parent)
            events.fail(error, str(job.get("label") or job["do"]))
            continue
        events.send("done", **(result or {}))


def _do(job: dict[str, Any], plan: Plan, store: Store, events: Events) -> dict[str, Any] | None:
    if job["do"] == "step":
        return apply.apply(plan, plan.steps[job["key"]], store, Path(sys.argv[1]), events.progress)
    if job["do"] == "survey":
        return survey.survey(plan, job["split"], job["model"], store, events.progress)
    if job["do"] == "disjoint":
        return survey.disjoint(plan, job["model"], store)
    if job["do"] == "parity":
        return apply.check_parity(plan, plan.steps[job["key"]], store)
    if job["do"] == "score":
        return score.score(
            plan,
            job["target"],
            {row: Path(path) for row, path in job["rows"].items()},
            Path(job["run"]),
            Path(job["folder"]),
            events.progress,
            job["plain"],
        )
    if job["do"] == "work":
        counted = {name: work.work(Path(path), job["shapes"].get(name)) for name, path in job["files"].items()}
        return {"work": {name: one.to_json() for name, one in counted.items() if one}}
    raise ValueError(f"no such job: {job['do']}")


def _do_alone(job: dict[str, Any], events: Events) -> dict[str, Any]:
    """What needs no plan."""
    if job["do"] == "noise":
        return noise.noise(job, events.progress)
    raise ValueError(f"no such job without a plan: {job['do']}")


class Events:
    """Writes events to the parent; progress at most ten times a second."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.last = out, 0.0

    def send(self, event: str, **fields: Any) -> None:
        self.out.write(json.dumps({"event": event, **fields}) + "\n")
        self.out.flush()

    def progress(self, done: int, total: int, text: str = "") -> None:
        if done == total or time.monotonic() - self.last > 0.1:
            self.last = time.monotonic()
            self.send("progress", done=done, total=total, text=text)

    def fail(self, error: Exception, doing: str) -> None:
        """Tell the parent: a failure the user can mend, or a bug of edgeopt."""
        traceback.print_exc()
        if isinstance(error, (EdgeoptError, OSError, MemoryError)):
            self.send("error", **from_exception(error, doing).to_json())
        else:
            self.send("error", error="Bug", cause=f"{doing}: {error!r}", traceback=traceback.format_exc())


if __name__ == "__main__":
    main()
