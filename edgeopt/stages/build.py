"""build: Plan → artifacts. Each step once, ever; one failed row does not stop the others."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgeopt.core import digest, registry
from edgeopt.core.artifact import RECORD, Artifact
from edgeopt.core.errors import EXIT_MISSING, EXIT_OK, EdgeoptError, UnfitError, UsageError
from edgeopt.core.plan import Plan, PlanRow
from edgeopt.core.progress import Progress
from edgeopt.core.protocols import Options
from edgeopt.core.report import StepInfo
from edgeopt.core.store import Store
from edgeopt.stages import keys, stand_in
from edgeopt.stages.children import Worker


class BuildRow(Options):
    """What became of one row. `artifact` is its folder, relative to the run folder."""

    variant: str
    target: str
    status: Literal["built", "bundled", "unavailable", "failed"]
    reason: str | None = None
    exit_code: int = EXIT_OK
    artifact: str | None = None
    digest: str | None = None
    cached: bool = False
    history: list[StepInfo] = Field(default_factory=list)


class Build(Options):
    """The rows of a plan after building."""

    edgeopt_build: Literal[1] = 1
    rows: list[BuildRow]
    seconds: dict[str, float] = Field(default_factory=dict, description="by stage and step, as spent in this run")

    def of(self, variant: str, target: str) -> BuildRow:
        return next(row for row in self.rows if (row.variant, row.target) == (variant, target))

    @staticmethod
    def read(folder: Path) -> Build:
        path = folder / "build.json"
        if not path.is_file():
            raise UsageError(f"{folder} holds no build.json", remedy=f"run `edgeopt build {folder}` first")
        return Build.model_validate_json(path.read_text())


def build(plan: Plan, folder: Path, *, store: Store | None = None, progress: Progress | None = None) -> Build:
    """Make every artifact of a plan and copy it into the run folder.

    Raises UsageError when the data do not fit the model, and what an import raises: nothing can be
    built then. What fails later fails its own rows only.
    """
    store, progress = store or Store(), progress or Progress()
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder)
    progress.stage("build")
    started = time.monotonic()
    with Worker(folder, store.root, folder / "log.txt") as worker:
        builder = _Builder(plan, folder, store, progress, worker)
        builder.look_at_data()
        rows = [builder.row(row) for row in plan.rows]
    result = Build(rows=rows, seconds={**builder.seconds, "build": round(time.monotonic() - started, 3)})
    (folder / "build.json").write_text(result.model_dump_json(indent=1) + "\n")
    store.remember_digests()
    return result


class _Builder:
    def __init__(self, plan: Plan, folder: Path, store: Store, progress: Progress, worker: Worker) -> None:
        self.plan, self.folder, self.store, self.progress, self.worker = plan, folder, store, progress, worker
        self.failed: dict[str, EdgeoptError] = {}
        self.seconds: dict[str, float] = {}

    def look_at_data(self) -> None:
        """Import the model and walk its data before anything is built on them."""
        if not self.plan.rows:
            return
        model = self.plan.rows[0].steps[0]
        self._step(model, "import", parity=False)
        surveys = {split: keys.survey(self.plan, split, model) for split in self.plan.data}
        for split, key in surveys.items():
            if self.store.get("surveys", key) is None:
                self._ask({"do": "survey", "split": split, "model": model}, f"data: {split}")
        if self.store.get("surveys", keys.disjoint(self.plan, model)) is None:
            self._ask({"do": "disjoint", "model": model}, "data: no sample in two splits")
        self._step(model, "import")
        for name in ("samples.npz", "seen.npz"):  # what measuring needs, here or on another machine
            shutil.copyfile(self.store.path("surveys", surveys["evaluate"]) / name, self.folder / name)

    def row(self, row: PlanRow) -> BuildRow:
        """Build one row; its failure is its own."""
        target = self.plan.target_of(row.target).target
        backend = registry.load("backends", target.backend)()
        base = {"variant": row.variant, "target": row.target}
        fields = target.model_dump(mode="json")
        if missing := backend.can_build(fields):
            return BuildRow(**base, status="unavailable", reason=missing, exit_code=EXIT_MISSING)
        if refused := row.unavailable or backend.refuses(row.execution):
            return BuildRow(**base, status="unavailable", reason=refused)
        try:
            steps = [self._step(key, f"{row.variant} · {self.plan.steps[key].plug}") for key in row.steps]
            artifact = Artifact.read(self.store.path("artifacts", row.artifact))
            place = self._take(artifact, self.folder / "artifacts" / row.target / row.variant)
            if backend.can_measure(fields) or self.plan.target_of(row.target).need != "measured":
                self._take_source(row)
        except UnfitError as error:
            if row.variant == self.plan.reference:  # what the target's other rows are scored against
                self._take_source(row)
            return BuildRow(**base, status="unavailable", reason=str(error))
        except EdgeoptError as error:
            return BuildRow(**base, status="failed", reason=str(error), exit_code=error.exit_code)
        history = [self._told(event) for event in artifact.history]
        return BuildRow(
            **base,
            status="bundled" if target.compile_on == "device" else "built",
            reason=backend.can_measure(fields) or None,
            artifact=place.relative_to(self.folder).as_posix(),
            digest=artifact.digest,
            cached=all(steps),
            history=history,
        )

    def _take_source(self, row: PlanRow) -> None:
        """Copy what went into a row's compile, to be scored in its place."""
        self._take(Artifact.read(self.store.path("artifacts", row.steps[-2])), stand_in.place(self.folder, row))

    def _step(self, key: str, label: str, *, parity: bool = True) -> bool:
        """Make sure that a step's result is in the store, and its parity record; True when the result already was."""
        step = self.plan.steps[key]
        if key in self.failed:
            raise self.failed[key]
        wants = parity and keys.wants_parity(step)
        try:
            if keys.whole(self.store, key):
                if wants and self.store.get("parities", keys.parity(self.plan, step)) is None:
                    self._ask({"do": "parity", "key": key}, f"{label} · parity")
                return True
            self._ask({"do": "step", "key": key}, label)
        except EdgeoptError as error:
            self.failed[key] = error
            raise
        return False

    def _ask(self, job: dict[str, Any], label: str) -> None:
        started = time.monotonic()
        try:
            with self.progress.piece(label):
                for event in self.worker.ask({**job, "label": label}):
                    if event["event"] == "progress":
                        self.progress.advance(label, event["done"], event["total"], event["text"])
        finally:
            self.seconds[label] = round(self.seconds.get(label, 0) + time.monotonic() - started, 3)

    def _take(self, artifact: Artifact, place: Path) -> Path:
        """Copy an artifact into the run folder, unless the same one lies there."""
        try:
            if Artifact.read(place).digest == artifact.digest and digest.of_folder(place / "files") == artifact.digest:
                return place
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(artifact.root, part)
        part.rename(place)
        return place

    def _told(self, event: Any) -> StepInfo:
        step = self.plan.steps.get(event.key)
        parity = None
        if step is not None and keys.wants_parity(step):
            path = self.store.path("parities", keys.parity(self.plan, step)) / "parity.json"
            parity = json.loads(path.read_text()) if path.is_file() else None
        return StepInfo(step=event.step, seconds=event.seconds, options=event.options, notes=event.notes, parity=parity)


def artifact_of(folder: Path, row: BuildRow) -> Artifact:
    """The artifact of a built row, in the run folder. Raises UsageError when it is damaged or gone."""
    root = folder / (row.artifact or "")
    try:
        return Artifact.read(root)
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{root / RECORD} is missing or damaged", remedy=f"run `edgeopt build {folder}` again") from None
