"""A zoo of trained models with real data out of installed packages, shared by tests and benchmarks.

One file per model. `get(NAME)` makes it once and keeps it in a cache: `$EDGEOPT_ZOO_CACHE`, else
`edgeopt-zoo` below the XDG cache folder. A folder there holds `model.onnx` (open batch axis, open time or
size where that is natural), `calibrate.npz`, `tune.npz` and `evaluate.npz` (arrays named like the inputs,
first axis samples, `labels`; no sample in two of them) and `about.json`; where the model was made in torch, its
`weights.safetensors` and `torch.json`; where it may be trained further, `train.npz`. Nothing is downloaded.

A file of the zoo has PACKAGES (distributions that decide the result), READS (other files that do), SCORES
(as a recipe has them, the one to judge by first), LABELLED and `make(folder)`.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import digest, registry
from edgeopt.core.store import Store
from edgeopt.stages.children import environment
from tests.zoo import writing

NAMES = ("mlp", "mnist_cnn", "efficientnet_lite0", "detector", "lstm", "gru", "minilm", "gpt", "magika")
SPLITS = ("calibrate", "tune", "evaluate")
TRAINABLE = ("mlp", "mnist_cnn", "detector", "lstm", "gru", "minilm", "gpt")  # those with `train.npz`


@dataclass(frozen=True)
class Model:
    """One model of the zoo: its folder, its scores as a recipe has them, and what about.json says."""

    name: str
    folder: Path
    scores: list[Any]
    about: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def labelled(self) -> int:
        """How many labelled samples judge it."""
        return self.about["samples"]["evaluate"] if self.about["labelled"] else 0

    @property
    def torch(self) -> dict[str, Any]:
        """The recipe's `model` for what was trained, before any export."""
        given = json.loads((self.folder / "torch.json").read_text())
        place = {"factory": str(writing.ROOT / given["factory"]), "weights": str(self.folder / "weights.safetensors")}
        return {"torch": {**given, **place}}

    def data(self, **samples: int) -> dict[str, Any]:
        """The recipe's `data`, each split cut to so many samples; `train` is there only if it is named."""
        splits = dict.fromkeys((*SPLITS, *samples))
        return {split: {"npz": str(self.folder / f"{split}.npz"), "samples": samples.get(split)} for split in splits}

    def recipe(self, **fields: Any) -> dict[str, Any]:
        """A recipe for this model; `fields` are its other top-level keys, or replace those given here."""
        given = {"edgeopt": 1, "name": self.name.replace("_", "-"), "model": {"onnx": str(self.path)}, "data": self.data()}
        return {**given, "scores": self.scores, **fields}


def root() -> Path:
    if named := os.environ.get("EDGEOPT_ZOO_CACHE"):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "edgeopt-zoo"


def get(name: str) -> Model:
    """A model of the zoo, made now unless the cache has it; of two processes one makes it and the other waits."""
    module, store = importlib.import_module(f"tests.zoo.{name}"), Store(root())
    key = _key(module)
    with store.lock(key):
        folder = store.get("models", key)
        if folder is None:
            with store.scratch() as scratch:
                _make(name, scratch)
                folder = store.put("models", key, scratch)
    return Model(name, folder, module.SCORES, json.loads((folder / "about.json").read_text()))


def _make(name: str, folder: Path) -> None:
    """In a process of its own on one thread: the same result on any number of cores, and two are made side by side."""
    command = [sys.executable, "-m", "tests.zoo", name, str(folder)]
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, cwd=writing.ROOT, env=one_thread, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"the zoo's {name} was not made:\n{made.stderr[-3000:]}")


def _key(module: Any) -> str:
    files = [Path(module.__file__), Path(writing.__file__), *module.READS]
    packages = ("torch", "onnx", "onnxruntime", *module.PACKAGES)
    return digest.of_value(
        {
            "files": [digest.of_file(file) for file in files],
            "packages": {package: registry.version(package) for package in packages},
            "python": ".".join(platform.python_version_tuple()[:2]),
        }
    )
