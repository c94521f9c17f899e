"""noise: two models run on the same samples, and what each tensor of one differs from its counterpart in the other.

Runs in the worker. Counterparts are found by name: names outlive quantization, casts and most rewrites. A quantizer of
the other model is a layer of its own, held against what it rounds, so that rounding and computing with rounded weights are told apart.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import recipe as recipes
from edgeopt.core import registry, samples
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import UsageError
from edgeopt.core.inner import Graph, Inner
from edgeopt.core.protocols import Dataset, fixed_batch, stack

MAX_DB = 150.0  # SQNR is capped at it
LIMIT_BYTES = 500_000_000  # of both models' tensors of one sample at a time
FIRST = 8  # tensors of the first batch, whose size tells how many may follow
ROUNDING = "rounding"
_ACTIVATIONS = ("Relu", "Clip", "ReLU", "Clamp")
# What stands between a value and its rounded self.
_PASSED = ("Cast", "Convert", "Identity", "QuantizeLinear", "DequantizeLinear", "FakeQuantize")
_SPLITS = ("tune", "calibrate", "train")


@dataclass
class Pair:
    """A tensor and its counterpart, of which `name` and `kind` are the layer in the first model. Sums run over all samples."""

    name: str
    kind: str
    first: str
    second: str
    output: str | None = None
    signal: float = 0.0
    noise: float = 0.0
    equal: int = 0
    values: int = 0
    real: bool = True
    alike: bool = True  # in shape

    def add(self, one: Any, other: Any) -> None:
        self.alike = self.alike and one.shape == other.shape
        if not self.alike:
            return
        self.real = one.dtype.kind == "f" and other.dtype.kind == "f"
        self.equal += int(np.count_nonzero(one == other))
        self.values += one.size
        x, y = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            odd = ~finite
            self.noise += 0.0 if np.array_equal(x[odd], y[odd], equal_nan=True) else np.inf
            x, y = x[finite], y[finite]
        self.signal += float(x @ x)
        x = x - y
        self.noise += float(x @ x)

    @property
    def sqnr_db(self) -> float:
        if self.noise == 0:
            return MAX_DB
        if self.signal == 0 or not np.isfinite(self.noise):
            return -MAX_DB
        return float(np.clip(10 * np.log10(self.signal / self.noise), -MAX_DB, MAX_DB))


def noise(job: dict[str, Any], progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Compare two model files as a job names them; the result is plain JSON.

    Raises UsageError for inputs that differ, data that do not fit and models without a common tensor, StepError when one does not run.
    """
    paths = [Path(path) for path in job["models"]]
    first, second = (_open(path, execution) for path, execution in zip(paths, job["execution"], strict=True))
    _same_inputs(paths, first.signature, second.signature)
    pairs = matched(first.graph, second.graph)
    if not any(pair.kind != ROUNDING for pair in pairs):
        raise UsageError(
            f"{paths[0].name} and {paths[1].name} have no tensor in common by name",
            remedy="compare a model with one that was made of it; export both anew if the names were lost on the way",
        )
    feeds, fed = _feeds(job, first.signature)
    with tempfile.TemporaryDirectory(prefix="edgeopt-against-") as scratch:
        folders = [Path(scratch) / side for side in ("first", "second")]
        for folder in folders:
            folder.mkdir()
        _compare(pairs, first, second, feeds, folders, progress)
    kept = [pair for pair in pairs if pair.alike and (pair.real or pair.output)]
    layers = [
        {
            "name": pair.name,
            "type": pair.kind,
            "tensor": pair.second,
            "output": pair.output,
            "sqnr_db": round(pair.sqnr_db, 2) if pair.real else None,
            "equal": None if pair.real else round(pair.equal / pair.values, 4),
            "reads": reads,
        }
        for pair, reads in zip(kept, _reads(kept, second.graph), strict=True)
    ]
    unmatched = len({tensor for node in first.graph.nodes for tensor in node.makes} - {pair.first for pair in pairs})
    return {"layers": layers, "fed": fed, "samples": len(feeds), "unmatched": unmatched}


