"""Weight-only quantization: weights stored in 8 or 4 bits, activations in float."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Pass

Method = Literal["rtn", "awq", "scale-estimation", "gptq"]
# What is offered for each format. Of onnxruntime 1.32's other methods, hqq, k-quant and gptq gave nothing over rtn on the zoo's
# GPT (within 1 dB) and hqq nothing on MiniLM; k-quant and gptq fail where a layer's inputs make an odd number of groups.
METHODS: dict[str, tuple[str, ...]] = {"openvino": ("rtn", "awq", "scale-estimation", "gptq"), "onnx": ("rtn",)}
_BY_DATA = ("awq", "scale-estimation", "gptq")
# Who runs the operator MatMulNBits, which ONNX does not define; null runs nothing.
_NBITS_BACKENDS = ("onnxruntime", "null")


class QuantizeWeights(
    Pass,
    accepts=("openvino", "onnx"),
    needs=("onnx", "onnxruntime", "openvino", "nncf"),
    data=("calibrate?",),
    target_fields=("backend",),
    tolerance_db=3.0,
):
    """Store the weights of matrix products and embeddings in 8 or 4 bits; activations stay float, and so does the arithmetic.

    For transformers, whose weights are what fills memory: 8 bits make a file of about a quarter. Expect size,
    not speed: MiniLM at 8 bits is half as fast on onnxruntime; where reading weights takes the time, nothing was measured yet.
    OpenVINO models are quantized by NNCF, ONNX models by onnxruntime, for onnxruntime alone. At 4 bits, embeddings and the
    last layer have 8.
    """

    extra: ClassVar[str] = "openvino"

    bits: Literal[8, 4] = Field(default=8, description="bits of a weight")
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        default=128,
        description="so many weights along a layer's inputs share a scale; OpenVINO: at 4 bits only, and less where it is no divisor",
    )
    symmetric: bool = Field(default=False, description="no zero points: a little less to store, up to 2 dB more error at 4 bits")
    method: Method = Field(
        default="rtn",
        description="how weights are rounded: rtn to the nearest; at 4 bits for OpenVINO also by samples: gptq (2 to 5 dB better), "
        "scale-estimation, awq (without effect on models of BERT's and GPT's kind)",
    )
    samples: int = Field(default=128, ge=1, description="methods by samples: at most so many calibration samples")
    keep: list[str] = Field(default_factory=list, description="names, operator types or patterns of layers that stay float: head*, Gather")

    def splits(self) -> tuple[str, ...]:
        return ("calibrate",) if self.by_data else ()

    @property
    def by_data(self) -> bool:
        """Whether the method looks at samples."""
        return self.method in _BY_DATA

    def run(self, model: Artifact, ctx: Context) -> Path:
        self.check(model.format)
        if model.format == "onnx":
            backend = ctx.target.get("backend", "")
            if backend not in _NBITS_BACKENDS:
                raise StepError(
                    f"{backend} does not run onnxruntime's form of weight-only quantization (MatMulNBits)",
                    remedy="give this target a variant without quantize-weights",
                )
            from edgeopt.passes import quantize_weights_onnx

            return quantize_weights_onnx.quantize(model, self, ctx)
        from edgeopt.passes import quantize_weights_openvino

        return quantize_weights_openvino.quantize(model, self, ctx)

    def check(self, format: str) -> None:
        """Raises UsageError when the engine of a format does not offer the method, or not for so many bits."""
        offered = METHODS[format] if self.bits == 4 else ("rtn",)
        if self.method not in offered:
            raise UsageError(
                f"method '{self.method}' is not offered for {self.bits}-bit weights of {format} models, which this target gets",
                remedy=f"choose {' or '.join(offered)}, or give each target a variant of its own",
            )
