"""onnxruntime on the CPU or through a provider for NVIDIA GPUs: sessions over buffers bound once, so that copy and compute are apart."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import PROFILE_WARM_UP, Port, Problem, profiled, steady

if TYPE_CHECKING:
    import onnxruntime

    from edgeopt.runner import Feeds

# What a target calls a provider, and the providers that execute its nodes: the first must be there, the second takes what it refuses.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "tensorrt-rtx": ("NvTensorRTRTXExecutionProvider",),
}
_PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "tensorrt-rtx": "onnxruntime-trt-rtx"}
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "off": "ORT_DISABLE_ALL"}
# Operators that move or re-represent data, or only hold other nodes; their fused QLinear and Nhwc forms included.
_MOVES = re.compile(
    r"""(Dynamic)?QuantizeLinear|DequantizeLinear|Cast(Like)?|Identity|Dropout|Shape|Size|Reshape|Flatten|Squeeze|Unsqueeze|Transpose
    |Reorder(In|Out)put|NhwcReorder|(QLinear)?Concat|ConcatFromSequence|Split(ToSequence)?|Slice|Gather(Elements|ND|BlockQuantized)?
    |Scatter(Elements|ND)|Expand|Tile|Pad|Constant(OfShape)?|Range|OneHot|NonZero|Compress|DepthToSpace|SpaceToDepth|Memcpy\w+|If|Loop|Scan""",
    re.VERBOSE,
)
# 8- or 4-bit weights under float data (a model may ask such a node to quantize its data too; the trace does not tell).
_WEIGHTS_ONLY = frozenset({"MatMulNBits", "MatMulBnb4"})
# Layers that round what they read: their integer weights are packed away and stand in no trace.
_ROUND = frozenset({"DynamicQuantizeLSTM", "DynamicQuantizeMatMul"})
_FLOATS = {"float": "fp32", "double": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_NUMPY = {"float": "float32", "double": "float64"}
_NUMPY |= {name: name for name in ("float16", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))}


def library() -> ModuleType:
    """onnxruntime, imported without its telemetry.

    From 1.29 on it writes a device id below ~/.cache and reports to its maker unless this stands in the environment before the import.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module("onnxruntime")


