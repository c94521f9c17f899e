"""dissect: one model opened by its runtime, each layer timed and held against what this machine can do. Runs the model, in a child."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edgeopt.core import registry
from edgeopt.core import target as targets
from edgeopt.core.artifact import FILES, RECORD, Artifact, Signature
from edgeopt.core.errors import MissingError, StepError, UsageError, from_exception
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.profile import LayerTime, Peaks, Profile
from edgeopt.core.protocols import Backend, Context, Options, stack
from edgeopt.core.store import Store
from edgeopt.stages import anatomy, profile, survey
from edgeopt.stages.children import Child
from edgeopt.stages.peaks import peaks
from edgeopt.stages.work import work

DEFAULT = "x86-openvino"
TIMED_S = 0.5
_FORMATS = {".onnx": "onnx", ".xml": "openvino"}
_OPENED_BY = {"openvino": "x86-openvino", "onnxruntime": "x86-onnxruntime", "null": "null"}  # compiled artifacts without a run


class Dissection(Options):
    """Where the time of one model goes. It was timed on its own: sessions compare, this does not."""

    target: str
    runtime: str
    threads: int
    on_gpu: bool = Field(description="it executes on a GPU, and the threads compute nothing")
    fed: str
    p50_ms: float
    samples: int
    peaks: Peaks | None
    profile: Profile
    layers: list[LayerTime] = Field(description="in order of execution")


def dissect(path: Path, target: str | None = None, sizes: Mapping[str, int] | None = None, store: Store | None = None) -> Dissection:
    """Time the layers of an .onnx or .xml file or of an artifact's folder on a target, by default the artifact's own.

    Inputs are the run's samples where the artifact lies in a run folder, else random; `sizes` fixes axes that may vary.
    Raises UsageError for what cannot be opened, MissingError where the target cannot run here, StepError when it fails.
    """
    artifact, run = given(path)
    used = _target(artifact, run, path, target)
    backend: Backend = registry.load("backends", used.target.backend)()
    if reason := used.target.refuses_machine() or backend.can_measure(used.target.model_dump(mode="json")):
        raise MissingError(f"{used.target.name} cannot run here: {reason}", remedy="name another target with --target")
    with tempfile.TemporaryDirectory(prefix="edgeopt-inspect-") as scratch:
        source = artifact
        if run is None or artifact.format != used.target.backend:
            source = _alone(artifact, Path(scratch) / "given")
        opened = source if artifact.format == used.target.backend else _compiled(source, backend, used, Path(scratch) / "compiled")
        with Child(path.name) as child:
            told = child.open(opened, used)
            feeds, fed = _feeds(told["inputs"], artifact.signature, run, used.target.batch, sizes or {})
            child.ask("feeds", {f"0/{name}": array for name, array in feeds.items()})
            child.ask("time", runs=3, seconds=None)
            _, arrays = child.ask("time", runs=None, seconds=TIMED_S)
            facts, raw = child.ask("facts")[0], child.ask("profile")[0]["layers"]
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        counted = work(opened.path, shapes) or work(source.path, shapes)
    if not raw:
        raise StepError(f"{facts['runtime']} tells no times of layers", remedy="name another target with --target")
    p50 = float(np.median(arrays["compute_ns"])) / 1e6
    limits = None if used.target.on_gpu else peaks(used.threads, store or Store())
    short, layers = profile.profile(raw, counted, limits, p50)
    return Dissection(
        target=used.target.name,
        runtime=facts["runtime"],
        threads=used.threads,
        on_gpu=used.target.on_gpu,
        fed=fed,
        p50_ms=p50,
        samples=len(arrays["compute_ns"]),
        peaks=limits,
        profile=short,
        layers=layers,
    )


def given(path: Path) -> tuple[Artifact, Path | None]:
    """What to open, and the run folder it lies in, if any."""
    if path.is_dir():
        if not (path / RECORD).is_file():
            raise UsageError(
                f"{path} is no artifact's folder (no {RECORD})", remedy="name RUN/artifacts/TARGET/VARIANT, an .onnx or an .xml file"
            )
        try:
            artifact = Artifact.read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} holds no whole artifact: {error}", remedy="build it again") from None
        run = path.absolute().parent.parent.parent
        return artifact, run if (run / "plan.json").is_file() else None
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise UsageError(
            f"{path}: {'no kind of file whose layers can be told' if path.is_file() else 'no such file'}",
            remedy="name an .onnx or .xml file or an artifact's folder; export other models to ONNX first",
        )
    anatomy.READERS[path.suffix.lower()](path)  # says what is wrong with a damaged file
    signature: Signature = registry.load("formats", kind)().signature(path)
    return Artifact(path.parent, kind, path.name, "", "", path.stat().st_size, signature), None


def _target(artifact: Artifact, run: Path | None, path: Path, name: str | None) -> PlanTarget:
    """The target asked for, else that of the run, else one that opens such an artifact; always one inference at a time."""
    if name is None and run is not None:
        planned = next((one for one in Plan.read(run).targets if one.target.name == path.absolute().parent.name), None)
        if planned is not None:
            return planned.model_copy(update={"target": planned.target.model_copy(update={"scenario": "latency"})})
    found = targets.load(name or _OPENED_BY.get(artifact.format, DEFAULT), Path())
    return PlanTarget(target=found.model_copy(update={"scenario": "latency"}), need="measured", threads=found.thread_count)


def _compiled(given: Artifact, backend: Backend, used: PlanTarget, root: Path) -> Artifact:
    """The artifact as the target's runtime takes it, in the folder `root`."""
    if given.format not in backend.formats:
        takes = " or ".join(backend.formats)
        raise UsageError(f"{used.target.name} takes {takes}, this is {given.format}", remedy="name another target with --target")
    (root / FILES).mkdir(parents=True)
    fields = used.target.model_dump(mode="json")
    try:
        main = backend.compile(given, Context(folder=root / FILES, target=fields))
    except Exception as error:
        raise from_exception(error, used.target.backend) from error
    return replace(given, root=root, format=used.target.backend, main=main.relative_to(root / FILES).as_posix())


