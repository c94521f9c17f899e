"""f1, auc, map, miou, perplexity and spearman against the libraries that define them, and on what does not fit."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

from edgeopt.core.protocols import Score
from edgeopt.stages import statistics
from tests.unit.test_scores import make, out, refused

RNG = np.random.default_rng(7)


def scored(score: Score, outputs: Any, labels: Any) -> float:
    """A score over samples of one output `y`."""
    values = [score.sample({"y": np.asarray(one)}, label, None) for one, label in zip(outputs, labels, strict=True)]
    return score.finish(np.asarray(values, dtype=np.float64))


# ---- f1


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_f1_is_that_of_scikit_learn(average: str, classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for _ in range(5):
        outputs, labels = RNG.normal(size=(60, classes)), RNG.integers(0, classes, 60)
        wanted = metrics.f1_score(labels, outputs.argmax(axis=1), average=average, zero_division=0)
        assert scored(make("f1", average=average), outputs, labels) == pytest.approx(wanted)


def test_f1_leaves_out_classes_that_are_neither_labelled_nor_found() -> None:
    outputs = [[0, 0, 9, 0], [0, 9, 0, 0], [0, 0, 9, 0]]
    assert scored(make("f1"), outputs, [2, 1, 1]) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_f1_of_one_class_and_one_value() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, labels = RNG.normal(size=(50, 1)), RNG.integers(0, 2, 50)
    wanted = metrics.f1_score(labels, outputs[:, 0] > 0)
    assert scored(make("f1", average="binary", threshold=0.0), outputs, labels) == pytest.approx(wanted)
    assert scored(make("f1", average="binary"), [[0.1], [0.2]], [0, 0]) == 0.0
    refused(make("f1"), out([0.3]), 2, "out of range", "2 classes")


# ---- auc


def test_auc_of_two_classes_is_that_of_scikit_learn_with_ties() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    values, labels = np.round(RNG.normal(size=(80, 2)), 1), RNG.integers(0, 2, 80)
    wanted = metrics.roc_auc_score(labels, values[:, 1] - values[:, 0])
    assert scored(make("auc"), values, labels) == pytest.approx(wanted)
    assert scored(make("auc"), values[:, 1:], labels) == pytest.approx(metrics.roc_auc_score(labels, values[:, 1]))


def test_auc_of_many_classes_is_one_against_the_rest_of_the_softmax() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    values, labels = RNG.normal(size=(90, 4)), RNG.integers(0, 4, 90)
    shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    wanted = metrics.roc_auc_score(labels, shares, multi_class="ovr")
    assert scored(make("auc"), values, labels) == pytest.approx(wanted)
    assert scored(make("auc"), shares, labels) == pytest.approx(wanted)


def test_auc_without_samples_on_both_sides_is_not_a_number() -> None:
    assert math.isnan(scored(make("auc"), [[0.1], [0.7]], [1, 1]))
    assert scored(make("auc"), [[0.5], [0.5]], [0, 1]) == 0.5
    refused(make("auc"), out([0.3]), None, "has no label")


def test_resamples_that_lack_a_class_do_not_spoil_the_interval() -> None:
    score = make("auc")
    own = np.array([[1.0, 0.9], *([0.0, value / 10] for value in range(7))])
    found = statistics.score(own, own, score.finish, True, False, 0)
    low, high = found["ci95"]
    assert 0 <= low <= found["value"] <= high <= 1 and found["drop_ci95"] == (0.0, 0.0)


# ---- spearman


def test_spearman_is_that_of_scipy() -> None:
    from scipy import stats

    values = np.round(RNG.normal(size=40), 1)
    labels = np.round(values + RNG.normal(size=40), 1)
    assert scored(make("spearman"), values.reshape(-1, 1), labels) == pytest.approx(stats.spearmanr(values, labels).statistic)


def test_spearman_of_equal_outputs_is_none_and_of_equal_labels_unknown() -> None:
    assert scored(make("spearman"), [[2.0], [2.0], [2.0]], [1, 2, 3]) == 0
    assert math.isnan(scored(make("spearman"), [[1.0], [2.0], [3.0]], [1, 1, 1]))
    refused(make("spearman"), out(1, 2), 1, "no single value")
    refused(make("spearman"), out(1), "good", "not a number")


# ---- perplexity


def test_perplexity_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    logits, tokens = RNG.normal(size=(3, 9, 11)), RNG.integers(0, 11, (3, 9))
    tokens[0, 4:] = -100
    wanted = torch.nn.functional.cross_entropy(torch.tensor(logits).reshape(-1, 11), torch.tensor(tokens).reshape(-1)).exp()
    assert scored(make("perplexity"), logits, tokens) == pytest.approx(float(wanted))
    shares = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert scored(make("perplexity"), shares, tokens) == pytest.approx(float(wanted))


def test_perplexity_may_judge_the_next_token() -> None:
    certain = np.full((4, 5), -50.0)
    certain[[0, 1, 2], [1, 2, 3]] = 50
    assert scored(make("perplexity", shift=True), [certain], [[0, 1, 2, 3]]) == pytest.approx(1)
    assert scored(make("perplexity"), [np.zeros((4, 5))], [[0, 1, 2, 3]]) == pytest.approx(5)


def test_perplexity_refuses_what_does_not_fit() -> None:
    assert math.isnan(scored(make("perplexity"), [np.zeros((2, 5))], [[-100, -100]]))
    assert scored(make("perplexity"), [[[0.0, 4e3]]], [[0]]) == pytest.approx(math.exp(700))
    refused(make("perplexity"), out([0, 1], [1, 0]), [0, 2], "2 is out of range", "2 classes")
    refused(make("perplexity"), out([0, 1], [1, 0]), [0], "2 places")
    refused(make("perplexity"), out([0, 1], [1, 0]), [0.5, 1.0], "float64")
    refused(make("perplexity"), out([0, 1], [1, 0]), None, "has no label")


# ---- miou


def test_miou_is_that_of_a_confusion_matrix() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, labels = RNG.normal(size=(4, 3, 5, 6)), RNG.integers(0, 3, (4, 5, 6))
    labels[0, :2] = 255
    counted = labels != 255
    wanted = metrics.jaccard_score(labels[counted], outputs.argmax(axis=1)[counted], average="macro")
    assert scored(make("miou"), outputs, labels) == pytest.approx(wanted)
    assert scored(make("miou", classes=3), outputs.argmax(axis=1), labels) == pytest.approx(wanted)


def test_miou_of_one_channel_is_two_classes() -> None:
    assert scored(make("miou"), [[[[0.9, 0.1], [0.9, 0.1]]]], [[[1, 0], [0, 0]]]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scored(make("miou", threshold=0.0), [[[9.0, -9.0]]], [[[1, 0]]]) == 1


def test_miou_refuses_what_does_not_fit() -> None:
    image = {"y": np.zeros((2, 4, 4), np.float32)}
    refused(make("miou"), image, np.zeros((2, 8), int), "[2, 8]", "[4, 4]")
    refused(make("miou"), image, np.full((4, 4), 2), "2 is out of range")
    refused(make("miou"), {"y": np.zeros((4, 4), np.int64)}, np.zeros((4, 4), int), "map of classes", "classes: 21")
    refused(make("miou", classes=2), {"y": np.full((4, 4), 3)}, np.zeros((4, 4), int), "class 3")
    assert math.isnan(scored(make("miou"), [np.zeros((2, 4, 4), np.float32)], [np.full((4, 4), 255)]))


# ---- map


def scene(rng: np.random.Generator, classes: int, crowds: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Boxes to find, and detections of which some hit, some miss and some are doubled."""
    count = int(rng.integers(0, 8))
    corner, size = rng.uniform(0, 80, (count, 2)), rng.uniform(8, 30, (count, 2))
    truth, kinds = np.hstack((corner, corner + size)), rng.integers(0, classes, count)
    near = np.repeat(truth, rng.integers(0, 3, count), axis=0)
    near = near + rng.normal(0, 2.5, near.shape)
    far = rng.uniform(0, 50, (int(rng.integers(0, 5)), 4))
    far[:, 2:] += far[:, :2] + 5
    boxes = np.vstack((near, far))
    found = np.concatenate((rng.permuted(np.resize(kinds if count else [0], len(near))), rng.integers(0, classes, len(far))))
    outputs = {"boxes": boxes, "scores": np.round(rng.uniform(0.05, 1, len(boxes)), 2), "classes": found.astype(np.float32)}
    label: dict[str, Any] = {"boxes": truth, "classes": kinds}
    return outputs, {**label, "crowd": (rng.uniform(size=count) < 0.2).astype(int)} if crowds else label


