"""The import of an ONNX file: nothing in it is believed before it is checked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.core.model import FileRef
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import onnx_external

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto

    Feeds = dict[str, np.ndarray[Any, Any]]

# Per-channel quantization needs axes on DequantizeLinear (13); 17 has LayerNormalization, and every runtime reads it.
OLDEST_OPSET, RAISED_OPSET = 13, 17
_TEXT = 8  # TensorProto.STRING


class ImportOnnx(Pass, FileRef, produces="onnx", needs=("onnx",)):
    """Check an ONNX file and its external data, and bring it to a form that every later step understands."""

    extra: ClassVar[str] = "onnxruntime"

    def user_files(self, base: Path) -> list[Path]:
        """The model, and its external data as far as it exists; onnx is not imported for it."""
        path = self.locate(base)
        if not path.is_file():
            return [path]
        names = {name for name in onnx_external.named(path) if onnx_external.escapes(path.parent, name) == ""}
        return [path, *sorted(found for name in names if (found := path.parent / name).is_file())]

    def run(self, model: Artifact, ctx: Context) -> Path:
        path = self.locate(ctx.base)
        proto = onnx_format.read(path)
        keyed = self.user_files(ctx.base)
        if any(path.parent / name not in keyed for name in onnx_external.files(proto, path)):
            raise UntrustedError(
                f"{path.name}: external data is named in an unusual encoding", remedy="write the file anew with onnx.save_model"
            )
        onnx_external.load(proto, path)
        _refuse_empty(proto, path.name)
        tidy(proto)
        _refuse_untold(proto, path.name)
        proto = infer(proto, path.name, ctx)
        raised = raise_opset(proto, ctx)
        if raised is not proto:
            proto = infer(raised, path.name, ctx)
        foreign = onnx_format.foreign_domains(proto)
        if foreign:
            _refuse_unknown(proto, path.name)
            ctx.note("foreign_operators", foreign)
        ctx.note("opset", onnx_format.opset(proto))
        return onnx_format.save(proto, ctx.folder / onnx_format.MAIN)

    def original(self, base: Path) -> Callable[[Feeds], Feeds]:
        """The file as it is, by the same runtime as the result."""
        return onnx_format.Onnx().runner(self.locate(base))


def _refuse_empty(model: ModelProto, name: str) -> None:
    if not model.graph.node:
        raise UsageError(f"{name} computes nothing: its graph has no nodes", remedy="export the model again")
    if not onnx_format.inputs(model):
        raise UsageError(f"{name} has no inputs", remedy="export the model with its inputs open")
    if not model.graph.output:
        raise UsageError(f"{name} has no outputs", remedy="export the model again")
    for kind, values in (("input", onnx_format.inputs(model)), ("output", list(model.graph.output))):
        names = [value.name for value in values]
        if "" in names or len(set(names)) < len(names):
            raise UsageError(f"{name} has two {kind}s of one name, or one without a name", remedy="export the model with names")


def _refuse_untold(model: ModelProto, name: str) -> None:
    """Raises UsageError for what no sample can judge: outputs drawn at random, and text."""
    drawn = next((node for node in onnx_format.nodes(model) if _draws(node)), None)
    if drawn is not None:
        raise UsageError(
            f"{name} draws random numbers ('{drawn.name}', {drawn.op_type}): no two runs of it can be compared",
            remedy="export it for inference (model.eval()), with its noise as an input",
        )
    for kind, values in (("input", onnx_format.inputs(model)), ("output", list(model.graph.output))):
        text = next((value.name for value in values if value.type.tensor_type.elem_type == _TEXT), None)
        if text is not None:
            remedy = "leave the part that reads or writes text out of the model: give it numbers, and take the index of the class"
            raise UsageError(f"{name}: the {kind} '{text}' is text, which has no accuracy to measure", remedy=remedy)


def _draws(node: NodeProto) -> bool:
    return node.domain in onnx_format.DEFAULT_DOMAINS and (
        node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    )


def _refuse_unknown(model: ModelProto, name: str) -> None:
    """Raises UsageError for an operator that ONNX does not define and onnxruntime does not know either."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            onnx_format.Onnx().runner(onnx_format.save(model, Path(folder) / onnx_format.MAIN))
        except Exception as error:  # noqa: BLE001  (onnxruntime's classes share no other base)
            raise UsageError(f"{name}: {onnx_format.cause(error)}", remedy="export the model with standard operators") from None


