"""Gradients by which channels are ranked: how much the loss on real samples would change without a weight."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_losses import Loss, kind_of
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.quantize_int8_samples import refuse_few

if TYPE_CHECKING:
    from torch import Tensor, nn

_SAMPLES, _BATCH = 256, 16


def leave_gradients(module: nn.Module, record: torch_format.Record, options: TrainingOptions, ctx: Context) -> None:
    """Leave in each parameter's `grad` the mean absolute gradient of the loss over small batches.

    Absolute, because the gradients of a trained model cancel out over its data. Without labels the loss is the
    mean square of the outputs: what carries them counts.
    """
    import torch

    split = ctx.data.get("train") or ctx.data.get("calibrate")
    if split is None:
        raise UsageError("importance: taylor needs samples", remedy="add the split 'train' or 'calibrate' under `data`")
    refuse_few(split, "importance: taylor", "importance: magnitude needs none")
    label = next(iter(split)).label
    loss = Loss(kind_of(options, label), options) if label is not None else None
    learns = {name: one.requires_grad for name, one in module.named_parameters()}
    sums = {name: torch.zeros_like(one) for name, one in module.named_parameters()}
    module.requires_grad_(True).eval()
    done = 0
    for feeds, labels in islice(split.batches(_BATCH), _SAMPLES // _BATCH):
        module.zero_grad()
        given = [torch_format.tensor(feeds[spec.name]) for spec in record.inputs]
        found = torch_format.named(module(*given), record.outputs)
        _value(found, labels, loss, options).backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        for name, one in module.named_parameters():
            if one.grad is not None:
                sums[name] += one.grad.abs()
        done += len(labels)
        ctx.progress(done, _SAMPLES, "ranking channels")
    if not all(bool(one.isfinite().all()) for one in sums.values()):
        raise StepError("gradients are NaN or infinite", remedy="look at the model and its data, or rank by magnitude")
    for name, one in module.named_parameters():
        one.requires_grad_(learns[name])
        one.grad = sums[name]


def _value(found: dict[str, Tensor], labels: list[Any], loss: Loss | None, options: TrainingOptions) -> Tensor:
    if loss is None:
        return sum((one.float().square().mean() for one in found.values()), start=next(iter(found.values())).new_zeros(()))
    output = found[options.output] if options.output in found else next(iter(found.values()))
    return loss(output[: len(labels)], labels, None)
