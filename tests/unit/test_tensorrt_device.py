"""On the device: what `python -m edgeopt.runner build` accepts, keeps and refuses, and which engines are never loaded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_onnx as small

from edgeopt.backends.tensorrt import TensorrtOptions
from edgeopt.runner import Problem, build, tensorrt, tensorrt_cuda, tensorrt_timing
from edgeopt.runner import tensorrt_library as library

no_rtx = library.why_not_build("rtx")
rtx = pytest.mark.skipif(bool(no_rtx), reason=no_rtx)
no_gpu = library.gpu_problem()[0]
ADA = {"name": "GPU", "compute_capability": "8.9"}
HERE = library.Finding("", "", "1.7.1.116", 13020, (ADA,))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bundle(folder: Path, seed: int = 0, golden: bool = True, **options) -> Path:
    """A bundle as edgeopt writes it for a device, for product rtx, which really builds here."""
    (folder / "model").mkdir(parents=True)
    (folder / "golden").mkdir()
    proto = small.cnn(size=(16, 16), batch=1)
    model = small.write(proto, folder / "model")
    chosen = TensorrtOptions(**{"product": "rtx", "compute_capabilities": ["8.9"], **options}).model_dump(mode="json")
    plan = {
        "edgeopt_engine": 1,
        "product": chosen.pop("product"),
        "model": model.name,
        "files": {model.name: sha(model)},
        "options": {key: value for key, value in chosen.items() if key != "profiles"},
        "profile": {},
        "inputs": [["x", "float32", [1, 3, 16, 16]]],
        "outputs": [["y", "float32", [1, 5]]],
    }
    (folder / "model" / "build-plan.json").write_text(json.dumps(plan))
    np.savez(folder / "golden" / "inputs.npz", **{"0/x": np.full((1, 3, 16, 16), seed, np.float32)})
    np.savez(folder / "golden" / "outputs.npz", **{"0/y": np.ones((1, 5), np.float32)})
    seal(folder, golden)
    return folder


def seal(folder: Path, golden: bool = True) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name in ("model", "golden")]
    manifest = {
        "edgeopt_bundle": 1,
        "target": {"compile_on": "device"},
        "model": {"main": "model/model.onnx"},
        "golden": {"inputs": "golden/inputs.npz", "outputs": "golden/outputs.npz", "tolerance": 1e-3} if golden else None,
        "files": {path.relative_to(folder).as_posix(): {"sha256": f"sha256:{sha(path)}"} for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt.runner", "build", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def on_a_device(monkeypatch):
    """As if a GPU were here: RTX really builds, the engine's test is answered by hand."""
    monkeypatch.setattr(library, "look", lambda product: HERE)
    monkeypatch.setattr(build, "find_spec", lambda name: True)
    monkeypatch.setattr(build, "_test", lambda *asked: 1e-6)


# -- the command on a machine that is no device ----------------------------------------------------


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_without_a_gpu_it_ends_in_plain_words_and_5(tmp_path):
    done = command(bundle(tmp_path / "b"))
    assert done.returncode == 5 and done.stdout == ""
    assert "no NVIDIA driver is here" in done.stderr or "not installed" in done.stderr
    assert "→ run this on the device" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "b" / "engines").exists()


def test_a_folder_that_is_no_bundle_is_an_error_of_usage(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 2 and "is no bundle" in done.stderr
    assert command().returncode == 2 and "usage:" in command().stderr


def test_a_bundle_that_is_compiled_already_is_said_to_be(tmp_path):
    folder = bundle(tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "target": {"compile_on": "host"}}))
    done = command(folder)
    assert done.returncode == 2 and "not one to compile on the device" in done.stderr


@pytest.mark.parametrize("name", ["model/model.onnx", "model/build-plan.json", "golden/outputs.npz"])
def test_a_changed_file_is_refused(name, tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    done = command(folder)
    assert done.returncode == 6 and f"{name} is not the file" in done.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "model\\..\\x"])
