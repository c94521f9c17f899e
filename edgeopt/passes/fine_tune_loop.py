"""The training loop: epochs over shuffled samples, the best one kept, a checkpoint after each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeopt.core import usercode
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, fixed_batch
from edgeopt.formats import torch as torch_format
from edgeopt.passes import fine_tune_checkpoint as checkpoint
from edgeopt.passes.fine_tune_losses import Loss, kind_of, like
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.fine_tune_samples import Shuffled

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Feeds = dict[str, np.ndarray[Any, Any]]


class Training:
    """One training of `module`, which `model` is the artifact of, or of a changed copy with the same inputs and outputs."""

    def __init__(self, options: TrainingOptions, module: nn.Module, model: Artifact, ctx: Context) -> None:
        self.options, self.module, self.ctx, self.signature = options, module, ctx, model.signature
        self.record = torch_format.Record.read(model.path)
        self.train = Shuffled(ctx.data["train"])
        self.augment = usercode.load(options.augment, ctx.base) if options.augment else None
        self.step = usercode.load(options.step, ctx.base) if options.step else None
        kind = "step" if self.step else kind_of(options, self.train.first.label)
        self.teacher = self._teacher(needed=kind.startswith("distill")) if kind.startswith(("distill", "step")) else None
        self.loss = Loss(kind, options)
        if options.patience and "tune" not in ctx.data:
            raise UsageError("`patience` watches the loss on 'tune', and the recipe has no `data: tune`", remedy="add that split")

    def run(self) -> None:
        """Leave the best weights in the model; notes the losses. Goes on after the last epoch of a run that was killed."""
        with _seeded(self.ctx.seed):
            self._run()

    def _run(self) -> None:
        options, ctx = self.options, self.ctx
        trainable = [one for one in self.module.parameters() if one.requires_grad]
        if not trainable:
            raise UsageError("the factory freezes every parameter", remedy="let it freeze fewer, or leave fine-tune out")
        optimizer = self._optimizer(trainable)
        losses: list[float] = []
        tuned: list[float] = []
        best, best_epoch = self._state(), 0
        if state := checkpoint.read(ctx.checkpoints):
            self.module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            losses, tuned, best, best_epoch = state["losses"], state["tuned"], state["best"] or self._state(), state["best_epoch"]
            ctx.note("resumed_after_epoch", len(losses))
        elif "tune" in ctx.data:
            tuned = [self._tune_loss(0)]
        for epoch in range(len(losses) + 1, options.epochs + 1):
            if options.patience and epoch - 1 - best_epoch >= options.patience:
                break
            losses.append(self._epoch(epoch, optimizer, self._told(losses, tuned)))
            tuned += [self._tune_loss(epoch)] if tuned else []
            if not tuned or tuned[-1] <= min(tuned):
                best, best_epoch = self._state(), epoch
            state = {"losses": losses, "tuned": tuned, "best": None if best_epoch == epoch else best, "best_epoch": best_epoch}
            checkpoint.write(ctx.checkpoints, {**state, "model": self.module.state_dict(), "optimizer": optimizer.state_dict()})
        ctx.progress(1, 1, self._told(losses, tuned))
        self.module.load_state_dict(best)
        self.module.eval()
        ctx.note("loss", self.loss.kind)
        ctx.note("losses", [round(value, 6) for value in losses])
        ctx.note("tune_losses", [round(value, 6) for value in tuned])
        ctx.note("best_epoch", best_epoch)

    def _told(self, losses: list[float], tuned: list[float]) -> str:
        if not losses:
            return "epoch 1"
        return f"epoch {len(losses)}: loss {losses[-1]:.4f}" + (f", tune {tuned[-1]:.4f}" if tuned else "")

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def _optimizer(self, parameters: list[nn.Parameter]) -> Any:
        from torch import optim

        options = self.options
        if options.optimizer == "sgd":
            return optim.SGD(parameters, options.lr, momentum=0.9, weight_decay=options.weight_decay)
        cls = optim.AdamW if options.optimizer == "adamw" else optim.Adam
        return cls(parameters, options.lr, weight_decay=options.weight_decay)

    def _epoch(self, epoch: int, optimizer: Any, told: str) -> float:
        """The mean loss of one pass over the training data. Its random numbers depend on seed and epoch alone."""
        import numpy as np
        import torch
        from torch.nn.modules.batchnorm import _BatchNorm

        options, count = self.options, self.train.count
        numbers = np.random.default_rng((self.ctx.seed, epoch))
        torch.manual_seed(int(np.random.default_rng((self.ctx.seed, epoch, 1)).integers(2**62)))
        alone = (fixed_batch(self.signature) or options.batch) == 1
        self.module.train()
        for layer in self.module.modules():
            if isinstance(layer, _BatchNorm) and alone:
                layer.eval()  # one sample has no statistics worth learning
        masks = self._masks()
        total, learned, seen = 0.0, 0, 0
        for step, (feeds, labels) in enumerate(self.train.batches(options.batch, numbers), start=1):
            self.ctx.progress((epoch - 1) * count + seen, options.epochs * count, told)
            if options.schedule == "cosine":
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1 + seen / count) / options.epochs))
            seen += len(labels)
            if len(labels) == 1 and not alone and step > 1:
                continue
            loss = self._loss_of(self._augmented(feeds, numbers), labels)
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged(f"the training loss is {value} in epoch {epoch}, batch {step}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            if options.clip:
                torch.nn.utils.clip_grad_norm_(self.module.parameters(), options.clip)
            optimizer.step()
            with torch.no_grad():
                for parameter, mask in masks:
                    parameter.mul_(mask)
            total += value * len(labels)
            learned += len(labels)
        if not all(bool(one.isfinite().all()) for one in self.module.parameters()):
            raise self._diverged(f"weights are NaN or infinite after epoch {epoch}")
        self.module.eval()
        return total / learned

    def _masks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Where the weights that were made sparse are not zero."""
        sparse = set(self.record.sparse)
        return [(one, one.detach() != 0) for name, one in self.module.named_parameters() if name in sparse]

    def _tune_loss(self, epoch: int) -> float:
        import torch

        total = count = 0.0
        with torch.no_grad():
            for feeds, labels in self.ctx.data["tune"].batches(max(self.options.batch, 64)):
                total += self._loss_of(feeds, labels).item() * len(labels)
                count += len(labels)
        if not math.isfinite(total):
            if epoch == 0:
                raise StepError(f"the loss on 'tune' is {total} before any training", remedy="look at the model, and at the labels")
            raise self._diverged(f"the loss on 'tune' is {total} after epoch {epoch}")
        return total / count

    def _diverged(self, cause: str) -> StepError:
        return StepError(cause, remedy=f"lower the learning rate (lr is {self.options.lr:g}), set `clip`, or look for broken labels")

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

        if self.step is not None:
            return self._own_loss(feeds, labels)
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self._outputs(self.teacher, feeds, len(labels))
        found = self._outputs(self.module, feeds, len(labels))
        name = self._trained(found)
        if taught and not name:
            return like(found, taught)
        return self.loss(found[name], labels, taught[name] if taught else None)

    def _own_loss(self, feeds: Feeds, labels: list[Any]) -> Tensor:
        """The loss that the user's training step returns."""
        import torch

        function, batch = self.step, {name: torch_format.tensor(array) for name, array in feeds.items()}
        assert function is not None
        name = f"step '{self.options.step}'"
        found = usercode.call(lambda: function(self.module, batch, labels, self.teacher), name)
        if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.dtype.is_floating_point:
            shown = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise UsageError(f"{name} returned {shown}, not one number", remedy="return the loss as a tensor, averaged over the batch")
        if self.module.training and not found.requires_grad:
            raise UsageError(
                f"{name} returned a loss that no weight leads to", remedy="compute it from what model(…) returns, without detach()"
            )
        return found.reshape(())

    def _outputs(self, module: nn.Module, feeds: Feeds, count: int) -> dict[str, Tensor]:
        """The outputs by name, without what only fills a fixed batch."""
        given = [torch_format.tensor(feeds[spec.name]) for spec in self.record.inputs]
        found = torch_format.named(module(*given), self.record.outputs)
        for spec in self.signature.outputs:
            axis = self.signature.batch_axis(spec)
            if axis is not None and found[spec.name].shape[axis] > count:
                found[spec.name] = found[spec.name].narrow(axis, 0, count)
        return found

    def _trained(self, found: Iterable[str]) -> str:
        """The output that is trained; empty where all are, as a teacher gives them."""
        names = list(found)
        name = self.options.output or names[0]
        if name not in names:
            raise UsageError(f"the model has no output '{name}'", remedy=did_you_mean(name, names))
        if len(names) == 1 or self.options.output:
            return name
        if self.loss.kind == "distill-mse":
            return ""
        self.ctx.note("untrained_outputs", names[1:])
        return name

    def _teacher(self, needed: bool) -> nn.Module | None:
        reference = self.ctx.reference
        if reference is None or reference.format != "torch":
            if not needed:
                return None
            raise UsageError(
                "distillation learns from the reference variant, and that is no torch model",
                remedy="let the reference variant have no passes, or choose another loss",
            )
        return torch_format.load(reference.path).requires_grad_(False)


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
