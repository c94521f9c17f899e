"""inspect: what a model file, an artifact or a run folder holds. Reads; runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core import target as targets
from edgeopt.core.artifact import RECORD, Artifact
from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.core.protocols import Backend, Finding, Options
from edgeopt.stages import anatomy

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")


class Inspection(Options):
    """What was found; None where the format does not say."""

    path: str
    format: str
    size_bytes: int
    signature: dict[str, Any] | None = Field(default=None, description="inputs and outputs: name, dtype, shape")
    parameters: int | None = None
    macs: int | None = Field(
        default=None, description="multiply-accumulates of one sample in convolutions, matrix products and recurrent layers"
    )
    stored: dict[str, int] = Field(default_factory=dict, description="dtype → elements of the stored weights")
    operators: dict[str, int] = Field(default_factory=dict, description="operator → how many")
    facts: dict[str, Any] = Field(default_factory=dict, description="what the format tells besides: opset, producer, execution, digest")
    history: list[dict[str, Any]] = Field(default_factory=list, description="the steps that made an artifact")
    rows: list[dict[str, Any]] = Field(default_factory=list, description="of a run folder: what became of each row")
    findings: list[dict[str, Any]] | None = Field(
        default=None, description="with a target: what keeps the model from it: layer, level, node, cause, remedy"
    )
    profile: dict[str, Any] | None = Field(default=None, description="with --profile: where the time goes, layer by layer (`dissect`)")
    against: dict[str, Any] | None = Field(default=None, description="with --against: where the other model lost the function (`against`)")


def inspect(path: Path, target: str | None = None) -> Inspection:
    """Look into a model file, an artifact's folder or a run folder; with a target, say what keeps the model from it."""
    if target is not None:
        found = inspect(path)
        return found.model_copy(update={"findings": [vars(one) for one in _check(path, found.format, target)]})
    if not path.exists():
        raise UsageError(f"no such file: {path}", remedy="name a model file, an artifact's folder or a run folder")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() in _PICKLES:
        raise UntrustedError(
            f"{path.name} may be a pickle, which runs code when it is opened",
            remedy="save the weights as safetensors, the model as ONNX or .pt2",
        )
    reader = anatomy.READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path.name}: not a kind of file that can be inspected",
            remedy=f"these can: {', '.join(anatomy.READERS)}, or a folder of edgeopt",
        )
    return Inspection(path=str(path), **{"size_bytes": path.stat().st_size, **reader(path)})


def _check(path: Path, format: str, name: str) -> list[Finding]:
    """What keeps a model from a target. Raises UsageError for what the target does not compile, and where there is no checker for it."""
    used = targets.load(name, Path())
    backend: Backend = registry.load("backends", used.backend)()
    model = Artifact.read(path).path if path.is_dir() and format != "run" else path
    kind = {".onnx": "onnx", ".xml": "openvino"}.get(model.suffix.lower(), format)
    if kind not in backend.formats:
        takes = " or ".join(backend.formats)
        raise UsageError(
            f"{name} takes {takes}, this is {kind}", remedy="name a model file that it takes; export other models to ONNX first"
        )
    if type(backend).check is Backend.check:
        remedy = f"compile and run the model there: edgeopt bench {path} --target {name}"
        raise UsageError(f"nothing checks a model for {name} without compiling it", remedy=remedy)
    return backend.check(model, used.model_dump(mode="json"))


def _folder(path: Path) -> Inspection:
    if (path / "plan.json").is_file():
        return _run(path)
    if not (path / RECORD).is_file():
        raise UsageError(
            f"{path} is neither an artifact (no {RECORD}) nor a run folder (no plan.json)", remedy="name the folder that holds one"
        )
    try:
        artifact = Artifact.read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no whole artifact: {error}", remedy="build it again") from None
    main = artifact.path
    inner = inspect(main).model_dump() if main.suffix in (".onnx", ".xml") else {}
    if main.suffix == ".json" and (main.parent / "weights.safetensors").is_file():
        inner = inspect(main.parent / "weights.safetensors").model_dump()
    history = [{"step": event.step, "seconds": event.seconds, "options": event.options, "notes": event.notes} for event in artifact.history]
    facts = {**inner.get("facts", {}), "main": artifact.main, "execution": artifact.execution.get("float"), "digest": artifact.digest}
    own = {
        "path": str(path),
        "format": artifact.format,
        "size_bytes": artifact.size_bytes,
        "signature": anatomy.signature_json(artifact.signature),
        "facts": facts,
        "history": history,
    }
    return Inspection(**{**inner, **own})


def _run(path: Path) -> Inspection:
    """What became of each row so far, from the furthest stage that wrote its file."""
    try:
        plan = json.loads((path / "plan.json").read_text())
        rows = [{**row, "status": "planned", "reason": row["unavailable"] or None} for row in plan["rows"]]
        for name in ("build.json", "report.json"):
            if (path / name).is_file():
                rows = json.loads((path / name).read_text())["rows"]
        facts = {"name": plan["name"], "recipe": plan["recipe_file"], "edgeopt": plan["edgeopt"], "reference": plan["reference"]}
        shown = [{key: row.get(key) for key in ("variant", "target", "status", "reason", "artifact", "picked")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path}: its plan.json, build.json or report.json is damaged", remedy=f"edgeopt build {path}") from None
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Inspection(path=str(path), format="run", size_bytes=size, facts=facts, rows=shown)
