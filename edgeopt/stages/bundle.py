"""bundle: the pick of each target, its manifest and its evidence, as a folder to ship.

`manifest.json` names every file with its sha256; its own digest is the bundle's identity, and the same
artifact, data and versions give the same bytes. What was measured is in `evidence.json`, outside of it.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.core import digest, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.progress import Progress
from edgeopt.core.protocols import fixed_batch, stack
from edgeopt.core.report import Report, Row
from edgeopt.core.store import Store
from edgeopt.stages import stand_in
from edgeopt.stages.build import Build, artifact_of
from edgeopt.stages.children import Child

# A golden output may differ by this share of its largest value on another machine: kernels differ, the function does not. Each is
# some ten times what the numbers round to: 2⁻²³ summed up, 2⁻¹⁰, 2⁻⁷; 8-bit numbers go to the neighbouring step.
TOLERANCE: dict[str, float] = {"f32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
_READERS = {".onnx": "onnx", ".xml": "openvino"}
_LIMIT = "tolerance.json"  # beside the goldens in the store, in the manifest of a bundle


def bundle(plan: Plan, folder: Path, *, store: Store | None = None, progress: Progress | None = None) -> list[Path]:
    """Write `bundles/<target>/` for every picked row; returns the folders. Needs the run's report."""
    store, progress = store or Store(), progress or Progress()
    if not (folder / "report.json").is_file():
        raise UsageError(f"{folder} holds no report.json", remedy=f"run `edgeopt report {folder}` first")
    report, build = Report.read(folder), Build.read(folder)
    progress.stage("bundle")
    made = []
    for used in plan.targets:
        row = report.picked(used.target.name)
        place = folder / "bundles" / used.target.name
        shutil.rmtree(place, ignore_errors=True)
        if row is None:
            continue
        artifact = artifact_of(folder, build.of(row.variant, row.target))
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _fill(part, plan, used, row, artifact, folder, store)
        _evidence(part, report, row, used)
        part.rename(place)
        made.append(place)
    return made


def _fill(part: Path, plan: Plan, used: PlanTarget, row: Row, artifact: Artifact, folder: Path, store: Store) -> None:
    shutil.copytree(artifact.files, part / "model")
    goldens = _goldens(plan, used, row, artifact, folder, store)
    if goldens:
        shutil.copytree(goldens, part / "golden", ignore=shutil.ignore_patterns(_LIMIT))
    files = sorted(path for path in part.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "edgeopt_bundle": 1,
        "edgeopt": __version__,
        "name": plan.name,
        "variant": row.variant,
        "target": used.target.model_dump(mode="json"),
        "model": {"format": artifact.format, "main": f"model/{artifact.main}", "digest": artifact.digest, "execution": artifact.execution},
        "inputs": [_spec(spec) for spec in artifact.signature.inputs],
        "outputs": [_spec(spec) for spec in artifact.signature.outputs],
        "preprocessing": plan.data["evaluate"].use.model_dump(mode="json"),
        "recipe": plan.recipe_digest,
        "data": {split: ref.digest for split, ref in plan.data.items()},
        "made_with": _versions(plan, artifact),
        "golden": {
            "inputs": "golden/inputs.npz",
            "outputs": "golden/outputs.npz",
            "tolerance": max(json.loads((goldens / _LIMIT).read_text()), _executed(row)),
        }
        if goldens
        else None,
        "files": {path.relative_to(part).as_posix(): {"sha256": digest.of_file(path), "size_bytes": path.stat().st_size} for path in files},
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _versions(plan: Plan, artifact: Artifact) -> dict[str, str]:
    """The versions of the packages that made the artifact, as its steps' keys hold them."""
    found: dict[str, str] = {}
    for event in artifact.history:
        if event.key in plan.steps:
            found |= plan.steps[event.key].parts.get("needs", {})
    return found


def _executed(row: Row) -> float:
    """What a runtime told of the layers that it executes: an engine chooses for itself."""
    return max((TOLERANCE.get(name, 0.0) for name, layers in (row.precision or {}).items() if layers), default=0.0)


def tolerance(artifact: Artifact, source: Artifact | None, options: dict[str, Any]) -> float:
    """How far the goldens may be missed, from what the model computes with; an engine cannot be read, but the model it was made of."""
    numbers = [artifact.execution["float"], *(["fp16"] if options.get("tf32") else [])]  # TF32 has the mantissa of FP16
    for one in (artifact, source):
        if one is not None and one.path.suffix in _READERS:
            numbers.append(registry.load("formats", _READERS[one.path.suffix])().coarsest(one.path))
            break
    return max(TOLERANCE[one] for one in numbers)


def _source(plan: Plan, row: Row, folder: Path, store: Store) -> Artifact | None:
    try:
        return stand_in.source(folder, next(one for one in plan.rows_of(row.target) if one.variant == row.variant), store)
    except UsageError:
        return None


def _goldens(plan: Plan, used: PlanTarget, row: Row, artifact: Artifact, folder: Path, store: Store) -> Path | None:
    """Inputs of the evaluation data and the artifact's outputs on them, for a self-test on the device."""
    if used.need == "built":
        return None  # the compiled artifact runs nowhere here, and nothing on the device compiles it again
    key = digest.of_value(
        {"golden": 2, "artifact": artifact.key, "samples": digest.of_file(folder / "samples.npz"), "threads": used.threads}
    )
    if found := store.get("goldens", key):
        return found
    import numpy as np

    from edgeopt.stages import survey

    size = fixed_batch(artifact.signature) or 1
    kept = survey.load_samples(folder / "samples.npz")[:2]
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    with store.scratch() as scratch:
        with ExitStack() as stack_:
            if used.target.compile_on == "device":  # what the device makes of the ONNX must agree with the ONNX
                child: Child | stand_in.Plain = stand_in.Plain(replace(artifact, format="onnx"))
            else:
                child = stack_.enter_context(Child(artifact.format))
                child.open(artifact, used)
            for index, sample in enumerate(kept):
                feeds = stack([sample] * size, artifact.signature)
                inputs |= {f"{index}/{name}": array for name, array in feeds.items()}
                outputs |= {f"{index}/{name}": array for name, array in child.ask("infer", arrays=feeds)[1].items()}
        np.savez(scratch / "inputs.npz", **inputs)
        np.savez(scratch / "outputs.npz", **outputs)
        limit = tolerance(artifact, _source(plan, row, folder, store), used.target.options)
        (scratch / _LIMIT).write_text(json.dumps(limit))
        return store.put("goldens", key, scratch)


def _evidence(part: Path, report: Report, row: Row, used: PlanTarget) -> None:
    """What was measured, and where: figures, gates, machine, history."""
    evidence = {
        "bundle": digest.of_file(part / "manifest.json"),
        "row": row.model_dump(mode="json"),
        "gates": [one.model_dump(mode="json") for one in report.gates if (one.variant, one.target) == (row.variant, row.target)],
        "target": next(one.model_dump(mode="json") for one in report.targets if one.name == used.target.name),
        "machine": report.machine,
        "created_at": report.created_at,
    }
    (part / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n")
