"""Gradients by which channels are ranked: how much the loss on real samples would change without a weight."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Split
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_losses import Loss, kind_of
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.quantize_int8_samples import refuse_few

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_SAMPLES, _BATCH = 256, 16


def leave_gradients(module: nn.Module, record: torch_format.Record, options: TrainingOptions, ctx: Context) -> None:
    """Leave in each parameter's `grad` the mean absolute gradient of the loss over small batches.

    Absolute, because the gradients of a trained model cancel out over its data. Without labels, and where they fit
    no output, the loss is the outputs' sum with random signs: what moves any of them counts. (Not their squares,
    whose sum is the same whatever the weights are where outputs are normalized.)
    """
    import torch

    split = ctx.data.get("train") or ctx.data.get("calibrate")
    if split is None:
        raise UsageError("importance: taylor needs samples", remedy="add the split 'train' or 'calibrate' under `data`")
    refuse_few(split, "importance: taylor", "importance: magnitude needs none")
    learns = {name: one.requires_grad for name, one in module.named_parameters()}
    sums = {name: torch.zeros_like(one) for name, one in module.named_parameters()}
    module.requires_grad_(True).eval()
    loss = _on_labels(module, record, split, options, ctx)
    signs = torch.Generator().manual_seed(ctx.seed)
    done = 0
    for feeds, labels in islice(split.batches(_BATCH), _SAMPLES // _BATCH):
        module.zero_grad()
        found = _outputs(module, record, feeds)
        value = _unlabelled(found, signs) if loss is None else _labelled(found, labels, loss, options)
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
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


def _on_labels(module: nn.Module, record: torch_format.Record, split: Split, options: TrainingOptions, ctx: Context) -> Loss | None:
    """The loss on labels; None where there are none, or none that says what an output should be (boxes of a detector)."""
    feeds, labels = next(split.batches(_BATCH))
    if labels[0] is None:
        return None
    loss = Loss(kind_of(options, labels[0]), options)
    try:
        _labelled(_outputs(module, record, feeds), labels, loss, options)
    except UsageError as error:
        ctx.note("ranked_without_labels", error.cause)
        return None
    return loss


def _outputs(module: nn.Module, record: torch_format.Record, feeds: dict[str, Any]) -> dict[str, Tensor]:
    return torch_format.named(module(*(torch_format.tensor(feeds[spec.name]) for spec in record.inputs)), record.outputs)


def _labelled(found: dict[str, Tensor], labels: list[Any], loss: Loss, options: TrainingOptions) -> Tensor:
    output = found[options.output] if options.output in found else next(iter(found.values()))
    return loss(output[: len(labels)], labels, None)


def _unlabelled(found: dict[str, Tensor], signs: Generator) -> Tensor:
    """The sum with random signs of all real-valued outputs, each as shares of its own size, so that each counts alike."""
    import torch

    real = [one.float() for one in found.values() if one.dtype.is_floating_point]
    flips = [torch.randint(0, 2, one.shape, generator=signs) * 2 - 1 for one in real]
    sizes = [one.detach().square().mean().sqrt().clamp_min(1e-12) for one in real]
    parts = [(one * flip / size).mean() for one, flip, size in zip(real, flips, sizes, strict=True)]
    return torch.stack(parts).sum()
