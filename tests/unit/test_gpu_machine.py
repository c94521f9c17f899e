"""Targets that execute on a GPU: what is built and timed there is that GPU's, and the CPU has no part in what is said of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import small_onnx as small

import edgeopt
from edgeopt.backends.onnxruntime import Onnxruntime
from edgeopt.cli import call
from edgeopt.core import machine, recipe, target
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.plan import PlanTarget
from edgeopt.core.store import Store
from edgeopt.formats.onnx import Onnx
from edgeopt.stages import apply, measure, where
from edgeopt.stages.plan import plan
from tests import walks

H100 = "{extends: h100, compile_on: host, name: here}"


def gpu(monkeypatch, name: str, driver: str = "580.65.06") -> None:
    monkeypatch.setattr(machine, "gpus", lambda: {"gpus": [name], "gpu_driver": driver, "gpus_visible": None, "gpu_order": None})


def planned(folder: Path, wanted: str):
    return plan(recipe.load(walks.write(folder, walks.RECIPE.replace('["null"]', f"[{wanted}]"))), Store(folder / "store"))


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "bound"), [(H100, True), ("h100", False), ("rtx-ada", False), ("x86-onnxruntime", False)])
def test_an_engine_built_here_is_for_this_gpu_and_driver(wanted, bound, tmp_path, monkeypatch):
    keys = []
    for name, driver in (("A", "580"), ("B", "580"), ("B", "590")):
        gpu(monkeypatch, name, driver)
        keys.append(planned(tmp_path, wanted).rows[0].steps)
    assert len({key[-1] for key in keys}) == (3 if bound else 1)
    assert len({key[-2] for key in keys}) == 1, "what goes into the compiler is no GPU's"


def test_a_cpu_target_asks_for_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: pytest.fail("asked"))
    planned(tmp_path, "x86-openvino, x86-onnxruntime, rtx-ada, h100")


def test_a_plan_made_beside_another_gpu_builds_nothing(tmp_path, monkeypatch):
    gpu(monkeypatch, "A")
    made = planned(tmp_path, H100)
    step = made.steps[made.rows[0].steps[-1]]
    gpu(monkeypatch, "B")
    with pytest.raises(UsageError, match=r"for a machine of one kind.*'A'.*'B'") as caught:
        apply._perform(made, step, Store(tmp_path / "store"), tmp_path, None, None)
    assert "edgeopt plan" in caught.value.remedy


@pytest.mark.parametrize(("name", "on_gpu"), [("rtx-ada", True), ("cuda-onnxruntime", True), ("x86-onnxruntime", False)])
def test_a_session_is_that_of_its_gpu(name, on_gpu, monkeypatch):
    used = PlanTarget(target=target.load(name, Path()), need="measured", threads=2)
    told = []
    for one in "AB":
        gpu(monkeypatch, one)
        told.append(measure._machine(used, elsewhere=False))
        assert measure._machine(used, elsewhere=True) == machine.fingerprint(), "scored on the CPU"
    assert (told[0]["id"] != told[1]["id"]) == on_gpu
    assert [one.get("gpus") for one in told] == ([["A"], ["B"]] if on_gpu else [None, None])


# -- what the machine tells ------------------------------------------------------------------------


class Nvml:
    """NVML as far as it is asked: two GPUs."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle, text, size) -> int:
        text.value = f"GPU {handle.value}".encode()
        return 0

    def nvmlSystemGetDriverVersion(self, text, size) -> int:
        text.value = b"580.65.06"
        return 0


def missing(name: str) -> None:
    raise OSError(name)


def test_gpus_are_told_by_nvml_or_by_the_kernel(tmp_path, monkeypatch):
    asked = machine.gpus.__wrapped__
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    chosen = {"gpus_visible": "1", "gpu_order": "PCI_BUS_ID"}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml())
    assert asked() == {"gpus": ["GPU 1", "GPU 2"], "gpu_driver": "580.65.06", **chosen}
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    monkeypatch.setattr(machine, "TEGRA", tmp_path / "release")
    assert asked() == {"gpus": [], "gpu_driver": None, **chosen}
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3\nmore")
    assert asked()["gpu_driver"] == "# R36 (release), REVISION: 4.3" and len(asked()["gpus"]) == 1
    (tmp_path / "gpus" / "0000:01").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01" / "information").write_text("Model: \t NVIDIA L4\nIRQ: 1\n")
    (tmp_path / "version").write_text("NVRM version: 570.124.06\nGCC")
    assert asked() == {"gpus": ["NVIDIA L4"], "gpu_driver": "NVRM version: 570.124.06", **chosen}


# -- running and telling ---------------------------------------------------------------------------


def test_layers_on_a_gpu_are_held_against_no_cpu(tmp_path, monkeypatch):
    gpu(monkeypatch, "A")
    monkeypatch.setattr(Onnxruntime, "on_gpu", lambda self, target: True)
    monkeypatch.setattr(where, "machine_peaks", lambda *asked, **more: pytest.fail("the CPU was measured"))
    made = walks.write(tmp_path / "r", walks.RECIPE.replace('["null"]', "[x86-onnxruntime]"))
    report = edgeopt.run(made, tmp_path / "out", store=Store(tmp_path / "store"))
    [row] = report.rows
    assert row.status == "measured" and row.profile is not None and report.targets[0].peaks is None
    assert report.machine["gpus"] == ["A"]


def test_bench_and_layers_name_the_gpu_and_no_threads_of_the_cpu(tmp_path, monkeypatch, capsys):
    gpu(monkeypatch, "A big GPU")
    monkeypatch.setattr(Onnxruntime, "on_gpu", lambda self, target: True)
    path = small.write(small.mlp(), tmp_path)
    for asked, head in [
        (["bench", "--seconds", "1"], "model.onnx on A big GPU"),
        (["inspect", "--profile"], "model.onnx on x86-onnxruntime (onnxruntime "),
    ]:
        assert call([asked[0], str(path), *asked[1:], "--target", "x86-onnxruntime"]) == 0
        told = "".join(capsys.readouterr().out.split())  # a long path is broken over lines
        assert head.replace(" ", "") in told and "thread" not in told


def test_parity_opens_with_the_options_of_the_target(tmp_path, monkeypatch):
    """As it is timed and shipped: with `provider: cuda` it is the GPU's result that is compared."""
    opened = []

    class Child:
        def __init__(self, name: str) -> None: ...

        def __enter__(self):
            return self

        def __exit__(self, *exc: object) -> None: ...

        def ask(self, do, **fields):
            opened.append(fields) if do == "open" else None
            return {}, {"y": 0}

    monkeypatch.setattr(apply, "Child", Child)
    path = small.write(small.mlp(), tmp_path)
    made = Artifact(tmp_path, "onnxruntime", path.name, "key", "digest", 1, Onnx().signature(path))
    assert apply._outputs(made, [{}], {"provider": "cuda"}) == [{"y": 0}]
    assert opened[0]["options"] == {"provider": "cuda"}


def test_a_heading_tells_the_threads_only_where_they_compute(tmp_path, monkeypatch, capsys):
    gpu(monkeypatch, "A")
    made = walks.write(tmp_path, walks.RECIPE.replace('["null"]', "[h100, cuda-onnxruntime, {extends: x86-openvino, threads: 3}]"))
    assert call(["plan", str(made), "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("h100 (tensorrt, batch 1, latency") for line in lines)
    assert any(line.startswith("cuda-onnxruntime (onnxruntime, batch 1, latency") for line in lines)
    assert any("(openvino, 3 threads, batch 1, latency)" in line for line in lines)
