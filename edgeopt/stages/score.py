"""score: one walk over the evaluation data, each sample through every variant of a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import outputs as judged
from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, Signature
from edgeopt.core.errors import EdgeoptError, StepError, UsageError
from edgeopt.core.plan import Plan
from edgeopt.core.protocols import Sample, Score, Split
from edgeopt.core.session import ScoreValue
from edgeopt.stages import statistics, survey
from edgeopt.stages.children import Child
from edgeopt.stages.stand_in import Plain

Array = np.ndarray[Any, np.dtype[np.float64]]

# A process runs this many batches, or this many bytes of samples, before the next one's turn.
CHUNK, CHUNK_BYTES = 64, 64_000_000


def score(
    plan: Plan,
    target: str,
    rows: dict[str, Path],
    run: Path,
    folder: Path,
    progress: Callable[[int, int, str], None],
    plain: bool = False,
) -> dict[str, Any]:
    """Score all variants of a target together; per-sample values go to `folder/scores.npz`.

    Returns {"scores": {variant: {label: ScoreValue}}, "errors": {variant: error}}. The reference is
    walked first, so that scores against it need no stored outputs: memory stays that of one chunk.
    Scores see the outputs that all variants give, by name and in the first one's order: what is compared is the same thing.
    `run` is the run folder, which knows what samples the build saw.
    """
    used = plan.target_of(target)
    ordered = {plan.reference: rows[plan.reference], **rows} if plan.reference in rows else rows
    artifacts = {variant: Artifact.read(path) for variant, path in ordered.items()}
    scores, outputs_of_all = ready(plan), _shared(artifacts)
    values: dict[str, dict[str, list[Any]]] = {variant: {label: [] for label in scores} for variant in artifacts}
    errors: dict[str, EdgeoptError] = {}
    signature = next(iter(artifacts.values())).signature
    split = survey.seen_before(plan, "evaluate", signature, run)
    seen = 0
    with ExitStack() as stack:
        children: dict[str, Child | Plain] = {}
        for variant, artifact in artifacts.items():
            if plain:
                children[variant] = Plain(artifact)
                continue
            child = stack.enter_context(Child(variant, log=2))
            try:
                child.open(artifact, used)
                children[variant] = child
            except EdgeoptError as error:
                errors[variant] = error
        for chunk in _chunks(split, used.target.batch):
            reference: list[dict[str, Any]] | None = None
            labels = [sample.label for sample in chunk]
            walked = next((variant for variant in children if variant not in errors), None)
            for variant, runner in children.items():
                if variant in errors:
                    continue
                try:
                    found = _through(runner, chunk, artifacts[variant].signature, used.target.batch, seen)
                except UsageError:
                    raise
                except EdgeoptError as error:
                    errors[variant] = error
                    continue
                outputs = [{name: one[name] for name in outputs_of_all} for one in found]
                if variant == plan.reference:
                    reference = outputs
                try:
                    _judge(scores, values[variant], outputs, labels, reference, seen)
                except EdgeoptError as error:
                    if variant == walked:  # it stands for all: labels or scores that fit no variant
                        raise
                    errors[variant] = error
            seen += len(labels)
            progress(seen, 0, f"{seen} samples")
    if plan.reference in errors:  # it may have failed on the way: what was held against it until then is no score of all samples
        for row in values.values():
            row.update({label: [] for label, made in scores.items() if made.needs_reference})
    arrays: dict[str, Any] = {
        f"{variant}/{label}": np.asarray(found, dtype=np.float64)
        for variant, row in values.items()
        if variant not in errors
        for label, found in row.items()
    }
    np.savez_compressed(folder / "scores.npz", **arrays)
    return {
        "scores": statistics.holm(_summaries(scores, arrays, [one for one in artifacts if one not in errors], plan), plan.reference),
        "errors": {variant: error.to_json() for variant, error in errors.items()},
        "samples": seen,
    }


def ready(plan: Plan) -> dict[str, Score]:
    """The recipe's scores by label, the user's code among them loaded."""
    found = {}
    for use in plan.scores:
        made: Score = registry.load("scores", use.name).model_validate(use.options)
        made.ready(Path(plan.base))
        found[str(use.options.get("label") or use.name)] = made
    return found


def _shared(artifacts: dict[str, Artifact]) -> list[str]:
    """Names of the outputs that all variants give, in the first one's order. Raises UsageError when there are none."""
    given = {variant: [spec.name for spec in artifact.signature.outputs] for variant, artifact in artifacts.items()}
    found = [name for name in next(iter(given.values())) if all(name in names for names in given.values())]
    if not found:
        told = "; ".join(f"{variant}: {', '.join(names)}" for variant, names in given.items())
        raise UsageError(
            f"no output is given by all variants ({told})",
            remedy="keep one in common (`simplify: {outputs: […]}`), so that the variants can be held against each other",
        )
    return found


