"""Quantization-aware training: the model learns with INT8 rounding in it, and is exported with the ranges it learned with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune_loop import Training
from edgeopt.passes.fine_tune_options import TrainingOptions
from edgeopt.passes.quantize_int8_samples import FEWEST

if TYPE_CHECKING:
    pass


class TrainInt8(
    TrainingOptions,
    Pass,
    accepts="torch",
    produces="onnx",
    needs=("torch", "nvidia-modelopt", "onnx", "onnxruntime"),
    data=("train", "tune?", "calibrate"),
    uses=("reference",),
    changes_function=True,
):
    """Train a torch model with INT8 rounding simulated by nvidia-modelopt, and export it to ONNX with Q/DQ pairs.

    Convolutions and linear layers get symmetric ranges: one for their inputs, found on `calibrate`, and one for
    each output channel of their weights; then the weights learn on `train` like in fine-tune, whose options these
    are (Jacob et al., arXiv:1712.05877). `epochs: 0` only calibrates. Recurrent layers and attention stay float.
    The result is S8 with float biases, which every backend here takes: one training serves all targets.
    """

    extra: ClassVar[str] = "modelopt"

    epochs: int = Field(default=3, ge=0, description="0 finds ranges and trains nothing")
    lr: float = Field(default=1e-4, gt=0, description="learning rate at the start")
    samples: int = Field(default=256, ge=FEWEST, description="at most so many calibration samples set ranges")
    keep: list[str] = Field(default_factory=list, description="names or patterns of layers that stay float: head, blocks.0.*")

    def splits(self) -> tuple[str, ...]:
        return self.data if self.epochs else ("calibrate",)

    def doors(self) -> tuple[str, ...]:
        return self.uses if self.epochs else ()

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("modelopt.torch.quantization", "modelopt")
        from edgeopt.passes.train_int8_export import exported
        from edgeopt.passes.train_int8_layers import calibrated, slow_attention

        module = torch_format.load(model.path)
        with slow_attention():
            calibrated(module, self, model, ctx)
            if self.epochs:
                Training(self, module, model, ctx).run()
            proto = exported(module, self, model, ctx)
        return onnx_format.save(proto, ctx.folder / onnx_format.MAIN)