def coco(scenes: list[tuple[dict[str, np.ndarray], dict[str, Any]]], classes: int) -> tuple[float, float]:
    """mAP and AP50 by the whole of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def boxed(box: np.ndarray) -> dict[str, Any]:
        width, height = box[2:] - box[:2]
        return {"bbox": [box[0], box[1], width, height], "area": width * height}

    truth, found = [], []
    for image, (outputs, label) in enumerate(scenes):
        crowd = label.get("crowd", [0] * len(label["boxes"]))
        for box, kind, group in zip(label["boxes"], label["classes"], crowd, strict=True):
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": int(kind), "iscrowd": int(group), **boxed(box)})
        for box, score, kind in zip(*outputs.values(), strict=True):
            found.append({"image_id": image, "category_id": int(kind), "score": float(score), **boxed(box)})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(scenes))],
            "categories": [{"id": kind} for kind in range(classes)],
            "annotations": truth,
        }
        data.createIndex()
        judge = COCOeval(data, data.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_map_is_that_of_coco(seed: int, crowds: bool) -> None:
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, 3, crowds) for _ in range(25)]
    wanted = coco(scenes, 3)
    for overlap, value in zip((None, 0.5), wanted, strict=True):
        score = make("map", overlap=overlap, classes=5)
        own = np.array([score.sample(outputs, label, None) for outputs, label in scenes])
        assert score.finish(own) == pytest.approx(value, abs=1e-12), overlap


def test_map_reads_one_output_of_rows_without_their_padding() -> None:
    pytest.importorskip("pycocotools")
    label = {"boxes": np.array([[0, 0, 10, 10]]), "classes": np.array([1])}
    rows = np.array([[0, 0, 10, 10, 0.9, 1], [50, 50, 60, 60, 0.4, 1], [0, 0, 0, 0, 0, 0], [0, 0, 5, 5, 0.9, -1]], np.float32)
    score = make("map")
    assert score.finish(np.array([score.sample({"y": rows[None]}, label, None)])) == pytest.approx(1)
    centred = make("map", format="cxcywh")
    moved = {"boxes": np.array([[5, 5, 10, 10]]), "classes": np.array([1])}
    assert centred.finish(np.array([centred.sample({"y": np.array([[5, 5, 10, 10, 0.9, 1]])}, moved, None)])) == pytest.approx(1)


def test_map_counts_the_best_detections_only_and_knows_when_there_is_nothing() -> None:
    pytest.importorskip("pycocotools")
    label = {"boxes": np.array([[0, 0, 10, 10]]), "classes": np.array([0])}
    rows = {"y": np.array([[50, 50, 60, 60, 0.9, 0], [0, 0, 10, 10, 0.8, 0]])}
    one, two = make("map", detections=1), make("map", detections=2)
    assert one.finish(np.array([one.sample(rows, label, None)])) == 0
    assert two.finish(np.array([two.sample(rows, label, None)])) == pytest.approx(0.5)
    nothing = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0)}
    assert math.isnan(two.finish(np.array([two.sample(rows, nothing, None)])))


def test_map_refuses_what_is_no_detection() -> None:
    good = {"boxes": np.zeros((1, 4)), "classes": np.array([0])}
    rows = {"y": np.zeros((3, 6))}
    refused(make("map"), {"y": np.zeros((3, 5))}, good, "y [3, 5]", "boxes, scores, classes")
    refused(make("map", outputs=["a"]), rows, good, "no output 'a'")
    refused(make("map"), {"y": np.array([[0, 0, 1, 1, 0.5, 100.0]])}, good, "the model found class 100", "`classes` is 100")
    refused(make("map"), rows, None, "NoneType", "'boxes'")
    refused(make("map"), rows, {"boxes": [], "labels": []}, "has boxes, labels")
    refused(make("map"), rows, {"boxes": [[0, 0, 1, 1]], "classes": [0, 1]}, "do not fit", "classes [2]")
    refused(make("map"), rows, {"boxes": [[0, 0, 1, 1]], "classes": [0.5]}, "not indices")
