"""Fine-tuning: trains a model for a few epochs on the recipe's own data, to win back what pruning lost."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_loop import Training
from edgeopt.passes.fine_tune_options import TrainingOptions


class FineTune(
    TrainingOptions,
    Pass,
    accepts="torch",
    produces="torch",
    needs=("torch",),
    data=("train", "tune?"),
    uses=("reference",),
    changes_function=True,
):
    """Train the model on the `train` split; with a `tune` split the epoch with the lowest loss there wins, the start included.

    `loss: distill` learns from the reference variant (Hinton et al., arXiv:1503.02531), and from labels where
    there are any. Outputs that are probabilities already (softmax) are recognized. Zeros that prune-magnitude
    or prune-2-4 made stay zeros. A killed run goes on after its last whole epoch, to the same weights.

    `step: file.py:function` names a loss of your own: `function(model, batch, labels, teacher)` returns one
    number as a tensor, which edgeopt differentiates. `model` is the torch module being trained (in evaluation
    mode and without gradients when `tune` is looked at); `batch` maps input names to tensors; `labels` is a list,
    shorter than the batch where a fixed batch is padded; `teacher` is the reference's module, or None where the
    reference is no torch model.
    """

    extra: ClassVar[str] = "torch"

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("torch", "torch")
        module = torch_format.load(model.path)
        Training(self, module, model, ctx).run()
        return torch_format.save(module, ctx.folder, model.path)