def _open(path: Path, execution: str) -> Inner:
    kind = {".onnx": "onnx", ".xml": "openvino"}[path.suffix.lower()]
    found: Inner = registry.load("formats", kind)().inner(path, execution)
    return found


def _same_inputs(paths: list[Path], first: Signature, second: Signature) -> None:
    ours, theirs = ({spec.name: spec for spec in side.inputs} for side in (first, second))
    alike = set(ours) == set(theirs) and all(
        len(spec.shape) == len(theirs[name].shape)
        and all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(spec.shape, theirs[name].shape, strict=True))
        for name, spec in ours.items()
    )
    if not alike:
        shown = [", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in side.inputs) for side in (first, second)]
        raise UsageError(
            f"the inputs differ: {paths[0].name} takes {shown[0]}, {paths[1].name} {shown[1]}",
            remedy="compare two forms of one model, with inputs of the same names and shapes",
        )


def matched(first: Graph, second: Graph) -> list[Pair]:
    """Tensors of both models, in the second's order of execution."""
    called = {name: tensor for tensor, names in first.names.items() for name in reversed(names)}
    maker = {tensor: node for node in first.nodes for tensor in node.makes}
    readers: dict[str, list[str]] = {}
    for node in first.nodes:
        for tensor in node.reads:
            readers.setdefault(tensor, []).append(node.makes[0])
    makers = {tensor: node for node in second.nodes for tensor in node.makes}
    ends = {tensor: name for name, tensor in first.outputs.items()}

    by_name = {
        tensor: found for tensor, names in second.names.items() if (found := next((called[one] for one in names if one in called), None))
    }
    named, rounded = set(by_name.values()), set(second.rounded.values())

    def counterpart(tensor: str) -> str | None:
        """A quantizer may do an activation's work; the layer before it then has the activation's name, and not its result."""
        found = by_name.get(tensor)
        after, node = maker.get(found or ""), makers.get(tensor)
        taken = tensor in rounded and node is not None and node.kind not in _ACTIVATIONS
        if taken and after and after.kind in _ACTIVATIONS and after.reads[0] in maker and after.reads[0] not in named:
            return after.reads[0]
        return found

    present = {found for tensor in second.names if (found := counterpart(tensor))}

    def source(tensor: str) -> str | None:
        """What a rounded tensor is in the first model: an activation that rounding does as well may have gone."""
        while (found := counterpart(tensor)) is None:
            node = makers.get(tensor)
            if node is None or node.kind not in _PASSED:
                return None
            tensor = node.reads[0]
        while len(after := readers.get(found, [])) == 1 and after[0] not in present and maker[after[0]].kind in _ACTIVATIONS:
            found = after[0]
        return found

    pairs: list[Pair] = []
    seen = set()
    for node in second.nodes:
        for tensor in node.makes:
            found, kind = counterpart(tensor), None
            if found is None and tensor in second.rounded:
                found, kind = source(second.rounded[tensor]), ROUNDING
            if found is None or (found, kind) in seen:
                continue
            seen.add((found, kind))
            made = maker.get(found)
            name = made.name if made else found
            pairs.append(Pair(name, kind or (made.kind if made else "input"), found, tensor, None if kind else ends.get(found)))
    for name, tensor in first.outputs.items():  # an output is one whatever its tensor is called
        if name in second.outputs and not any(pair.output == name for pair in pairs):
            made = maker.get(tensor)
            if made:
                pairs.append(Pair(made.name, made.kind, tensor, second.outputs[name], name))
    return pairs


def _reads(pairs: list[Pair], graph: Graph) -> list[list[int]]:
    """For each pair the nearest pairs before it; -1 for an input of the model."""
    index = {pair.second: at for at, pair in enumerate(pairs) if pair.real}
    near: dict[str, frozenset[int]] = {tensor: frozenset([-1]) for tensor in graph.inputs.values()}
    own: dict[str, frozenset[int]] = {}
    for node in graph.nodes:
        before = frozenset[int]().union(*(near[tensor] for tensor in node.reads))
        for tensor in node.makes:
            own[tensor] = before
            near[tensor] = frozenset([index[tensor]]) if tensor in index else before
    return [sorted(own.get(pair.second, ())) for pair in pairs]


def _feeds(job: dict[str, Any], signature: Signature) -> tuple[list[dict[str, Any]], str]:
    """The samples to run, each as one set of inputs, and where they come from."""
    made, base, told = _data(job, signature)
    found = list(itertools.islice(samples.walk(made, base, signature), job["samples"]))
    batch = fixed_batch(signature) or 1
    feeds = [stack(found[at : at + batch], signature) for at in range(0, len(found), batch)]
    if made.synthetic:
        told = "random numbers: " + ", ".join(f"{name} {list(array.shape)}" for name, array in feeds[0].items())
    return feeds, told


def _data(job: dict[str, Any], signature: Signature) -> tuple[Dataset, Path, str]:
    if job["recipe"]:
        read = recipes.load(Path(job["recipe"]))
        splits = read.data.splits()
        split = next((name for name in _SPLITS if name in splits), None)
        if split is None:
            raise UsageError(
                f"{job['recipe']} has no `data: tune`, `calibrate` or `train`, and 'evaluate' is not looked at",
                remedy="add a split, or give --data FILE.npz",
            )
        use = splits[split]
        return registry.load("datasets", use.name).model_validate(use.options), read.base, f"'{split}' of {Path(job['recipe']).name}"
    if job["data"]:
        path = Path(job["data"])
        return registry.load("datasets", "npz").model_validate({"source": path.name}), path.parent, path.name
    free = {axis for spec in signature.inputs for axis in samples.sample_shape(spec, signature) if isinstance(axis, str)}
    unknown = [axis for axis in job["sizes"] if axis not in free]
    if unknown:
        raise UsageError(f"no input has an axis '{unknown[0]}'", remedy=f"axes that may vary: {', '.join(sorted(free)) or 'none'}")
    options = {"samples": job["samples"], "sizes": {axis: job["sizes"].get(axis, 16) for axis in free}}
    return registry.load("datasets", "random").model_validate(options), Path(), "random numbers"


def _compare(
    pairs: list[Pair],
    first: Inner,
    second: Inner,
    feeds: list[dict[str, Any]],
    folders: list[Path],
    progress: Callable[[int, int, str], None],
) -> None:
    """Add up signal and noise of each pair, as many pairs at a time as fit into memory."""
    types = {spec.name: np.dtype(spec.dtype) for spec in second.signature.inputs}
    given = {tensor: name for name, tensor in first.graph.inputs.items()}
    start, size, done = 0, FIRST, 0
    while start < len(pairs):
        batch = pairs[start : start + size]
        ours = list(dict.fromkeys(pair.first for pair in batch if pair.first not in given))
        run = first.runner(ours, folders[0]) if ours else dict
        other = second.runner(list(dict.fromkeys(pair.second for pair in batch)), folders[1])
        most = 1
        for feed in feeds:
            one = {**{tensor: feed[name] for tensor, name in given.items()}, **run(feed)}
            two = other({name: array.astype(types[name], copy=False) for name, array in feed.items()})
            for pair in batch:
                left, right = one[pair.first], two[pair.second]
                if not isinstance(left, np.ndarray) or left.dtype.kind not in "fiub" or right.dtype.kind not in "fiub":
                    pair.alike = False  # a sequence, text
                    continue
                pair.add(left, right)
            most = max(most, sum(array.nbytes for side in (one, two) for array in side.values() if isinstance(array, np.ndarray)))
            done += len(batch)
            progress(done, len(pairs) * len(feeds), "")
        start += len(batch)
        size = max(1, min(8 * size, len(batch) * LIMIT_BYTES // most))
