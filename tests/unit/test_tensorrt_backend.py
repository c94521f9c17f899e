"""The TensorRT backend without a GPU: real engines by TensorRT for RTX, bundles for devices, and every "not here" in its own words."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from faulty_onnx import FAULTY
from pydantic import ValidationError

from edgeopt.backends.tensorrt import Tensorrt, TensorrtOptions
from edgeopt.core import digest, registry, target
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import MissingError, StepError, UnfitError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.runner import Problem, nvml, tensorrt_engine, tensorrt_log
from edgeopt.runner import tensorrt_library as library

no_rtx = library.why_not_build("rtx")
rtx = pytest.mark.skipif(bool(no_rtx), reason=no_rtx)
CAPABILITIES = ("7.5", "8.6", "8.9", "12.0")  # the targets' own; the package also knows 8.0 and 12.1
HERE = Path(__file__).parent


def artifact(proto, root: Path) -> Artifact:
    (root / "files").mkdir(parents=True)
    path = small.write(proto, root / "files")
    return Artifact(root, "onnx", path.name, "key", digest.of_folder(root / "files"), path.stat().st_size, Onnx().signature(path))


def fields(*capabilities: str, batch: int = 1, compile_on: str = "host", int8: str = "s8s8", **options):
    options = {"product": "rtx", "compute_capabilities": capabilities or ("8.9",), **options}
    return {"batch": batch, "compile_on": compile_on, "int8": int8, "options": TensorrtOptions(**options).model_dump(mode="json")}


def compiled(proto, folder: Path, target, notes=None) -> Path:
    (folder / "out").mkdir()
    note = notes.__setitem__ if notes is not None else lambda name, value: None
    return Tensorrt().compile(artifact(proto, folder / "model"), Context(folder=folder / "out", target=target, note=note))


# -- models as edgeopt's passes make them ----------------------------------------------------------


def cnn() -> onnx.ModelProto:
    return small.cnn(size=(16, 16), batch=1)


def half(proto, folder: Path) -> onnx.ModelProto:
    (folder / "half").mkdir()
    return onnx.load(CastFp16().run(artifact(proto, folder / "full"), Context(folder=folder / "half")))


def quantized(proto, folder: Path) -> onnx.ModelProto:
    """By onnxruntime in the form that TensorRT takes: symmetric S8, per channel, the bias left alone."""
    import onnxruntime.quantization as quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)} for seed in range(4)]

        def get_next(self):
            return self.left.pop() if self.left else None

    source, result = small.write(proto, folder, "before.onnx"), folder / "after.onnx"
    quantization.quantize_static(
        str(source), str(result), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip
    return onnx.load(result)


MODELS = {
    "fp32 CNN": (lambda folder: cnn(), {}, False),
    "fp16 CNN": (lambda folder: half(cnn(), folder), {}, True),
    "int8 CNN": (lambda folder: quantized(cnn(), folder), {}, False),
    "int8 and fp16 CNN": (lambda folder: half(quantized(cnn(), folder), folder), {}, True),
    "transformer": (lambda folder: small.attention(), {"T": (1, 16, 64)}, False),
    "fp16 transformer": (lambda folder: half(small.attention(), folder), {"T": (1, 16, 64)}, True),
    "LSTM": (lambda folder: small.recurrent(), {"T": (1, 8, 32), "N": (1, 1, 4)}, False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each of the models, made once."""
    return {name: make(tmp_path_factory.mktemp("made")) for name, (make, _, _) in MODELS.items()}


@rtx
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", MODELS)
def test_rtx_builds_it_without_a_gpu(name, capability, made, tmp_path):
    _, profiles, on_turing = MODELS[name]
    wanted = fields(capability, profiles=profiles)
    if capability == "7.5" and not on_turing:  # FP32 matrices, and Q/DQ between FP32 layers, do not run on Turing
        with pytest.raises(UnfitError, match="FP32 matrices, and Turing"):
            compiled(made[name], tmp_path, wanted)
        return
    notes = {}
    engine = compiled(made[name], tmp_path, wanted, notes)
    assert engine.name == "engine.plan" and engine.stat().st_size > 10_000
    record = json.loads((engine.parent / "build.json").read_text())
    assert record["sha256"] == digest.of_file(engine).removeprefix("sha256:") and record["size_bytes"] == engine.stat().st_size
    assert record["compute_capabilities"] == [capability] and record["product"] == "rtx" and record["gpu"] is None
    assert record["version"] == library.look("rtx").version and 0 < record["seconds"] < 60
    assert (
        notes["engine_seconds"] == record["seconds"] and notes["findings"] == json.loads((engine.parent / "check.json").read_text()) == []
    )


