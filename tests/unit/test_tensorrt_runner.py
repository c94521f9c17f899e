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
from edgeopt.runner import Port, Problem, tensorrt, tensorrt_cuda, tensorrt_engine, tensorrt_slot, tensorrt_timing
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


@pytest.mark.skipif(not no_gpu, reason="a GPU is here")
def test_who_opens_an_engine_looks_for_itself(tmp_path, monkeypatch):
    """A child of its own for each opening, which imports TensorRT again, would take most of a session's time."""
    monkeypatch.setattr(library, "_asked", lambda product: pytest.fail("a child was started"))
    with pytest.raises(Problem) as caught:
        tensorrt.ready(engine(tmp_path))
    assert caught.value.kind == "missing"


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
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class Cuda:
    """The CUDA runtime as far as a slot uses it: calls are noted and succeed, but for a capture or an allocation that is not to."""

    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, capturable: bool = True, full: bool = False) -> None:
        self.capturable, self.full, self.memory = capturable, full, list[Any]()
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*given: Any) -> tuple[Code, int]:
            self.done.append(name)
            return Code.cudaSuccess, 7

        return call

    def cudaMalloc(self, size: int) -> tuple[Code, int]:
        return (Code.cudaErrorMemoryAllocation, 0) if self.full else (Code.cudaSuccess, 7)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Code, int]:
        self.done.append("cudaHostAlloc")
        self.memory.append(ctypes.create_string_buffer(size))
        return Code.cudaSuccess, ctypes.addressof(self.memory[-1])

    def cudaStreamEndCapture(self, handle: int) -> tuple[Code, int | None]:
        self.done.append("cudaStreamEndCapture")
        return (Code.cudaSuccess, 7) if self.capturable else (Code.cudaErrorStreamCaptureInvalidated, None)

    def cudaGetErrorString(self, code: Code) -> tuple[Code, bytes]:
        return Code.cudaSuccess, b"operation failed due to a previous error during capture"


