"""trial: the doors of a pass that searches: the recipe's scores, and its candidates timed on the target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgeopt.core import registry
from edgeopt.core.artifact import FILES, Artifact
from edgeopt.core.errors import EdgeoptError, StepError
from edgeopt.core.plan import Plan, PlanTarget, Step
from edgeopt.core.protocols import Backend, Candidate, Context, Score
from edgeopt.core.recipe import Measuring
from edgeopt.core.store import Store
from edgeopt.core.target import UNDER_LOAD

PRECISION_PERCENT = 0.5


def scores(plan: Plan) -> dict[str, Score]:
    """The recipe's scores by label, and `sqnr` in any case."""
    from edgeopt.stages import score

    return {"sqnr": registry.load("scores", "sqnr")(), **score.ready(plan)}


def measure(
    plan: Plan, step: Step, model: Artifact, store: Store, folder: Path, progress: Callable[[int, int, str], None]
) -> Callable[[Mapping[str, Candidate], float], dict[str, float]] | None:
    """What times candidates for a step on its target as a session would; None where this machine cannot run the target.

    Inputs are the first samples of `tune`, else of `calibrate`: a search never sees `evaluate`.
    """
    from edgeopt.stages.measure import cannot_measure

    used = plan.target_of(step.target_name or "")
    if used.need != "measured" or cannot_measure(used):
        return None

    def timed(candidates: Mapping[str, Candidate], seconds: float) -> dict[str, float]:
        from edgeopt.stages import apply, survey, timing

        split = "tune" if "tune" in plan.data else "calibrate"
        samples = survey.first_samples(plan, split, apply.chain(plan, step.key)[0], store)
        settings = Measuring(precision_percent=PRECISION_PERCENT, budget_s=seconds)
        with tempfile.TemporaryDirectory() as scratch:
            artifacts, failed = _compiled(candidates, model, used, Path(scratch))
            if not artifacts:
                raise failed[0]
            trial_plan = plan.model_copy(update={"reference": next(iter(artifacts)), "measure": settings})
            found = timing.time(
                trial_plan, used, artifacts, samples, folder, Path(scratch), lambda *told: progress(0, 0, "timing candidates")
            )
        if not found.rows:
            raise next(iter(found.errors.values()), StepError("no candidate could be timed"))
        times = {}
        for name, row in found.rows.items():
            assert row.latency_ms
            rate = row.throughput_per_s if used.target.scenario in UNDER_LOAD else None
            times[name] = 1000 * found.batch / rate if rate else row.latency_ms.p50
        return times

    return timed


def _compiled(
    candidates: Mapping[str, Candidate], model: Artifact, used: PlanTarget, folder: Path
) -> tuple[dict[str, Artifact], list[EdgeoptError]]:
    """The candidates as rows of the plan would be, compiled for the target; what the compiler refuses is no candidate, and its error."""
    backend: Backend = registry.load("backends", used.target.backend)()
    made, failed = dict[str, Artifact](), list[EdgeoptError]()
    for index, (name, one) in enumerate(candidates.items()):
        given = replace(model, root=one.path.parents[1], main=one.path.name, execution={"float": one.execution})
        root = folder / str(index)
        (root / FILES).mkdir(parents=True)
        try:
            main = backend.compile(given, Context(folder=root / FILES, target=used.target.model_dump(mode="json")))
        except EdgeoptError as error:
            failed.append(error)
            continue
        made[name] = replace(given, root=root, main=main.relative_to(root / FILES).as_posix(), format=used.target.backend)
    return made, failed
