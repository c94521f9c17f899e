"""The whole walk, on the null backend where it is about the walk and on real runtimes where it is about them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from tests import walks

REAL = walks.RECIPE.replace('targets: ["null"]', "targets: [x86-openvino, x86-onnxruntime]").replace(
    "  fp32: []\n", "  fp32: []\n  int8: [simplify, quantize-int8]\n"
)


EDGEOPT = (sys.executable, "-m", "edgeopt")


def command(*arguments: str, store: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EDGEOPT, *arguments], capture_output=True, text=True, env=environment(store), cwd=cwd, check=False)


def started(*arguments: str, store: Path, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*EDGEOPT, *arguments], env=environment(store), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "EDGEOPT_CACHE": str(store), "PYTHONPATH": str(Path(__file__).parent.parent)}


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_a_recipe_becomes_a_report_and_a_bundle(tmp_path: Path, own_store: Path) -> None:
    report = edgeopt.run(walks.write(tmp_path / "r"), tmp_path / "out")
    [row] = report.rows
    assert (row.status, row.picked, report.exit_code) == ("measured", True, 0)
    assert row.latency_ms is not None and row.latency_ms.samples >= 64
    for name in ("plan.json", "build.json", "report.json", "report.md", "report.html", "junit.xml", "recipe.yaml", "log.txt"):
        assert (tmp_path / "out" / name).is_file(), name
    manifest = json.loads((tmp_path / "out/bundles/null/manifest.json").read_text())
    assert set(manifest["files"]) >= {"model/null.json", "golden/inputs.npz", "golden/outputs.npz"}


def test_int8_on_both_runtimes_keeps_its_function(tmp_path: Path, shared_store: Path) -> None:
    report = edgeopt.run(walks.write(tmp_path / "r", REAL), tmp_path / "out", store=edgeopt.Store(shared_store))
    rows = {(row.variant, row.target): row for row in report.rows}
    assert {row.status for row in report.rows} == {"measured"}
    for target in ("x86-openvino", "x86-onnxruntime"):
        int8 = rows["int8", target]
        assert int8.precision is not None and int8.precision["int8"] >= 1, target
        assert int8.scores["sqnr"].value > 15, target
        assert rows["fp32", target].precision == {**(rows["fp32", target].precision or {}), "int8": 0}
        assert rows["fp32", target].scores["agreement"].value == 1.0


def test_a_pipeline_without_a_gpu_builds_for_rtx_and_bundles_for_jetson(tmp_path: Path, own_store: Path) -> None:
    recipe = walks.RECIPE.replace('["null"]', "[{rtx-ada: {need: built}}, jetson-orin]").replace(
        "  fp32: []\n", "  fp32: []\n  int8: [quantize-int8]\n"
    )
    report = edgeopt.run(walks.write(tmp_path / "r", recipe), tmp_path / "out")
    rows = {(row.variant, row.target): row for row in report.rows}
    assert report.exit_code == 0, report.exit_reasons
    assert {rows[variant, "rtx-ada"].status for variant in ("fp32", "int8")} == {"built"}
    assert {rows[variant, "jetson-orin"].status for variant in ("fp32", "int8")} == {"bundled"}
    for target in ("rtx-ada", "jetson-orin"):
        row = rows["int8", target]
        assert row.artifact is not None and row.artifact.size_bytes > 0 and row.reason and row.latency_ms is None
        assert (tmp_path / "out/bundles" / target / "manifest.json").is_file()


def test_an_unchanged_second_run_does_nothing_and_says_the_same(tmp_path: Path) -> None:
    recipe, store = walks.write(tmp_path / "r"), tmp_path / "store"
    assert command("run", str(recipe), "--output", "one", store=store, cwd=tmp_path).returncode == 0
    code = (
        "import sys, pathlib, edgeopt\n"
        f"edgeopt.run({str(recipe)!r}, pathlib.Path('two'))\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(store), cwd=tmp_path, check=True)
    assert not set(again.stdout.split()) & {"torch", "onnx", "onnxruntime", "openvino", "nncf"}
    one, two = report_of(tmp_path / "one"), report_of(tmp_path / "two")
    assert one["rows"] == two["rows"] and one["gates"] == two["gates"] and one["targets"] == two["targets"]


def test_remeasure_measures_again_and_builds_nothing(tmp_path: Path) -> None:
    recipe, store = walks.write(tmp_path / "r"), tmp_path / "store"
    first = edgeopt.run(recipe, tmp_path / "one", store=edgeopt.Store(store))
    second = edgeopt.run(recipe, tmp_path / "two", store=edgeopt.Store(store), remeasure=True)
    assert first.rows[0].artifact == second.rows[0].artifact
    assert first.rows[0].latency_ms != second.rows[0].latency_ms


def test_an_edited_data_file_is_seen(tmp_path: Path, own_store: Path) -> None:
    recipe = walks.write(tmp_path / "r")
    one = edgeopt.run(recipe, tmp_path / "one")
    walks.data(tmp_path / "r/evaluate.npz", 24, 9)
    two = edgeopt.run(recipe, tmp_path / "two")
    assert (one.rows[0].scores["top1"].samples, two.rows[0].scores["top1"].samples) == (40, 24)


def test_stages_are_commands_that_pick_up_where_the_last_one_stopped(tmp_path: Path) -> None:
    recipe, store = walks.write(tmp_path / "r"), tmp_path / "store"
    out = str(tmp_path / "out")
    for arguments in (("plan", str(recipe), "--output", out), ("build", out), ("measure", out), ("report", out), ("bundle", out)):
        shown = command(*arguments, store=store, cwd=tmp_path)
        assert shown.returncode == 0, (arguments, shown.stderr)
    assert report_of(tmp_path / "out")["rows"][0]["picked"]


def test_two_runs_at_once_share_one_store(tmp_path: Path) -> None:
    recipe, store = walks.write(tmp_path / "r"), tmp_path / "store"
    both = [started("run", str(recipe), "--output", name, store=store, cwd=tmp_path) for name in ("one", "two")]
    assert [one.wait(120) for one in both] == [0, 0]
    assert report_of(tmp_path / "one")["rows"][0]["artifact"] == report_of(tmp_path / "two")["rows"][0]["artifact"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_run_leaves_no_process_and_the_next_one_goes_on(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    long = walks.RECIPE.replace("budget_s: 0.5", "budget_s: 60, precision_percent: 0.0001")
    recipe, store = walks.write(tmp_path / "r", long), tmp_path / "store"
    process = started("run", str(recipe), "--output", "out", store=store, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/build.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(sent)
    assert process.wait(20) == code
    deadline = time.monotonic() + 15  # the kernel takes its time on a busy machine
    while (alive := _alive(store)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    shown = command("run", str(walks.write(tmp_path / "r")), "--output", "out", store=store, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert not list((store / "tmp").glob("*"))


def test_sigterm_in_a_long_step_is_a_cancel_and_no_failed_row(tmp_path: Path) -> None:
    slow = """