@rtx
def test_one_engine_serves_several_gpus(tmp_path):
    several = ["8.0", "8.6", "8.9", "12.0", "12.1"]
    one = compiled(cnn(), tmp_path, fields(*several))
    assert json.loads((one.parent / "build.json").read_text())["compute_capabilities"] == several


@rtx
def test_the_profile_is_that_of_the_target(tmp_path):
    engine = compiled(small.mlp(), tmp_path, fields(batch=8))
    assert json.loads((engine.parent / "build.json").read_text())["profile"] == {"x": [[1, 8], [8, 8], [8, 8]]}


# -- what must not be built, and what goes wrong ---------------------------------------------------


@pytest.mark.parametrize("case", [one for one in FAULTY if "UINT8" in one.says and one.parser == "accepts"], ids=lambda case: case.name)
def test_the_trap_of_uint8_never_reaches_the_builder(case, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "why_not_build", lambda product: "")
    monkeypatch.setattr(
        tensorrt_engine, "ask", lambda request, limit: {"refused": []} if request["do"] == "support" else pytest.fail("built")
    )
    with pytest.raises(StepError, match=r"UINT8.*checker, layer A") as caught:
        compiled(case.make(), tmp_path, fields())
    assert caught.value.exit_code == 8 and "quantize-int8" in caught.value.remedy
    assert not list((tmp_path / "out").iterdir())


@rtx
def test_nor_does_it_reach_a_device(tmp_path):
    case = next(one for one in FAULTY if one.name == "uint8_activation")
    with pytest.raises(StepError, match="UINT8"):
        compiled(case.make(), tmp_path, fields("8.7", product="tensorrt", compile_on="device"))


@pytest.mark.parametrize("flavour", ["u8s8", "any"])
def test_a_target_of_another_flavour_is_refused(flavour, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "why_not_build", lambda product: "")
    with pytest.raises(UsageError, match="symmetric INT8") as caught:
        compiled(cnn(), tmp_path, fields(int8=flavour))
    assert "int8: s8s8" in caught.value.remedy


@rtx
def test_too_little_workspace_is_said_so(tmp_path):
    with pytest.raises(StepError, match="workspace is too small") as caught:
        compiled(cnn(), tmp_path, fields(workspace_mb=1))
    assert "workspace_mb" in caught.value.remedy and "layer C" in caught.value.cause
    assert not (tmp_path / "out" / "engine.plan").exists()


@rtx
def test_a_gpu_that_the_package_does_not_know_is_told_with_those_it_does(tmp_path):
    with pytest.raises(UsageError, match=r"no compute capability 8\.7") as caught:
        compiled(cnn(), tmp_path, fields("8.7"))
    assert "7.5, 8.0, 8.6, 8.9, 12.0" in caught.value.remedy and "product: tensorrt" in caught.value.remedy


@rtx
def test_an_axis_without_a_range_is_an_error_before_the_build(tmp_path):
    with pytest.raises(StepError, match="axis 'T'") as caught:
        compiled(small.attention(), tmp_path, fields())
    assert "profiles: {T: [min, opt, max]}" in caught.value.remedy


@rtx
def test_a_crash_of_the_builder_never_reaches_us(tmp_path):
    """Scales that are computed pass the parser, and then the builder dies of a segmentation fault (RTX 1.7)."""
    path = small.write(next(one for one in FAULTY if one.name == "computed_scale").make(), tmp_path)
    request = {"do": "build", "product": "rtx", "model": str(path), "engine": str(tmp_path / "e"), "profile": {}, **fields()}
    with pytest.raises(Problem, match="crashed inside TensorRT") as caught:
        tensorrt_engine.ask(request, 60)
    assert caught.value.kind == "step"


