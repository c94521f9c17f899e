"""Graph clean-up: constants folded, dead and doubled nodes removed, known patterns fused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, Signature
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import simplify_batch_norm, simplify_gelu, simplify_graph, simplify_moves, simplify_rows

if TYPE_CHECKING:
    from onnx import ModelProto


class Simplify(Pass, accepts=("onnx",), produces="onnx", needs=("onnx", "onnxslim")):
    """Fold constants and batch normalizations, drop what nothing reads and fuse known patterns; inputs and open axes stay.

    By onnxslim, and by own rules for what exporters of TensorFlow and JAX write out: products with one-hot codes
    become look-ups, GELU becomes the operator (or the spelling that runtimes fuse), what is done to each row of a
    table is done to the table, and convolutions along one axis lie along the last, with their bias. Put it before
    `quantize-int8` and `mixed-precision`, and behind `fix-shapes`. With `outputs`, all that only the others need
    goes too; inputs stay, so that the same samples fit. The variants of a target are then scored on the outputs
    that all of them give.
    """

    extra: ClassVar[str] = "onnxruntime"

    outputs: list[str] | None = Field(default=None, min_length=1, description="names of the outputs to keep; default: all")

    def gives(self, before: Signature) -> Signature:
        names = [spec.name for spec in before.outputs]
        for name in self.outputs or ():
            if name not in names:
                raise UsageError(f"simplify: the model has no output '{name}'", remedy=did_you_mean(name, names))
        return replace(before, outputs=tuple(spec for spec in before.outputs if spec.name in (self.outputs or names)))

    def run(self, model: Artifact, ctx: Context) -> Path:
        kept = {spec.name for spec in self.gives(model.signature).outputs}
        proto = onnx_format.load(model.path)
        before, removed = len(proto.graph.node), [value for value in proto.graph.output if value.name not in kept]
        for value in removed:
            proto.graph.output.remove(value)
        if removed:
            ctx.note("outputs_removed", [value.name for value in removed])
        slim = slimmed(proto)
        if folded := simplify_batch_norm.fold(slim):
            ctx.note("batch_norms_folded", folded)
        for note, count in rewritten(slim).items():
            ctx.note(note, count)
        ctx.note("nodes", [before, len(slim.graph.node)])
        return onnx_format.save(slim, ctx.folder / onnx_format.MAIN)


# What is rewritten, in this order, and how a report calls it.
_RULES = {
    "products_looked_up": simplify_rows.look_up,
    "convolutions_turned": simplify_moves.wide_convolutions,
    "biases_folded": simplify_moves.biases,
    "gelus_rewritten": simplify_gelu.rewrite,
    "tables_folded": simplify_rows.fold,
}


def rewritten(model: ModelProto) -> dict[str, int]:
    """Apply every rule to the model, in place, bodies included; how often each did something."""
    found: Counter[str] = Counter()
    for graph in simplify_graph.rewritings(model):
        for note, rule in _RULES.items():
            found[note] += rule(graph)
    onnx_format.name_nodes(model)
    return {note: count for note, count in found.items() if count}


def slimmed(proto: ModelProto) -> ModelProto:
    """The model as onnxslim leaves it, all inputs kept, every node named. Raises StepError."""
    onnxslim = registry.need("onnxslim", "onnxruntime")
    inputs = list(proto.graph.input)
    onnx_format.spell_constants(proto)  # onnxslim reads a float that is written as a number as a double
    try:
        slim: ModelProto = onnxslim.slim(proto)
    except Exception as error:
        raise StepError(f"onnxslim cannot simplify this model: {type(error).__name__}: {error}", remedy="leave this pass out") from error
    # onnxslim drops inputs that nothing reads; callers feed them all the same.
    del slim.graph.input[:]
    slim.graph.input.extend(inputs)
    onnx_format.name_nodes(slim)
    return slim
