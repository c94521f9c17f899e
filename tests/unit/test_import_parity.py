"""What an import makes is held against the user's own model, on the recipe's own samples, and the record is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt.cli import call
from edgeopt.core.artifact import TensorSpec
from edgeopt.core.errors import StepError
from edgeopt.core.plan import Step
from edgeopt.stages import facts
from edgeopt.stages.apply import _compare
from tests import walks
from tests.unit import small_onnx as small

TORCH = "model: {torch: {factory: net.py:build, inputs: {x: {shape: [N, 16]}}, outputs: [y]}}"


def parity(folder: Path, recipe: str = walks.RECIPE) -> dict[str, Any]:
    """The record of the import in the report of a walk."""
    (folder / "recipe.yaml").write_text(recipe)
    report = edgeopt.run(folder / "recipe.yaml", folder / "out")
    assert report.exit_code == 0, report.exit_reasons
    [row] = report.rows
    found = row.history[0].parity
    assert found is not None and row.history[0].step.startswith("import-")
    assert json.loads((folder / "out/report.json").read_text())["rows"][0]["history"][0]["parity"] == found
    return found


def test_an_onnx_file_is_held_against_itself_as_it_was(tmp_path: Path, own_store: Path) -> None:
    walks.write(tmp_path)
    assert parity(tmp_path) == {
        "max_abs": 0.0, "sqnr_db": 150.0, "not_finite": None, "samples": 4, "tolerance_db": 60.0, "not_compared": None,
        "uncompared": [], "float_db": None,
    }  # fmt: skip


def test_a_raised_opset_is_compared_on_the_samples(tmp_path: Path, own_store: Path) -> None:
    walks.write(tmp_path)
    old = walks.model(tmp_path / "model.onnx")
    del old.opset_import[:]
    old.opset_import.append(helper.make_opsetid("", 9))
    onnx.save(old, tmp_path / "model.onnx")
    found = parity(tmp_path)
    assert found["samples"] == 4 and found["sqnr_db"] > 100


def test_an_original_that_the_runtime_refuses_is_said_to_be_so(tmp_path: Path, own_store: Path) -> None:
    """Opset 1: onnxruntime has no kernels for it; raised to 17 it runs."""
    walks.write(tmp_path)
    weights = [numpy_helper.from_array(np.eye(16, 4, dtype=np.float32), "w")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 1)], ir_version=4), tmp_path / "model.onnx")
    found = parity(tmp_path)
    assert found["samples"] == 0 and found["sqnr_db"] is None
    assert "the original does not run here" in found["not_compared"] and "Relu" in found["not_compared"]
    shown = facts.parity(edgeopt.Report.read(tmp_path / "out").rows[0].history[0])
    assert shown.startswith("not compared: the original does not run here")


def test_a_torch_model_is_held_against_its_factory(tmp_path: Path, own_store: Path) -> None:
    pytest.importorskip("torch")
    walks.write(tmp_path)
    (tmp_path / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(16, 4)\n")
    found = parity(tmp_path, walks.RECIPE.replace("model: {onnx: model.onnx}", TORCH))
    assert found["samples"] == 4 and found["sqnr_db"] == 150


def test_a_traced_program_is_held_against_torch(tmp_path: Path, own_store: Path) -> None:
    torch = pytest.importorskip("torch")
    walks.write(tmp_path)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).eval()
    program = torch.export.export(module, (torch.zeros(2, 16),), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, tmp_path / "model.pt2")
    recipe = walks.RECIPE.replace("onnx: model.onnx", "pt2: model.pt2")
    data = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    np.savez(tmp_path / "evaluate.npz", input=data, labels=np.zeros(40, int))
    found = parity(tmp_path, recipe.replace("  calibrate: {npz: calibrate.npz}\n", ""))
    assert found["samples"] == 4 and 100 < found["sqnr_db"] <= 150


def test_broken_parity_on_the_samples_fails_the_import(tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A factory that is another one at each call where made-up inputs do not look: only the recipe's samples show it."""
    pytest.importorskip("torch")
    walks.write(tmp_path)
    (tmp_path / "net.py").write_text(
        "import random, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.line, self.limit = torch.nn.Linear(16, 4), random.uniform(1, 2)\n"
        "    def forward(self, x):\n"
        "        return self.line(x) * torch.where(x.abs().amax() > 50, self.limit, 1.0)\n"
        "def build():\n"
        "    return Net()\n"
    )
    (tmp_path / "recipe.yaml").write_text(walks.RECIPE.replace("model: {onnx: model.onnx}", TORCH))
    large = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32) * 100
    np.savez(tmp_path / "evaluate.npz", x=large, labels=np.zeros(40, int))
    assert call(["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--quiet"]) == 8
    assert "import-torch: parity is broken" in capsys.readouterr().err
    with pytest.raises(StepError, match="parity is broken"):  # the stored import does not hide it
        edgeopt.run(tmp_path / "recipe.yaml", tmp_path / "again")


def test_indices_and_varying_numbers_of_them_break_no_parity(tmp_path: Path, own_store: Path) -> None:
    """A quantized detector may find one thing more: the step is sound, and its record says what was not compared."""
    pytest.importorskip("onnxruntime")
    walks.write(tmp_path)
    onnx.save(small.decides(), tmp_path / "model.onnx")
    walks.data(tmp_path / "calibrate.npz", 64, 1, features=8)
    walks.data(tmp_path / "evaluate.npz", 40, 2, features=8)
    recipe = walks.RECIPE.replace("[top1, agreement, sqnr]", "[{agreement: {output: label}}]").replace(
        "fp32: []", "fp32: []\n  int8: [quantize-int8]"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    report = edgeopt.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    [parity] = [step.parity for row in report.rows for step in row.history if step.step == "quantize-int8"]
    assert parity is not None and set(parity["uncompared"]) <= {"places"}


def test_a_small_output_is_not_hidden_by_a_large_one() -> None:
    """Boxes of hundreds of pixels beside scores below 1: together they agreed to 80 dB when all scores were lost."""
    step = Step(key="k", kind="pass", plug="simplify", before="b", makes="onnx")
    outputs = (TensorSpec("boxes", "float32", ("N", 4)), TensorSpec("scores", "float32", ("N",)), TensorSpec("none", "float32", ("N",)))
    boxes, scores, none = np.full((9, 4), 500, np.float32), np.full(9, 0.05, np.float32), np.zeros(9, np.float32)
    exact = {"boxes": boxes, "scores": scores, "none": none}
    assert _compare(step, [exact], [exact], outputs)["sqnr_db"] == 150
    lost = _compare(step, [exact] * 2, [{**exact, "scores": none}] * 2, outputs)
    assert lost["sqnr_db"] == pytest.approx(0) and lost["max_abs"] == pytest.approx(0.05)
    assert 80 < _compare(step, [exact], [{**exact, "none": scores}], outputs)["sqnr_db"] < 90, "zeros are held against all"
    assert _compare(step, [{"none": none}], [{"none": scores}], outputs)["sqnr_db"] is None
