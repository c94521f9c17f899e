"""How engines are driven, without a GPU: through the real serving child as far as it goes, and over a CUDA that only takes notes."""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeopt.core.errors import MissingError, UsageError
from edgeopt.runner import Port, Problem, tensorrt, tensorrt_cuda, tensorrt_engine, tensorrt_timing
from edgeopt.runner import tensorrt_library as library
from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_cache import RuntimeCache
from edgeopt.stages.children import Child

no_gpu = library.gpu_problem()[0]
TELLING = "Magic tag does not match"


def engine(folder: Path, data: bytes = b"engine", **changes: Any) -> Path:
    path = folder / "engine.plan"
    path.write_bytes(data)
    record = {"product": "rtx", "sha256": hashlib.sha256(b"engine").hexdigest(), "version": "1", "options": {}, **changes}
    (folder / "build.json").write_text(json.dumps({"compute_capabilities": ["8.9"], "inputs": [], "outputs": [], **record}))
    return path


# -- the serving child -----------------------------------------------------------------------------


def opened(path: Path) -> None:
    with Child("engine") as child:
        child.ask("open", path=str(path), backend="tensorrt", threads=1, requests=1, options={}, execution={"float": "f32"})


def test_the_server_tells_why_an_engine_does_not_open(tmp_path):
    path = engine(tmp_path, b"something else")
    with pytest.raises(UsageError, match="is not the engine that its record describes"):
        opened(path)
    (tmp_path / "build.json").unlink()
    with pytest.raises(UsageError, match="has no build record"):
        opened(path)


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_the_server_gets_as_far_as_the_missing_gpu(tmp_path):
    with pytest.raises(MissingError, match=r"not installed|no NVIDIA driver|sees no GPU|refuses"):
        opened(engine(tmp_path))


@pytest.mark.parametrize("portable", [True, False])
def test_code_in_an_engine_is_allowed_where_it_was_built_with_it(portable, tmp_path):
    class Runtime:
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data):
            return self.engine_host_code_allowed, data

    path = engine(tmp_path, options={"version_compatible": portable})
    assert tensorrt._deserialized(Runtime(), path, tensorrt.verified(path)) == (portable, b"engine")


# -- a slot ----------------------------------------------------------------------------------------


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorStreamCaptureInvalidated = 901


class Cuda:
    """The CUDA runtime as far as a slot uses it: every call is noted and succeeds, but for a capture where `capturable` is false."""

    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, capturable: bool = True) -> None:
        self.capturable, self.memory = capturable, list[Any]()
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*given: Any) -> tuple[Code, int]:
            self.done.append(name)
            return Code.cudaSuccess, 7

        return call

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Code, int]:
        self.memory.append(ctypes.create_string_buffer(size))
        return Code.cudaSuccess, ctypes.addressof(self.memory[-1])

    def cudaStreamEndCapture(self, handle: int) -> tuple[Code, int | None]:
        self.done.append("cudaStreamEndCapture")
        return (Code.cudaSuccess, 7) if self.capturable else (Code.cudaErrorStreamCaptureInvalidated, None)

    def cudaGetErrorString(self, code: Code) -> tuple[Code, bytes]:
        return Code.cudaSuccess, b"operation failed due to a previous error during capture"


class Context:
    """An execution context whose outputs have the shape of its input; it runs in a capture only where `records` says so."""

    def __init__(self, cuda: Cuda, records: bool = True, takes: bool = True) -> None:
        self.cuda, self.records, self.takes = cuda, records, takes
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self.takes

    def execute_async_v3(self, stream: int) -> bool:
        recording = self.cuda.done[-1] == "cudaStreamBeginCapture"
        self.cuda.done.append("run")
        return self.records or not recording


def slot_of(monkeypatch: pytest.MonkeyPatch, capturable: bool = True, **context: bool) -> tuple[tensorrt.Slot, Cuda]:
    cuda = Cuda(capturable)
    monkeypatch.setattr(tensorrt_cuda, "runtime", lambda: cuda)
    made = SimpleNamespace(create_execution_context=lambda: Context(cuda, **context))
    record = {"product": "tensorrt", "inputs": [["x", "int64", ["N"]]], "profile": {}}
    session = SimpleNamespace(record=record, inputs=[Port("x", "int64", ("N",))], outputs=[Port("y", "int64", ("N",))], graphs=True)
    return tensorrt.Slot(made, None, session), cuda  # type: ignore[arg-type]


def feeds(size: int) -> dict[str, Any]:
    return {"x": np.arange(size)}


def test_inputs_are_on_the_gpu_before_anything_runs(monkeypatch):
    slot, cuda = slot_of(monkeypatch)
    for size in (4, 4, 2):
        slot.load(feeds(size))
    steps = [name for name in cuda.done if name in ("cudaMemcpyAsync", "run", "cudaStreamBeginCapture", "cudaStreamEndCapture")]
    once = ["cudaMemcpyAsync", "run", "cudaStreamBeginCapture", "run", "cudaStreamEndCapture"]
    assert steps == [*once, "cudaMemcpyAsync", *once]
    slot.start()
    assert slot.by_graph and not slot.why_no_graph and cuda.done[-1] == "cudaGraphLaunch"


@pytest.mark.parametrize("why", [{"capturable": False}, {"records": False}])
def test_an_engine_that_cannot_be_recorded_is_launched_plainly(why, monkeypatch):
    slot, cuda = slot_of(monkeypatch, **why)
    slot.load(feeds(4))
    slot.start()
    assert not slot.by_graph and slot.why_no_graph.startswith("no CUDA graph: ") and cuda.done[-1] == "run"
    wanted = "during capture" if why == {"capturable": False} else "running the engine"  # the first error, not what it led to
    assert wanted in slot.why_no_graph
    assert cuda.done.count("cudaStreamEndCapture") == 1 and "cudaGetLastError" in cuda.done
    assert ("cudaGraphDestroy" in cuda.done) is ("records" in why)
    slot.load(feeds(2))
    assert cuda.done.count("cudaStreamBeginCapture") == 1, "it is not tried again"
    slot.close()


