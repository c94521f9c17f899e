"""survey: walk a data split once, before anything is built on it: count, digest, keep a few samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import registry, samples
from edgeopt.core.artifact import Artifact, Signature
from edgeopt.core.errors import UsageError
from edgeopt.core.plan import Plan
from edgeopt.core.protocols import Sample, Split
from edgeopt.core.store import Store
from edgeopt.stages import keys
from edgeopt.stages.plan import data_ref

KEPT = 8  # samples kept for parity, timing and golden outputs
SEEN = "seen.npz"  # what each sample was: digests of its inputs and of its label
_HASH_BYTES = 16


def split_of(plan: Plan, name: str, signature: Signature) -> Split:
    """A plan's data split, bound to the inputs of a model. Raises UsageError when it is not the one that was planned any more."""
    use = plan.data[name].use
    if data_ref(use, Path(plan.base)).digest != plan.data[name].digest:
        raise UsageError(f"data: '{name}' changed after the plan was made", remedy="run `edgeopt plan` again: keys name what is built on")
    return _bound(plan, name, signature)


def seen_before(plan: Plan, name: str, signature: Signature, run: Path) -> Split:
    """The same on whatever machine, held against what the build of the run folder saw: other samples are refused when they come."""
    use, base = plan.data[name].use, Path(plan.base)
    found: list[Path] = registry.load("datasets", use.name).model_validate(use.options).user_files(base)
    missing = next((path for path in found if not path.is_file()), None)
    if missing:
        remedy = f"--recipe-folder says where the recipe's folder lies now; it was {base}"
        raise UsageError(f"data: no such file: {missing}", remedy=remedy)
    if not (run / SEEN).is_file():
        raise UsageError(f"{run} holds no {SEEN}", remedy=f"run `edgeopt build {run}` again")
    split = _bound(plan, name, signature)
    return Split(name, lambda: _compared(split, run / SEEN), signature)


def _bound(plan: Plan, name: str, signature: Signature) -> Split:
    use = plan.data[name].use
    dataset = registry.load("datasets", use.name).model_validate(use.options)
    return Split(name, lambda: samples.walk(dataset, Path(plan.base), signature), signature)


def _compared(split: Split, seen: Path) -> Iterator[Sample]:
    with np.load(seen, allow_pickle=False) as file:
        inputs, labels, taken = file["inputs"], file["labels"], str(file["taken"])
    other = "measure on the data that was built on, or build again"
    if taken != _takes(split.signature):  # a pass changed what the model takes: its samples look otherwise
        inputs = labels = None
    count = 0
    for index, sample in enumerate(split):
        if inputs is not None and (
            index >= len(inputs) or inputs[index] != _digest(sample.inputs) or labels[index] != _digest(sample.label)
        ):
            raise UsageError(f"data: sample {index} of '{split.name}' is not the one that the build saw", remedy=other)
        count += 1
        yield sample
    if inputs is not None and count < len(inputs):
        raise UsageError(f"data: '{split.name}' holds {count} samples, and the build saw {len(inputs)}", remedy=other)


def _takes(signature: Signature) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype}" for spec in signature.inputs)


def _digest(value: Any) -> bytes:
    """What a sample's inputs or its label are, in 16 bytes; the last one is never 0, which numpy drops."""
    sha = hashlib.blake2b(digest_size=_HASH_BYTES)
    _feed(sha, value)
    return sha.digest()[:-1] + b"\1"


def _feed(sha: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, np.ndarray):
        sha.update(f"{value.dtype.str} {value.shape} ".encode())
        sha.update(np.ascontiguousarray(value).data)
    elif isinstance(value, dict):
        for name in sorted(value):
            sha.update(f"{name} ".encode())
            _feed(sha, value[name])
    else:
        sha.update(f"{type(value).__name__} {value!r} ".encode())


