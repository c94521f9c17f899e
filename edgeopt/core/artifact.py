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
    """One input or output. `shape` holds sizes, or names for axes that may vary; `dtype` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch_symbol(self) -> str | None:
        """The name of the batch axis: that of the first input's first axis when it may vary."""
        for spec in self.inputs:
            if spec.shape and isinstance(spec.shape[0], str):
                return spec.shape[0]
        return None

    def batch_axis(self, spec: TensorSpec) -> int | None:
        """Which axis of `spec` counts samples; None when it has none (a scalar, a shared table)."""
        symbol = self.batch_symbol
        if symbol is not None:
            if symbol in spec.shape:
                return spec.shape.index(symbol)
            return 0 if spec.shape and isinstance(spec.shape[0], str) else None
        return 0 if len(spec.shape) > 1 or spec.shape in ((1,), (self._fixed_batch,)) else None

    @property
    def _fixed_batch(self) -> int | str:
        return next((spec.shape[0] for spec in self.inputs if len(spec.shape) > 1), 1)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Signature:
        def specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)

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
