"""Random crops of the 20 labelled ImageNet photographs that the package foolbox carries, seeded.

Ten photographs serve calibration and tuning, the other ten evaluation: no evaluation crop shows anything
that calibration saw. Crops of one photograph resemble each other, so 300 of them tell less about accuracy
on ImageNet than 300 photographs would; for comparing a variant with its reference they are fair.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import foolbox  # noqa: F401 (never imported: it is slow; named, so that edgeopt keys the data by its version)

SIDE = 224


def photographs() -> list[tuple[Path, int]]:
    """Files and ImageNet class indices; the index ends the file name."""
    spec = find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'foolbox'", name="foolbox")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*"))
    return [(file, int(file.stem.rpartition("_")[2])) for file in files]


def crops(first: int, count: int, least: float, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """(crop [3, 224, 224], label) of every second photograph from `first` on, in turn.

    A crop covers `least` to all of the photograph's area, has sides of 3:4 to 4:3 and is mirrored half the time.
    """
    numbers = np.random.default_rng(seed)
    chosen = [(Image.open(file).convert("RGB"), label) for file, label in photographs()[first::2]]
    for index in range(count):
        image, label = chosen[index % len(chosen)]
        width, height = image.size
        area = width * height * numbers.uniform(least, 1)
        aspect = np.exp(numbers.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
        left, top = numbers.uniform(0, width - wide), numbers.uniform(0, height - high)
        crop = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        pixels = np.asarray(crop, dtype=np.float32)[:, :: numbers.choice((-1, 1))]
        yield np.ascontiguousarray((pixels.transpose(2, 0, 1) - 127) / 128), label


def calibrate() -> Iterator[tuple[np.ndarray, int]]:
    return crops(first=0, count=512, least=0.35, seed=1)


def tune() -> Iterator[tuple[np.ndarray, int]]:
    return crops(first=0, count=128, least=0.5, seed=2)


def evaluate() -> Iterator[tuple[np.ndarray, int]]:
    return crops(first=1, count=300, least=0.5, seed=3)
