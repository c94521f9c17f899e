"""The search for the fastest mix of INT8, FP16, bf16 and FP32 layers that keeps within a budget of accuracy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Context, Options
from edgeopt.passes.mixed_precision_judge import Budget
from edgeopt.passes.quantize_int8 import QuantizeInt8

if TYPE_CHECKING:
    from edgeopt.passes.mixed_precision_search import Engine
    from edgeopt.passes.quantize_int8_samples import Calibration


class Decided(Options):
    """A mix that was found before."""

    rest: Literal["f32", "bf16", "fp16"] = "f32"
    int8: list[str] = Field(default_factory=list, description="names, operator types or patterns of layers that compute in INT8")
    sums: bool = Field(default=False, description="additions beside those layers read what they read, quantized")


class MixedPrecision(
    QuantizeInt8,
    accepts=("openvino", "onnx"),
    needs=("onnx", "onnxruntime", "openvino", "nncf"),
    data=("calibrate", "tune?"),
    target_fields=("backend", "arch", "int8", "threads", "batch", "scenario", "options"),
    uses=("score", "measure"),
    tolerance_db=0.0,
):
    """Find which layers run in INT8 and how the rest executes, so that the measured latency on the target is lowest within the budget.

    Each layer's noise is found with the quantizers of all others switched off, what it saves in the runtime's
    profile; layers are given up in the order of noise per time saved, as few as the budget allows on the samples
    of `tune` (else of `calibrate`, some held back); the finalists are timed side by side on the target. For
    TensorRT, which nobody can time here, INT8 layers are S8 and the rest float16, as far as the budget allows.
    """

    extra: ClassVar[str] = "openvino"

    budget: Budget = Field(
        default=Budget(score="sqnr", min=25.0), description="what it may cost: {score: top1, max_drop: 0.01}, or {score: sqnr, min: 25}"
    )
    seconds: float = Field(default=90.0, gt=0, description="how long the search may take, calibration apart")
    mix: Decided | None = Field(
        default=None, description="taken without a search, as a report's history tells it under `mix`: {rest: bf16, int8: [conv1, head*]}"
    )

    def doors(self) -> tuple[str, ...]:
        return ("score",) if self.mix else self.uses

    def run(self, model: Artifact, ctx: Context) -> Path:
        from edgeopt.formats.onnx import matching
        from edgeopt.passes.mixed_precision_judge import Judge
        from edgeopt.passes.mixed_precision_search import Search
        from edgeopt.passes.quantize_int8_samples import Calibration

        if self.engine_of(model.format) == "nncf" and model.format == "onnx":
            raise UsageError("mixed-precision mixes onnx models out of onnxruntime's Q/DQ pairs", remedy="leave `engine` out")
        calibration = Calibration(ctx, self.samples, judge=True)
        with closing(self._engine(model, ctx, calibration)) as engine:
            judge = Judge(ctx, self.budget, model.signature, calibration.held, engine.runner(engine.load(), "f32"))
            search = Search(engine, judge, ctx, self.seconds)
            if self.mix:
                kinds = {layer: kind for unit in engine.units for layer, kind in zip(unit.layers, unit.kinds, strict=True)}
                found = search.take(self.mix.rest, matching(self.mix.int8, kinds, "mix"), self.mix.sums)
            else:
                found = search.run()
            if model.format == "openvino":  # float16 stands in an ONNX model itself
                ctx.execute(found.mix.execution)
            for name, value in found.notes(engine, str(self.budget)).items():
                ctx.note(name, value)
            return engine.save(engine.build(found.mix), ctx.folder)

    def _engine(self, model: Artifact, ctx: Context, calibration: Calibration) -> Engine:
        if model.format == "onnx":
            from edgeopt.passes import mixed_precision_onnx

            return mixed_precision_onnx.Engine(model, self, ctx, calibration)
        from edgeopt.passes import mixed_precision_openvino

        return mixed_precision_openvino.Engine(model, self, ctx, calibration)
