"""What is minimized in training: cross-entropy, the squared error, or the distance to a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.core.errors import UsageError
from edgeopt.passes.fine_tune_options import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor


def kind_of(options: TrainingOptions, label: Any) -> str:
    """Which loss it is, after a look at a first label. Raises UsageError where that loss needs labels and has none."""
    import numpy as np

    asked = options.loss
    if asked == "auto":
        return "distill" if label is None else "cross-entropy" if np.asarray(label).dtype.kind in "iub" else "mse"
    if not asked.startswith("distill") and label is None:
        raise UsageError(f"data: 'train' has no labels, and '{asked}' needs them", remedy="give labels, or choose loss: distill")
    return asked


class Loss:
    """A loss of one output; `kind` is cross-entropy, mse, distill or distill-mse."""

    def __init__(self, kind: str, options: TrainingOptions) -> None:
        self.kind, self.options = kind, options

    def __call__(self, output: Tensor, labels: list[Any], teacher: Tensor | None) -> Tensor:
        from torch.nn import functional

        if teacher is not None and self.kind == "distill-mse":
            return functional.mse_loss(output, teacher.to(output.dtype))
        if self.kind == "mse":
            wanted = self._labels(labels, output)
            if wanted.numel() != output.numel():
                raise UsageError(
                    f"labels of shape {list(wanted.shape)} do not fit an output of shape {list(output.shape)}",
                    remedy="give labels shaped like the output, or choose one with `output`",
                )
            return functional.mse_loss(output, wanted.reshape(output.shape).to(output.dtype))
        labelled = all(label is not None for label in labels)
        truth = self._labels(labels, output) if labelled else None
        rows = _rows(output, truth)
        if teacher is None:
            return self._cross_entropy(rows, truth)
        warmth = self.options.temperature
        taught = functional.kl_div(
            functional.log_softmax(rows / warmth, dim=1),
            functional.log_softmax(_rows(teacher, truth) / warmth, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        weight = self.options.label_weight if labelled else 0.0
        loss = (1 - weight) * warmth**2 * taught
        return loss + weight * self._cross_entropy(rows, truth) if weight else loss

    def _cross_entropy(self, rows: Tensor, truth: Tensor | None) -> Tensor:
        from torch.nn import functional

        count = rows.shape[1]
        if truth is None or truth.dtype.is_floating_point or truth.numel() != len(rows):
            given = "missing labels" if truth is None else f"labels {truth.dtype} of shape {list(truth.shape)}"
            raise UsageError(
                f"{given} are no class indices for {len(rows)} rows of {count} classes",
                remedy="give one whole number per sample, or choose another loss",
            )
        if truth.min() < 0 or truth.max() >= count:
            wrong = int(truth.min() if truth.min() < 0 else truth.max())
            raise UsageError(f"the label {wrong} is out of range: the model has {count} classes", remedy=f"labels go from 0 to {count - 1}")
        return functional.cross_entropy(rows, truth.long().flatten())

    def _labels(self, labels: list[Any], output: Tensor) -> Tensor:
        import numpy as np
        import torch

        try:
            return torch.from_numpy(np.asarray(labels)).to(output.device)
        except (TypeError, ValueError):
            shown = next((label for label in labels if not isinstance(label, (int, float))), labels[0])
            raise UsageError(
                f"the label {shown!r} is not a number", remedy="give numbers as labels for all samples, all of one shape"
            ) from None


def like(found: Mapping[str, Tensor], taught: Mapping[str, Tensor]) -> Tensor:
    """How far all real-valued outputs are from a teacher's: squared errors as shares of the teacher's power, so that each counts alike."""
    import torch
    from torch.nn import functional

    shares = [
        functional.mse_loss(found[name].float(), wanted.float()) / wanted.float().square().mean().clamp_min(1e-12)
        for name, wanted in taught.items()
        if wanted.dtype.is_floating_point
    ]
    if not shares:
        raise UsageError("no output of this model is real-valued, and a teacher teaches none but such", remedy="give a `step` of your own")
    return torch.stack(shares).mean()


def _rows(output: Tensor, truth: Tensor | None) -> Tensor:
    """Logits as rows [n, classes]. Classes stand on the last axis, or on the second one of pictures and signals.

    Labels decide between the two where they are there; without them four and more axes are taken for pictures.
    """
    second = output.ndim > 3 if truth is None else output.ndim > 2 and truth.shape != output.shape[:-1]
    output = output.movedim(1, -1) if second else output
    if output.ndim < 2 or output.shape[-1] < 2:
        raise UsageError(
            f"an output of shape {list(output.shape)} has no values per class",
            remedy="choose another with `output`, or choose loss: mse (without labels: distill-mse)",
        )
    rows = output.reshape(-1, output.shape[-1])
    found = rows.detach()
    if (found >= 0).all() and (found.sum(dim=1) - 1).abs().max() < 1e-3:
        return rows.clamp_min(1e-12).log()  # probabilities already: their logarithms are logits
    return rows
