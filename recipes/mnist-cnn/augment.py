"""Small random moves of the digits while a pruned network is fine-tuned: 2,944 digits are few."""

import numpy as np


def move(feeds: dict[str, np.ndarray], numbers: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch [n, 1, 28, 28] with each digit shifted by up to two pixels, scaled and sheared by up to 10 %."""
    images = feeds["image"]
    count, _, height, width = images.shape
    scale, shear = numbers.uniform(0.9, 1.1, (2, count, 1, 1)), numbers.uniform(-0.1, 0.1, (2, count, 1, 1))
    shift = numbers.uniform(-2, 2, (2, count, 1, 1))
    y, x = np.meshgrid(np.arange(height) - height / 2, np.arange(width) - width / 2, indexing="ij")
    rows = np.clip(np.rint(scale[0] * y + shear[0] * x + shift[0] + height / 2), 0, height - 1).astype(int)
    columns = np.clip(np.rint(scale[1] * x + shear[1] * y + shift[1] + width / 2), 0, width - 1).astype(int)
    return {"image": images[np.arange(count)[:, None, None], 0, rows, columns][:, None]}
