"""The detector's score: doubles suppressed, then COCO's mean average precision by edgeopt's own `map`."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt.scores.map import Map

LEAST, OVERLAP, MOST = 0.05, 0.5, 10
JUDGE = Map(classes=10, detections=MOST)


def sample(outputs: dict[str, np.ndarray], label: np.ndarray, reference: Any) -> list[float]:
    """`boxes` [cells, 4] and `scores` [cells, 10] against rows x, y, x, y, class (−1: none)."""
    truth = np.asarray(label)[np.asarray(label)[:, 4] >= 0]
    rows = suppressed(outputs["boxes"].astype(np.float64), outputs["scores"].astype(np.float64))
    return JUDGE.sample({"rows": rows}, {"boxes": truth[:, :4], "classes": truth[:, 4].astype(int)}, None)


def finish(values: np.ndarray) -> float:
    return JUDGE.finish(values)


def suppressed(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Rows x, y, x, y, score, class: the best class of each cell, and no two boxes of a class that overlap by more than half."""
    kinds, best = scores.argmax(axis=1), scores.max(axis=1)
    order = [index for index in np.argsort(-best, kind="stable") if best[index] > LEAST]
    kept: list[int] = []
    for index in order:
        if len(kept) == MOST:
            break
        alike = [other for other in kept if kinds[other] == kinds[index]]
        if not alike or _iou(boxes[index], boxes[alike]).max() <= OVERLAP:
            kept.append(int(index))
    return np.column_stack([boxes[kept], best[kept], kinds[kept]]) if kept else np.zeros((0, 6))


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0)
    common = np.prod(sides, axis=1)
    return common / (np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common + 1e-9)