class Context:
    """An execution context whose outputs have the shape of its input; it runs in a capture only where `records` says so."""

    def __init__(self, cuda: Cuda, records: bool = True, takes: bool = True, agrees: bool = True, sized: bool = True) -> None:
        self.cuda, self.records, self.takes, self.agrees, self.sized = cuda, records, takes, agrees, sized
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        if not self.agrees:
            said("[shapeMachine.cpp::resolve::42] Error Code 7: Internal Error (condition '==' violated, 4 != 2)")
            raise RuntimeError("infer_shapes error code: -1")
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if self.sized or name == "x" else (-1,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self.takes

    def execute_async_v3(self, stream: int) -> bool:
        recording = self.cuda.done[-1] == "cudaStreamBeginCapture"
        self.cuda.done.append("run")
        return self.records or not recording


def slot_of(
    monkeypatch: pytest.MonkeyPatch, capturable: bool = True, full: bool = False, **context: bool
) -> tuple[tensorrt_slot.Slot, Cuda]:
    cuda = Cuda(capturable, full)
    monkeypatch.setattr(tensorrt_cuda, "runtime", lambda: cuda)
    made = SimpleNamespace(create_execution_context=lambda: Context(cuda, **context))
    record = {"product": "tensorrt", "inputs": [["x", "int64", ["N"]]], "profile": {}}
    session: Any = SimpleNamespace(
        record=record,
        inputs=[Port("x", "int64", ("N",))],
        outputs=[Port("y", "int64", ("N",))],
        engine=made,
        cache=RuntimeCache(None, "sha"),
    )
    return tensorrt_slot.Slot(session, graphs=True), cuda


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


def test_a_full_gpu_is_told_and_what_was_locked_for_it_is_given_back(monkeypatch):
    slot, cuda = slot_of(monkeypatch, full=True)
    with pytest.raises(Problem, match="allocating on the GPU: cudaErrorMemoryAllocation") as caught:
        slot.load(feeds(4))
    assert caught.value.kind == "resource" and slot.buffers == {}
    assert cuda.done.count("cudaHostAlloc") == cuda.done.count("cudaFreeHost") == 1


def test_inputs_that_do_not_go_together_are_told_with_their_shapes(monkeypatch):
    slot, _ = slot_of(monkeypatch, agrees=False)
    with pytest.raises(Problem, match=r"do not go together: 'x' of \[4\] .*violated, 4 != 2") as caught:
        slot.load(feeds(4))
    assert caught.value.kind == "usage"


def test_an_output_sized_by_its_data_fails_its_row_and_no_other(monkeypatch):
    slot, _ = slot_of(monkeypatch, sized=False)
    with pytest.raises(Problem, match="the size of the output 'y' depends on the data") as caught:
        slot.load(feeds(4))
    assert caught.value.kind == "step" and slot.buffers == {}


class Strategies:
    """What TensorRT for RTX lets one choose for a context, and the cache of its kernels."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.contexts = cuda, list[Any]()
        self.compiled = b""
        self.module = SimpleNamespace(
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none"),
        )

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(serialize=lambda: self.compiled, deserialize=lambda data: data == b"kernels")
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda cache: True)

    def create_execution_context(self, config: Any) -> Any:
        self.contexts.append(config)
        made = Context(self.cuda)

        def run(stream: int) -> bool:
            self.compiled = b"kernels"
            return True

        made.execute_async_v3 = run  # type: ignore[method-assign]
        return made


def test_kernels_that_rtx_compiles_in_the_first_run_are_kept_then(monkeypatch, tmp_path):
    """Not only when a session ends: each of its rounds opens the engine in a new process."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path))
    cuda = Cuda()
    rtx = Strategies(cuda)
    monkeypatch.setattr(tensorrt_cuda, "runtime", lambda: cuda)
    monkeypatch.setattr(library.trt, "module", rtx.module)
    record = {"product": "rtx", "inputs": [["x", "int64", ["N"]]], "profile": {}}

    def session() -> Any:
        ports = {name: [Port(one, "int64", ("N",))] for name, one in (("inputs", "x"), ("outputs", "y"))}
        return SimpleNamespace(record=record, engine=rtx, cache=RuntimeCache(rtx, "sha"), **ports)

    first = session()
    slot = tensorrt_slot.Slot(first, graphs=True)
    assert first.cache.state == "cold" and not list(tmp_path.rglob("*.runtime-cache"))
    slot.load(feeds(4))
    assert first.cache._path.read_bytes() == b"kernels"
    second = session()
    tensorrt_slot.Slot(second, graphs=False)
    assert second.cache.state == "warm"
    assert [one.cuda_graph_strategy for one in rtx.contexts] == ["whole", "none"] and slot.by_graph
    assert "cudaStreamBeginCapture" not in cuda.done, "RTX records for itself"


def test_layers_are_timed_outside_of_any_cuda_graph(monkeypatch):
    session = object.__new__(tensorrt.TensorrtSession)  # a whole one takes a GPU
    made: list[bool] = []
    slot = SimpleNamespace(close=lambda: made.append(True))
    monkeypatch.setattr(tensorrt, "Slot", lambda session, graphs: (made.append(graphs), slot)[1])
    monkeypatch.setattr(tensorrt.TensorrtSession, "layers", lambda self: [])
    monkeypatch.setattr(tensorrt_timing, "profile", lambda given, feeds, layers: [{"name": given is slot}])
    assert session.profile({}) == [{"name": True}] and made == [False, True]


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


def test_a_tactic_that_was_passed_over_is_no_error_of_the_engine():
    """TensorRT logs some of them as errors and makes the engine all the same; hundreds of them are one warning."""
    with log.collected() as lines:
        said("[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.)")
        said("Skipping tactic 8 due to insufficient memory on requested size of 17179869184 detected for tactic 0x3c.", "WARNING")
        said("Error Code: 9: Skipping tactic 0xaa15e43058248292 due to exception canImplement1")
        said("another", "WARNING")
    assert tensorrt_engine._checked("building the engine", b"engine", lines) == b"engine"
    first, second = log.warnings(lines)
    assert first == "another" and second.startswith("3 lines on tactics that were passed over, as: ")
    with pytest.raises(Problem, match="the GPU's memory is full") as caught:
        tensorrt_engine._checked("building the engine", None, lines)
    assert caught.value.kind == "resource"
    with log.collected() as lines:
        said("Error Code: 9: Skipping tactic 0xaa15e43058248292 due to exception canImplement1")
        said("Error Code 10: Internal Error (Could not find any implementation for node conv.)")
    with pytest.raises(Problem, match="'conv': there is no kernel for a node"):
        tensorrt_engine._checked("building the engine", None, lines)


def test_what_fails_on_a_gpu_is_not_laid_on_the_model():
    """What is noise without a GPU is the cause where there is one, and no export mends a GPU."""
    old = "[runtime.cpp::load::1] Error Code 1: Cuda Runtime (CUDA driver version is insufficient for CUDA runtime version)"
    with log.collected() as lines:
        said(f"first\n{old}")
    assert log.errors(lines) == ["first"]
    problem = log.problem("opening e", log.all_errors(lines), log.RUN)
    assert problem.cause == "opening e: the NVIDIA driver is too old for this TensorRT" and "update the driver" in problem.remedy
    problem = log.problem("running the engine", [], log.RUN)
    assert problem.cause.endswith("TensorRT gives no reason") and problem.remedy == log.RUN


def test_a_cuda_that_does_not_start_is_told_with_what_tensorrt_warned_of(monkeypatch):
    """The binding raises a TypeError on a null pointer, and the reason is a warning."""
    monkeypatch.setattr(log, "logger", lambda: "logger")

    def refuses(logger: Any) -> Any:
        said("CUDA initialization failure with error: 35. Please check your CUDA installation", "WARNING")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with log.collected() as lines, pytest.raises(Problem, match="does not start: CUDA initialization failure with error: 35") as caught:
        log.started(refuses, lines)
    assert caught.value.kind == "missing" and "update the driver" in caught.value.remedy


def test_the_plugins_of_tensorrt_are_registered_where_it_has_some(monkeypatch):
    """RoiAlign is one of them: without, the parser finds no plugin and an engine does not open."""
    asked: list[Any] = []

    def register(logger: Any, namespace: str) -> bool:
        said("Plugin creator already registered")
        asked.append((logger, namespace))
        return True

    monkeypatch.setattr(log, "logger", lambda: "logger")
    monkeypatch.setattr(library.trt, "module", SimpleNamespace(init_libnvinfer_plugins=register))
    with log.collected() as lines:
        assert log.started(lambda logger: f"made with {logger}", lines) == "made with logger"
    assert asked == [("logger", "")] and lines == []
    monkeypatch.setattr(library.trt, "module", SimpleNamespace())
    assert log.started(lambda logger: "made", []) == "made"


def test_a_compatibility_that_this_tensorrt_does_not_know_is_told(monkeypatch):
    known = SimpleNamespace(AMPERE_PLUS="level")
    monkeypatch.setattr(library.trt, "module", SimpleNamespace(HardwareCompatibilityLevel=known, __version__="10.9.0.34"))
    assert tensorrt_engine._compatible("ampere_plus") == "level"
    with pytest.raises(Problem, match=r"TensorRT 10\.9\.0\.34 knows no hardware_compatibility 'same_compute_capability'") as caught:
        tensorrt_engine._compatible("same_compute_capability")
    assert caught.value.kind == "usage"


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
