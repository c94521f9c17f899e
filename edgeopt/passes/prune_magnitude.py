"""Unstructured pruning: the smallest weights become zeros, one by one; the model keeps its shape."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import torch as torch_format
from edgeopt.passes.prune_magnitude_weights import matrices, note_zeros


class PruneMagnitude(Pass, accepts="torch", produces="torch", needs=("torch",), changes_function=True):
    """Set the smallest weights of convolutions, linear, recurrent and attention layers to zero (Han et al., arXiv:1506.02626).

    For packing and for research: single zeros give no speed on any CPU runtime, nor in TensorRT, and the file stays
    as large until something packs it. For speed take prune-channels, on NVIDIA GPUs prune-2-4. Fine-tune
    afterwards: fine-tune and train-int8 keep the zeros.
    """

    extra: ClassVar[str] = "torch"

    sparsity: float = Field(default=0.5, gt=0, lt=1, description="share of the weights that become zeros")
    scope: Literal["layer", "model"] = Field(default="layer", description="the share is that of every layer, or of the model as a whole")
    keep: list[str] = Field(default_factory=list, description="names or patterns of layers that keep their weights: head, blocks.0.*")

    def run(self, model: Artifact, ctx: Context) -> Path:
        torch = registry.need("torch", "torch")
        from torch.nn.utils.prune import L1Unstructured

        module = torch_format.load(model.path)
        found = matrices(module, self.keep)
        if not found:
            raise StepError("the model has no weights to set to zero, or all are kept", remedy="leave prune-magnitude out")
        groups = [list(found)] if self.scope == "model" else [[name] for name in found]
        with torch.no_grad():
            for names in groups:
                flat = torch.cat([found[name].flatten() for name in names])
                mask = L1Unstructured(self.sparsity).compute_mask(flat, torch.ones_like(flat))  # type: ignore[no-untyped-call]
                for name, part in zip(names, mask.split([found[name].numel() for name in names]), strict=True):
                    found[name].mul_(part.view_as(found[name]))
        note_zeros(found, ctx)
        ctx.note("warning", "single zeros give no speed on any runtime here, and a smaller file only once it is packed")
        return torch_format.save(module, ctx.folder, model.path, sparse=found)
