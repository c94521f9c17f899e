"""apply: run one step and put its result into the store, checked, all or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import digest, registry
from edgeopt.core.artifact import FILES, Artifact, Event, Signature, TensorSpec
from edgeopt.core.errors import StepError, UsageError, from_exception
from edgeopt.core.plan import Plan, Step
from edgeopt.core.protocols import Backend, Context, Pass, stack
from edgeopt.core.store import Store
from edgeopt.stages import keys, survey, trial
from edgeopt.stages.children import Child
from edgeopt.stages.explain import PARTS

MAX_DB = 150.0
# A compile must not change the function: below this SQNR something is broken. bf16 keeps 8 bits of mantissa; 8-bit numbers
# are rounded by each runtime in its own way, which a deep model amplifies as it does the quantization itself.
COMPILE_DB = {"f32": 25.0, "bf16": 10.0, "int8": 10.0}
# Behind quantization a step may round anew what was rounded: that doubles the noise (3 dB); 1 dB is left to chance on few samples.
ADDED_DB = 4.0
_KEEP = "leave the pass out, or keep the layers that it breaks (`edgeopt inspect` shows them)"
_UNRUN = "export the model anew, with operators and types that onnxruntime has on CPUs: float32 above all, no bfloat16"
_ANEW = "the import changed what the model computes: export the model anew, at opset 17 or later"


def apply(plan: Plan, step: Step, store: Store, run_folder: Path, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Run a step unless its result is there. Returns what the history says of it."""
    with store.lock(step.key):
        found = load(store, step.key)
        if found is None:
            found = _run(plan, step, store, run_folder, progress)
        store.drop("checkpoints", step.key)
    return {"seconds": found.history[-1].seconds, "notes": found.history[-1].notes, "bytes": found.size_bytes}


def load(store: Store, key: str) -> Artifact | None:
    """The stored result of a step, if it is there and whole."""
    return Artifact.read(store.path("artifacts", key)) if keys.whole(store, key) else None


def _run(plan: Plan, step: Step, store: Store, run_folder: Path, progress: Callable[[int, int, str], None]) -> Artifact:
    before = load(store, step.before) if step.before else None
    with store.scratch() as scratch:
        folder = scratch / FILES
        folder.mkdir()
        notes: dict[str, Any] = {}
        started = time.monotonic()
        ctx = Context(
            folder=folder,
            base=Path(plan.base),
            seed=plan.seed,
            checkpoints=store.path("checkpoints", step.key),
            note=notes.__setitem__,
            progress=progress,
        )
        model = before or Artifact(Path(), "", "", "", "", 0, Signature((), ()))
        try:
            main, execution = _perform(plan, step, store, run_folder, model, ctx)
        except Exception as error:  # third-party code raises anything; it becomes one StepError
            raise from_exception(error, step.plug) from error
        seconds = round(time.monotonic() - started, 3)
        if not main.is_file() or folder not in main.parents:
            raise StepError(f"{step.plug}: wrote no model file", remedy="a pass returns the path of its result below ctx.folder")
        artifact = Artifact(
            root=scratch,
            format=step.makes,
            main=main.relative_to(folder).as_posix(),
            key=step.key,
            digest=digest.of_folder(folder),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            signature=model.signature if step.kind == "compile" else _format(step.makes).signature(main).after(model.signature),
            execution=execution,
            history=(*model.history, Event(step.plug, step.key, seconds, step.options, notes)),
        )
        _check_signature(step, model, artifact)
        artifact.write()
        (scratch / PARTS).write_text(json.dumps(step.parts))
        _check_parity(plan, step, store, before, artifact)
        return artifact.at(store.put("artifacts", step.key, scratch))


def _perform(plan: Plan, step: Step, store: Store, run_folder: Path, model: Artifact, ctx: Context) -> tuple[Path, dict[str, str]]:
    if step.kind == "compile":
        backend: Backend = registry.load("backends", step.plug)()
        target = {**step.target, "options": step.options}
        if (planned := step.parts.get("machine", "")) != (here := backend.here(target)):
            cause = f"what is built is for a machine of one kind: the plan for '{planned}', and this one is '{here}'"
            raise UsageError(f"{step.plug}: {cause}", remedy="run `edgeopt plan` again on this machine: a key names what went in")
        return backend.compile(model, replace(ctx, target=target)), model.execution
    cls: type[Pass] = registry.load("passes", step.plug)
    data = {split: survey.split_of(plan, split, model.signature) for split in step.data}
    reference = load(store, step.reference) if step.reference else None
    if step.reference and reference is None:
        raise StepError(f"{step.plug}: the reference variant could not be built", remedy="see its own error")
    made = cls.model_validate(step.options)
    if digest.of_files(made.user_files(ctx.base), ctx.base) != step.parts["files"]:
        raise UsageError(
            f"{step.plug}: its files changed after the plan was made", remedy="run `edgeopt plan` again: a key names what went in"
        )
    executions = [cls.sets_execution or model.execution["float"]]
    ctx = replace(
        ctx,
        data=data,
        target=step.target,
        reference=reference,
        scores=trial.scores(plan) if "score" in made.doors() else {},
        measure=trial.measure(plan, step, model, store, run_folder, ctx.progress) if "measure" in made.doors() else None,
        execute=executions.append,
    )
    main = made.run(model, ctx)
    return main, {**model.execution, "float": executions[-1]}


