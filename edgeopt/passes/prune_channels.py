"""Structured pruning: whole channels are taken out, so that every runtime gets a smaller dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.prune_channels_rounds import Rounds

Share = Annotated[float, Field(gt=0, lt=1)]
GOALS = ("macs", "ratio", "ratios", "latency")


class PruneChannels(
    Pass,
    accepts="torch",
    produces="torch",
    needs=("torch", "torch-pruning"),
    data=("train?", "tune?", "calibrate?"),
    uses=("reference", "machine"),
    changes_function=True,
):
    """Remove the least important channels until one goal is met: MACs, shares of channels, or latency (default: macs 0.5).

    Layers whose channels are tied (by sums, depthwise convolutions, normalizations) shrink together
    (Fang et al., DepGraph, arXiv:2301.12900), all evenly; the outputs keep their size. MACs are those of
    convolutions, linear and recurrent layers and attention's projections. What cannot be pruned is left alone,
    and noted with the reason. Fine-tune afterwards.

    `latency` prunes to a share of the MACs at which the model, exported to ONNX, takes at most that share of its
    time in onnxruntime on this machine, batch 1, both timed in turns.

    `importance: taylor` ranks channels by weight × gradient (Molchanov et al., arXiv:1906.10771) on up to 256 samples
    of `train`, or of `calibrate` where there is no `train`; where no label fits the output, by what moves outputs most.
    With `steps` above 1 the model is fine-tuned on `train` after each step but the last; a killed run goes on there.
    """

    extra: ClassVar[str] = "torch"

    macs: Share | None = Field(default=None, description="share of the MACs to keep: 0.4 leaves at most 40 %")
    ratio: Share | None = Field(default=None, description="share of its channels that every layer loses")
    ratios: dict[str, Share] | None = Field(
        default=None, min_length=1, description="the same by name or pattern, the others keep all: {blocks.*.conv1: 0.5}"
    )
    latency: Share | None = Field(
        default=None, description="share of the unpruned model's latency to keep: 0.6 takes at most 60 % of its time"
    )
    importance: Literal["magnitude", "taylor", "bn-scale"] = Field(
        default="magnitude", description="ranks channels by their weights, by weight × gradient, or by their batch-norm scales"
    )
    steps: int = Field(default=1, ge=1, le=20, description="prune in so many steps, fine-tuned between them")
    fine_tune: TrainingOptions | None = Field(
        default=None, description="between steps: options of fine-tune; one epoch where none are given"
    )
    round_to: int = Field(default=8, ge=1, le=256, description="channel counts become multiples of this, which runtimes like")
    keep: list[str] = Field(default_factory=list, description="names or patterns of layers whose channels all stay: head, blocks.0.*")

    @model_validator(mode="after")
    def _one_goal(self) -> PruneChannels:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"`{given[0]}` and `{given[1]}` are both goals → keep one of them")
        if self.fine_tune is not None and self.steps == 1:
            raise ValueError("`fine_tune` is for between steps, and there is one → set `steps`, or put fine-tune after the pass")
        return self

    def splits(self) -> tuple[str, ...]:
        found = ("train", "tune?") if self.steps > 1 else ()
        return (*found, "train?", "calibrate?") if self.importance == "taylor" and not found else found

    def doors(self) -> tuple[str, ...]:
        return (*(("reference",) if self.steps > 1 else ()), *(("machine",) if self.latency is not None else ()))

    def user_files(self, base: Path) -> list[Path]:
        return self.fine_tune.user_files(base) if self.fine_tune else []

    def packages(self, base: Path) -> list[str]:
        extra = ["onnx", "onnxruntime"] if self.latency is not None else []
        return [*extra, *(self.fine_tune.packages(base) if self.fine_tune else [])]

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("torch_pruning", "torch")
        rounds = Rounds(self, model, ctx)
        pruned = rounds.run()
        return torch_format.save(pruned, ctx.folder, model.path)
