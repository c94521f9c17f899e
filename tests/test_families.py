"""Families of models, each a trained one on real data (tests/zoo), through the whole walk on both CPU runtimes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import edgeopt
from edgeopt.core.report import Report, Row
from tests import zoo

TARGETS = ("x86-openvino", "x86-onnxruntime")
SAMPLES = 50
BUDGET_DB = 20.0  # what INT8 must keep to be taken here: below it the gate has to catch it
# EfficientNet-Lite0 is left to its recipe and to benchmarks/compression.py: it would take as long as all of these.
FAMILIES = tuple(name for name in zoo.NAMES if name != "efficientnet_lite0")


class Floor(NamedTuple):
    """What proves training in FP32 (the first score at least, or perplexity at most), and the dB that INT8 keeps on each runtime.

    No dB: INT8 destroys the model there, and the gate has to catch it.
    """

    fp32: float | None
    openvino_db: float | None
    onnxruntime_db: float | None
    int8: Mapping[str, Any] = MappingProxyType({})  # options of quantize-int8
    weights: Mapping[int, tuple[float, float]] = MappingProxyType(
        {}
    )  # transformers: dB by bits that quantize-weights keeps, on each runtime


# What kind of model some are is told, which spares minutes of trials.
FLOORS = {
    "mlp": Floor(0.95, 15, 15),
    "mnist_cnn": Floor(0.97, 18, 18, {"model_type": "plain", "calibration": "minmax"}),
    "detector": Floor(0.55, 22, 15, {"model_type": "plain"}),
    "lstm": Floor(0.90, 35, 35),
    "gru": Floor(0.90, 35, 35, {"model_type": "plain", "calibration": "minmax"}),
    "minilm": Floor(None, 17, None, {"model_type": "transformer", "calibration": "minmax", "samples": 16}, {8: (29, 31)}),
    "gpt": Floor(9.0, 35, 35, {"model_type": "transformer", "calibration": "minmax"}, {8: (50, 50), 4: (38, 38)}),
    "magika": Floor(None, 15, None),
}


@pytest.fixture(scope="session")
def models() -> dict[str, zoo.Model]:
    """All of them, made two at a time where the cache lacks them."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FAMILIES, pool.map(zoo.get, FAMILIES), strict=True))


