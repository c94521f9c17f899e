"""survey: walk a data split once, before anything is built on it: count, digest, keep a few samples."""

from __future__ import annotations

import json
from collections.abc import Callable
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

KEPT = 8  # samples kept for parity, timing and golden outputs
_HASH_BYTES = 16


def split_of(plan: Plan, name: str, signature: Signature) -> Split:
    """A plan's data split, bound to the inputs of a model."""
    use = plan.data[name].use
    dataset = registry.load("datasets", use.name).model_validate(use.options)
    return Split(name, lambda: samples.walk(dataset, Path(plan.base), signature), signature)


def survey(plan: Plan, split: str, model: str, store: Store, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Walk one split and store its sample count, sample digests and first samples.

    Raises UsageError when the split is empty or does not fit the model's inputs.
    """
    import hashlib

    key = keys.survey(plan, split, model)
    found = store.get("surveys", key)
    if found:
        return {"samples": json.loads((found / "survey.json").read_text())["samples"]}
    signature = _signature(store, model)
    hashes = bytearray()
    kept: list[Sample] = []
    labelled = count = 0
    for count, sample in enumerate(split_of(plan, split, signature), start=1):
        sha = hashlib.blake2b(digest_size=_HASH_BYTES)
        for name in sorted(sample.inputs):
            array = sample.inputs[name]
            sha.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            sha.update(np.ascontiguousarray(array).data)
        hashes += sha.digest()
        labelled += sample.label is not None
        if len(kept) < KEPT:
            kept.append(sample)
        progress(count, 0, f"{split}: {count} samples")
    with store.scratch() as folder:
        np.save(folder / "hashes.npy", np.frombuffer(bytes(hashes), dtype=f"S{_HASH_BYTES}"))
        save_samples(folder / "samples.npz", kept)
        record = {"split": split, "samples": count, "labelled": labelled}
        (folder / "survey.json").write_text(json.dumps(record))
        store.put("surveys", key, folder)
    return {"samples": count}


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
    return np.load(store.path("surveys", keys.survey(plan, split, model)) / "hashes.npy", allow_pickle=False)


def _signature(store: Store, model: str) -> Signature:
    return Artifact.read(store.path("artifacts", model)).signature
