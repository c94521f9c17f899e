"""The trained file-type classifier of the package magika: 214 types, tanh-GELU; bytes of files that installed packages bring.

What kinds the files are of nobody has labelled: agreement with the FP32 model and SQNR judge it.
"""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np

from tests.zoo import writing

PACKAGES = ("magika", "numpy", "scipy", "matplotlib", "scikit-learn", "mlxtend", "foolbox", "playwright")
READS: tuple[Path, ...] = ()
SCORES = ["sqnr", "agreement"]
LABELLED = False
COUNTS = {"calibrate": 256, "tune": 128, "evaluate": 300}
PER_KIND = 90  # files of one ending, at most


def files() -> list[Path]:
    """Files of the packages, a few of each ending, in a fixed order that mixes them."""
    kinds: dict[str, list[Path]] = {}
    for package in PACKAGES:
        for file in sorted(metadata.files(package) or [], key=str):
            path = Path(str(file.locate()))
            if file.suffix not in (".pyc", "") and ".dist-info" not in str(file) and path.is_file() and 64 <= path.stat().st_size < 1 << 22:
                kinds.setdefault(file.suffix, []).append(path)
    numbers = np.random.default_rng(0)
    chosen = [path for _, paths in sorted(kinds.items()) for path in numbers.permutation(np.array(paths, object))[:PER_KIND]]
    return [chosen[index] for index in numbers.permutation(len(chosen))]


def features(content: bytes, config: dict[str, int]) -> list[int]:
    """The first and the last bytes without white space at the ends, padded: what magika itself feeds its model."""
    first, last = content[: config["block_size"]].lstrip(), content[-config["block_size"] :].rstrip()
    head, tail = list(first[: config["beg_size"]]), list(last[-config["end_size"] :])
    padding = config["padding_token"]
    return head + [padding] * (config["beg_size"] - len(head)) + [padding] * (config["end_size"] - len(tail)) + tail


def make(folder: Path) -> None:
    package = writing.package_folder("magika") / "models/standard_v3_3"
    shutil.copyfile(package / "model.onnx", folder / "model.onnx")
    config = json.loads((package / "config.min.json").read_text())
    rows = np.unique(np.array([features(path.read_bytes(), config) for path in files()], np.int32), axis=0)
    rows = rows[np.random.default_rng(1).permutation(len(rows))]
    start = 0
    for name, count in COUNTS.items():
        writing.split(folder, name, {"bytes": rows[start : start + count]})
        start += count