@rtx
def test_a_build_without_end_is_stopped(tmp_path):
    """A small LSTM of batch 1 over 8 steps: the build grows without end (RTX 1.7)."""
    wanted = fields(profiles={"T": 8, "N": 1}, build_limit_s=2)
    notes = {}
    with pytest.raises(StepError, match="has not ended within 2 s") as caught:
        compiled(small.recurrent(), tmp_path, wanted, notes)
    assert "batch axis" in caught.value.remedy and "batch 1" in notes["findings"][0]


@rtx
@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_a_build_dies_with_who_asked_for_it(tmp_path):
    path = small.write(small.recurrent(), tmp_path)
    profile = {"x": [[8, 1, 3]] * 3}
    request = {"do": "build", "product": "rtx", "model": str(path), "engine": str(tmp_path / "e"), "profile": profile, **fields()}
    code = f"from edgeopt.runner import tensorrt_engine\ntensorrt_engine.ask({request!r}, 600)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.02)
        time.sleep(0.5)  # it is past its first line by then
        assert Path(f"/proc/{found[0]}").exists()
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{found[0]}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the builder still runs")


@rtx
def test_the_same_model_and_target_get_the_same_plan_whatever_the_engine_s_bytes(tmp_path):
    plans = []
    for name in "ab":
        (tmp_path / name).mkdir()
        engine = compiled(cnn(), tmp_path / name, fields())
        record = json.loads((engine.parent / "build.json").read_text())
        plans.append({key: value for key, value in record.items() if key not in ("seconds", "sha256", "size_bytes", "warnings")})
    assert plans[0] == plans[1]


# -- compiled on the device ------------------------------------------------------------------------


def test_for_a_device_it_writes_what_is_compiled_there(tmp_path):
    main = compiled(small.attention(), tmp_path, fields("8.7", product="tensorrt", compile_on="device", profiles={"T": (1, 16, 64)}))
    assert main.name == "model.onnx" and sorted(path.name for path in main.parent.iterdir()) == [
        "build-plan.json",
        "check.json",
        "model.onnx",
    ]
    plan = json.loads((main.parent / "build-plan.json").read_text())
    assert plan["product"] == "tensorrt" and plan["files"] == {"model.onnx": digest.of_file(main)}
    assert plan["profile"] == {"x": [[1, 1, 16], [1, 16, 16], [1, 64, 16]]} and plan["options"]["tf32"] is False
    assert plan["inputs"] == [["x", "float32", ["N", "T", 16]]]


def test_a_device_needs_no_compiler_here():
    wanted = fields("9.0", product="tensorrt", compile_on="device")
    assert Tensorrt().can_build(wanted) == "" and "python -m edgeopt.runner build" in Tensorrt().can_measure(wanted)


def test_without_the_compiler_a_build_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: library.Finding("TensorRT is not installed: pip install …", "no driver"))
    with pytest.raises(MissingError, match="not installed"):
        compiled(cnn(), tmp_path, fields("8.9", product="tensorrt"))


# -- every way not to be here, in its own words ----------------------------------------------------


