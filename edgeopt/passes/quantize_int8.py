"""Post-training quantization to INT8, by the engine and in the flavour that the target runs fast and right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Context, Pass
from edgeopt.passes.quantize_int8_samples import FEWEST

Range = Literal["auto", "minmax", "mean-minmax", "percentile", "entropy", "mse"]


class QuantizeInt8(
    Pass,
    accepts=("openvino", "onnx"),
    needs=("onnx", "onnxruntime", "openvino", "nncf"),
    data=("calibrate", "tune?"),
    target_fields=("backend", "arch", "int8"),
    tolerance_db=3.0,
):
    """Quantize weights and activations to INT8, with ranges found on the recipe's calibration samples.

    OpenVINO models are quantized by NNCF, ONNX models as Q/DQ pairs by onnxruntime, or by NNCF where `engine`
    asks for it; torch models by nvidia-modelopt, as `train-int8: {epochs: 0}`. Whichever it is, a target gets the
    flavour that it reads right. What stands at `auto` is chosen by SQNR on samples that set no range: those of
    `tune`, or some of `calibrate` held back.
    """

    extra: ClassVar[str] = "openvino"

    engine: Literal["auto", "onnxruntime", "nncf"] = Field(
        default="auto", description="which library quantizes; auto: nncf OpenVINO models, onnxruntime ONNX models"
    )
    calibration: Range = Field(
        default="auto",
        description="ranges from extremes, their means, or cut: percentile, entropy (onnxruntime), mse (least squared error)",
    )
    bias_correction: Literal["auto", "full", "fast", "none"] = Field(
        default="auto",
        description="biases make up for what rounding does to means, layer by layer (full; OpenVINO models) or each alone (nncf)",
    )
    smooth: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="SmoothQuant's alpha, the share of the outliers that moves from activations into weights; 0: none (nncf)",
    )
    per_channel: bool = Field(default=True, description="a scale for each output channel of a weight, instead of one for all")
    samples: int = Field(default=300, ge=FEWEST, description="at most so many calibration samples set ranges")
    keep: list[str] = Field(default_factory=list, description="names, operator types or patterns of layers that stay float: head*, Softmax")
    model_type: Literal["auto", "plain", "transformer"] = Field(
        default="auto",
        description="transformer: only what multiplies by weights (onnxruntime); asymmetric activations, smoothed attention (nncf)",
    )
    activations: Literal["auto", "static", "dynamic"] = Field(
        default="auto",
        description="static: ranges from calibration; dynamic: found at each call, by onnxruntime on CPUs; auto: dynamic for LSTM, "
        "and for transformers where it is the better one",
    )
    reduce_range: Literal["auto"] | bool = Field(
        default="auto", description="smaller weights, against overflow on x86 without VNNI; auto: where this machine is one"
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _of_torch(cls, engine: Any) -> Any:
        if engine == "modelopt":
            raise ValueError("modelopt quantizes torch models, and these are exported already → write `train-int8: {epochs: 0}` instead")
        return engine

    def run(self, model: Artifact, ctx: Context) -> Path:
        engine = self.engine_of(model.format)
        if model.format == "openvino":
            from edgeopt.passes import quantize_int8_openvino

            return quantize_int8_openvino.quantize(model, self, ctx)
        if engine == "nncf":
            from edgeopt.passes import quantize_int8_nncf_onnx

            return quantize_int8_nncf_onnx.quantize(model, self, ctx)
        from edgeopt.passes import quantize_int8_onnx

        return quantize_int8_onnx.quantize(model, self, ctx)

    def engine_of(self, format: str) -> str:
        """Which library quantizes a model of a format. Raises UsageError when it does not offer what is asked for."""
        engine = self.engine if self.engine != "auto" else "nncf" if format == "openvino" else "onnxruntime"
        apart = "give each target a variant of its own"
        if engine == "onnxruntime" and format == "openvino":
            raise UsageError("onnxruntime quantizes no openvino models, which this target gets", remedy=f"leave `engine` out, or {apart}")
        offered = ("auto", "minmax", "mean-minmax", "percentile", *(["entropy"] if engine == "onnxruntime" else []), "mse")
        if self.calibration not in offered:
            raise UsageError(
                f"calibration '{self.calibration}' is not offered for {format} models by {engine}, and this target gets one",
                remedy=f"choose one of {', '.join(offered)}, or {apart}",
            )
        for name in ("bias_correction", "smooth") if engine == "onnxruntime" else ():
            if getattr(self, name) != "auto":
                raise UsageError(
                    f"{name} is not offered for {format} models by {engine}, and this target gets one",
                    remedy=f"leave it out, say `engine: nncf`, or {apart}",
                )
        if self.activations == "dynamic" and engine == "nncf":
            raise UsageError(
                "activations: dynamic is not offered by nncf, which quantizes for this target", remedy=f"leave it out, or {apart}"
            )
        if self.bias_correction == "full" and format == "onnx":
            raise UsageError(
                "full bias correction is not offered for onnx models, and this target gets one", remedy=f"say fast, or {apart}"
            )
        return engine

    @property
    def searches(self) -> bool:
        """Whether something is chosen by looking at samples that set no range."""
        return "auto" in (self.calibration, self.model_type)

    def reduced(self, target: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether weights are kept small, and why: x86 without VNNI adds up products of U8 and S8 in 16 bits."""
        if self.reduce_range != "auto":
            return self.reduce_range, ""
        return (why := self.here(target)) != "", why

    def here(self, target: Mapping[str, Any]) -> str:
        """Whether this machine lacks VNNI, where that matters."""
        from edgeopt.passes.quantize_int8_onnx import flavour_of

        rounds_to_u8 = target.get("backend") == "openvino" or flavour_of(target) == "u8s8"
        if self.reduce_range != "auto" or target.get("arch") != "x86_64" or not rounds_to_u8:
            return ""
        return machine.lacks_vnni()
