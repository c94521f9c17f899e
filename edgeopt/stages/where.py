"""where: the layers that the runtimes timed in a session → where the time of each variant goes, beside its raw samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError, UsageError
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.profile import LayerTime, Peaks
from edgeopt.core.protocols import stack
from edgeopt.core.session import Measured
from edgeopt.core.store import Store
from edgeopt.stages import profile, stand_in
from edgeopt.stages.children import Worker
from edgeopt.stages.peaks import peaks as machine_peaks
from edgeopt.stages.survey import load_samples
from edgeopt.stages.timing import Timed
from edgeopt.stages.work import READS, Work


def where(
    plan: Plan,
    used: PlanTarget,
    timed: Timed,
    artifacts: dict[str, Artifact],
    folder: Path,
    scratch: Path,
    worker: Worker,
    store: Store,
    *,
    fresh: bool,
) -> tuple[dict[str, Measured], Peaks | None]:
    """The timed rows with their profiles; every layer goes to `scratch/profile.json`. `fresh`: the machine's peaks are measured anew."""
    told = {name: layers for name, layers in timed.layers.items() if layers}
    if not told:
        return timed.rows, None
    peaks = None if used.target.on_gpu else machine_peaks(used.threads, store, fresh=fresh)
    works = _works(plan, used, {name: artifacts[name] for name in told}, timed.batch, folder, worker, store)
    rows, every = dict(timed.rows), dict[str, list[LayerTime]]()
    for name, raw in told.items():
        found, every[name] = profile.profile(
            raw, works.get(name), peaks, profile.inference_ms(rows[name], used.target.scenario, timed.batch)
        )
        rows[name] = rows[name].model_copy(update={"profile": found})
    profile.write(scratch, used.target.name, peaks, every)
    return rows, peaks


def _works(
    plan: Plan, used: PlanTarget, artifacts: dict[str, Artifact], batch: int, folder: Path, worker: Worker, store: Store
) -> dict[str, Work]:
    """What each artifact multiplies, counted by the process that imports frameworks; missing where nobody can tell."""
    sample = load_samples(folder / "samples.npz")[0]
    files, shapes = dict[str, str](), dict[str, dict[str, list[int]]]()
    for name, artifact in artifacts.items():
        path = artifact.path
        if path.suffix not in READS:  # an engine tells no shapes, what it was made of does
            row = next(row for row in plan.rows_of(used.target.name) if row.variant == name)
            try:
                path = stand_in.source(folder, row, store).path
            except UsageError:
                continue
        files[name] = str(path)
        shapes[name] = {feed: list(array.shape) for feed, array in stack([sample] * batch, artifact.signature).items()}
    result: dict[str, Any] = {}
    try:
        for event in worker.ask({"do": "work", "label": f"{used.target.name} · layers", "files": files, "shapes": shapes}):
            result = event
    except (EdgeoptError, RuntimeError):  # a model that nobody can count has been measured all the same
        return {}
    return {name: Work.from_json(value) for name, value in result["work"].items()}
