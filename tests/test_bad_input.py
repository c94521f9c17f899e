"""Every bad input that the README's exit codes promise to name: its code, a cause, a remedy, nothing half-written."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgeopt
from edgeopt.cli import call
from tests import walks

Change = Callable[[Path], None]


def recipe(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "recipe.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def arrays(split: str, **changed: object) -> Change:
    def change(folder: Path) -> None:
        with np.load(folder / f"{split}.npz") as file:
            held = {name: file[name] for name in file.files}
        for name, value in changed.items():
            held[name] = value(held[name]) if callable(value) else value
        np.savez(folder / f"{split}.npz", **{name: value for name, value in held.items() if value is not None})

    return change


def graph(edit: Callable[[onnx.ModelProto], None]) -> Change:
    def change(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        edit(model)
        onnx.save(model, folder / "model.onnx")

    return change


def nan_out(model: onnx.ModelProto) -> None:
    """y becomes log(−|y|−1): NaN for every input."""
    model.graph.node[-1].output[0] = "z"
    for node in (
        helper.make_node("Abs", ["z"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Log", ["b"], ["y"]),
    ):
        model.graph.node.append(node)


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")


def pickled(folder: Path) -> None:
    (folder / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(16, 4)\n")
    (folder / "weights.pt").write_bytes(pickle.dumps({"weight": print}))
    text = (folder / "recipe.yaml").read_text()
    torch = "{torch: {factory: net.py:build, weights: weights.pt, inputs: {x: {shape: [N, 16]}}}}"
    (folder / "recipe.yaml").write_text(text.replace("{onnx: model.onnx}", torch))


def copy_calibration(folder: Path) -> None:
    (folder / "calibrate.npz").write_bytes((folder / "evaluate.npz").read_bytes())


def overwritten(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncated(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])


CASES: dict[str, tuple[Change, int, str]] = {
    "unknown key": (recipe("scores:", "score:"), 2, "did you mean 'scores'"),
    "unknown key deep": (recipe("budget_s", "budgets"), 2, "budget_s"),
    "unknown pass": (recipe("fp32: []", "fp32: []\n  int8: [quantise-int8]"), 2, "quantize-int8"),
    "unknown option": (recipe("fp32: []", "fp32: []\n  int8: [{quantize-int8: {sample: 9}}]"), 2, "samples"),
    "unknown target": (recipe('"null"', "x86-openvin"), 2, "x86-openvino"),
    "unknown score": (recipe("top1", "topp1"), 2, "top1"),
    "missing model": (recipe("model.onnx", "gone.onnx"), 2, "gone.onnx"),
    "missing data": (recipe("evaluate.npz", "gone.npz"), 2, "gone.npz"),
    "not an ONNX file": (overwritten("model.onnx", b"hello, this is no model"), 2, "model.onnx"),
    "truncated ONNX": (truncated, 2, "model.onnx"),
    "input name": (arrays("evaluate", x=None, wrong=np.zeros((4, 16), np.float32), other=np.zeros((4, 16), np.float32)), 2, "x"),
    "input shape": (arrays("evaluate", x=lambda x: x[:, :9]), 2, "16"),
    "labels out of range": (arrays("evaluate", labels=lambda x: x + 100), 2, "label"),
    "labels missing": (arrays("evaluate", labels=None), 2, "label"),
    "empty data": (arrays("evaluate", x=lambda x: x[:0], labels=lambda x: x[:0]), 2, "evaluate"),
    "NaN in data": (arrays("evaluate", x=lambda x: x * np.nan), 2, "NaN"),
    "calibration overlaps evaluation": (copy_calibration, 2, "disjoint"),
    "external data outside": (graph(outside), 6, "secret.bin"),
    "a pickle as weights": (pickled, 6, "safetensors"),
    "YAML tag": (recipe("name: small", "name: !!python/name:os.system small"), 6, "tag"),
    "alias bomb": (
        recipe(
            "name: small",
            "name: small\n"
            + "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8)),
        ),
        6,
        "expands",
    ),
    "YAML over 1 MB": (recipe("name: small", "name: small\n#" + "x" * 1_000_001), 6, "1,000,000"),
    "npz with a pickle": (arrays("evaluate", x=np.array([{"a": 1}], dtype=object)), 6, "pickle"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    change, code, words = CASES[name]
    path = walks.write(tmp_path / "r")
    change(tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    assert call(["run", str(path), "--output", "out"]) == code, capsys.readouterr().err
    told = capsys.readouterr().err
    assert words in told and "→" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out/report.json").exists() and not (tmp_path / "out/bundles").exists()
    assert not list((own_store / "tmp").glob("*"))


def test_nan_in_outputs_fails_the_row_with_8(tmp_path: Path, own_store: Path) -> None:
    path = walks.write(tmp_path / "r", walks.RECIPE.replace('"null"', "x86-onnxruntime"))
    graph(nan_out)(tmp_path / "r")
    report = edgeopt.run(path, tmp_path / "out")
    assert report.exit_code == 8
    assert report.rows[0].status == "failed" and "NaN" in (report.rows[0].reason or "")


def test_a_missing_runtime_is_5_and_says_what_to_install(tmp_path: Path) -> None:
    """A real environment without openvino: the interpreter is told not to find it."""
    path = walks.write(tmp_path / "r", walks.RECIPE.replace('"null"', "x86-openvino"))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['openvino'] = None\n")
    environment = {**os.environ, "EDGEOPT_CACHE": str(tmp_path / "store"), "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"}
    shown = subprocess.run(
        [sys.executable, "-m", "edgeopt", "run", str(path), "--output", str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 5, shown.stderr
    assert "edgeopt[openvino]" in shown.stdout + shown.stderr


def test_a_full_disk_is_7_and_leaves_the_store_whole(tmp_path: Path) -> None:
    """A file system of 300 kB, mounted for the test, as the store."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        path = walks.write(tmp_path / "r")
        walks.model(tmp_path / "r/model.onnx", features=4096)
        for split, count in (("calibrate", 8), ("evaluate", 9)):
            walks.data(tmp_path / f"r/{split}.npz", count, count, features=4096)
        environment = {**os.environ, "EDGEOPT_CACHE": str(small), "PYTHONPATH": str(Path(__file__).parent.parent)}
        shown = subprocess.run(
            [sys.executable, "-m", "edgeopt", "run", str(path), "--output", str(tmp_path / "out")],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shown.returncode == 7, shown.stderr
        assert "disk" in shown.stderr and "Traceback" not in shown.stderr
        assert not list((small / "tmp").glob("*"))
    finally:
        subprocess.run(["umount", str(small)], check=False)