def tidy(model: ModelProto) -> None:
    """Same function, regular form: weights are dense and no inputs, functions are inlined, every node has its own name."""
    from onnx import inliner

    fed = onnx_format.inputs(model)
    for graph in onnx_format.graphs(model.graph):
        graph.initializer.extend(_dense(tensor) for tensor in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    kept = [type(value).FromString(value.SerializeToString()) for value in fed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, onnx_format.OLDEST_IR)
    if model.functions:
        stored = list(model.graph.initializer)  # weights take no part, and with them it may be too large for one protobuf
        del model.graph.initializer[:]
        model.CopyFrom(inliner.inline_local_functions(model))
        model.graph.initializer.extend(stored)
    onnx_format.name_nodes(model)


def _dense(tensor: SparseTensorProto) -> TensorProto:
    """The same numbers as a plain tensor. Its indices are places in the flat tensor, or one row of coordinates per value."""
    import numpy as np
    from onnx import numpy_helper

    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    whole = np.zeros(tuple(tensor.dims), values.dtype)
    places = np.unravel_index(indices, whole.shape) if indices.ndim == 1 else tuple(indices.T)
    whole[places] = values
    return numpy_helper.from_array(whole, tensor.values.name)


def infer(model: ModelProto, name: str, ctx: Context) -> ModelProto:
    """The model with every shape that can be inferred and all axes named. Raises UsageError when it is not valid ONNX."""
    import onnx

    onnx_format.name_axes(model, onnx_format.signature_of(model))
    large = onnx_format.too_large(model)  # checker and inference work on one protobuf
    if not large:
        try:
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except Exception as error:  # noqa: BLE001  (strict inference refuses models that every runtime takes)
            if not onnx_format.foreign_domains(model) and _runner(model) is None:
                raise UsageError(f"{name} is no valid ONNX model: {onnx_format.cause(error)}", remedy="export the model again") from None
            ctx.note("shapes", f"not all could be inferred: {onnx_format.cause(error)}")
            model = _inferred_leniently(model)
    if not _ranked(model):
        _rank_by_running(model, name)
    onnx_format.name_axes(model, onnx_format.signature_of(model))
    if not large:
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise UsageError(f"{name} is no valid ONNX model: {onnx_format.cause(error)}", remedy="export the model again") from None
    return model


def _inferred_leniently(model: ModelProto) -> ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model


def _ranked(model: ModelProto) -> bool:
    return all(value.type.tensor_type.HasField("shape") for value in (*onnx_format.inputs(model), *model.graph.output))


def _rank_by_running(model: ModelProto, name: str) -> None:
    """How many axes some outputs have is known to nobody before the model has run once."""
    unranked = any(not value.type.tensor_type.HasField("shape") for value in onnx_format.inputs(model))
    results = None if unranked else _run(model)
    if results is None:
        raise UsageError(
            f"{name}: how many axes an input or output has is unknown", remedy="export the model with the shapes of its inputs and outputs"
        )
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
            for _ in results[value.name].shape:
                value.type.tensor_type.shape.dim.add()


def raise_opset(model: ModelProto, ctx: Context) -> ModelProto:
    """Opset 17 instead of one below 13, if the function stays the same: onnx's converter changes some models."""
    from onnx import version_converter

    if onnx_format.opset(model) >= OLDEST_OPSET:
        return model
    try:
        raised = version_converter.convert_version(model, RAISED_OPSET)
        tidy(raised)
        onnx_format.name_axes(raised, onnx_format.signature_of(model))
        before = _run(model, _runner(model) or _reference(model))  # runtimes refuse what stood in opset 1 to 6
        after = _run(raised)
        if before is None or after is None:
            reason = "it does not run on made-up inputs, so the result could not be compared"
        else:
            reason = onnx_format.difference(before, after)
    except Exception as error:  # noqa: BLE001  (the converter raises bare RuntimeErrors)
        reason = onnx_format.cause(error)
    if reason:
        ctx.note("opset_kept", f"opset {onnx_format.opset(model)} could not be raised: {reason}")
        return model
    return raised


def _runner(model: ModelProto) -> Callable[[Feeds], Feeds] | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return onnx_format.Onnx().runner(onnx_format.save(model, Path(folder) / onnx_format.MAIN))
        except Exception:  # noqa: BLE001  (whatever the runtime cannot open)
            return None


def _reference(model: ModelProto) -> Callable[[Feeds], Feeds]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return lambda feeds: dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def _run(model: ModelProto, runner: Callable[[Feeds], Feeds] | None = None) -> Feeds | None:
    """Outputs on made-up inputs, for the first sizes of open axes that the model can run on."""
    runner, signature = runner or _runner(model), onnx_format.signature_of(model)
    for other in (64, 16, 2, 1) if runner else ():
        try:
            return runner(onnx_format.examples(signature, other=other)) if runner else None
        except Exception:  # noqa: BLE001  (sizes that do not fit each other)
            continue
    return None
