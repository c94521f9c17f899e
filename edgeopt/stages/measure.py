"""measure: artifacts → sessions. Scores and latency of the final artifacts, on the target, by our clock."""

from __future__ import annotations

import datetime
import json
import shutil
import time
from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.core import digest, machine, registry
from edgeopt.core.errors import EdgeoptError, MissingError, UsageError, from_json
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.progress import Progress
from edgeopt.core.protocols import Backend
from edgeopt.core.session import Measured, ScoreValue, Session
from edgeopt.core.store import Store
from edgeopt.stages import stand_in
from edgeopt.stages.build import Build, artifact_of
from edgeopt.stages.children import Worker
from edgeopt.stages.plan import machine_of, score_parts

_CODE = ("children", "conditions", "lane", "peaks", "profile", "score", "statistics", "timing", "work")  # stages behind a session's figures


def measure(
    plan: Plan, folder: Path, *, store: Store | None = None, remeasure: bool = False, progress: Progress | None = None
) -> list[Session]:
    """Measure every target that has built rows; one session per target, into `folder/sessions`.

    A session of the same artifacts, data, scores, settings and machine is taken from the store unless
    `remeasure`. Raises UsageError when nothing was built or a score does not fit the data.
    """
    store, progress = store or Store(), progress or Progress()
    build, plan = Build.read(folder), plan.here()
    plan.write(folder)
    progress.stage("measure")
    sessions = []
    with Worker(folder, store.root, folder / "log.txt") as worker:
        for used in plan.targets:
            rows = {row.variant: row for row in build.rows if row.target == used.target.name and row.status in ("built", "bundled")}
            elsewhere = used.need != "measured" or bool(cannot_measure(used))
            if not rows:
                continue
            if elsewhere:  # the scores are those of what went into the compiler, on the CPU
                artifacts = {
                    row.variant: stand_in.source(folder, row, store)
                    for row in plan.rows_of(used.target.name)
                    if row.variant in rows or (row.variant == plan.reference and stand_in.place(folder, row).is_dir())
                }
            else:
                artifacts = {variant: artifact_of(folder, row) for variant, row in rows.items()}
            key = _key(plan, used, {variant: artifact.key for variant, artifact in artifacts.items()}, elsewhere)
            place = folder / "sessions" / used.target.name
            found = None if remeasure else store.get("sessions", key)
            if found is None:
                with store.scratch() as scratch:
                    session = _Measuring(plan, used, key, folder, scratch, progress, worker, elsewhere, store, remeasure).session(artifacts)
                    session.write(scratch)
                    if any("unstable" in one.flags for one in session.variants):
                        found = scratch  # kept with the run, never reused
                    else:
                        store.drop("sessions", key)
                        found = store.put("sessions", key, scratch)
                    _copy(found, place)
            else:
                progress.end(used.target.name, 0.0, "cached")
                _copy(found, place)
            sessions.append(Session.read(place))
    return sessions


def cannot_measure(used: PlanTarget) -> str:
    """Why this machine cannot run what is built for a target, or an empty string."""
    backend: Backend = registry.load("backends", used.target.backend)()
    return used.target.refuses_machine() or backend.can_measure(used.target.model_dump(mode="json"))


def _copy(source: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, place)


def _machine(used: PlanTarget, elsewhere: bool) -> dict[str, Any]:
    """The machine that a session belongs to; what was made for elsewhere is only scored here, on the CPU."""
    return machine.fingerprint() if elsewhere else machine_of(used.target)


def _key(plan: Plan, used: PlanTarget, artifacts: dict[str, str], elsewhere: bool) -> str:
    """What a session depends on: artifacts, target, data, scores, settings, machine, and our own code."""
    rooms = Path(__file__).parent.parent
    code = [digest.of_folder(rooms / "runner"), *(digest.of_file(rooms / "stages" / f"{name}.py") for name in _CODE)]
    return digest.of_value(
        {
            "session": __version__,
            "code": code,
            "artifacts": artifacts,
            "reference": plan.reference,
            "target": used.target.model_dump(mode="json", exclude={"name"}),
            "threads": used.threads,
            "data": plan.data["evaluate"].digest,
            "scores": _scores(plan),
            "measure": plan.measure.model_dump(mode="json"),
            "seed": plan.seed,
            "machine": _machine(used, elsewhere)["id"],
        }
    )


def _scores(plan: Plan) -> str:
    """What the scores are made of on this machine. Raises UsageError when the user's files among them are not those of the plan."""
    base = Path(plan.base)
    try:
        parts = [score_parts(use, base) for use in plan.scores]
    except UsageError as error:
        error.remedy = f"--recipe-folder says where the recipe's folder lies now; it was {base}"
        raise
    if digest.of_value([one["files"] for one in parts]) != plan.scores_files:
        raise UsageError("scores: their code changed after the plan was made", remedy="run `edgeopt plan` again, and build")
    return digest.of_value(parts)


