"""The cast of weights and arithmetic to float16; inputs and outputs keep their types."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats.onnx_inner import OnnxInner
from edgeopt.passes import cast_fp16_graph

# A layer stays float where calibration shows half of what float16 can hold: other samples may show more.
_LARGEST = 65504 / 2


class CastFp16(Pass, accepts=("onnx",), produces="onnx", needs=("onnx", "onnxruntime"), data=("calibrate?",), tolerance_db=30.0):
    """Cast weights and arithmetic to float16; inputs, outputs and the layers under `keep` stay float32.

    So do tensors that an operator does not take as float16 in the model's opset, scales of quantized layers, and what
    is computed from the sizes of tensors alone.

    With a split `calibrate`, layers that read or make values near the end of float16's range (±65504) stay float32
    too; bodies of If and Loop are not looked into. Without one, such values are cut off, and where that breaks the
    outputs the step fails and says so.
    """

    extra: ClassVar[str] = "onnxruntime"

    keep: list[str] = Field(
        default_factory=list, description="names, operator types or patterns of layers that stay float32: Softmax, head*"
    )

    samples: int = Field(default=32, ge=1, description="at most so many calibration samples show how large values get")

    def run(self, model: Artifact, ctx: Context) -> Path:
        proto = onnx_format.load(model.path)
        kept = onnx_format.matching(self.keep, {node.name: node.op_type for node in onnx_format.nodes(proto)})
        large = outgrown(model.path, ctx, self.samples)
        floats = sum(tensor.data_type == tensor.FLOAT for tensor in onnx_format.tensors(proto))
        try:
            made = cast_fp16_graph.cast(proto, {*kept, *large})
            path = onnx_format.save(made, ctx.folder / onnx_format.MAIN)
            onnx_format.Onnx().runner(path)
        except Exception as error:  # the caster raises whatever it meets, the runtime kinds of its own
            raise StepError(
                f"this model cannot be cast to float16: {type(error).__name__}: {onnx_format.cause(error)}",
                remedy="name the layers it complains about under `keep`, or leave cast-fp16 out",
            ) from error
        left = sum(tensor.data_type == tensor.FLOAT for tensor in onnx_format.tensors(made))
        ctx.note("tensors_cast", floats - left)
        return path


def outgrown(path: Path, ctx: Context, samples: int) -> dict[str, float]:
    """Layers that read or make values too large for float16 on calibration samples, with the largest of them; noted.

    A model whose inner tensors cannot be had is not looked at, and the report says so.
    """
    try:
        found = _too_large(path, ctx, samples)
    except StepError as error:
        ctx.note("warning", f"ranges were not looked at: {error.cause}")
        return {}
    if found:
        ctx.note("kept_float32", {name: f"reaches {most:.3g}" for name, most in found.items()})
    return found


def _too_large(path: Path, ctx: Context, samples: int) -> dict[str, float]:
    import numpy as np

    if "calibrate" not in ctx.data:
        return {}
    inner = OnnxInner(path)
    most: dict[str, float] = {}
    tensors = [*inner.graph.inputs.values(), *(name for node in inner.graph.nodes for name in node.makes)]
    with tempfile.TemporaryDirectory() as scratch:
        run = inner.runner(tensors, Path(scratch))
        for number, (feeds, _) in enumerate(islice(ctx.data["calibrate"].batches(1), samples)):
            ctx.progress(number, samples, "looking at ranges")
            for name, array in run(feeds).items():
                if getattr(array, "dtype", None) is not None and array.dtype.kind == "f" and array.size:  # sequences are lists
                    finite = np.abs(array[np.isfinite(array)])  # what is infinite stays so in float16
                    most[name] = max(most.get(name, 0.0), float(finite.max(initial=0.0)))
    found = {node.name: _largest(node.reads, node.makes, most) for node in inner.graph.nodes}
    return {name: largest for name, largest in found.items() if largest > _LARGEST}


def _largest(reads: Iterable[str], makes: Iterable[str], most: Mapping[str, float]) -> float:
    """The largest value that a layer reads or makes."""
    return max((most.get(name, 0.0) for name in (*reads, *makes)), default=0.0)