import time
import numpy as np
def evaluate():
    for index in range(10000):
        time.sleep(0.05)
        yield np.full(16, index, np.float32), 0
"""
    recipe = walks.write(tmp_path / "r", walks.RECIPE.replace("{npz: evaluate.npz}", "{python: slow.py:evaluate}"))
    (tmp_path / "r/slow.py").write_text(slow)
    process = started("run", str(recipe), "--output", "out", store=tmp_path / "store", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while "data: evaluate" not in _text(tmp_path / "out/log.txt") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert not (tmp_path / "out/build.json").exists()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _alive(store: Path) -> list[str]:
    """The processes that work with a store, by their environment."""
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if str(store).encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_a_target_cannot_run_is_unavailable_and_the_others_are_scored_against_it(tmp_path: Path, own_store: Path) -> None:
    """Turing multiplies no FP32 matrices in TensorRT for RTX: the reference has no engine there, and still stands behind the scores."""
    recipe = walks.RECIPE.replace('["null"]', "[{rtx-turing: {need: built}}]").replace(
        "  fp32: []\n", "  fp32: []\n  fp16: [cast-fp16]\n  int8-fp16: [quantize-int8, cast-fp16]\n"
    )
    report = edgeopt.run(walks.write(tmp_path / "r", recipe), tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    rows = {row.variant: row for row in report.rows}
    assert rows["fp32"].status == "unavailable" and "Turing has no kernel" in (rows["fp32"].reason or "")
    assert rows["fp32"].artifact is None and rows["fp32"].scores["agreement"].value == 1.0
    for variant, least in (("fp16", 40.0), ("int8-fp16", 15.0)):
        assert rows[variant].status == "built" and rows[variant].scores["sqnr"].value > least
        assert "scored-on-cpu" in rows[variant].flags


def test_a_need_is_not_met_by_what_a_target_cannot_run(tmp_path: Path, own_store: Path) -> None:
    recipe = walks.write(tmp_path / "r", walks.RECIPE.replace('["null"]', "[{rtx-turing: {need: built}}]"))
    report = edgeopt.run(recipe, tmp_path / "out")
    assert report.exit_code == 5 and "rtx-turing was to be built" in report.exit_reasons[0]
