"""The OpenVINO format: model.xml with its weights in model.bin, in the precision they were given.

OpenVINO keeps no names of open axes, and a tensor may have several names: both stand in the model's
runtime info, as the signature it was saved with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine, registry
from edgeopt.core.artifact import Numbers, Signature, TensorSpec
from edgeopt.core.errors import StepError

if TYPE_CHECKING:
    import numpy as np
    import openvino

    from edgeopt.core.inner import Inner

    Feeds = dict[str, np.ndarray[Any, Any]]

MAIN = "model.xml"
_NOTE = ["edgeopt", "signature"]
# What stands between stored weights and the layer that computes on them.
_DECOMPRESS = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")


class Openvino:
    """A model that OpenVINO reads as it is, without conversion."""

    def signature(self, path: Path) -> Signature:
        return signature_of(load(path))

    def rounds(self, path: Path) -> bool:
        """Whether activations are quantized: then two executions agree roughly only."""
        return any(node.get_type_name() == "FakeQuantize" for node in load(path).get_ops())

    def coarsest(self, path: Path) -> Numbers:
        """The coarsest numbers that the model computes with; for weights of 8 bits the runtime may round activations too."""
        model = load(path)
        if self.rounds(path) or narrow_weights(model):
            return "int8"
        made = [node for node in model.get_ops() if node.get_type_name() != "Constant"]  # stored as f16 alone, weights are exact
        kinds = {port.get_element_type().get_type_name() for node in made for port in node.outputs()}
        return "bf16" if "bf16" in kinds else "fp16" if "f16" in kinds else "f32"

    def runner(self, path: Path) -> Callable[[Feeds], Feeds]:
        """CPU execution with f32 stated: OpenVINO's own default is bf16 where the CPU has it."""
        model = load(path)
        return runner_of(model, signature_of(model))

    def inner(self, path: Path, execution: str = "f32") -> Inner:
        """The model to be looked into."""
        from edgeopt.formats.openvino_inner import OpenvinoInner

        return OpenvinoInner(path, execution)


def load(path: Path) -> openvino.Model:
    """The model behind a file that edgeopt wrote."""
    return registry.need("openvino", "openvino").Core().read_model(path)


def save(model: openvino.Model, path: Path, signature: Signature) -> Path:
    """Write the model and the names of its axes; weights are not compressed."""
    openvino = registry.need("openvino", "openvino")
    model.set_rt_info(json.dumps(asdict(signature)), _NOTE)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def signature_of(model: openvino.Model) -> Signature:
    """What the model takes and gives; names of tensors and open axes as they were saved."""
    noted = Signature.from_json(json.loads(model.get_rt_info(_NOTE).astype(str))) if model.has_rt_info(_NOTE) else Signature((), ())
    return Signature(_specs(model.inputs, noted.inputs), _specs(model.outputs, noted.outputs))


def _specs(ports: list[Any], noted: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    specs = []
    for index, port in enumerate(ports):
        names = port.get_names()
        known = noted[index] if index < len(noted) and noted[index].name in names else None
        name = known.name if known else min(names) if names else f"{port.get_node().friendly_name}"
        shape: list[int | str] = []
        for axis, size in enumerate(port.partial_shape if port.partial_shape.rank.is_static else ()):
            old = known.shape[axis] if known and len(known.shape) == len(port.partial_shape) else None
            shape.append(size.get_length() if size.is_static else old if isinstance(old, str) else f"{name}_d{axis}")
        specs.append(TensorSpec(name, port.element_type.to_dtype().name, tuple(shape), known.batch if known else None))
    return tuple(specs)


def narrow_weights(model: openvino.Model) -> dict[str, tuple[str, int]]:
    """Type and bits of each layer that reads weights of 8 or 4 bits through what scales and shapes them, by name."""
    found = {}
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind in _DECOMPRESS:
            continue
        for port in operation.inputs():
            node = port.get_source_output().get_node()
            while node.get_type_name() in _DECOMPRESS:
                node = node.input_value(0).get_node()
            bits = re.fullmatch("[iu]([48])", node.get_output_element_type(0).get_type_name())
            if node.get_type_name() == "Constant" and bits and port.get_element_type().is_real():
                found[operation.get_friendly_name()] = (kind, int(bits[1]))
    return found


def compiled(model: openvino.Model, execution: str = "f32", **more: Any) -> openvino.CompiledModel:
    """The model compiled for the CPU with its precision stated, as it is run and not as it is timed."""
    openvino = registry.need("openvino", "openvino")
    options = {"INFERENCE_PRECISION_HINT": execution, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "NUM_STREAMS": 1}
    try:
        return openvino.Core().compile_model(model, "CPU", {**options, "INFERENCE_NUM_THREADS": min(2, machine.threads()), **more})
    except RuntimeError as error:
        raise StepError(f"OpenVINO cannot execute this model: {cause(error)}", remedy="leave the OpenVINO targets out") from error


def results(compiled: openvino.CompiledModel, inputs: list[Any]) -> Any:
    """One run, on copies: what the plugin computes in the place of an input it would write into the caller's array (2026.4.1)."""
    return compiled(inputs, share_inputs=False)


def cause(error: Exception) -> str:
    """What an error of OpenVINO says, in one line, without the places in its source."""
    noise = r"(Caught exception: )?(Exception from )?src/\S+:\d+:|FrontEnd API failed|Model wasn't fully converted|Summary:"
    lines = [re.sub(r" ?Check '.*' failed at \S+:$", "", line).removeprefix("-- ").strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not re.match(noise, line))[:300] or type(error).__name__


def runner_of(model: openvino.Model, signature: Signature, execution: str = "f32") -> Callable[[Feeds], Feeds]:
    """The model compiled for plain execution: named arrays in, named arrays out."""
    run = compiled(model, execution)
    inputs = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    def named(feeds: Feeds) -> Feeds:
        found = results(run, [feeds[name] for name in inputs])
        return {name: found[index] for index, name in enumerate(outputs)}

    return named


def bodies(one: Any) -> list[Any]:
    """The models inside an operation."""
    kind = one.get_type_name()
    if kind == "If":
        return [one.get_function(0), one.get_function(1)]
    return [one.get_function()] if kind in ("Loop", "TensorIterator") else []
