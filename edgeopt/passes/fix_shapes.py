"""Open axes given one size each: runtimes plan memory and choose kernels for shapes that they know."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, Signature
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, Pass, stack
from edgeopt.core.samples import sample_shape
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.simplify import slimmed

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Feeds = dict[str, np.ndarray[Any, Any]]

Size = Annotated[int, Field(gt=0)]
_GIVE = "give the sizes as `fix-shapes: {axes: {%s}}`"
_SAMPLES, _RUNS = 8, 3  # samples, else made-up inputs, on which an output must have one shape
# The shape of what these give is decided by values: one run does not tell it.
_BY_VALUE = {"NonMaxSuppression", "NonZero", "Unique", "Compress", "If", "Loop"}


class FixShapes(
    Pass,
    accepts=("onnx",),
    produces="onnx",
    needs=("onnx", "onnxruntime", "onnxslim"),
    data=("calibrate?", "tune?"),
    target_fields=("batch",),
):
    """Give open axes a fixed size, and fold what then is constant: computed shapes, masks, positions.

    With no option the batch axis gets the target's `batch`, and every other open axis the size that all
    samples of `calibrate` and `tune` have. With `axes` or `inputs`, only what they name is fixed.
    Outputs whose size depends on values (what a NonMaxSuppression keeps) stay open.
    """

    extra: ClassVar[str] = "onnxruntime"

    axes: dict[str, Size] = Field(default_factory=dict, description="sizes by the names of axes: {N: 1, T: 64}")
    inputs: dict[str, list[Size]] = Field(default_factory=dict, description="whole shapes by input: {image: [1, 3, 224, 224]}")

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("onnxruntime", "onnxruntime")
        sizes = self.sizes(model.signature, ctx)
        proto = onnx_format.load(model.path)
        onnx_format.name_axes(proto, model.signature)
        for graph in onnx_format.graphs(proto.graph):
            del graph.value_info[:]  # exporters leave sizes of their examples there
            for value in (*graph.input, *graph.output):
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param in sizes:
                        dim.dim_value = sizes[dim.dim_param]
        before = len(proto.graph.node)
        proto = slimmed(proto)
        path = ctx.folder / onnx_format.MAIN
        _size_outputs(proto, path, _feeds(onnx_format.signature_of(proto).after(model.signature), ctx))
        ctx.note("axes", sizes)
        ctx.note("nodes", [before, len(proto.graph.node)])
        return onnx_format.save(proto, path)

    def sizes(self, signature: Signature, ctx: Context) -> dict[str, int]:
        """The size of each axis that is to be fixed. Raises UsageError for one that is unknown, contradicted or not to be told."""
        known = dict.fromkeys(size for spec in signature.inputs for size in spec.shape if isinstance(size, str))
        found = dict(self.axes) | self._of_inputs(signature)
        for name in self.axes:
            if name not in known:
                raise UsageError(f"fix-shapes: the inputs have no open axis '{name}'", remedy=did_you_mean(name, known))
            if self.axes[name] != found[name]:
                raise _twice(name, self.axes[name], found[name])
        batch = signature.batch_symbol
        if not self.axes and not self.inputs:
            if batch:
                found[batch] = ctx.target["batch"]
            found |= _of_samples(signature, ctx, [name for name in known if name != batch])
        if batch in found and found[batch] != ctx.target["batch"]:
            raise UsageError(
                f"fix-shapes: '{batch}' counts samples and would be {found[batch]}, and the target runs {ctx.target['batch']} at a time",
                remedy=f"give the target `batch: {found[batch]}`, so that all variants are timed on as much",
            )
        return found

    def _of_inputs(self, signature: Signature) -> dict[str, int]:
        """Sizes of open axes by the shapes given for inputs."""
        specs = {spec.name: spec for spec in signature.inputs}
        found: dict[str, int] = {}
        for name, shape in self.inputs.items():
            if name not in specs:
                raise UsageError(f"fix-shapes: the model has no input '{name}'", remedy=did_you_mean(name, specs))
            spec = specs[name]
            if len(shape) != len(spec.shape) or any(isinstance(a, int) and a != b for a, b in zip(spec.shape, shape, strict=True)):
                raise UsageError(f"fix-shapes: the shape {shape} does not fit the input {spec}", remedy="give a size for each of its axes")
            for axis, size in zip(spec.shape, shape, strict=True):
                if isinstance(axis, str) and found.setdefault(axis, size) != size:
                    raise _twice(axis, found[axis], size)
        return found


def _twice(name: str, one: int, other: int) -> UsageError:
    return UsageError(f"fix-shapes: the axis '{name}' is given as {one} and as {other}", remedy="give it one size")


def _of_samples(signature: Signature, ctx: Context, names: list[str]) -> dict[str, int]:
    """The size of each named axis in the samples. Raises UsageError when there are none, or they differ."""
    seen: dict[str, set[int]] = {name: set() for name in names}
    if names:
        for split in ctx.data.values():
            for sample in split:
                for spec in signature.inputs:
                    for axis, size in zip(sample_shape(spec, signature), sample.inputs[spec.name].shape, strict=True):
                        if axis in seen:
                            seen[str(axis)].add(size)
    unlike = [f"'{name}' ({min(found)} … {max(found)})" for name, found in seen.items() if len(found) > 1]
    if unlike:
        raise UsageError(
            f"fix-shapes: the samples differ along {', '.join(unlike)}",
            remedy=_GIVE % ", ".join(f"{name}: {max(found)}" for name, found in seen.items())
            + ", and samples that are padded or cut to them",
        )
    if names and not all(seen.values()):
        raise UsageError(
            f"fix-shapes: no samples of `calibrate` or `tune` tell the size of {', '.join(map(repr, names))}",
            remedy=_GIVE % ", ".join(f"{name}: …" for name in names),
        )
    return {name: found.pop() for name, found in seen.items()}


def _feeds(signature: Signature, ctx: Context) -> list[Feeds]:
    """The first samples that have these sizes, as the model takes them; none while an axis is open."""
    wanted = {spec.name: spec.shape for spec in signature.inputs}
    if any(isinstance(size, str) for shape in wanted.values() for size in shape):
        return []
    found = []
    for sample in (sample for split in ctx.data.values() for sample in islice(split, _SAMPLES)):
        feeds = stack([sample], signature)
        if all(array.shape == wanted[name] for name, array in feeds.items()):
            found.append(feeds)
    return found


def _size_outputs(proto: ModelProto, path: Path, feeds: list[Feeds]) -> None:
    """Set the outputs' shapes: as they are inferred, else as runs give them, but for those that values decide.

    A model too large to be run out of memory is run from `path`.
    """
    import onnx

    large = onnx_format.too_large(proto)
    known = proto if large else onnx.shape_inference.infer_shapes(proto)
    signature, by_value = onnx_format.signature_of(proto), _decided_by_values(proto)
    all_fixed = all(isinstance(size, int) for spec in signature.inputs for size in spec.shape)
    # Made-up whole numbers may be no token, rate or length that the model knows: that it refuses them says nothing of the sizes.
    telling = bool(feeds) or not any(spec.dtype.startswith(("int", "uint")) for spec in signature.inputs)
    run, results = None, list[Any]()
    try:
        run = onnx_format.runner_of(str(onnx_format.save(proto, path)) if large else proto.SerializeToString())
        if all_fixed:
            results = [run(one) for one in feeds or [onnx_format.examples(signature, seed) for seed in range(_RUNS)]]
    except Exception as error:
        if telling or run is None:
            raise StepError(
                f"the model does not run at these sizes: {onnx_format.cause(error)}", remedy="choose sizes that the model was made for"
            ) from error
    for value, inferred in zip(proto.graph.output, known.graph.output, strict=True):
        shapes = {one[value.name].shape for one in results if value.name not in by_value}
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            size = inferred.type.tensor_type.shape.dim[axis].dim_value
            sizes = {size} if size > 0 else {shape[axis] for shape in shapes}
            if len(sizes) == 1 and min(sizes) > 0:
                dim.dim_value = sizes.pop()


def _decided_by_values(proto: ModelProto) -> set[str]:
    """Tensors made of something whose shape is decided by values."""
    found: set[str] = set()
    for node in proto.graph.node:
        if node.op_type in _BY_VALUE or onnx_format.reads(node) & found:
            found |= set(node.output)
    return found
