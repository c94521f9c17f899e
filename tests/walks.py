"""A small recipe with a real ONNX model and data, for tests of the walk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECIPE = """\
edgeopt: 1
name: small
model: {onnx: model.onnx}
data:
  calibrate: {npz: calibrate.npz}
  evaluate: {npz: evaluate.npz}
scores: [top1, agreement, sqnr]
variants:
  fp32: []
targets: ["null"]
measure: {budget_s: 0.5}
"""


def model(path: Path, *, features: int = 16, classes: int = 4, seed: int = 0) -> onnx.ModelProto:
    """A two-layer perceptron, input `x` float32 [N, features], output `y` [N, classes]."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(0, 0.4, (features, 32)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 32).astype(np.float32),
        "w2": rng.normal(0, 0.4, (32, classes)).astype(np.float32),
        "b2": rng.normal(0, 0.1, classes).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="last"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return made


def data(path: Path, count: int, seed: int, *, features: int = 16, classes: int = 4) -> None:
    """Random features with random labels, named so: they prove the walk, not the model."""
    rng = np.random.default_rng(seed)
    np.savez(path, x=rng.normal(size=(count, features)).astype(np.float32), labels=rng.integers(0, classes, count))


def write(folder: Path, recipe: str = RECIPE) -> Path:
    """Model, data and recipe in a folder; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    model(folder / "model.onnx")
    data(folder / "calibrate.npz", 64, 1)
    data(folder / "evaluate.npz", 40, 2)
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path