def survey(plan: Plan, split: str, model: str, store: Store, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Walk one split and store its sample count, sample digests and first samples.

    Raises UsageError when the split is empty or does not fit the model's inputs.
    """
    key = keys.survey(plan, split, model)
    found = store.get("surveys", key)
    if found:
        return {"samples": json.loads((found / "survey.json").read_text())["samples"]}
    signature = _signature(store, model)
    inputs, labels = bytearray(), bytearray()
    kept: list[Sample] = []
    sizes: dict[str, dict[int, int]] = {}  # of each open axis, and the first sample that has it
    labelled = count = 0
    for count, sample in enumerate(split_of(plan, split, signature), start=1):
        inputs += _digest(sample.inputs)
        labels += _digest(sample.label)
        labelled += sample.label is not None
        for spec in signature.inputs:
            for axis, size in zip(samples.sample_shape(spec, signature), sample.inputs[spec.name].shape, strict=True):
                if isinstance(axis, str):
                    sizes.setdefault(axis, {}).setdefault(size, count - 1)
        if len(kept) < KEPT:
            kept.append(sample)
        progress(count, 0, f"{split}: {count} samples")
    with store.scratch() as folder:
        seen = [np.frombuffer(bytes(one), dtype=f"S{_HASH_BYTES}") for one in (inputs, labels)]
        np.savez(folder / SEEN, inputs=seen[0], labels=seen[1], taken=_takes(signature))
        save_samples(folder / "samples.npz", kept)
        record = {
            "split": split,
            "samples": count,
            "labelled": labelled,
            "sizes": {axis: list(found.items()) for axis, found in sizes.items()},
        }
        (folder / "survey.json").write_text(json.dumps(record))
        store.put("surveys", key, folder)
    return {"samples": count}


def fits(plan: Plan, split: str, model: str, signature: Signature, plug: str, store: Store) -> None:
    """Raises UsageError for the first sample that is of another size than the one which the pass `plug` fixed."""
    known = json.loads((store.path("surveys", keys.survey(plan, split, model)) / "survey.json").read_text())["sizes"]
    fixed = {spec.name: spec.shape for spec in signature.inputs}
    for spec in _signature(store, model).inputs:
        for axis, now in zip(spec.shape, fixed.get(spec.name, ()), strict=False):
            unlike = [(index, size) for size, index in known.get(axis, ()) if isinstance(now, int) and size != now]
            if unlike:
                index, size = min(unlike)
                raise UsageError(
                    f"{plug}: sample {index} of '{split}' has {size} along '{axis}' of input '{spec.name}', and the model takes {now} now",
                    remedy=f"pad, cut or resize the data to {now}, fix another size (`axes: {{{axis}: {size}}}`), or leave {plug} out",
                )


def disjoint(plan: Plan, model: str, store: Store) -> dict[str, Any]:
    """Check by content that evaluation shares no sample with the other splits, nor they among each other."""
    hashes = {split: _hashes(store, plan, split, model) for split in plan.data}
    names = list(hashes)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            if plan.data[first].synthetic or plan.data[second].synthetic:
                continue
            shared = np.intersect1d(hashes[first], hashes[second])
            if len(shared) and "evaluate" in (first, second):
                where = int(np.flatnonzero(hashes["evaluate"] == shared[0])[0])
                other = first if second == "evaluate" else second
                raise UsageError(
                    f"data: {len(shared)} samples of '{other}' stand in 'evaluate' too (the first is evaluation sample {where})",
                    remedy="what a model was fitted to cannot judge it: make the splits disjoint",
                )
    with store.scratch() as folder:
        (folder / "disjoint.json").write_text(json.dumps({split: len(found) for split, found in hashes.items()}))
        store.put("surveys", keys.disjoint(plan, model), folder)
    return {}


def first_samples(plan: Plan, split: str, model: str, store: Store) -> list[Sample]:
    """The samples that the survey kept."""
    folder = store.path("surveys", keys.survey(plan, split, model))
    return load_samples(folder / "samples.npz")


def save_samples(path: Path, kept: list[Sample]) -> None:
    """Write samples as one npz file of arrays `<index>/<input>`."""
    arrays: dict[str, Any] = {f"{index}/{name}": array for index, sample in enumerate(kept) for name, array in sample.inputs.items()}
    np.savez(path, **arrays)


def load_samples(path: Path) -> list[Sample]:
    """Read what `save_samples` wrote; labels are not kept."""
    found: dict[int, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            index, _, given = name.partition("/")
            found.setdefault(int(index), {})[given] = file[name]
    return [Sample(found[index]) for index in sorted(found)]


def _hashes(store: Store, plan: Plan, split: str, model: str) -> Any:
    with np.load(store.path("surveys", keys.survey(plan, split, model)) / SEEN, allow_pickle=False) as file:
        return file["inputs"]


def _signature(store: Store, model: str) -> Signature:
    return Artifact.read(store.path("artifacts", model)).signature