class _Measuring:
    """One session in the making."""

    def __init__(
        self,
        plan: Plan,
        used: PlanTarget,
        key: str,
        folder: Path,
        scratch: Path,
        progress: Progress,
        worker: Worker,
        elsewhere: bool,
        store: Store,
        remeasure: bool,
    ) -> None:
        self.plan, self.used, self.key, self.folder, self.scratch = plan, used, key, folder, scratch
        self.progress, self.worker, self.elsewhere, self.store, self.remeasure = progress, worker, elsewhere, store, remeasure

    def session(self, artifacts: dict[str, Any]) -> Session:
        from edgeopt.stages import survey, timing
        from edgeopt.stages.where import where

        name, started_at, began = self.used.target.name, _now(), time.monotonic()
        errors = {} if self.elsewhere else self._refused(artifacts)
        scored = self._score({variant: str(artifact.root) for variant, artifact in artifacts.items() if variant not in errors})
        errors |= {variant: from_json(error) for variant, error in scored["errors"].items()}
        sound = {variant: artifact for variant, artifact in artifacts.items() if variant not in errors}
        scoring = time.monotonic() - began
        label = f"{name} · latency"
        began = time.monotonic()
        if self.elsewhere:
            rows_alone = {variant: Measured(variant=variant, flags=["scored-on-cpu"]) for variant in sound}
            timed = timing.Timed(rows=rows_alone, batch=self.used.target.batch)
        else:
            with self.progress.piece(label):
                samples = survey.load_samples(self.folder / "samples.npz")
                timed = timing.time(
                    self.plan,
                    self.used,
                    sound,
                    samples,
                    self.folder,
                    self.scratch,
                    lambda *told: self.progress.advance(label, *told),
                    layers=True,
                )
        spent = time.monotonic() - began
        began = time.monotonic()
        profiled, peaks = where(
            self.plan, self.used, timed, sound, self.folder, self.scratch, self.worker, self.store, fresh=self.remeasure
        )
        profiling = time.monotonic() - began
        errors |= timed.errors
        rows = []
        for variant in artifacts:
            if variant in errors:
                rows.append(Measured(variant=variant, error=errors[variant].to_json()))
                continue
            scores = {label: ScoreValue.model_validate(value) for label, value in scored["scores"].get(variant, {}).items()}
            rows.append(profiled[variant].model_copy(update={"scores": scores}))
        data = self.plan.data["evaluate"]
        return Session(
            key=self.key,
            target=name,
            backend=self.used.target.backend,
            scenario=self.used.target.scenario,
            threads=self.used.threads,
            batch=timed.batch,
            reference=self.plan.reference,
            machine=_machine(self.used, self.elsewhere),
            conditions=timed.conditions,
            data_digest=data.digest,
            synthetic=data.synthetic,
            noise_percent=timed.noise_percent,
            warmup_runs=timed.warmup_runs,
            started_at=started_at,
            peaks=peaks,
            seconds={"score": round(scoring, 3), "time": round(spent, 3), "profile": round(profiling, 3)},
            variants=rows,
        )

    def _refused(self, artifacts: dict[str, Any]) -> dict[str, EdgeoptError]:
        """Variants that were built where the processor can execute what they ask for, and that this one cannot."""
        backend: Backend = registry.load("backends", self.used.target.backend)()
        told = {variant: backend.refuses(artifact.execution) for variant, artifact in artifacts.items()}
        return {variant: MissingError(cause, remedy="measure it on a machine that can") for variant, cause in told.items() if cause}

    def _score(self, rows: dict[str, str]) -> dict[str, Any]:
        label = f"{self.used.target.name} · scores"
        result: dict[str, Any] = {}
        job = {
            "do": "score",
            "target": self.used.target.name,
            "rows": rows,
            "run": str(self.folder),
            "folder": str(self.scratch),
            "label": label,
            "plain": self.elsewhere,
        }
        with self.progress.piece(label):
            for event in self.worker.ask(job):
                if event["event"] == "progress":
                    self.progress.advance(label, event["done"], event["total"], event["text"])
                result = event
        return result


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def sessions_of(folder: Path) -> dict[str, Session]:
    """The sessions in a run folder by target."""
    return {path.parent.name: Session.read(path.parent) for path in sorted(folder.glob("sessions/*/session.json"))}


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds by stage and step that the run spent, from its own records."""
    return dict(json.loads((folder / "build.json").read_text())["seconds"])
