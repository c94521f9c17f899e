"""The README's commands run, its links lead somewhere, and the recipes keep what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgeopt
from edgeopt.cli import call
from edgeopt.core.store import Store

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS: list[str] = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", README, re.MULTILINE)


def commands() -> list[str]:
    """Every indented line that calls edgeopt and names files that exist or that an earlier line makes."""
    lines = [line.strip() for block in BLOCKS for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("edgeopt ")]


def test_the_stage_commands_of_the_readme_run_in_order(tmp_path: Path, shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(shared_store))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    found = commands()
    assert len(found) >= 5
    for command in found:
        assert call(command.split()[1:]) == 0, command


def test_the_python_of_the_readme_runs(tmp_path: Path, shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = ["\n".join(line[4:] for line in block.splitlines()) for block in BLOCKS if "edgeopt.run(" in block]
    monkeypatch.setenv("EDGEOPT_CACHE", str(shared_store))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "int8 x86-openvino" in shown


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_exit_codes_are_those_of_the_code() -> None:
    from edgeopt.core import errors

    told = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(",")}
    assert told == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_mnist_mlp_keeps_its_promise(tmp_path: Path, shared_store: Path) -> None:
    report = edgeopt.run(ROOT / "recipes/mnist-mlp.yaml", tmp_path / "out", store=Store(shared_store))
    rows = {(row.variant, row.target): row for row in report.rows}
    for target in ("x86-openvino", "x86-onnxruntime"):
        top1 = rows["fp32", target].scores["top1"]
        assert top1.samples >= 1000 and top1.value >= 0.951
        drop = rows["int8", target].scores["top1"].drop
        assert drop is not None and drop <= 0.005
        assert (rows["int8", target].precision or {})["int8"] >= 2
    assert report.exit_code == 0, report.exit_reasons


def test_mnist_cnn_walks_the_torch_path(tmp_path: Path, shared_store: Path) -> None:
    """The recipe as it is shipped, on a fifth of its digits, with less training and search: how good it is, is no test's matter."""
    shutil.copytree(ROOT / "recipes/mnist-cnn", tmp_path / "mnist-cnn")
    told = "calibration: minmax, model_type: plain"  # in place of trials
    less = {
        "seconds: 20}": f"seconds: 3, {told}}}",
        "epochs: 8": "epochs: 4",
        "[simplify, quantize-int8]": f"[simplify, {{quantize-int8: {{{told}}}}}]",
        "    - quantize-int8\n": f"    - quantize-int8: {{{told}}}\n",
    }
    _shorten(ROOT / "recipes/mnist-cnn.yaml", tmp_path / "mnist-cnn.yaml", less)
    fewer = {"(0, 1500)": "(0, 300)", "(1500, 1800)": "(1500, 1600)", "(1800, 2056)": "(1800, 1928)", "(2056, 5000)": "(2056, 2696)"}
    _shorten(ROOT / "recipes/mnist-cnn/data.py", tmp_path / "mnist-cnn/data.py", fewer)
    with (tmp_path / "mnist-cnn.yaml").open("a") as file:
        file.write("\nmeasure: {budget_s: 1}\n")
    report = edgeopt.run(tmp_path / "mnist-cnn.yaml", tmp_path / "out", store=Store(shared_store))
    rows = {(row.variant, row.target): row for row in report.rows}
    assert [row.variant for row in report.rows if row.status == "failed"] == []
    fp32, pruned = rows["fp32", "x86-openvino"], rows["pruned-int8", "x86-openvino"]
    assert fp32.artifact and pruned.artifact and pruned.artifact.size_bytes < fp32.artifact.size_bytes / 2
    assert pruned.scores["top1"].drop is not None and pruned.scores["top1"].drop < 0.05
    assert rows["bf16", "x86-onnxruntime"].status == "unavailable"
    assert report.picked("x86-openvino") is not None


def _shorten(shipped: Path, copy: Path, changes: dict[str, str]) -> None:
    text = shipped.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    copy.write_text(text)
