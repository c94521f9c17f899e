"""OpenVINO on the CPU: compiled models with explicit precision, threads and streams."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeopt.runner import PROFILE_WARM_UP, Port, Problem, profiled, steady

if TYPE_CHECKING:
    import openvino

    from edgeopt.runner import Feeds

# Where edgeopt keeps the signature in the model's runtime info.
SIGNATURE = ["edgeopt", "signature"]
# Layer types that move or re-represent data, or only hold other nodes.
_MOVES = re.compile(
    r"""Input|Parameter|Output|Result|Const(ant)?|Reorder|Reshape|Convert|FakeQuantize|Transpose|Permute|Concat(enation)?|(Variadic)?Split|Crop
    |StridedSlice|Slice(Scatter)?|Gather(Elements|ND|Tree|Compressed)?|Scatter(Elements|ND)?Update|Broadcast|Tile|Pad|ShapeOf|Squeeze|Unsqueeze|Flatten
    |DepthToSpace|SpaceToDepth|ShuffleChannels|BatchToSpace|SpaceToBatch|Reverse(Sequence)?|OneHot|NonZero|Range|Unique|Bucketize
    |Memory(In|Out)put|ReadValue(WithSubgraph)?|Assign|If|TensorIterator|Loop""",
    re.VERBOSE,
)
_PRECISIONS = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32", "f64": "fp32"}
_NUMPY = {"f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool"}
_NUMPY |= {f"{sign}{bits}": f"{'u' * (sign == 'u')}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)}
_TOLD = ("layerType", "primitiveType", "originalLayersNames")


class _Layer(NamedTuple):
    """One executed layer: `precision` is empty where it does not compute; `made_of` names the model's nodes in it."""

    type: str
    precision: str
    made_of: list[str]