def look(product: str, *folders: Path) -> library.Finding:
    """What is found with these folders before all others on the path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    asked = [sys.executable, "-m", "edgeopt.runner.tensorrt_library", product]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, check=True)
    return library.Finding(**json.loads(done.stdout.splitlines()[-1]))


def package(folder: Path, name: str, code: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


@pytest.mark.skipif(library.look("tensorrt").library == "", reason="TensorRT is here")
def test_no_package():
    assert look("tensorrt").library == "TensorRT is not installed: pip install 'edgeopt[tensorrt]'"


@pytest.mark.skipif(library.look("tensorrt").library == "", reason="TensorRT is here")
def test_type_stubs_are_no_package(tmp_path):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("")
    assert "is not installed" in look("tensorrt", tmp_path).library


def test_a_binding_without_its_libraries(tmp_path):
    code = "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file or directory')"
    said = look("tensorrt", package(tmp_path, "tensorrt", code)).library
    assert said.startswith("the Python binding of TensorRT is here without its libraries (libnvinfer.so.11)")


@pytest.mark.skipif(library.look("tensorrt").library == "", reason="TensorRT is here")
def test_the_lean_runtime_only(tmp_path):
    assert look("tensorrt", package(tmp_path, "tensorrt_lean", "")).library.startswith("only tensorrt_lean is here: it runs")


def test_a_package_that_cannot_build(tmp_path):
    assert "it has no Builder" in look("tensorrt", package(tmp_path, "tensorrt", "")).library


def test_a_package_that_crashes_on_import(tmp_path, monkeypatch):
    folder = package(tmp_path, "tensorrt_rtx", "import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    library.look.cache_clear()
    try:
        assert "crashes when it is imported" in library.why_not_build("rtx")
        assert library.look("rtx").gpu == library.gpu_problem()[0], "the GPU is asked for again, without the library"
    finally:
        library.look.cache_clear()


class Driver:
    """libcuda as far as it is asked: answers `code`, has GPUs of these compute capabilities."""

    def __init__(self, code: int, *capabilities: str) -> None:
        self.code, self.capabilities = code, capabilities

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDriverGetVersion(self, version) -> None:
        version._obj.value = 13020

    def cuDeviceGetCount(self, count) -> None:
        count._obj.value = len(self.capabilities)

    def cuDeviceGetName(self, name, size, index) -> None:
        name.value = b"GPU"

    def cuDeviceGetAttribute(self, value, which, index) -> None:
        value._obj.value = int(self.capabilities[index].split(".")[which - 75])


def no_library(name: str):
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (no_library, "no NVIDIA driver is here"),
        (lambda name: Driver(100), "an NVIDIA driver is here, but it sees no GPU"),
        (lambda name: Driver(0), "an NVIDIA driver is here, but it sees no GPU"),
        (lambda name: Driver(803), "an NVIDIA driver is here, but it refuses: cuInit answers 803"),
        (lambda name: Driver(0, "8.9"), ""),
    ],
)
def test_no_driver_and_a_driver_without_a_gpu_differ(driver, said, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", driver)
    reason, cuda, gpus = library.gpu_problem()
    assert reason.startswith(said) and bool(reason) == bool(said)
    assert gpus == ([] if said else [{"name": "GPU", "compute_capability": "8.9"}])
    assert said or cuda == 13020


class Nvml:
    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, name, size) -> int:
        name.value = b"580.65.06"
        return 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 2025\nGCC version: gcc 11", "570.124.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build", "580.65.06"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "L4T 36.4.3"),
        ("nothing that anyone knows", ""),
    ],
)
def test_the_driver_s_version_is_that_of_nvml_or_of_its_files(text, version, tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    (tmp_path / "told").write_text(text)
    monkeypatch.setattr(library, "DRIVER_FILES", [(tmp_path / "told", *rest) for _, *rest in library.DRIVER_FILES])
    nvml._library.cache_clear()
    assert library.driver_version() == version
    nvml._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml())
    assert library.driver_version() == "580.65.06"
    nvml._library.cache_clear()


def test_building_and_running_are_asked_apart(monkeypatch):
    gpu = {"name": "GPU", "compute_capability": "8.6"}
    for here, builds, runs in [
        (library.Finding("", "no NVIDIA driver is here"), "", "no NVIDIA driver"),
        (library.Finding("not installed", "no NVIDIA driver is here"), "not installed", "not installed"),
        (library.Finding("", "", gpus=(gpu,)), "", "the GPU here is 8.6, the target is 8.9"),
    ]:
        monkeypatch.setattr(library, "look", lambda product, here=here: here)
        assert Tensorrt().can_build(fields("8.9")).startswith(builds) and bool(Tensorrt().can_build(fields("8.9"))) == bool(builds)
        assert Tensorrt().can_measure(fields("8.9")).startswith(runs)
    assert Tensorrt().can_measure(fields("8.6")) == ""


def test_full_tensorrt_does_not_build_without_a_gpu(monkeypatch):
    monkeypatch.setattr(library, "look", lambda product: library.Finding("", "no NVIDIA driver is here"))
    assert Tensorrt().can_build(fields("8.9", product="tensorrt")).startswith("TensorRT builds on the GPU it builds for")


def test_full_tensorrt_does_not_build_on_a_gpu_that_the_target_is_not_for(tmp_path, monkeypatch):
    here = library.Finding("", "", gpus=({"name": "GPU", "compute_capability": "8.6"},))
    monkeypatch.setattr(library, "look", lambda product: here)
    with pytest.raises(MissingError, match=r"the GPU here is 8\.6, the target is 9\.0"):
        compiled(cnn(), tmp_path, fields("9.0", product="tensorrt"))
    assert not Tensorrt().can_build(fields("8.6", product="tensorrt"))
    assert not Tensorrt().can_build(fields("9.0", product="tensorrt", hardware_compatibility="ampere_plus"))
    assert not Tensorrt().can_build(fields("9.0", product="tensorrt", compile_on="device"))


# -- the log ---------------------------------------------------------------------------------------

NO_DRIVER = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (… (cudaError 35: CUDA driver version is insufficient …))"


def test_the_noise_of_a_missing_gpu_is_no_error():
    lines = [
        tensorrt_log.Line("ERROR", NO_DRIVER),
        tensorrt_log.Line("WARNING", "mind"),
        tensorrt_log.Line("ERROR", f"real\n{NO_DRIVER}\n"),
    ]
    assert tensorrt_log.errors(lines) == ["real"] and tensorrt_log.warnings(lines) == ["mind"]


def test_any_logged_error_fails_a_build_that_returned_an_engine():
    with pytest.raises(Problem, match="building: Setting builder optimization level"):
        tensorrt_engine._checked("building", b"engine", [tensorrt_log.Line("ERROR", "Setting builder optimization level")])
    assert tensorrt_engine._checked("building", b"engine", [tensorrt_log.Line("ERROR", NO_DRIVER)]) == b"engine"


@rtx
def test_there_is_one_logger_and_each_listener_hears_its_own_time():
    code = """
