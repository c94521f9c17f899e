"""Random crops of the 20 labelled ImageNet photographs that the package foolbox carries, seeded.

Seven photographs serve calibration, three tuning, the other ten evaluation: no split shows anything that
another saw, so that what a search reaches on `tune` is about what it reaches elsewhere. Crops of one photograph
resemble each other, so 300 of them tell less about accuracy on ImageNet than 300 photographs would; for comparing
a variant with its reference they are fair.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import foolbox  # noqa: F401 (never imported: it is slow; named, so that edgeopt keys the data by its version)

SIDE = 224
CALIBRATE, TUNE, EVALUATE = (0, 4, 6, 10, 12, 16, 18), (2, 8, 14), range(1, 20, 2)


def photographs() -> list[tuple[Path, int]]:
    """Files and ImageNet class indices; the index ends the file name."""
    spec = find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'foolbox'", name="foolbox")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*"))
    return [(file, int(file.stem.rpartition("_")[2])) for file in files]


def crops(chosen: Sequence[int], count: int, least: float, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """(crop [3, 224, 224], label) of the photographs with these numbers, in turn.

    A crop covers `least` to all of the photograph's area, has sides of 3:4 to 4:3 and is mirrored half the time.
    """
    numbers = np.random.default_rng(seed)
    files = photographs()
    images = [(Image.open(files[number][0]).convert("RGB"), files[number][1]) for number in chosen]
    for index in range(count):
        image, label = images[index % len(images)]
        width, height = image.size
        area = width * height * numbers.uniform(least, 1)
        aspect = np.exp(numbers.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
        left, top = numbers.uniform(0, width - wide), numbers.uniform(0, height - high)
        crop = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        pixels = np.asarray(crop, dtype=np.float32)[:, :: numbers.choice((-1, 1))]
        yield np.ascontiguousarray((pixels.transpose(2, 0, 1) - 127) / 128), label


def calibrate() -> Iterator[tuple[np.ndarray, int]]:
    return crops(CALIBRATE, count=512, least=0.35, seed=1)


def tune() -> Iterator[tuple[np.ndarray, int]]:
    return crops(TUNE, count=128, least=0.5, seed=2)


def evaluate() -> Iterator[tuple[np.ndarray, int]]:
    return crops(EVALUATE, count=300, least=0.5, seed=3)
