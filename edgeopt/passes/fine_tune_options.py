"""The options of every pass that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edgeopt.core import usercode
from edgeopt.core.protocols import Options


class TrainingOptions(Options):
    """How a model is trained: what for, on what, how long."""

    epochs: int = Field(default=5, ge=1)
    lr: float = Field(default=1e-3, gt=0, description="learning rate at the start")
    batch: int = Field(default=64, ge=1, description="samples per training step")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="sgd has momentum 0.9")
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="cosine falls to 0 over all steps")
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradients of one step")
    loss: Literal["auto", "cross-entropy", "mse", "distill", "distill-mse"] = Field(
        default="auto",
        description="auto: cross-entropy for whole labels, mse for others, distill without; distill-mse is for outputs that are no "
        "classes, and for several at once",
    )
    temperature: float = Field(default=4.0, gt=0, description="distill: how far outputs are softened")
    label_weight: float = Field(default=0.5, ge=0, le=1, description="distill: share of the loss on labels, where there are any")
    step: str | None = Field(
        default=None, description="instead of `loss`: file.py:function that takes (model, batch, labels, teacher) and returns the loss"
    )
    output: str | None = Field(default=None, description="the output that is trained; otherwise the first, or all with distill-mse")
    augment: str | None = Field(
        default=None, description="file.py:function that takes (batch by input name, numpy Generator) and returns another batch"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a lower loss on `tune`")

    @model_validator(mode="after")
    def _one_loss(self) -> TrainingOptions:
        given = [name for name in ("loss", "output") if name in self.model_fields_set and getattr(self, name) not in ("auto", None)]
        if self.step and given:
            raise ValueError(f"`step` computes the loss by itself, and `{given[0]}` says another → remove one of the two")
        return self

    def user_files(self, base: Path) -> list[Path]:
        """The code of `augment` and `step`."""
        return [file for one in self._code for file in usercode.files(one, base)]

    def packages(self, base: Path) -> list[str]:
        """What that code imports."""
        return sorted({name for one in self._code for name in usercode.packages(one, base)})

    @property
    def _code(self) -> list[str]:
        return [one for one in (self.augment, self.step) if one]
