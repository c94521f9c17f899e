"""An artifact: a model at rest on disk, with its I/O signature, execution precision and history."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

RECORD = "artifact.json"
FILES = "files"
Numbers = Literal["f32", "fp16", "bf16", "int8"]  # what a model computes with at its coarsest


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `shape` holds sizes, or names for axes that may vary; `dtype` is numpy's name.

    `batch` is the axis that counts samples where the shape does not tell it, as when its name gave way to a size; −1: there is none.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    batch: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch_symbol(self) -> str | None:
        """The name of the batch axis: that of the first input's first axis when it may vary, and counts samples."""
        first = next((spec for spec in self._open if spec.batch in (None, 0)), None)
        return None if first is None or (first.batch is None and self._is_one_sample(first)) else str(first.shape[0])

    @property
    def _open(self) -> list[TensorSpec]:
        """The inputs whose first axis may vary."""
        return [spec for spec in self.inputs if spec.shape and isinstance(spec.shape[0], str)]

    def _is_one_sample(self, spec: TensorSpec) -> bool:
        """Whether the first axis is time or the like: a waveform [L], or what has results of one size for any length of it."""
        if len(self.inputs) == len(spec.shape) == 1 and spec.dtype.startswith("float"):
            return True
        if len(spec.shape) > 3:
            return False  # pictures come in batches, whatever size an exporter has noted for the results
        results = [one.shape for one in self.outputs]
        counts = [shape[:1] in ((), (1,)) or any(isinstance(size, str) for size in shape) for shape in results]
        return bool(results) and not any(counts)

    @property
    def fixed_batch(self) -> int | None:
        """How many samples the model insists on at once, or None when its batch axis may vary.

        Without any name it is what all inputs begin with, if an output does too. Else (a state of two layers, a sequence along the
        first axis) one run is of one sample, which brings such inputs as they are.
        """
        if self.batch_symbol is not None:
            return None
        told = [spec.shape[spec.batch] for spec in self.inputs if spec.batch is not None and spec.batch >= 0]
        if any(spec.batch is not None for spec in self.inputs):
            return next((one for one in told if isinstance(one, int)), 1)
        if self._open:
            return 1
        tensors = [spec.shape for spec in self.inputs if len(spec.shape) > 1]
        size = tensors[0][0] if tensors else 1
        results = [spec.shape for spec in self.outputs if spec.shape]
        counted = not results or any(shape[0] == size or isinstance(shape[0], str) for shape in results)
        if not counted or any(shape[0] != size for shape in tensors):
            return 1
        tensors += [shape for shape in results if len(shape) > 1]
        in_time = results and all(len(shape) == 3 and shape[1] == 1 for shape in tensors)  # [time, 1, features], in and out
        return 1 if in_time else int(size)

    def batch_axis(self, spec: TensorSpec) -> int | None:
        """Which axis of `spec` counts samples; None when it has none (a scalar, a shared table)."""
        symbol = self.batch_symbol
        if symbol is not None:
            if symbol in spec.shape:
                return spec.shape.index(symbol)
            others = {size for one in self.inputs for size in one.shape[1:]}  # named so, it is another axis of theirs
            return 0 if spec.shape and isinstance(spec.shape[0], str) and spec.shape[0] not in others else None
        if spec.batch is not None:
            return spec.batch if spec.batch >= 0 else None
        if self._open:
            return None  # it is no batch, see above
        begins = spec.shape[0] if spec.shape else None
        return 0 if begins == self.fixed_batch or (len(spec.shape) > 1 and isinstance(begins, str)) else None

    def after(self, before: Signature) -> Signature:
        """The same, of a model that was made of another one: an axis that was given a size counts what it counted."""
        if before.batch_symbol and any(before.batch_symbol in spec.shape for spec in self.inputs):
            return self  # its name tells

        def told(specs: tuple[TensorSpec, ...], old: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            known = {spec.name: spec for spec in old}
            return tuple(
                replace(spec, batch=-1 if (axis := before.batch_axis(known[spec.name])) is None else axis)
                if spec.name in known and len(known[spec.name].shape) == len(spec.shape)
                else spec
                for spec in specs
            )

        return Signature(told(self.inputs, before.inputs), told(self.outputs, before.outputs))

    @staticmethod
    def from_json(value: dict[str, Any]) -> Signature:
        def specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"]), row.get("batch")) for row in rows)

        return Signature(specs(value["inputs"]), specs(value["outputs"]))


@dataclass(frozen=True)
class Event:
    """One step in an artifact's history: what ran, with which options, how long, and what it noted."""

    step: str
    key: str
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None


@dataclass(frozen=True)
class Artifact:
    """A model at rest. `root` is its folder; the model file is `root/files/<main>`."""

    root: Path
    format: str
    main: str
    key: str
    digest: str
    size_bytes: int
    signature: Signature
    execution: dict[str, str] = field(default_factory=lambda: {"float": "f32"})
    history: tuple[Event, ...] = ()

    @property
    def path(self) -> Path:
        """The main file of the model."""
        return self.root / FILES / self.main

    @property
    def files(self) -> Path:
        """The folder that holds every file of the model and nothing else."""
        return self.root / FILES

    def at(self, root: Path) -> Artifact:
        """The same artifact in another folder."""
        return replace(self, root=root)

    def write(self) -> None:
        record = asdict(self)
        del record["root"]
        (self.root / RECORD).write_text(json.dumps(record, indent=1, default=str) + "\n")

    @staticmethod
    def read(root: Path) -> Artifact:
        """Raises OSError or ValueError when the folder holds no whole artifact."""
        record = json.loads((root / RECORD).read_text())
        record["signature"] = Signature.from_json(record["signature"])
        record["history"] = tuple(Event(**event) for event in record["history"])
        artifact = Artifact(root=root, **record)
        if sum(path.stat().st_size for path in artifact.files.rglob("*") if path.is_file()) != artifact.size_bytes:
            raise ValueError(f"{root} is not whole")
        return artifact
