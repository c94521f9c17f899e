"""Graph clean-up: constants folded, dead and doubled nodes removed, known patterns fused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import simplify_batch_norm

if TYPE_CHECKING:
    from onnx import ModelProto


class Simplify(Pass, accepts=("onnx",), produces="onnx", needs=("onnx", "onnxslim")):
    """Fold constants and batch normalizations, drop what nothing reads and fuse known patterns; inputs and open axes stay.

    By onnxslim, and by own rules for normalizations beside matrix products.
    """

    extra: ClassVar[str] = "onnxruntime"

    def run(self, model: Artifact, ctx: Context) -> Path:
        proto = onnx_format.load(model.path)
        before = len(proto.graph.node)
        slim = slimmed(proto)
        if folded := simplify_batch_norm.fold(slim):
            ctx.note("batch_norms_folded", folded)
        ctx.note("nodes", [before, len(slim.graph.node)])
        return onnx_format.save(slim, ctx.folder / onnx_format.MAIN)


def slimmed(proto: ModelProto) -> ModelProto:
    """The model as onnxslim leaves it, all inputs kept, every node named. Raises StepError."""
    onnxslim = registry.need("onnxslim", "onnxruntime")
    inputs = list(proto.graph.input)
    try:
        slim: ModelProto = onnxslim.slim(proto)
    except Exception as error:
        raise StepError(f"onnxslim cannot simplify this model: {type(error).__name__}: {error}", remedy="leave this pass out") from error
    # onnxslim drops inputs that nothing reads; callers feed them all the same.
    del slim.graph.input[:]
    slim.graph.input.extend(inputs)
    onnx_format.name_nodes(slim)
    return slim
