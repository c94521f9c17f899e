"""On the device: what `python -m edgeopt.runner build` accepts, keeps and refuses, and which engines are never loaded."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_onnx as small

from edgeopt.backends.tensorrt import TensorrtOptions
from edgeopt.runner import Problem, build, engines, tensorrt, tensorrt_cuda, tensorrt_engine, tensorrt_slot, tensorrt_timing
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


@pytest.mark.parametrize("name, key", [("manifest.json", "model"), ("manifest.json", "files"), ("model/build-plan.json", "options")])
def test_a_file_that_lacks_what_it_should_say_is_told(name, key, tmp_path):
    folder = bundle(tmp_path / "b")
    value = json.loads((folder / name).read_text())
    del value[key]
    (folder / name).write_text(json.dumps(value))
    if name != "manifest.json":  # the manifest vouches for it as it is
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = {"sha256": f"sha256:{sha(folder / name)}"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    done = command(folder)
    assert done.returncode == 2 and f"lacks '{key}'" in done.stderr and "Traceback" not in done.stderr


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
    name = engines.current(folder / "engines")
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
    old = engines.current(folder / "engines")
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(cuda=13030))

    def fails(*asked):
        raise Problem("step", "the new engine does not reproduce the golden outputs", "")

    monkeypatch.setattr(build, "_test", fails)
    for _ in range(2):  # the second is compiled anew, and replaces the first
        with pytest.raises(Problem, match="does not reproduce") as caught:
            build.build(folder)
    assert engines.current(folder / "engines") == old
    [failed] = {path.name for path in (folder / "engines").iterdir() if path.is_dir()} - {old}
    assert failed.endswith(".failed") and f"engines/{failed}" in str(caught.value) and engines.sound(folder / "engines" / failed)
    last = json.loads((folder / "engines" / "log.jsonl").read_text().splitlines()[-1])
    assert last["outcome"] == "failed" and last["kept"] == old and last["put_aside"] == f"engines/{failed}"
    monkeypatch.setattr(build, "_test", lambda *asked: 0.0)
    assert build.build(folder).startswith("built:"), "what failed is not taken for a new one"
    assert engines.current(folder / "engines") not in (old, failed)


@rtx
def test_a_damaged_engine_is_built_again(tmp_path, on_a_device):
    folder = bundle(tmp_path / "b")
    build.build(folder)
    engine = folder / "engines" / engines.current(folder / "engines") / "engine.plan"
    engine.write_bytes(b"cut")
    assert build.build(folder).startswith("built:") and engine.stat().st_size > 1000


def test_a_bundle_for_another_gpu_is_refused(tmp_path, on_a_device, monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(gpus=({**ADA, "compute_capability": "8.6"},)))
    with pytest.raises(Problem, match=r"is for compute capability 8\.9, this GPU \(GPU\) has 8\.6"):
        build.build(bundle(tmp_path / "b"))


def test_without_cuda_bindings_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(bindings="no cuda-bindings"))
    with pytest.raises(Problem, match="no cuda-bindings") as caught:
        build.build(bundle(tmp_path / "b"))
    assert caught.value.kind == "missing" and library.why_not_run("rtx") == "no cuda-bindings"
    assert library.why_not_build("rtx") == library.why_not_build("tensorrt") == "", "no engine is run to build one"


def bindings(folder: Path, version: str) -> None:
    """A package cuda-bindings as far as it is asked."""
    (folder / "cuda" / "bindings").mkdir(parents=True)
    (folder / "cuda" / "bindings" / "runtime.py").write_text("")
    record = folder / f"cuda_bindings-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cuda-bindings\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "said"),
    [("12.9.1", ""), ("11.8", ""), ("13.0.3", "cuda-bindings 13.0.3 are too new for this driver, which is for CUDA 12"), ("", "imported")],
)
def test_cuda_bindings_fit_the_driver(version, said, tmp_path):
    if version:
        bindings(tmp_path, version)
    code = "from edgeopt.runner import tensorrt_library; print(tensorrt_library.bindings_problem(12080))"
    path = f"{tmp_path}{os.pathsep}{build.children.environment()['PYTHONPATH']}"
    told = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert said in told.stdout and ("pip install 'cuda-bindings==12.*'" in told.stdout) == bool(said) and not told.stderr


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("tensorrt_rtx_cu13", "this TensorRT for RTX is for CUDA 13, the NVIDIA driver here for CUDA 12: update the driver, or install"),
        ("tensorrt_rtx_cu12", ""),
        ("tensorrt_cu13", ""),
    ],
)
def test_a_driver_that_is_too_old_for_the_product_is_told(package, said, tmp_path, monkeypatch):
    record = tmp_path / f"{package}-1.7.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.7.1\n")
    code = "from edgeopt.runner import tensorrt_library; print(tensorrt_library.driver_problem('rtx', 12080))"
    packages = [path for path in build.children.environment()["PYTHONPATH"].split(os.pathsep) if "-packages" not in path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *packages])}
    told = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(said) and bool(told.stdout.strip()) == bool(said)
    monkeypatch.setattr(library, "look", lambda product: HERE._replace(old="it is too old"))
    assert library.why_not_run("rtx") == "it is too old" and library.why_not_build("rtx") == ""
    assert library.why_not_build("tensorrt").endswith(": it is too old")


def test_without_golden_outputs_nothing_is_compiled(tmp_path):
    folder = bundle(tmp_path / "b", golden=False)
    done = command(folder)
    assert done.returncode == 2 and "no golden outputs" in done.stderr


@pytest.mark.parametrize("damage", ["torn", "no zip", "pickle", "other samples"])
def test_golden_samples_that_cannot_be_read_are_refused_in_words(damage, tmp_path):
    folder = bundle(tmp_path / "b")
    path = folder / "golden" / "outputs.npz"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "no zip":
        np.save(path.open("wb"), np.ones(3))
    elif damage == "pickle":
        np.savez(path, **{"0/y": np.array([None])})
    else:
        np.savez(path, **{"1/y": np.ones((1, 5), np.float32)})
    seal(folder)
    done = command(folder)
    assert done.returncode == 6 and "Traceback" not in done.stderr and "golden" in done.stderr and "→ make the bundle again" in done.stderr


@pytest.mark.parametrize(
    ("found", "share"), [([1.0, 2.0], 0.0), ([1.0, 2.2], 0.1), ([float("nan"), 2.0], float("inf")), ([1.0, 2.0, 3.0], float("inf"))]
)
def test_an_error_is_a_share_of_the_largest_value(found, share):
    assert build.error(np.array([1.0, 2.0], np.float32), np.array(found, np.float32)) == pytest.approx(share, abs=1e-6)


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_an_engine_that_does_not_open_fails_the_test_not_us(tmp_path):
    folder = bundle(tmp_path / "b")
    with pytest.raises(Problem, match="no such file"):
        build._test(build.golden_of(folder, json.loads((folder / "manifest.json").read_text())), folder / "e.plan", {})


# -- what may come between ------------------------------------------------------------------------

DEVICE = """
import sys
from edgeopt.runner import build, tensorrt_library as library
gpu = {"name": "GPU", "compute_capability": "8.9"}
library.look = lambda product: library.Finding("", "", "1.7.1.116", 13020, (gpu,))
build._test = lambda *asked: 1e-6
sys.exit(build.main(sys.argv[1:]))
"""


def device(folder: Path) -> subprocess.Popen[str]:
    """The command as if a GPU were here: RTX really builds, the engine's test is answered by hand."""
    return subprocess.Popen([sys.executable, "-c", DEVICE, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def builder(process: subprocess.Popen[str]) -> Path:
    """/proc of the child that builds, once it has loaded TensorRT."""
    while process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if "tensorrt_rtx" in Path(f"/proc/{pid}/maps").read_text():
                    return Path(f"/proc/{pid}")
        time.sleep(0.01)
    raise AssertionError(process.stderr and process.stderr.read())


def alive(place: Path) -> bool:
    try:
        return (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@rtx
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_build_that_is_stopped_leaves_nothing_behind(sent, code, tmp_path):
    folder = bundle(tmp_path / "b")
    # Where the suite was started behind &, SIGINT is ignored, and Python leaves it so.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = device(folder)
    finally:
        signal.signal(signal.SIGINT, old)
    child = builder(process)
    os.kill(int(child.name), signal.SIGSTOP)
    process.send_signal(sent)
    _, said = process.communicate()
    assert process.returncode == code and "Traceback" not in said
    while alive(child):
        time.sleep(0.01)
    left = {path.name for path in (folder / "engines").iterdir()}
    if sent != signal.SIGKILL:
        assert "cancelled" in said and left == {engines.LOCK}
    assert device(folder).communicate()[0].startswith("built:")
    assert not (folder / "engines" / engines.PART).exists()


@rtx
def test_of_two_builds_at_once_one_waits_and_finds_it_done(tmp_path):
    folder = bundle(tmp_path / "b")
    with engines.held(folder / "engines"):
        both = [device(folder), device(folder)]
        waiting = [process.stderr.readline() for process in both if process.stderr]
        assert all(line.startswith("waiting: another build is at work in") for line in waiting)
    told = sorted(process.communicate()[0].partition(":")[0] for process in both)
    assert told == ["built", "up to date"] and len((folder / "engines" / "log.jsonl").read_text().splitlines()) == 1


@rtx
def test_a_sound_engine_is_up_to_date_without_writing(tmp_path, on_a_device):
    folder = bundle(tmp_path / "b")
    build.build(folder)
    with (folder / "engines" / engines.LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert build.build(folder).startswith("up to date")


def test_a_test_that_says_nothing_of_the_engine_leaves_it_to_the_next(tmp_path, on_a_device, monkeypatch):
    def busy(*asked):
        raise Problem("resource", "the GPU's memory is full", "")

    def compiled(plan, model, place, here):
        place.mkdir()
        (place / "engine.plan").write_bytes(b"engine")
        (place / "build.json").write_text(json.dumps({"sha256": hashlib.sha256(b"engine").hexdigest()}))

    folder = bundle(tmp_path / "b")
    monkeypatch.setattr(build, "_compile", compiled)
    monkeypatch.setattr(build, "_test", busy)
    with pytest.raises(Problem, match="memory is full"):
        build.build(folder)
    assert engines.current(folder / "engines") is None
    monkeypatch.setattr(build, "_test", lambda *asked: 0.0)
    assert build.build(folder).startswith("reused:")


@rtx
@pytest.mark.parametrize("full", [".part.json", "log.jsonl"])
def test_a_full_disk_is_told_in_words_and_7(full, tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "engines").mkdir()
    (folder / "engines" / full).symlink_to("/dev/full")
    process = device(folder)
    _, said = process.communicate()
    assert process.returncode == 7 and "the disk is full" in said and "Traceback" not in said


@rtx
def test_an_engine_that_does_not_fit_the_disk_is_no_failed_step(tmp_path):
    folder = bundle(tmp_path / "b")
    plan = json.loads((folder / "model" / "build-plan.json").read_text())
    with pytest.raises(Problem, match="the disk is full") as caught:
        tensorrt_engine.ask({**plan, "do": "build", "model": str(folder / "model" / "model.onnx"), "engine": "/dev/full"}, 60)
    assert caught.value.kind == "resource"


def test_a_bundle_that_cannot_be_written_is_told_with_the_way_out_and_2(tmp_path):
    folder = bundle(tmp_path / "b")
    (folder / "engines").symlink_to("/sys/kernel")  # not even root makes files there
    process = device(folder)
    _, said = process.communicate()
    assert process.returncode == 2 and "→ copy the bundle to a folder where you may read and write" in said and "Traceback" not in said


def test_too_little_memory_is_told_in_words_and_7(tmp_path):
    folder = bundle(tmp_path / "b")
    code = DEVICE.replace("sys.exit(", "def full(plan):\n    raise MemoryError\nbuild._here = full\nsys.exit(")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 7 and "out of memory" in done.stderr


def test_modules_that_lie_in_the_bundle_are_not_taken(tmp_path):
    """Wherever the user stands: neither by the command, nor by the look at TensorRT, the build and the engine's test."""
    folder = bundle(tmp_path / "b")
    for name in ("numpy", "json", "tensorrt", "tensorrt_rtx"):
        (folder / f"{name}.py").write_text("print('taken', flush=True)\nraise SystemExit(77)\n")
    environment = build.children.environment()
    asked = [
        ([sys.executable, "-m", "edgeopt.runner", "build", "."], b""),
        (build.children.python("edgeopt.runner", "serve"), b""),
        (build.children.python("edgeopt.runner.tensorrt_library", "rtx"), b""),
        (build.children.python("edgeopt.runner.tensorrt_engine"), b'{"do": "support", "product": "none"}'),
    ]
    for command_, given in asked:
        done = subprocess.run(command_, cwd=folder, env=environment, input=given, capture_output=True, check=False)
        assert b"taken" not in done.stdout + done.stderr and done.returncode != 77


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
        (
            {"version": "1.10", "options": {"version_compatible": True}},
            "the engine was built by TensorRT for RTX 1.10, here is 1.7.1.116; what is version-compatible runs on newer ones only",
        ),
        ({"compute_capabilities": ["8.0"], "options": {"hardware_compatibility": "ampere_plus"}}, ""),
    ],
)
def test_an_engine_for_another_machine_is_told_in_plain_words(changes, said, tmp_path):
    record = tensorrt.verified(engine(tmp_path, **changes))
    assert tensorrt.foreign(record, HERE) == said


def test_what_was_built_for_ampere_and_later_does_not_run_on_turing(tmp_path):
    record = tensorrt.verified(engine(tmp_path, compute_capabilities=["8.0"], options={"hardware_compatibility": "ampere_plus"}))
    turing = HERE._replace(gpus=({"name": "T4", "compute_capability": "7.5"},))
    assert tensorrt.foreign(record, turing) == "the engine is for compute capability 8.0, the GPU here (T4) has 7.5"


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
    assert tensorrt_slot.outside(RANGES, {"x": shape, "m": (4,)}) == said


def test_shapes_outside_the_profile_never_reach_the_engine():
    class Engine:
        def __getattr__(self, name):
            pytest.fail(f"the engine was asked: {name}")

    slot = object.__new__(tensorrt_slot.Slot)  # a whole one takes a GPU
    slot.record, slot.inputs, slot.buffers, slot.context = RANGES, tensorrt._ports(RANGES["inputs"]), {}, Engine()
    with pytest.raises(Problem, match="axis 'T'") as caught:
        slot.load({"x": np.zeros((1, 65, 16), np.float32), "m": np.zeros(4, np.float32)})
    assert caught.value.kind == "usage" and "profiles: {AXIS: [min, opt, max]}" in caught.value.remedy


# -- figures ---------------------------------------------------------------------------------------


def test_trtexec_s_warnings_are_ours():
    steady = {"enqueue": 0.1, "compute": 1.0, "h2d": 0.2, "d2h": 0.1, "compute_variation": 0.01}
    assert tensorrt_timing.warnings(steady, graph=False) == []
    for change, word in [({"enqueue": 0.9}, "enqueue-bound"), ({"d2h": 1.0}, "transfer-bound"), ({"compute_variation": 0.03}, "unsteady")]:
        (told,) = tensorrt_timing.warnings({**steady, **change}, graph=False)
        assert told.startswith(word)
    launched = {**steady, "enqueue": 0.9}
    assert [tensorrt_timing.warnings(launched, graph)[0].partition("; ")[2] for graph in (False, True)] == [
        "use a CUDA graph",
        "a larger batch tells more",
    ]


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
