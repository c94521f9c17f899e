"""The export of a torch model to ONNX."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, Signature
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

OPSET = 18  # what torch's exporter writes without converting
EXPORTERS = ("dynamo", "torchscript")


class ExportOnnx(Pass, accepts=("torch",), produces="onnx", needs=("torch", "onnx", "onnxscript")):
    """Export to ONNX with the declared names and open axes, and compare it with the torch model at other sizes.

    torch's newer exporter is asked first; where it fails, fixes an axis that was declared open, or gives
    other outputs, the older one (TorchScript) is, and the history says so.
    """

    extra: ClassVar[str] = "torch"

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("onnxscript", "torch")
        record = torch_format.Record.read(model.path)
        module = torch_format.load(model.path)
        proto = export(module, model.signature, record.outputs, ctx)
        return onnx_format.save(proto, ctx.folder / onnx_format.MAIN)


def export(
    module: nn.Module, signature: Signature, outputs: Sequence[str] | None, ctx: Context, exporters: Sequence[str] = EXPORTERS
) -> ModelProto:
    """The module as ONNX. Raises StepError with the reason of each exporter when none gets it right."""
    given = _examples(module, signature, outputs)
    reasons: list[str] = []
    for name in exporters:
        try:
            proto = (_dynamo if name == "dynamo" else _torchscript)(_wrapped(module, outputs), tuple(given), signature)
            onnx_format.strip(proto)
            onnx_format.name_nodes(proto)
            reason = _fixed_axes(proto, signature) or _disagrees(proto, module, signature, given, outputs)
        except Exception as error:  # noqa: BLE001  (the exporters raise whatever they meet)
            reason = _cause(error)
        if not reason:
            ctx.note("exporter", name)
            if reasons:
                ctx.note("exporter_reason", reasons[0])
            return proto
        reasons.append(f"{name}: {reason}")
    raise StepError(
        f"the model cannot be exported to ONNX: {'; '.join(reasons)}", remedy="export it yourself and give it as `model: {onnx: FILE}`"
    )


def traced(module: nn.Module, signature: Signature, outputs: Sequence[str] | None) -> ModelProto:
    """The module as the older exporter writes it, with the declared names and open axes; nothing is compared. Raises StepError."""
    try:
        proto = _torchscript(_wrapped(module, outputs), tuple(_examples(module, signature, outputs)), signature)
        onnx_format.strip(proto)
        onnx_format.name_nodes(proto)
        reason = _fixed_axes(proto, signature)
    except Exception as error:  # noqa: BLE001  (the exporter raises whatever it meets)
        reason = _cause(error)
    if reason:
        raise StepError(f"the model cannot be exported to ONNX: torchscript: {reason}", remedy="leave train-int8 out")
    return proto


def _examples(module: nn.Module, signature: Signature, outputs: Sequence[str] | None) -> list[Tensor]:
    """Inputs to trace with: short sequences where the module takes them, since exporters unroll what they cannot keep a loop."""
    given = torch_format.examples(module, signature.inputs, outputs)
    kept = {signature.batch_symbol, *(size for spec in signature.inputs if len(spec.shape) > 3 for size in spec.shape)}
    sizes = {name: size if name in kept else 8 for name, size in _sizes(signature, given).items()}
    short = [torch_format.tensor(array) for array in onnx_format.examples(signature, sizes=sizes).values()]
    try:
        torch_format.run(module, short, outputs)
    except Exception:  # noqa: BLE001  (the module refuses these sizes, with whatever it likes)
        return given
    return short


def _wrapped(module: nn.Module, outputs: Sequence[str] | None) -> nn.Module:
    """The module with its outputs as a flat tuple, in the order of the signature."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(module)  # exporters leave traces on what they export

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch_format.named(self.model(*inputs), outputs).values())

    return Flat().eval()


def _dynamo(module: nn.Module, given: tuple[Tensor, ...], signature: Signature) -> ModelProto:
    import torch

    axes = {name: torch.export.Dim(f"axis_{number}", min=1) for number, name in enumerate(_axes(signature))}
    shapes = [{axis: axes[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in signature.inputs]
    inputs, outputs = ([spec.name for spec in specs] for specs in (signature.inputs, signature.outputs))
    program = torch.onnx.export(
        module,
        given,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=(tuple(shapes),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _torchscript(module: nn.Module, given: tuple[Tensor, ...], signature: Signature) -> ModelProto:
    import onnx
    import torch

    specs = (*signature.inputs, *signature.outputs)
    open_axes = {spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs}
    inputs, outputs = ([spec.name for spec in specs] for specs in (signature.inputs, signature.outputs))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / onnx_format.MAIN
        torch.onnx.export(
            module,
            given,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=open_axes,
            opset_version=OPSET,
            dynamo=False,
            verbose=False,
        )
        return onnx.load(path)


def _axes(signature: Signature) -> list[str]:
    return list(dict.fromkeys(size for spec in signature.inputs for size in spec.shape if isinstance(size, str)))


def _fixed_axes(proto: ModelProto, signature: Signature) -> str:
    """Which axis that was declared open the exporter fixed, if any; else the declared names are written in."""
    made = onnx_format.signature_of(proto)
    for declared, found in zip((*signature.inputs, *signature.outputs), (*made.inputs, *made.outputs), strict=True):
        if declared.name != found.name or len(declared.shape) != len(found.shape):
            return f"{declared} became {found}"
        for one, other in zip(declared.shape, found.shape, strict=True):
            if one != other and isinstance(other, int):
                return f"the axis {one} of '{declared.name}' was fixed to {other}"
    onnx_format.name_axes(proto, signature)
    return ""


def _disagrees(proto: ModelProto, module: nn.Module, signature: Signature, given: Sequence[Tensor], outputs: Sequence[str] | None) -> str:
    """How the exported model's outputs differ from the module's, at the example's sizes and at others."""
    with tempfile.TemporaryDirectory() as folder:
        runner = onnx_format.Onnx().runner(onnx_format.save(proto, Path(folder) / onnx_format.MAIN))
    for sizes in _other_sizes(signature, given):
        for seed in range(3):
            feeds = onnx_format.examples(signature, seed, sizes)
            try:
                wanted = torch_format.arrays(torch_format.run(module, [torch_format.tensor(array) for array in feeds.values()], outputs))
            except Exception:  # noqa: BLE001  (the module itself refuses these sizes, with whatever it likes)
                break
            reason = onnx_format.difference(wanted, runner(feeds))
            if reason:
                shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
                return f"{reason} than in torch" + (f" at {shown}" if shown else "")
    return ""


def _other_sizes(signature: Signature, given: Sequence[Tensor]) -> Iterator[dict[str, int]]:
    sizes, batch = _sizes(signature, given), signature.batch_symbol
    yield sizes
    if sizes:
        yield {name: 1 if name == batch else size for name, size in sizes.items()}
        yield {name: 3 if name == batch else 2 * size for name, size in sizes.items()}


def _sizes(signature: Signature, given: Sequence[Tensor]) -> dict[str, int]:
    pairs = zip(signature.inputs, given, strict=True)
    return {size: one.shape[axis] for spec, one in pairs for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