def _format(name: str) -> Any:
    return registry.load("formats", name)()


def _check_signature(step: Step, before: Artifact, after: Artifact) -> None:
    """Inputs and outputs keep their names, types and fixed sizes unless the pass says otherwise (`gives`)."""
    if step.before is None or step.kind == "compile":
        return
    made: Pass = registry.load("passes", step.plug).model_validate(step.options)
    wanted = made.gives(before.signature)
    for kind in ("inputs", "outputs") if wanted else ():
        old, new = getattr(wanted, kind), getattr(after.signature, kind)
        if len(old) != len(new) or any(not _same(one, other) for one, other in zip(old, new, strict=False)):
            raise StepError(
                f"{step.plug}: it changed the model's {kind} from ({'; '.join(map(str, old))}) to ({'; '.join(map(str, new))})",
                remedy="report it to the author of the pass; leave the pass out meanwhile",
            )


def _same(one: TensorSpec, other: TensorSpec) -> bool:
    if one.name != other.name or one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    return all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(one.shape, other.shape, strict=True))


def check_parity(plan: Plan, step: Step, store: Store) -> dict[str, Any]:
    """Compare a stored step's outputs with its predecessor's, an import's with the user's own model's, on this plan's samples."""
    before, after = load(store, step.before) if step.before else None, load(store, step.key)
    if after and (before or not step.before):
        _check_parity(plan, step, store, before, after)
    return {}


def _check_parity(plan: Plan, step: Step, store: Store, before: Artifact | None, after: Artifact) -> None:
    if not keys.wants_parity(step):
        return
    model = chain(plan, step.key)[0]
    try:
        kept = survey.first_samples(plan, "evaluate", model, store)[:4]
    except FileNotFoundError:
        return  # no survey yet: an import is looked at before its data is
    survey.fits(plan, "evaluate", model, after.signature, step.plug, store)
    feeds = [stack([sample], after.signature) for sample in kept]
    try:
        new = _outputs(after, feeds, step.options if step.kind == "compile" else None)
        old, refused = (_outputs(before, feeds), None) if before else _original(plan, step, after.signature, feeds)
    except Exception as error:  # a model that does not run is a failed step, whatever the runtime raises
        raise from_exception(error, f"{step.plug}: running its result", *(() if before else (_UNRUN,))) from error
    origin, outputs = _float(plan, step, store, before), after.signature.outputs
    tolerance = _tolerance(step, None if origin else before, after)
    record = _compare(step, old, new, outputs) | {"samples": len(old), "tolerance_db": tolerance, "not_compared": refused, "float_db": None}
    if record["not_finite"]:
        raise StepError(
            f"{step.plug}: NaN or infinity in output '{record['not_finite']}'",
            remedy="leave the pass out, or keep the overflowing nodes in float" if before else _ANEW,
        )
    if tolerance is not None and record["sqnr_db"] is not None and record["sqnr_db"] < tolerance:
        if origin is None:
            raise StepError(
                f"{step.plug}: parity is broken: outputs agree to {record['sqnr_db']:.1f} dB SQNR only, {tolerance:.0f} dB is the least",
                remedy=_KEEP if before else _ANEW,
            )
        plain = _outputs(origin, feeds)
        had, has = (_compare(step, plain, one, outputs)["sqnr_db"] for one in (old, new))
        if had is not None and has is not None and has < had - ADDED_DB:
            raise StepError(
                f"{step.plug}: parity is broken: it takes what quantization left from {had:.1f} to {has:.1f} dB SQNR against the float "
                f"model, and {ADDED_DB:.0f} dB is the most that it may cost",
                remedy=_KEEP,
            )
        record |= {"tolerance_db": None, "float_db": [had, has]}
    with store.scratch() as folder:
        (folder / "parity.json").write_text(json.dumps(record))
        store.put("parities", keys.parity(plan, step), folder)


def _tolerance(step: Step, before: Artifact | None, after: Artifact) -> float | None:
    """The least SQNR in dB, or None where a step may change the function. A model that was quantized already agrees roughly."""
    if step.kind == "compile":
        least = COMPILE_DB[after.execution["float"]]
    else:
        cls: type[Pass] = registry.load("passes", step.plug)
        if cls.changes_function:
            return None
        least = cls.tolerance_db
    return min(least, COMPILE_DB["int8"]) if before and _format(before.format).rounds(before.path) else least