def _alone(artifact: Artifact, root: Path) -> Artifact:
    """A copy of the model file and what it names, with nothing else beside it: a user's folder may hold anything."""
    path = artifact.path if artifact.path.is_file() else artifact.root / artifact.main
    kind = _FORMATS.get(path.suffix.lower(), artifact.format)
    (root / FILES).mkdir(parents=True)
    beside = [path.with_suffix(".bin")] if kind == "openvino" else []
    if kind == "onnx":
        beside = [path.parent / name for name in anatomy.READERS[".onnx"](path)["facts"]["external_data"] or ()]
    for file in [path, *(file for file in beside if file.is_file())]:
        place = root / FILES / file.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return replace(artifact, root=root, format=kind, main=path.name)


def _feeds(
    inputs: list[list[Any]], signature: Signature, run: Path | None, batch: int, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], str]:
    """One set of inputs, and where it comes from."""
    if run is not None and (run / "samples.npz").is_file() and not sizes:
        samples = survey.load_samples(run / "samples.npz")
        if samples:
            return stack([samples[0]] * batch, signature), "the run's first sample"
    rng = np.random.default_rng(0)
    known = {spec.name: spec.shape for spec in signature.inputs}
    unknown = [axis for axis in sizes if not any(axis in shape for shape in known.values())]
    if unknown:
        free = dict.fromkeys(axis for shape in known.values() for axis in shape if isinstance(axis, str))
        raise UsageError(f"no input has an axis '{unknown[0]}'", remedy=f"axes that may vary: {', '.join(free) or 'none'}")
    feeds = {}
    for name, dtype, told in inputs:
        shape = known.get(name, tuple(told))
        whole = [axis if isinstance(axis, int) else sizes.get(axis, batch if at == 0 else 1) for at, axis in enumerate(shape)]
        values = rng.standard_normal(whole) if np.dtype(dtype).kind == "f" else np.zeros(whole)
        feeds[name] = np.asarray(values, dtype)
    shown = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    return feeds, f"random: {shown}"