def test_a_manifest_that_leads_outside_is_refused(name, tmp_path):
    folder = bundle(tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert command(folder).returncode == 6


def test_golden_outputs_that_the_manifest_does_not_vouch_for_are_refused(tmp_path):
    folder = bundle(tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["outputs"] = "../other.npz"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = command(folder)
    assert done.returncode == 6 and "does not vouch for ../other.npz" in done.stderr


def test_a_symbolic_link_is_refused(tmp_path):
    folder = bundle(tmp_path / "b")
    outside = tmp_path / "outside.onnx"
    (folder / "model" / "model.onnx").rename(outside)
    (folder / "model" / "model.onnx").symlink_to(outside)
    assert command(folder).returncode == 6


# -- building, testing, keeping --------------------------------------------------------------------


@rtx
def test_it_builds_once_tests_and_says_what_it_did(tmp_path, on_a_device):
    folder = bundle(tmp_path / "b")
    assert build.build(folder).startswith("built: engines/")
    name = build.current(folder / "engines")
    engine = folder / "engines" / name / "engine.plan"
    record = json.loads(engine.with_name("build.json").read_text())
    assert record["sha256"] == sha(engine) and record["gpu"] == ADA and record["version"] == HERE.version
    assert build.build(folder).startswith("up to date")
    (line,) = (folder / "engines" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "built" and json.loads(line)["worst_error"] == 1e-6
    assert json.loads(line)["here"]["driver"] is None and json.loads(line)["here"]["cuda"] == 13020 == record["cuda"]


@rtx
def test_another_driver_gpu_version_or_option_gets_an_engine_of_its_own(tmp_path, monkeypatch):
    folder = bundle(tmp_path / "b")
    plan = json.loads((folder / "model" / "build-plan.json").read_text())
    others = [
        HERE._replace(cuda=12080),
        HERE._replace(driver="580.65.06"),
        HERE._replace(driver="580.82.07"),
        HERE._replace(version="1.8"),
        HERE._replace(gpus=({**ADA, "name": "another"},)),
    ]
    keys = {build.key(plan, HERE), *(build.key(plan, one) for one in others)}
    keys |= {build.key({**plan, "options": {**plan["options"], "tf32": True}}, HERE), build.key({**plan, "files": {}}, HERE)}
    assert len(keys) == 8


@rtx
def test_the_old_engine_stays_until_the_new_one_passes(tmp_path, on_a_device, monkeypatch):
    folder = bundle(tmp_path / "b")
    build.build(folder)
    old = build.current(folder / "engines")
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(cuda=13030))

    def fails(*asked):
        raise Problem("step", "the new engine does not reproduce the golden outputs", "")

    monkeypatch.setattr(build, "_test", fails)
    with pytest.raises(Problem, match="does not reproduce"):
        build.build(folder)
    assert build.current(folder / "engines") == old
    assert {path.name for path in (folder / "engines").iterdir() if path.is_dir()} == {old}
    last = json.loads((folder / "engines" / "log.jsonl").read_text().splitlines()[-1])
    assert last["outcome"] == "failed" and last["kept"] == old
    monkeypatch.setattr(build, "_test", lambda *asked: 0.0)
    build.build(folder)
    assert build.current(folder / "engines") != old


@rtx
def test_a_damaged_engine_is_built_again(tmp_path, on_a_device):
    folder = bundle(tmp_path / "b")
    build.build(folder)
    engine = folder / "engines" / build.current(folder / "engines") / "engine.plan"
    engine.write_bytes(b"cut")
    assert build.build(folder).startswith("built:") and engine.stat().st_size > 1000


def test_a_bundle_for_another_gpu_is_refused(tmp_path, on_a_device, monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(gpus=({**ADA, "compute_capability": "8.6"},)))
    with pytest.raises(Problem, match=r"is for compute capability 8\.9, this GPU \(GPU\) has 8\.6"):
        build.build(bundle(tmp_path / "b"))


def test_without_cuda_bindings_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: HERE)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(Problem, match="cuda-bindings") as caught:
        build.build(bundle(tmp_path / "b"))
    assert caught.value.kind == "missing"


def test_without_golden_outputs_no_engine_is_trusted(tmp_path):
    folder = bundle(tmp_path / "b", golden=False)
    with pytest.raises(Problem, match="no golden outputs"):
        build._test(folder, json.loads((folder / "manifest.json").read_text()), folder / "e", {})


@pytest.mark.parametrize(
    ("found", "share"), [([1.0, 2.0], 0.0), ([1.0, 2.2], 0.1), ([float("nan"), 2.0], float("inf")), ([1.0, 2.0, 3.0], float("inf"))]
)
def test_an_error_is_a_share_of_the_largest_value(found, share):
    assert build.error(np.array([1.0, 2.0], np.float32), np.array(found, np.float32)) == pytest.approx(share, abs=1e-6)


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_an_engine_that_does_not_open_fails_the_test_not_us(tmp_path):
    folder = bundle(tmp_path / "b")
    with pytest.raises(Problem, match="no such file"):
        build._test(folder, json.loads((folder / "manifest.json").read_text()), folder / "e.plan", {})


# -- engines that are never loaded -----------------------------------------------------------------


def engine(folder: Path, data: bytes = b"engine", **changes) -> Path:
    path = folder / "engine.plan"
    path.write_bytes(data)
    record = {
        "product": "rtx",
        "sha256": hashlib.sha256(b"engine").hexdigest(),
        "version": HERE.version,
        "options": {},
        "compute_capabilities": ["8.9"],
        **changes,
    }
    (folder / "build.json").write_text(json.dumps(record))
    return path


def opened(path: Path):
    return tensorrt.open(path, threads=1, requests=1, options={}, execution={})


def test_a_tampered_engine_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "load", lambda product: pytest.fail("loaded"))
    with pytest.raises(Problem, match="is not the engine that its record describes"):
        opened(engine(tmp_path, b"engine with a tail"))