def _chunks(samples: Iterable[Sample], batch: int) -> Iterator[list[Sample]]:
    """Samples in heaps of bounded size, whole batches, so that a process runs for a while before the next one's turn."""
    heap: list[Sample] = []
    size = 0
    for sample in samples:
        heap.append(sample)
        size += sum(array.nbytes for array in sample.inputs.values())
        if len(heap) % batch == 0 and (len(heap) == CHUNK * batch or size > CHUNK_BYTES):
            yield heap
            heap, size = [], 0
    if heap:
        yield heap


def _through(child: Child | Plain, chunk: list[Sample], signature: Signature, batch: int, seen: int) -> list[dict[str, Any]]:
    """The outputs of one process sample by sample, stacked as its model takes them; it is frozen when it is not its turn, as in timing."""
    child.thaw()
    found: list[dict[str, Any]] = []
    for feeds, labels in Split("", lambda: iter(chunk), signature).batches(batch):
        found += split_outputs(child.ask("infer", arrays=feeds)[1], len(labels), signature, seen + len(found))
    child.freeze()
    return found


def split_outputs(outputs: dict[str, Any], count: int, signature: Signature, seen: int) -> list[dict[str, Any]]:
    """Outputs sample by sample, without the batch axis. Raises StepError for NaN or infinity."""
    samples = judged.apart(outputs, count, signature)
    remedy = (
        "leave the pass that overflows out, or keep its nodes in float; where the reference fails too, look at the model and the sample"
    )
    for index, sample in enumerate(samples):
        for name, one in sample.items():
            if one.dtype.kind == "f" and not np.isfinite(one).all():
                raise StepError(f"NaN or infinity in output '{name}' for evaluation sample {seen + index}", remedy=remedy)
    return samples


def _judge(
    scores: dict[str, Score],
    values: dict[str, list[Any]],
    outputs: list[dict[str, Any]],
    labels: list[Any],
    reference: list[dict[str, Any]] | None,
    seen: int,
) -> None:
    for label, made in scores.items():
        if made.needs_reference and reference is None:
            continue
        for index, one in enumerate(outputs):
            if made.needs_labels and labels[index] is None:
                raise UsageError(
                    f"score '{label}' needs labels, and evaluation sample {seen + index} has none",
                    remedy="give labels with the evaluation data, or use agreement or sqnr, which need none",
                )
            try:
                values[label].append(made.sample(one, labels[index], reference[index] if reference else None))
            except EdgeoptError as error:
                raise type(error)(
                    f"score '{label}', evaluation sample {seen + index}: {error.cause}", remedy=error.remedy, place=error.place
                ) from None


def _summaries(scores: dict[str, Score], values: dict[str, Array], variants: list[str], plan: Plan) -> dict[str, dict[str, Any]]:
    """What the `values` of `variant/label` come to, by variant; each score's reference is resampled once for all."""
    rows: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for label, made in scores.items():
        base = values.get(f"{plan.reference}/{label}")
        drawn = None if base is None or made.binary or not len(base) else statistics.resampled(base, made.finish, plan.seed)
        for variant, row in rows.items():
            own = values[f"{variant}/{label}"]
            if len(own):
                row[label] = _summary(label, made, own, base, plan.seed, drawn)
    return rows


def _summary(label: str, made: Score, own: Array, base: Array | None, seed: int, drawn: Array | None) -> dict[str, Any]:
    figures = statistics.score(own, base, made.finish, made.higher_is_better, made.binary, seed, drawn)
    if own is base:
        figures["drop_ci95"] = (0.0, 0.0)  # held against itself, nothing is in doubt
    if math.isnan(figures["value"]):
        raise UsageError(
            f"score '{label}' cannot be told from the {len(own)} evaluation samples",
            remedy="check their labels: all may be of one class, or there is nothing to find",
        )
    return ScoreValue(samples=len(own), unit=made.unit, higher_is_better=made.higher_is_better, **figures).model_dump()
