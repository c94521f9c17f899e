"""Fine-tuning: trains a model for a few epochs on the recipe's own data, to win back what pruning lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.core import registry, usercode
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, Pass, Sample, Split, fixed_batch
from edgeopt.formats import torch as torch_format

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Feeds = dict[str, np.ndarray[Any, Any]]

# Sets up to this size stay in memory and are shuffled whole; larger ones pass through a buffer of this size.
_IN_MEMORY = 512_000_000


class FineTune(
    Pass, accepts="torch", produces="torch", needs=("torch",), data=("train", "tune?"), uses=("reference",), changes_function=True
):
    """Train the model on the `train` split; with a `tune` split the epoch with the lowest loss there wins, the start included.

    Outputs that are probabilities already (softmax) are recognized. `distill` learns from the reference
    variant (Hinton et al., arXiv:1503.02531), and from labels where there are any.
    """

    extra: ClassVar[str] = "torch"

    epochs: int = Field(default=5, ge=1)
    lr: float = Field(default=1e-3, gt=0, description="learning rate of the first epoch")
    batch: int = Field(default=64, ge=1, description="samples per training step")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="sgd has momentum 0.9")
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="cosine falls towards 0 over the epochs")
    loss: Literal["auto", "cross-entropy", "mse", "distill"] = Field(
        default="auto", description="auto: cross-entropy for whole labels, mse for others, distill without labels"
    )
    temperature: float = Field(default=4.0, gt=0, description="distill: how far outputs are softened")
    label_weight: float = Field(default=0.5, ge=0, le=1, description="distill: share of the loss on labels, where there are any")
    output: str | None = Field(default=None, description="the output that is trained; the first one otherwise")
    augment: str | None = Field(
        default=None, description="file.py:function that takes (batch by input name, numpy Generator) and returns another batch"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a lower tune loss")

    def user_files(self, base: Path) -> list[Path]:
        return usercode.files(self.augment, base) if self.augment else []

    def packages(self, base: Path) -> list[str]:
        return usercode.packages(self.augment, base) if self.augment else []

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("torch", "torch")
        module = torch_format.load(model.path)
        with _seeded(ctx.seed):
            _Training(self, module, model, ctx).run()
        return torch_format.save(module, ctx.folder, model.path)


class _Training:
    """One run over the epochs: a model, its data and its loss."""

    def __init__(self, options: FineTune, module: nn.Module, model: Artifact, ctx: Context) -> None:
        self.options, self.module, self.ctx, self.signature = options, module, ctx, model.signature
        self.record = torch_format.Record.read(model.path)
        self.train = _Shuffled(ctx.data["train"])
        self.augment = usercode.load(options.augment, ctx.base) if options.augment else None
        kind = self._kind()
        self.teacher = self._teacher() if kind == "distill" else None
        self.loss = _Loss(kind, options)

    def run(self) -> None:
        """Leave the best weights in the model; notes the losses."""
        options, ctx = self.options, self.ctx
        trainable = [one for one in self.module.parameters() if one.requires_grad]
        if not trainable:
            raise UsageError("the factory freezes every parameter", remedy="let it freeze fewer, or leave fine-tune out")
        optimizer = self._optimizer(trainable)
        losses: list[float] = []
        tuned = [self._tune_loss(0)] if "tune" in ctx.data else []
        best, best_epoch = self._state(), 0
        for epoch in range(1, options.epochs + 1):
            if options.schedule == "cosine":
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / options.epochs))
            losses.append(self._epoch(epoch, optimizer))
            tuned += [self._tune_loss(epoch)] if tuned else []
            if not tuned or tuned[-1] <= min(tuned):
                best, best_epoch = self._state(), epoch
            ctx.progress(epoch, options.epochs, f"epoch {epoch}: loss {losses[-1]:.4f}" + (f", tune {tuned[-1]:.4f}" if tuned else ""))
            if options.patience and epoch - best_epoch >= options.patience:
                break
        self.module.load_state_dict(best)
        ctx.note("loss", self.loss.kind)
        ctx.note("losses", [round(value, 6) for value in losses])
        ctx.note("tune_losses", [round(value, 6) for value in tuned])
        ctx.note("best_epoch", best_epoch)

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def _optimizer(self, parameters: list[nn.Parameter]) -> Any:
        from torch import optim

        options = self.options
        if options.optimizer == "sgd":
            return optim.SGD(parameters, options.lr, momentum=0.9, weight_decay=options.weight_decay)
        cls = optim.AdamW if options.optimizer == "adamw" else optim.Adam
        return cls(parameters, options.lr, weight_decay=options.weight_decay)

    def _epoch(self, epoch: int, optimizer: Any) -> float:
        """The mean loss of one pass over the training data."""
        import numpy as np
        from torch.nn.modules.batchnorm import _BatchNorm

        numbers = np.random.default_rng((self.ctx.seed, epoch))
        alone = (fixed_batch(self.signature) or self.options.batch) == 1
        self.module.train()
        for layer in self.module.modules():
            if isinstance(layer, _BatchNorm) and alone:
                layer.eval()  # one sample has no statistics worth learning
        total = count = 0.0
        for step, (feeds, labels) in enumerate(self.train.batches(self.options.batch, numbers), start=1):
            if len(labels) == 1 and not alone and step > 1:
                continue
            loss = self._loss_of(self._augmented(feeds, numbers), labels)
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged(f"the training loss is {value} in epoch {epoch}, batch {step}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            optimizer.step()
            total += value * len(labels)
            count += len(labels)
        self.module.eval()
        return total / count

    def _tune_loss(self, epoch: int) -> float:
        import torch

        total = count = 0.0
        with torch.no_grad():
            for feeds, labels in self.ctx.data["tune"].batches(max(self.options.batch, 64)):
                total += self._loss_of(feeds, labels).item() * len(labels)
                count += len(labels)
        if not math.isfinite(total):
            raise self._diverged(f"the loss on 'tune' is {total} after epoch {epoch}")
        return total / count

    def _diverged(self, cause: str) -> StepError:
        return StepError(cause, remedy=f"lower the learning rate (lr is {self.options.lr:g}), or look for broken labels")

    def _augmented(self, feeds: Feeds, numbers: Any) -> Feeds:
        if self.augment is None:
            return feeds
        function = self.augment
        found = usercode.call(lambda: function(feeds, numbers), f"augment '{self.options.augment}'")
        if not isinstance(found, dict) or set(found) != set(feeds):
            raise UsageError(f"augment '{self.options.augment}' did not return the batch", remedy=f"return a dict with {', '.join(feeds)}")
        return found

    def _loss_of(self, feeds: Feeds, labels: list[Any]) -> Tensor:
        import torch

        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self._output(self.teacher, feeds, len(labels))
        return self.loss(self._output(self.module, feeds, len(labels)), labels, teacher)

    def _output(self, module: nn.Module, feeds: Feeds, count: int) -> Tensor:
        """The output that is trained, without the rows that only fill a fixed batch."""
        given = [torch_format.tensor(feeds[spec.name]) for spec in self.record.inputs]
        found = torch_format.named(module(*given), self.record.outputs)
        name = self.options.output or next(iter(found))
        if name not in found:
            raise UsageError(f"the model has no output '{name}'", remedy=did_you_mean(name, found))
        return found[name][:count]

    def _kind(self) -> str:
        """Which loss it is, after a look at the first labels."""
        import numpy as np

        asked = self.options.loss
        first = next(iter(self.ctx.data["train"])).label
        if asked == "auto":
            return "distill" if first is None else "cross-entropy" if np.asarray(first).dtype.kind in "iub" else "mse"
        if asked != "distill" and first is None:
            raise UsageError(f"data: 'train' has no labels, and '{asked}' needs them", remedy="give labels, or choose loss: distill")
        return asked

    def _teacher(self) -> nn.Module:
        reference = self.ctx.reference
        if reference is None or reference.format != "torch":
            raise UsageError(
                "distillation learns from the reference variant, and that is no torch model",
                remedy="let the reference variant have no passes, or choose another loss",
            )
        return torch_format.load(reference.path)


class _Loss:
    """A loss of one output; `kind` is cross-entropy, mse or distill."""

    def __init__(self, kind: str, options: FineTune) -> None:
        self.kind, self.options = kind, options

    def __call__(self, output: Tensor, labels: list[Any], teacher: Tensor | None) -> Tensor:
        from torch.nn import functional

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


def _rows(output: Tensor, truth: Tensor | None) -> Tensor:
    """Logits as rows [n, classes]. Classes stand on the last axis, or on the second one of pictures and signals.

    Labels decide between the two where they are there; without them four and more axes are taken for pictures.
    """
    second = output.ndim > 3 if truth is None else output.ndim > 2 and truth.shape != output.shape[:-1]
    output = output.movedim(1, -1) if second else output
    if output.ndim < 2 or output.shape[-1] < 2:
        raise UsageError(
            f"an output of shape {list(output.shape)} has no values per class", remedy="choose another with `output`, or choose loss: mse"
        )
    rows = output.reshape(-1, output.shape[-1])
    found = rows.detach()
    if (found >= 0).all() and (found.sum(dim=1) - 1).abs().max() < 1e-3:
        return rows.clamp_min(1e-12).log()  # probabilities already: their logarithms are logits
    return rows


class _Shuffled:
    """A split in another order at each walk."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.held: list[Sample] = []
        size = 0
        self.whole = True
        for sample in split:
            size += sum(array.nbytes for array in sample.inputs.values()) + getattr(sample.label, "nbytes", 8)
            if size > _IN_MEMORY and self.held:
                self.whole = False
                break
            self.held.append(sample)
        self.room = len(self.held)
        if not self.whole:
            self.held = []

    def batches(self, size: int, numbers: Any) -> Iterator[tuple[Feeds, list[Any]]]:
        return Split(self.split.name, lambda: self._samples(numbers), self.split.signature).batches(size)

    def _samples(self, numbers: Any) -> Iterator[Sample]:
        held = self.held
        if not self.whole:
            held = []
            for sample in self.split:
                if len(held) < self.room:
                    held.append(sample)
                    continue
                place = int(numbers.integers(self.room))
                yield held[place]
                held[place] = sample
        for place in numbers.permutation(len(held)):
            yield held[place]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The same random numbers and algorithms at each run; the process's own state comes back afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