def test_an_engine_without_a_record_is_refused(tmp_path):
    (tmp_path / "engine.plan").write_bytes(b"engine")
    with pytest.raises(Problem, match="has no build record"):
        opened(tmp_path / "engine.plan")


def test_a_record_of_an_unknown_product_is_refused(tmp_path):
    with pytest.raises(Problem, match="is not the engine"):
        opened(engine(tmp_path, product="other"))


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_without_a_gpu_it_is_told_not_tried(tmp_path):
    with pytest.raises(Problem) as caught:
        opened(engine(tmp_path))
    assert caught.value.kind == "missing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"version": "1.6"}, "the engine was built by TensorRT for RTX 1.6, here is 1.7.1.116"),
        ({"version": "1.6", "options": {"version_compatible": True}}, ""),
        ({"compute_capabilities": ["8.6", "12.0"]}, "the engine is for compute capability 8.6 or 12.0, the GPU here (GPU) has 8.9"),
        ({"compute_capabilities": ["8.0"], "options": {"hardware_compatibility": "ampere_plus"}}, ""),
    ],
)
def test_an_engine_for_another_machine_is_told_in_plain_words(changes, said, tmp_path):
    record = tensorrt.verified(engine(tmp_path, **changes))
    assert tensorrt.foreign(record, HERE) == said


RANGES = {"inputs": [["x", "float32", ["N", "T", 16]], ["m", "float32", [4]]], "profile": {"x": [[1, 8, 16], [1, 16, 16], [1, 64, 16]]}}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 8, 16), ""),
        ((1, 64, 16), ""),
        ((1, 65, 16), "axis 'T' of the input 'x' is 65; the engine was built for 8 to 64"),
        ((1, 7, 16), "axis 'T' of the input 'x' is 7; the engine was built for 8 to 64"),
        ((2, 8, 16), "axis 'N' of the input 'x' is 2; the engine was built for 1 only"),
    ],
)
def test_shapes_outside_the_profile_are_told_by_axis_size_and_range(shape, said):
    assert tensorrt.outside(RANGES, {"x": shape, "m": (4,)}) == said


def test_shapes_outside_the_profile_never_reach_the_engine():
    class Engine:
        def __getattr__(self, name):
            pytest.fail(f"the engine was asked: {name}")

    slot = object.__new__(tensorrt.Slot)  # a whole one takes a GPU
    slot.record, slot.inputs, slot.buffers, slot.context = RANGES, tensorrt._ports(RANGES["inputs"]), {}, Engine()
    with pytest.raises(Problem, match="axis 'T'") as caught:
        slot.load({"x": np.zeros((1, 65, 16), np.float32), "m": np.zeros(4, np.float32)})
    assert caught.value.kind == "usage" and "profiles: {AXIS: [min, opt, max]}" in caught.value.remedy


# -- figures ---------------------------------------------------------------------------------------


def test_trtexec_s_warnings_are_ours():
    steady = {"enqueue": 0.1, "compute": 1.0, "h2d": 0.2, "d2h": 0.1, "compute_variation": 0.01}
    assert tensorrt_timing.warnings(steady) == []
    for change, word in [({"enqueue": 0.9}, "enqueue-bound"), ({"d2h": 1.0}, "transfer-bound"), ({"compute_variation": 0.03}, "unsteady")]:
        (told,) = tensorrt_timing.warnings({**steady, **change})
        assert told.startswith(word)


def test_layers_are_counted_by_what_they_take():
    def layer(kind, *types):
        return {"Name": kind, "LayerType": kind, "Inputs": [{"Format/Datatype": told} for told in types]}

    layers = [
        layer("CaskConvolution", "Four wide channel vectorized row major Int8 format"),
        layer("gemm", "Row major linear FP16 format"),
        layer("gemm", "Row major linear FP32"),
        layer("Reformat", "Row major linear FP32"),
        layer("kgen", "Row major linear BFloat16"),
        layer("kgen"),
    ]
    assert tensorrt_timing.precisions(layers) == {"int8": 1, "bf16": 1, "fp16": 1, "fp32": 1}


def test_a_cuda_error_is_told_in_cuda_s_words(monkeypatch):
    class Code:
        name = "cudaErrorMemoryAllocation"

        def __int__(self):
            return 2

    class Cuda:
        @staticmethod
        def cudaGetErrorString(code):
            return 0, b"out of memory"

    monkeypatch.setattr(tensorrt_cuda, "runtime", lambda: Cuda)
    with pytest.raises(Problem, match="allocating: cudaErrorMemoryAllocation: out of memory") as caught:
        tensorrt_cuda.call("allocating", (Code(),))
    assert caught.value.kind == "resource"