@pytest.fixture(scope="session")
def report(models: dict[str, zoo.Model], shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a family to its report; each walk once a session."""
    found: dict[str, Report] = {}

    def walk(name: str) -> Report:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            recipe = models[name].recipe(
                data=models[name].data(calibrate=64, tune=16, evaluate=SAMPLES),
                variants={
                    "fp32": [],
                    "int8": ["simplify", {"quantize-int8": {"samples": 32, **FLOORS[name].int8}}],
                    "bf16": ["execute-bf16"],
                    **{
                        f"weights{bits}": ["simplify", {"quantize-weights": {"bits": bits, "group_size": 32}}]
                        for bits in FLOORS[name].weights
                    },
                },
                targets=list(TARGETS),
                gates=[{"score": "sqnr", "min": BUDGET_DB}],
                measure={"budget_s": 0.3},
            )
            (folder / "recipe.yaml").write_text(json.dumps(recipe))
            found[name] = edgeopt.run(folder / "recipe.yaml", folder / "out", store=edgeopt.Store(shared_store))
        return found[name]

    return walk


@pytest.mark.parametrize("name", FAMILIES)
def test_the_splits_share_no_sample_and_the_model_takes_any_batch(models: dict[str, zoo.Model], name: str) -> None:
    rows: set[bytes] = set()
    total = 0
    for split in models[name].about["samples"]:
        arrays = dict(np.load(models[name].folder / f"{split}.npz"))
        arrays.pop("labels", None)
        count = models[name].about["samples"][split]
        total += count
        rows |= {b"".join(array[index].tobytes() for array in arrays.values()) for index in range(count)}
    assert len(rows) == total


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fp32_model_was_really_trained(models: dict[str, zoo.Model], name: str) -> None:
    floor, reached = FLOORS[name].fp32, list(models[name].about["fp32"].values())
    if floor is None:
        assert not models[name].about["labelled"]  # trained elsewhere, and there are no labels to judge it by
        return
    assert reached[0] <= floor if "perplexity" in models[name].about["fp32"] else reached[0] >= floor


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_is_measured_or_says_why_not(report: Any, name: str) -> None:
    rows, weights = _rows(report(name)), [f"weights{bits}" for bits in FLOORS[name].weights]
    assert set(rows) == {(variant, target) for variant in ("fp32", "int8", "bf16", *weights) for target in TARGETS}
    for (variant, target), row in rows.items():
        if (variant, target) == ("bf16", "x86-onnxruntime"):
            assert row.status == "unavailable"
            assert "f32" in (row.reason or "")
        elif variant == "bf16" and row.status == "unavailable":
            assert "CPU" in (row.reason or "")
        elif (name, variant) == ("magika", "bf16"):  # it adds up thousands of numbers, which bf16 cannot
            assert row.status == "failed"
            assert "parity is broken" in (row.reason or "")
        else:
            assert row.status == "measured", row.reason
            assert row.latency_ms
            assert row.scores["sqnr"].samples == SAMPLES
            assert all(math.isfinite(score.value) for score in row.scores.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32_on_the_runtimes_is_the_model_that_came_in(report: Any, name: str) -> None:
    rows = _rows(report(name))
    for target in TARGETS:
        row = rows["fp32", target]
        assert row.scores["sqnr"].value == 150.0
        assert row.precision and row.precision["int8"] == row.precision["bf16"] == 0
    labels = [label for label in rows["fp32", TARGETS[0]].scores if label not in ("sqnr", "agreement")]
    for label in labels:
        one, other = (rows["fp32", target].scores[label].value for target in TARGETS)
        assert one == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_keeps_the_function_or_the_gate_catches_it(report: Any, name: str) -> None:
    found = report(name)
    rows = _rows(found)
    for target, floor in zip(TARGETS, FLOORS[name][1:3], strict=True):
        row = rows["int8", target]
        decibels = row.scores["sqnr"].value
        if floor is None:
            assert decibels < BUDGET_DB, "it keeps its function now: raise its floor"
            assert row.qualifies is False
        else:
            assert decibels >= floor
            assert row.precision
        picked = found.picked(target)
        assert picked is not None
        assert picked.scores["sqnr"].value >= BUDGET_DB


@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name, floor in FLOORS.items() for bits in floor.weights])
def test_few_bits_of_weights_make_a_transformer_small(report: Any, name: str, bits: int) -> None:
    """Activations stay float, so no layer counts as INT8; a row below the budget is caught by the gate like any other."""
    found = report(name)
    rows = _rows(found)
    for target, floor in zip(TARGETS, FLOORS[name].weights[bits], strict=True):
        row, exact = rows[f"weights{bits}", target], rows["fp32", target]
        assert row.scores["sqnr"].value >= floor
        assert row.qualifies is (row.scores["sqnr"].value >= BUDGET_DB)
        if "perplexity" in row.scores:
            assert row.scores["perplexity"].value <= 1.02 * exact.scores["perplexity"].value
        assert row.artifact and exact.artifact
        assert row.artifact.size_bytes < 0.5 * exact.artifact.size_bytes
        assert row.precision and row.precision["int8"] == 0 and row.precision["fp32"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_executes_in_bf16_and_keeps_the_function(report: Any, name: str) -> None:
    row = _rows(report(name))["bf16", "x86-openvino"]
    if row.status == "unavailable":
        pytest.skip(row.reason or "")
    if name == "magika":
        assert row.qualifies is False
        return
    assert row.precision
    assert row.precision["bf16"] > 0
    assert row.scores["sqnr"].value >= 10


def _rows(report: Report) -> dict[tuple[str, str], Row]:
    return {(row.variant, row.target): row for row in report.rows}
