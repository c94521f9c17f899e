"""Models of odd habits through the whole walk, on a real runtime: what is not so is said."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import edgeopt
from tests.unit import small_onnx as small

RECIPE = """\
edgeopt: 1
name: odd
model: {onnx: model.onnx}
data:
  calibrate: {random: normal, samples: 16, seed: 1}
  evaluate: {random: normal, samples: 16}
scores: [sqnr]
variants: {fp32: [], int8: [quantize-int8]}
targets: [x86-onnxruntime]
measure: {budget_s: 0.5, precision_percent: 50}
"""


def test_a_quantized_model_that_executes_in_float_is_flagged(tmp_path: Path, own_store: Path) -> None:
    """onnxruntime fuses no quantized layer whose result the branches of an If read."""
    pytest.importorskip("onnxruntime")
    onnx.save(small.branches(), tmp_path / "model.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    report = edgeopt.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    fp32, int8 = report.rows
    assert int8.precision is not None and int8.precision["int8"] == 0
    assert "none-in-int8" in int8.flags and "none-in-int8" not in fp32.flags
    assert "executes no layer in 8 bits" in (tmp_path / "out/report.md").read_text()
