"""`edgeopt inspect --profile`: a model opened by its runtime, each layer timed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import small_onnx as small
import test_backends as backends
from onnx import helper

from edgeopt.cli import call

pytestmark = pytest.mark.skipif(bool(backends.PROBED["openvino"]), reason=backends.PROBED["openvino"] or "-")


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store for the machine's peaks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_CACHE", str(tmp_path_factory.mktemp("store")))
        yield


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert call([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert call(list(arguments)) == code
    return capsys.readouterr().err


@pytest.mark.parametrize("target", ["x86-openvino", "x86-onnxruntime"])
def test_a_model_file_is_timed_layer_by_layer(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small.write(small.cnn(size=(16, 16)), tmp_path)
    found = answered(capsys, "inspect", str(path), "--profile", "--target", target)
    told = found["profile"]
    assert found["macs"] == told["profile"]["roofline"]["macs"] == 256 * 8 * 99 + 40
    assert (told["target"], told["fed"]) == (target, "random: x [1, 3, 16, 16]")
    assert told["p50_ms"] > 0 and told["samples"] >= 1 and told["profile"]["layers"] == len(told["layers"])
    assert sum(layer["us"] for layer in told["layers"]) == pytest.approx(told["profile"]["total_us"], abs=0.1)
    assert {layer["precision"] for layer in told["layers"] if layer["macs"]} == {"fp32"}
    assert call(["inspect", str(path), "--profile", "--target", target]) == 0
    shown = capsys.readouterr().out
    for words in ("layer", "precision", "share", "MACs", "conv1", "FP32", "of what this machine can do", "GOP/s", "without the profiler"):
        assert words in shown, words
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing is left behind


@pytest.mark.parametrize("columns", [80, 140])
def test_it_fits_the_terminal(columns: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert call(["inspect", str(small.write(small.cnn(size=(16, 16)), tmp_path)), "--profile"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= columns


def test_external_weights_and_odd_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    path = small.write(small.mlp(), tmp_path / "model", save_as_external_data=True, location="weights.data", size_threshold=0)
    (path.parent / "unrelated.bin").write_bytes(b"\0" * 1000)
    assert (
        answered(capsys, "inspect", str(path), "--profile", "--target", "x86-onnxruntime")["profile"]["profile"]["roofline"]["macs"]
        == 8 * 16 + 64
    )
    embedding = answered(capsys, "inspect", str(small.write(small.embedding(), tmp_path, "ints.onnx")), "--profile")
    assert embedding["profile"]["layers"]
    branches = answered(
        capsys, "inspect", str(small.write(small.branches(), tmp_path, "if.onnx")), "--profile", "--target", "x86-onnxruntime"
    )
    assert branches["profile"]["profile"]["roofline"] is None


def test_free_axes_take_the_sizes_that_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(small.write(small.cnn(), tmp_path))
    found = answered(capsys, "inspect", path, "--profile", "--size", "H=12", "--size", "W=20")
    assert found["profile"]["fed"] == "random: x [1, 3, 12, 20]"
    assert found["profile"]["profile"]["roofline"]["macs"] == 240 * 8 * 99 + 40
    assert "axes that may vary: N, H, W" in refused(capsys, 2, "inspect", path, "--profile", "--size", "T=3")
    assert "add --profile" in refused(capsys, 2, "inspect", path, "--size", "H=12")


def test_an_artifact_of_a_run_is_opened_as_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = backends.compiled(tmp_path, "openvino", small.cnn(size=(16, 16)))
    xml = answered(capsys, "inspect", str(path), "--profile")
    assert (xml["format"], xml["profile"]["target"]) == ("openvino", "x86-openvino")
    assert xml["profile"]["profile"]["roofline"]["macs"] == 256 * 8 * 99 + 40


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("none.onnx", 2, "no such file"),
        ("model.pt2", 2, "no kind of file whose layers can be told"),
        ("empty", 2, "is neither an artifact"),
        ("broken.onnx", 2, "is no ONNX model, or is cut off"),
    ],
)
def test_what_cannot_be_timed_is_told(name: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    torch = pytest.importorskip("torch")
    if name == "model.pt2":
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / name)
    assert words in refused(capsys, code, "inspect", str(tmp_path / name), "--profile")


def test_targets_that_cannot_run_it_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(small.write(small.cnn(size=(8, 8)), tmp_path))
    _, xml = backends.compiled(tmp_path, "openvino", small.cnn(size=(8, 8)))
    assert "x86-onnxruntime takes onnx, this is openvino" in refused(
        capsys, 2, "inspect", str(xml), "--profile", "--target", "x86-onnxruntime"
    )
    assert "null tells no times of layers" in refused(capsys, 8, "inspect", path, "--profile", "--target", "null")
    assert "unknown target 'x86'" in refused(capsys, 2, "inspect", path, "--profile", "--target", "x86")
    if backends.PROBED["tensorrt"]:
        assert "cannot run here" in refused(capsys, 5, "inspect", path, "--profile", "--target", "rtx-ada")


def test_a_model_that_fails_while_it_runs_is_a_failed_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="shaped")]
    bad = small.model(nodes, [small.value("x", ["N", 4])], [small.value("y", [3])], [small.ints("shape", 3)])
    onnx.save(bad, tmp_path / "bad.onnx")
    assert "shaped" in refused(capsys, 8, "inspect", str(tmp_path / "bad.onnx"), "--profile", "--target", "x86-onnxruntime")
    shutil.rmtree(tmp_path)