def ready(path: Path) -> None:
    """Before CUDA's libraries or TensorRT are loaded: FP32 is not rounded to TF32, whatever their defaults are.

    Here, where a process opens one model: one that compiles may build or train with TF32 after that.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


def why_not(provider: str) -> str:
    """Why this onnxruntime has no such provider, or an empty string."""
    if PROVIDERS[provider][0] in library().get_available_providers():
        return ""
    package = _PACKAGES[provider]
    return f"this onnxruntime has no provider for {provider}: pip uninstall onnxruntime && pip install {package}"


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> OnnxruntimeSession:
    """Open an ONNX file. Raises a Problem when onnxruntime cannot run it.

    options: `graph_optimization`: all (default), extended, basic, off; `provider`: one of `PROVIDERS`, cpu by default.
    requests "auto" makes as many slots as threads, each computing in one thread: all cores are busy with the least talk between them.
    """
    asked = execution.get("float", "f32")
    if asked != "f32":
        raise Problem(
            "usage", f"onnxruntime executes f32 here, not {asked}", "give this variant to an openvino target, or drop execute-bf16"
        )
    if reason := why_not(options.get("provider", "cpu")):
        raise Problem("missing", *reason.split(": ", 1))
    slots = threads if requests == "auto" else int(requests)
    return OnnxruntimeSession(path, max(1, threads // slots), slots, options)


class OnnxruntimeSession:
    """One InferenceSession; each slot is a binding with input buffers of its own."""

    def __init__(self, path: Path, threads: int, slots: int, options: dict[str, Any]) -> None:
        self._path, self._threads, self._level = path, threads, options.get("graph_optimization", "all")
        self._providers = PROVIDERS[options.get("provider", "cpu")]
        self.on_gpu = self._providers != PROVIDERS["cpu"]
        self._device = "cuda" if self.on_gpu else "cpu"
        self._session = self._open()
        self.inputs = [_port(arg, "input") for arg in self._session.get_inputs()]
        self.outputs = [_port(arg, "output") for arg in self._session.get_outputs()]
        self.slots = slots
        # After a run a binding holds its output buffers and insists on their shapes: outputs that may vary are bound anew.
        self._fresh = [port.name for port in self.outputs if not all(isinstance(axis, int) for axis in port.shape) or not port.shape]
        self._bindings = [self._session.io_binding() for _ in range(slots)]
        self._buffers: list[dict[str, Any]] = [{} for _ in range(slots)]
        for binding in self._bindings:
            for port in self.outputs:
                binding.bind_output(port.name, self._device)

    def _open(self, profile: str = "") -> onnxruntime.InferenceSession:
        ort = library()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[self._level])
        settings.log_severity_level = 3
        # Unless f32 (1) is asked for, activations are quantized on the fly before weights that are stored in 8 or 4 bit.
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        settings.enable_profiling = bool(profile)
        settings.profile_file_prefix = profile
        providers: list[Any] = list(self._providers)
        if self.on_gpu:
            if preload := getattr(ort, "preload_dlls", None):  # finds CUDA's libraries where pip put them
                preload()
            providers = [(name, {"use_tf32": "0"}) if name == "CUDAExecutionProvider" else name for name in providers]
        try:
            session = ort.InferenceSession(self._path, settings, providers=providers)
        except Exception as error:  # its classes share no other base
            raise Problem(
                "step", f"onnxruntime cannot load {self._path.name}: {_cause(error)}", "check the model with onnx.checker"
            ) from error
        if self._providers[0] not in session.get_providers():  # onnxruntime goes on with what is left, and only logs it
            raise Problem(
                "missing",
                f"onnxruntime could not load its {self._providers[0]} and would run on the CPU",
                "install the CUDA and cuDNN (or TensorRT) libraries of the versions that this onnxruntime wants",
            )
        return session

    def load(self, feeds: Feeds, slot: int = 0) -> None:
        binding, buffers = self._bindings[slot], self._buffers[slot]
        for port in self.inputs:
            feed, buffer = feeds[port.name], buffers.get(port.name)
            if not self.on_gpu:
                if buffer is None or buffer.shape != feed.shape:
                    buffer = buffers[port.name] = np.empty(feed.shape, port.dtype)
                    binding.bind_cpu_input(port.name, buffer)
                np.copyto(buffer, feed)
            elif buffer is None or tuple(buffer.shape()) != feed.shape:
                buffers[port.name] = library().OrtValue.ortvalue_from_numpy(feed.astype(port.dtype, copy=False), self._device, 0)
                binding.bind_ortvalue_input(port.name, buffers[port.name])
            else:
                buffer.update_inplace(np.ascontiguousarray(feed, port.dtype))
        for name in self._fresh:
            binding.bind_output(name, self._device)

    def start(self, slot: int = 0) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[slot])
        except Exception as error:  # its classes share no other base
            raise Problem("step", f"onnxruntime failed in {self._path.name}: {_cause(error)}") from error

    def wait(self, slot: int = 0) -> None:
        if self.on_gpu:
            self._bindings[slot].synchronize_outputs()

    def read(self, slot: int = 0) -> Feeds:
        return dict(zip([port.name for port in self.outputs], self._bindings[slot].copy_outputs_to_cpu(), strict=True))

    def facts(self, feeds: Feeds) -> dict[str, Any]:
        counts = {"int8": 0, "bf16": 0, "fp16": 0, "fp32": 0}
        nodes, _ = self._nodes(feeds, range(1))
        if strayed := strays(nodes.values(), self._providers):
            raise Problem(
                "step",
                f"{len(strayed)} of {len(nodes)} nodes of {self._path.name} fell back to another provider: {', '.join(strayed[:5])}",
                "bring them to a form that the provider takes (fix-shapes, simplify), or give the model to a TensorRT target",
            )
        for events in nodes.values():
            if (precision := _precision(events[0]["args"])) in counts:
                counts[precision] += 1
        return {
            "runtime": f"onnxruntime {library().__version__}",
            "precision": counts,
            "layers": sum(counts.values()),
            "threads": self._threads,
            **({"tf32": False} if self.on_gpu else {}),
        }

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        rows = []
        nodes, runs = self._nodes(feeds, profiled(), PROFILE_WARM_UP)
        for (name, _), events in nodes.items():
            each = len(events) // (runs + PROFILE_WARM_UP) or 1  # more than one where a loop holds the node
            times = [event["dur"] for event in events[each * PROFILE_WARM_UP :]] or [event["dur"] for event in events]
            spent = [sum(times[at : at + each]) for at in range(0, len(times), each)]
            precision = _precision(events[0]["args"]) or "other"
            rows.append({"name": name, "type": events[0]["args"]["op_name"], "precision": precision, "us": round(steady(spent), 2)})
        return rows

    def _nodes(self, feeds: Feeds, runs: Iterable[int], warm_up: int = 0) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], int]:
        """The trace of a second session on the same file: events by node, in order of execution, and the runs after the warm-up."""
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(f"{folder}/trace")
            for _ in range(warm_up):
                session.run(None, feeds)
            for _ in runs:
                session.run(None, feeds)
                done += 1
            trace = json.loads(Path(session.end_profiling()).read_text())
        nodes: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for event in trace:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                nodes.setdefault((event["name"].removesuffix("_kernel_time"), event["args"]["node_index"]), []).append(event)
        return nodes, done

    def close(self) -> None:
        del self._bindings, self._session


def strays(nodes: Iterable[list[dict[str, Any]]], providers: tuple[str, ...]) -> list[str]:
    """Nodes on the way of the data that were executed by none of the providers asked for (events of onnxruntime's own trace).

    Arithmetic on sizes and shapes may lie on the CPU: onnxruntime puts it there on purpose. It gives whole numbers, or a row of a few.
    """
    first = [events[0] for events in nodes]
    elsewhere = [event for event in first if event["args"].get("provider", providers[0]) not in providers]
    astray = [event for event in elsewhere if _precision(event["args"]) or _gives_data(event["args"])]
    return [f"{event['name'].removesuffix('_kernel_time')} ({event['args']['op_name']})" for event in astray]


def _gives_data(args: dict[str, Any]) -> bool:
    """Whether a node gives floats or 8-bit numbers in more than one dimension: sizes and shapes are neither."""
    given = [next(iter(entry.items())) for entry in args["output_type_shape"]]
    return any((name in _FLOATS or name in ("int8", "uint8")) and len(shape) > 1 for name, shape in given)


def _port(arg: Any, what: str) -> Port:
    element = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    if not element or element[1] not in _NUMPY:
        raise Problem(
            "usage",
            f"the {what} '{arg.name}' is {arg.type}",
            "edgeopt runs models whose inputs and outputs are tensors that numpy can hold",
        )
    shape = tuple(axis if isinstance(axis, (int, str)) else f"{arg.name}_d{index}" for index, axis in enumerate(arg.shape or ()))
    return Port(arg.name, _NUMPY[element[1]], shape)


def _precision(args: dict[str, Any]) -> str:
    """int8, bf16, fp16 or fp32 for a node that computes; empty for one that moves data or counts integers."""
    taken = [next(iter(entry)) for entry in args["input_type_shape"]]
    if _MOVES.fullmatch(args["op_name"]):
        return ""
    if args["op_name"] in _ROUND or (args["op_name"] not in _WEIGHTS_ONLY and {"int8", "uint8"} & set(taken[:2])):
        return "int8"
    given = [next(iter(entry)) for entry in args["output_type_shape"]]
    return next((_FLOATS[name] for name in taken + given if name in _FLOATS), "")


def _cause(error: Exception) -> str:
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", str(error))
    return re.sub(r"/onnxruntime_src/\S+:\d+ (.*?\) )?", "", text)