def library() -> ModuleType:
    """OpenVINO, imported without its telemetry: its converter, which reports to its maker, takes its own silent stub then."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> OpenvinoSession:
    """Open an IR (or an ONNX file). Raises a Problem when OpenVINO cannot run it.

    Precision is always said: by default OpenVINO takes bf16 where the CPU has it, and quantizes activations
    on the fly before weights that are stored in 8 bit. One request means one stream over all threads, for
    the least latency; "auto" as many streams and requests as OpenVINO finds best for throughput.
    """
    config = {
        "INFERENCE_PRECISION_HINT": execution.get("float", "f32"),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY" if requests == 1 else "THROUGHPUT",
    }
    if requests == 1:
        config["NUM_STREAMS"] = 1
    elif requests != "auto":
        config["PERFORMANCE_HINT_NUM_REQUESTS"] = int(requests)
    return OpenvinoSession(path, config, requests)


def read(path: Path) -> openvino.Model:
    """The model behind an IR or an ONNX file. Raises a Problem when OpenVINO cannot read it."""
    try:
        return library().Core().read_model(path)
    except RuntimeError as error:
        raise Problem("step", f"openvino cannot read {path.name}: {_cause(error)}", "check the model, or leave this target out") from error


class OpenvinoSession:
    """One compiled model; each slot is an infer request with tensors of its own."""

    def __init__(self, path: Path, config: dict[str, Any], requests: int | str) -> None:
        self._path, self._config = path, config
        model = read(path)
        try:
            self._compiled = library().Core().compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise Problem("step", f"openvino cannot compile {path.name}: {_cause(error)}", "leave this target out") from error
        self.inputs, self.outputs = _ports(model, "inputs"), _ports(model, "outputs")
        self.slots = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if requests == "auto" else requests)
        self._requests = [self._compiled.create_infer_request() for _ in range(self.slots)]
        self._views: list[Feeds] = [{} for _ in range(self.slots)]

    def load(self, feeds: Feeds, slot: int = 0) -> None:
        views = self._views[slot]
        for index, port in enumerate(self.inputs):
            feed, view = feeds[port.name], views.get(port.name)
            if view is None or view.shape != feed.shape:
                tensor = self._requests[slot].get_input_tensor(index)
                if tuple(tensor.shape) != feed.shape:
                    tensor.shape = feed.shape
                view = views[port.name] = tensor.data
            np.copyto(view, feed)

    def start(self, slot: int = 0) -> None:
        try:
            if self.slots == 1:  # the calling thread computes: 15 µs less than by a thread of the runtime
                self._requests[0].infer(share_outputs=True)
            else:
                self._requests[slot].start_async()
        except RuntimeError as error:
            raise self._failed(error) from error

    def wait(self, slot: int = 0) -> None:
        if self.slots == 1:
            return
        try:
            self._requests[slot].wait()
        except RuntimeError as error:
            raise self._failed(error) from error

    def _failed(self, error: RuntimeError) -> Problem:
        return Problem("step", f"openvino failed in {self._path.name}: {_cause(error)}")

    def read(self, slot: int = 0) -> Feeds:
        request = self._requests[slot]
        return {port.name: np.array(request.get_output_tensor(index).data) for index, port in enumerate(self.outputs)}

    def facts(self, feeds: Feeds) -> dict[str, Any]:
        counts = {"int8": 0, "bf16": 0, "fp16": 0, "fp32": 0}
        for layer in self._layers(self._compiled).values():
            if layer.precision in counts:
                counts[layer.precision] += 1
        version = library().get_version().split("-")[0]
        read_back = {"threads": "INFERENCE_NUM_THREADS", "streams": "NUM_STREAMS"}
        return {
            "runtime": f"openvino {version}",
            "precision": counts,
            "layers": sum(counts.values()),
            **{name: int(self._compiled.get_property(key)) for name, key in read_back.items()},
        }

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        session = OpenvinoSession(self._path, {**self._config, "PERF_COUNT": True}, 1)
        session.load(feeds)
        for _ in range(PROFILE_WARM_UP):
            session.start()
        executed, times = library().ProfilingInfo.Status.EXECUTED, dict[str, list[float]]()
        for _ in profiled():
            session.start()
            for entry in session._requests[0].profiling_info:
                if entry.status == executed:
                    times.setdefault(entry.node_name, []).append(entry.real_time.total_seconds() * 1e6)
        layers = session._layers(session._compiled)
        rows = []
        for name, spent in times.items():
            layer = layers.get(name, _Layer("", "", []))
            told = {"name": name, "type": layer.type, "precision": layer.precision or "other", "us": round(steady(spent), 2)}
            rows.append(told | {"made_of": layer.made_of})
        session.close()
        return rows

    def _layers(self, compiled: openvino.CompiledModel) -> dict[str, _Layer]:
        """Each executed layer by its name."""
        bytes_alone = self._on_bytes()
        layers = {}
        for layer in compiled.get_runtime_model().get_ordered_ops():
            told = {key: value.astype(str) for key, value in layer.get_rt_info().items() if key in _TOLD}
            kind, implementation, made_of = (told[key] for key in _TOLD)
            # The implementation ends in the precision of the data: "jit_avx512_f32". `runtimePrecision` is that of the weights at times.
            precision = "" if _MOVES.fullmatch(kind) else _PRECISIONS.get(implementation.rpartition("_")[2].lower(), "")
            names = [name for name in made_of.split(",") if name]
            plain = precision == "int8" and not bytes_alone.isdisjoint(names)
            layers[layer.friendly_name] = _Layer(kind, "" if plain else precision, names)
        return layers

    def _on_bytes(self) -> set[str]:
        """Names of operations that execute on bytes without being quantized: logical ones, and those on pictures as they come in."""
        found = set()
        for op in read(self._path).get_ops():
            kinds = {end.get_element_type().get_type_name() for end in (*op.inputs(), *op.outputs())}
            if "boolean" in kinds or (op.get_type_name() == "Convert" and kinds & {"u8", "i8"} and _comes_in(op)):
                found.add(op.friendly_name)
        return found

    def close(self) -> None:
        del self._views, self._requests, self._compiled


def _comes_in(op: openvino.Node) -> bool:
    """Whether an operation reads an input of the model, at most moved about."""
    source = op.input_value(0).get_node()
    while (
        source.get_input_size() and _MOVES.fullmatch(source.get_type_name()) and source.get_type_name() not in ("Convert", "FakeQuantize")
    ):
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "Parameter")


def _ports(model: openvino.Model, which: str) -> list[Port]:
    """Names as edgeopt saved them with the model, where it did: a tensor of OpenVINO may have several."""
    noted = json.loads(model.get_rt_info(SIGNATURE).astype(str))[which] if model.has_rt_info(SIGNATURE) else []
    return [_port(port, noted[index]["name"] if index < len(noted) else "", which) for index, port in enumerate(getattr(model, which))]


def _port(port: openvino.Output, noted: str, which: str) -> Port:
    names = port.get_names()
    name = noted if noted in names else min(names, default=port.get_node().friendly_name)
    element = port.element_type.get_type_name()
    if element not in _NUMPY:
        raise Problem(
            "usage",
            f"'{name}' among the {which} is {element}",
            "edgeopt runs models whose inputs and outputs are tensors that numpy can hold",
        )
    partial = port.partial_shape if port.partial_shape.rank.is_static else ()
    return Port(
        name, _NUMPY[element], tuple(f"{name}_d{index}" if axis.is_dynamic else axis.get_length() for index, axis in enumerate(partial))
    )


def _cause(error: RuntimeError) -> str:
    """The lines that say what is wrong, out of a stack of source places."""
    lines = [re.sub(r" ?Check '.*' failed at \S+:$", "", line).strip(" -") for line in str(error).splitlines()]
    said = [
        line
        for line in lines
        if line and not re.match(r"(Caught exception: )?(Exception from )?src/\S+:\d+:|FrontEnd API failed|Summary:", line)
    ]
    return ": ".join(said) or "it gives no reason"