def _float(plan: Plan, step: Step, store: Store, before: Artifact | None) -> Artifact | None:
    """Behind quantization, the last model before it: what a step adds to the noise is seen only against that one."""
    if before is None or step.kind == "compile" or not _format(before.format).rounds(before.path):
        return None
    for key in reversed(chain(plan, step.key)[:-2]):
        found = load(store, key)
        if found is not None and not _format(found.format).rounds(found.path):
            return found
    return None


def _outputs(artifact: Artifact, feeds: list[dict[str, Any]], compiled: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Run samples through a model: by its format's plain runner, or with a backend's options by the runner that is shipped."""
    if compiled is None:
        run = _format(artifact.format).runner(artifact.path)
        return [_named(artifact.signature, run(feed)) for feed in feeds]
    with Child(artifact.format) as child:
        child.ask(
            "open", path=str(artifact.path), backend=artifact.format, threads=1, requests=1, options=compiled, execution=artifact.execution
        )
        return [_named(artifact.signature, child.ask("infer", arrays=feed)[1]) for feed in feeds]


def _named(signature: Signature, outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs by the signature's names: a runtime may call a tensor otherwise, in the same order."""
    return dict(zip([spec.name for spec in signature.outputs], outputs.values(), strict=True))


def _original(plan: Plan, step: Step, signature: Signature, feeds: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """The outputs of the user's own model, or why there are none: it may be one that nothing here runs as it is."""
    made: Pass = registry.load("passes", step.plug).model_validate(step.options)
    try:
        run = made.original(Path(plan.base))
        return [_named(signature, run(feed)) for feed in feeds], None
    except Exception as error:  # noqa: BLE001  (whatever a runtime raises that does not take it)
        return [], from_exception(error, "the original does not run here").cause


def _compare(step: Step, old: list[dict[str, Any]], new: list[dict[str, Any]], outputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Largest absolute error over all samples and outputs, and SQNR in dB of the worst output; null where nothing was compared.

    An output that is zero throughout is held against the power of all, as the score `sqnr` does it. Outputs are held
    against those of the same name. Indices beside real-valued ones are left out, and so is what came out in another
    number along an open axis (the boxes that a suppression kept): `uncompared` names the latter.
    """
    if not old:
        return {"max_abs": None, "sqnr_db": None, "not_finite": None, "uncompared": []}
    powers: dict[str, Any] = {}  # signal and noise by output
    largest, not_finite, uncompared = 0.0, None, dict[str, None]()
    shared = [spec for spec in outputs if spec.name in old[0]]
    judged = [spec for spec in shared if np.dtype(spec.dtype).kind == "f"] or shared
    for one, other in zip(old, new, strict=True):
        for spec in judged:
            x, y = np.asarray(one[spec.name], dtype=np.float64), np.asarray(other[spec.name], dtype=np.float64)
            if x.shape != y.shape:
                if len(x.shape) == len(y.shape) == len(spec.shape) and all(
                    had == has or isinstance(size, str) for had, has, size in zip(x.shape, y.shape, spec.shape, strict=True)
                ):
                    uncompared[spec.name] = None
                    continue
                raise StepError(
                    f"{step.plug}: output '{spec.name}' has the shape {list(y.shape)} now, before it had {list(x.shape)}",
                    remedy="leave the pass out" if step.before else _ANEW,
                )
            if not np.isfinite(y).all() and np.isfinite(x).all():
                not_finite = spec.name
                continue
            finite = np.isfinite(x) & np.isfinite(y)
            delta = (y - x)[finite]
            powers[spec.name] = powers.get(spec.name, 0.0) + np.array([(x[finite] ** 2).sum(), (delta**2).sum()])
            largest = max(largest, float(np.abs(delta).max(initial=0.0)))
    if not powers:
        return {"max_abs": None, "sqnr_db": None, "not_finite": not_finite, "uncompared": [*uncompared]}
    signals, noises = np.stack([*powers.values()]).T
    decibels: float | None = MAX_DB
    if noises.any():  # against nothing but zeros there is no ratio
        ratios = (np.where(signals > 0, signals, signals.sum()) / np.where(noises > 0, noises, 1))[noises > 0]
        decibels = min(MAX_DB, 10 * float(np.log10(ratios.min()))) if signals.any() else None
    return {"max_abs": largest, "sqnr_db": decibels, "not_finite": not_finite, "uncompared": [*uncompared]}


def chain(plan: Plan, key: str) -> list[str]:
    """The keys from the import to `key`."""
    found = [key]
    while (before := plan.steps[found[0]].before) is not None:
        found.insert(0, before)
    return found