import tensorrt_rtx as trt
from edgeopt.runner import tensorrt_library, tensorrt_log as log
tensorrt_library.load('rtx')
assert log.logger() is log.logger()
for index in (99, 98):
    with log.collected() as said:
        config = trt.Builder(log.logger()).create_builder_config()
        config.set_compute_capability(trt.ComputeCapability.SM89, index)
    found = log.errors(said)
    assert len(found) == 1 and "setComputeCapability" in found[0], found
print("heard")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "heard"


# -- options and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"product": "rtx"}, "needs compute_capabilities"),
        ({"product": "rtx", "compute_capabilities": ["8.9"], "version_compatible": True}, "product tensorrt"),
        ({"compute_capabilities": ["sm89"]}, "pattern"),
        ({"profiles": {"T": [4, 2, 8]}}, "not min ≤ opt ≤ max"),
        ({"profiles": {"T": 0}}, "greater than 0"),
        ({"builder_level": 6}, "less than or equal to 5"),
        ({"workspace_mb": 0}, "greater than 0"),
        ({"fp16": True}, "Extra inputs"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(options, said):
    with pytest.raises(ValidationError, match=said):
        TensorrtOptions(**options)


def test_the_shipped_targets_are_right():
    names = [name for name in target.shipped() if target.load(name, HERE).backend == "tensorrt"]
    assert set(names) == {
        "rtx-turing", "rtx-ampere", "rtx-ada", "rtx-blackwell", "a100", "h100", "l4", "jetson-orin", "jetson-thor",
    }  # fmt: skip
    for name in names:
        one = target.load(name, HERE)
        assert one.int8 == "s8s8" and one.options["compute_capabilities"]
        assert (one.compile_on == "host") == (one.options["product"] == "rtx")
        assert one.arch == ("aarch64" if name.startswith("jetson") else "x86_64")


def test_bf16_execution_is_refused_with_what_to_do_instead():
    assert "cast-fp16" in Tensorrt().refuses({"float": "bf16"}) and Tensorrt().refuses({"float": "f32"}) == ""


def test_it_stands_in_the_table():
    assert registry.load("backends", "tensorrt") is Tensorrt
