"""Mean average precision of a detector, as COCO counts it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.protocols import Score

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.core.protocols import Feeds

    Array = np.ndarray[Any, np.dtype[np.float64]]
    Kinds = np.ndarray[Any, np.dtype[np.int64]]

COCO = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = 101
EVERYTHING = (0.0, 1e10)  # areas that count


class Map(Score):
    """Average precision over 101 recalls, averaged over classes and over overlaps .50 to .95 (Lin and others, COCO, 2014).

    Outputs are final boxes, after suppression: one output of rows [x, y, x, y, score, class], or three of
    boxes, scores and classes. The label is {boxes: [[…], …], classes: […]}, and `crowd: [0 or 1, …]` where
    a box stands for a group, with boxes as the model gives them. Rows of score 0 or class −1 are padding.
    """

    needs_labels: ClassVar[bool] = True

    outputs: list[str] | None = Field(default=None, description="the one output, or the three in that order; default: all")
    format: Literal["xyxy", "xywh", "cxcywh"] = Field(default="xyxy", description="of outputs and labels alike; cx and cy: the centre")
    overlap: float | None = Field(default=None, gt=0, lt=1, description="count at this one overlap (0.5: AP50); default: .50 … .95")
    classes: int = Field(default=100, gt=0, description="classes are below it")
    detections: int = Field(default=100, gt=0, description="how many of a sample count, the best first")

    def packages(self, base: Any) -> list[str]:
        return ["pycocotools"]

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> list[float]:
        """[score, class, matches as bits] of each detection, then the boxes to find of each class."""
        import numpy as np

        boxes, scores, kinds = self._found(outputs)
        truth, truth_kinds, crowd = self._truth(label)
        rows = np.zeros((self.detections, 3))
        best = np.argsort(-scores, kind="stable")[: self.detections]
        rows[:, 1] = -1
        rows[: len(best), 0], rows[: len(best), 1] = scores[best], kinds[best]
        for kind in np.intersect1d(kinds[best], truth_kinds):
            mine, wanted = best[kinds[best] == kind], truth_kinds == kind
            rows[: len(best), 2][kinds[best] == kind] = self._matches(boxes[mine], scores[mine], truth[wanted], crowd[wanted])
        wanted_of = np.bincount(truth_kinds[~crowd], minlength=self.classes)
        return [*map(float, rows.reshape(-1)), *map(float, wanted_of)]

    def finish(self, samples: Array) -> float:
        """Not a number when there is nothing to find."""
        import numpy as np

        rows, wanted_of = samples[:, : -self.classes].reshape(-1, 3), samples[:, -self.classes :].sum(axis=0)
        rows = rows[rows[:, 1] >= 0]
        rows = rows[np.lexsort((-rows[:, 0], rows[:, 1]))]
        bits = rows[:, 2].astype(np.int64)[None, :] >> np.arange(2 * len(self._overlaps))[:, None] & 1
        right, left_out = bits[: len(self._overlaps)].astype(bool), bits[len(self._overlaps) :].astype(bool)
        starts = np.searchsorted(rows[:, 1], np.arange(self.classes + 1))
        found = []
        for kind in np.flatnonzero(wanted_of):
            here = slice(starts[kind], starts[kind + 1])
            found.append(_average_precision(right[:, here], left_out[:, here], int(wanted_of[kind])))
        return float(np.mean(found)) if found else math.nan

    @property
    def _overlaps(self) -> tuple[float, ...]:
        return (self.overlap,) if self.overlap else COCO

    def _found(self, outputs: Feeds) -> tuple[Array, Array, Kinds]:
        """Boxes [n, 4] as x y width height, scores and classes, without padding."""
        import numpy as np

        names = self.outputs or list(outputs)
        for name in names:
            if name not in outputs:
                raise UsageError(f"the model has no output '{name}'", remedy=did_you_mean(name, outputs))
        arrays = [outputs[name] for name in names]
        if len(arrays) == 1 and arrays[0].shape[-1:] == (6,):
            rows = arrays[0].reshape(-1, 6)
            arrays = [rows[:, :4], rows[:, 4], rows[:, 5]]
        if len(arrays) != 3 or arrays[0].shape[-1:] != (4,) or any(array.size * 4 != arrays[0].size for array in arrays[1:]):
            shapes = ", ".join(f"{name} {list(outputs[name].shape)}" for name in names)
            raise UsageError(
                f"these are no detections: {shapes}",
                remedy="name one output of rows x y x y score class, or three in `outputs`: boxes, scores, classes",
            )
        boxes, scores = arrays[0].reshape(-1, 4).astype(np.float64), arrays[1].reshape(-1).astype(np.float64)
        kinds: Kinds = np.rint(arrays[2].reshape(-1)).astype(np.int64)
        real = (scores > 0) & (kinds >= 0)
        self._below(kinds[real], "the model found")
        return self._corners(boxes[real]), scores[real], kinds[real]

    def _truth(self, label: Any) -> tuple[Array, Kinds, np.ndarray[Any, np.dtype[np.bool_]]]:
        import numpy as np

        if not isinstance(label, dict) or not {"boxes", "classes"} <= set(label) <= {"boxes", "classes", "crowd"}:
            shown = f"has {', '.join(map(str, label)) or 'nothing'}" if isinstance(label, dict) else f"is a {type(label).__name__}"
            raise UsageError(f"the label {shown}", remedy="give {'boxes': [[…], …], 'classes': […]} as label")
        kinds = np.asarray(label["classes"]).reshape(-1)
        boxes = np.asarray(label["boxes"], dtype=np.float64).reshape(-1, 4) if np.size(label["boxes"]) % 4 == 0 else None
        crowd = np.asarray(label.get("crowd", np.zeros(len(kinds)))).reshape(-1).astype(bool)
        if boxes is None or len(boxes) != len(kinds) or len(crowd) != len(kinds):
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in label.items())
            raise UsageError(f"the label's parts do not fit each other: {shapes}", remedy="give four numbers and one class for each box")
        if len(kinds) and (kinds.dtype.kind not in "iu" or kinds.min() < 0):
            raise UsageError("the label's classes are not indices", remedy="give whole numbers from 0")
        kinds = kinds.astype(np.int64)
        self._below(kinds, "the label has")
        return self._corners(boxes), kinds, crowd

    def _below(self, kinds: Any, who: str) -> None:
        if len(kinds) and kinds.max() >= self.classes:
            raise UsageError(f"{who} class {kinds.max()}, and `classes` is {self.classes}", remedy="say how many classes there are")

    def _corners(self, boxes: Array) -> Array:
        """Boxes as x, y, width, height."""
        import numpy as np

        first, second = boxes[:, :2], boxes[:, 2:]
        if self.format == "xyxy":
            return np.hstack((first, second - first))
        return np.hstack((first - second / 2, second)) if self.format == "cxcywh" else boxes

    def _matches(self, boxes: Array, scores: Array, truth: Array, crowd: Any) -> Array:
        """COCO's own matching of one class in one image: a bit per overlap for a match, then one for each that is left out."""
        import numpy as np

        evaluation = registry.need("pycocotools.cocoeval", "scores").COCOeval(iouType="bbox")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array(self._overlaps), [len(boxes)]
        evaluation._gts[0, 0] = [
            {"id": index + 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": int(one), "ignore": int(one)}
            for index, (box, one) in enumerate(zip(truth, crowd, strict=True))
        ]
        evaluation._dts[0, 0] = [
            {"id": index + 1, "bbox": list(box), "area": box[2] * box[3], "score": score}
            for index, (box, score) in enumerate(zip(boxes, scores, strict=True))
        ]
        evaluation.ious = {(0, 0): evaluation.computeIoU(0, 0)}
        judged = evaluation.evaluateImg(0, 0, EVERYTHING, len(boxes))
        left_out = judged["dtIgnore"].astype(bool)
        bits = np.vstack(((judged["dtMatches"] > 0) & ~left_out, left_out))
        powers: Array = (bits * 2.0 ** np.arange(len(bits))[:, None]).sum(axis=0)
        return powers


def _average_precision(right: Any, left_out: Any, wanted: int) -> float:
    """Precision at 101 recalls, each the best at that recall or beyond, averaged over recalls and overlaps."""
    import numpy as np

    hits, misses = np.cumsum(right, axis=1), np.cumsum(~right & ~left_out, axis=1)
    precision = hits / np.maximum(hits + misses, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # How many hits each of the recalls takes, and so how many recalls each hit is the first to reach.
    needed = np.searchsorted(np.arange(wanted + 1) / wanted, np.linspace(0, 1, RECALLS), side="left")
    reached = np.bincount(needed, minlength=wanted + 1)
    total = (best * right * reached[np.minimum(hits, wanted)]).sum() + reached[0] * best[:, :1].sum()
    return float(total) / (RECALLS * len(right))