def test_a_buffer_that_is_refused_is_an_error_every_time(monkeypatch):
    slot, cuda = slot_of(monkeypatch, takes=False)
    for _ in range(2):
        with pytest.raises(Problem, match="takes no buffer for 'x'"):
            slot.load(feeds(4))
    assert slot.buffers == {} and "run" not in cuda.done


# -- what TensorRT says ----------------------------------------------------------------------------


def said(text: str, severity: str = "ERROR") -> None:
    log.heard(log.Line(severity, text))


def test_a_listener_hears_its_own_thread_whoever_leaves_meanwhile():
    heard: dict[str, list[str]] = {}

    def other() -> None:
        with log.collected() as lines:
            said("theirs")
        heard["other"] = log.errors(lines)
        with log.collected():
            pass  # leaves while ours is as empty as this one

    with log.collected() as lines:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert lines == []
        said("ours")
    assert log.errors(lines) == ["ours"] and heard["other"] == ["theirs"]


def test_what_a_thread_of_tensorrt_says_is_heard_by_all():
    with log.collected() as lines:
        thread = threading.Thread(target=said, args=("from the builder's own thread",))
        thread.start()
        thread.join()
    assert log.errors(lines) == ["from the builder's own thread"]


def test_an_inner_listener_keeps_what_it_hears_and_chatter_is_not_kept():
    with log.collected() as outer:
        with log.collected() as inner:
            said("inside")
        for severity in ("VERBOSE", "INFO", "WARNING"):
            said("outside", severity)
    assert [line.text for line in inner] == ["inside"]
    assert [line.severity for line in outer] == ["WARNING"]


@pytest.mark.parametrize("made", [b"damaged", None])
def test_a_damaged_timing_cache_costs_time_and_no_build(made, tmp_path, capfd):
    class Config:
        used: Any = None

        def create_timing_cache(self, data: bytes) -> Any:
            if data == b"":
                return b""
            said(TELLING)
            return made

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            if cache == b"damaged":
                said("The timing cache will not be used!")
                return False
            self.used = cache
            return True

    (tmp_path / "gpu.timing").write_bytes(b"damaged")
    config: Any = Config()
    with log.collected() as lines:
        assert tensorrt_engine._timing_cache(config, str(tmp_path / "gpu.timing")) is config
    assert config.used == b"" and tensorrt_engine._checked("building the engine", b"engine", lines) == b"engine"
    assert TELLING in capfd.readouterr().err, "the log tells it all the same"


def test_caches_that_cannot_be_written_cost_no_build_and_no_row(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    config: Any = SimpleNamespace(get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"tactics"))
    tensorrt_engine._keep(config, str(tmp_path / "file" / "gpu.timing"))
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "file"))
    cache = RuntimeCache(None, "sha")
    assert cache.keep() == "", "there is none of full TensorRT"
    cache._cache = SimpleNamespace(serialize=lambda: b"kernels")
    assert cache.keep().startswith("compiled kernels are not kept: ")
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "folder"))
    cache = RuntimeCache(None, "sha")
    cache._cache = SimpleNamespace(serialize=lambda: b"kernels", deserialize=lambda data: said(TELLING))
    assert not cache._filled() and cache.keep() == "" and cache._path.read_bytes() == b"kernels"
    with log.collected() as lines:
        assert not cache._filled()
    assert lines == []


# -- facts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "layers"), [("", []), ("[]", []), ('{"Layers": ["conv"]}', []), ('{"Layers": [{"Name": "c"}]}', [{"Name": "c"}])]
)
def test_an_inspector_that_tells_little_is_no_error(told, layers, monkeypatch):
    monkeypatch.setattr(library.trt, "module", SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1)))
    session = object.__new__(tensorrt.TensorrtSession)  # a whole one takes a GPU
    inspector = SimpleNamespace(get_engine_information=lambda form: told)
    session.engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    assert session.layers() == layers


def test_types_are_read_in_the_words_of_every_version():
    def layer(**told: str) -> dict[str, Any]:
        return {"Name": "l", "LayerType": "gemm", "Inputs": [told]}

    layers = [
        layer(**{"Format/Datatype": "Row major linear FP16 format (kLINEAR)"}),
        layer(Format="Row major linear", DataType="Half"),
        layer(Format="Row major linear", Datatype="BFloat16"),
        layer(Format="Row major linear INT8 format (kLINEAR)"),
        layer(Format="kLINEAR", DataType="FP8"),
        layer(Format="kLINEAR", DataType="Int64"),
    ]
    assert tensorrt_timing.precisions(layers) == {"int8": 1, "fp8": 1, "bf16": 1, "fp16": 2, "fp32": 0}


def test_where_no_types_are_told_precision_is_unknown_not_zero():
    assert tensorrt_timing.precisions([]) is None
    assert tensorrt_timing.precisions([{"Name": "conv", "LayerType": "gemm"}]) is None


# -- looking at the machine ------------------------------------------------------------------------


def test_a_look_that_does_not_end_is_told_and_no_gpu_is_taken_to_be_there(monkeypatch):
    monkeypatch.setattr(library, "_LONGEST_S", 0.001)
    library.look.cache_clear()
    try:
        found = library.look("rtx")
    finally:
        library.look.cache_clear()
    assert found.library == "TensorRT for RTX gives no answer within 0.001 s"
    assert found.gpu == "the NVIDIA driver gives no answer within 0.001 s"
