"""Pass `quantize-int8`: weights and activations to INT8, in the flavour that the target runs fast and right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Pass, Split, fixed_batch

if TYPE_CHECKING:
    from edgeopt.core.artifact import Artifact

LEAST = 8  # calibration samples without which ranges are guesses


class QuantizeInt8(
    Pass,
    accepts=("openvino", "onnx"),
    needs=("onnx", "onnxruntime", "openvino", "nncf"),
    data=("calibrate",),
    target_fields=("backend", "arch", "int8"),
    tolerance_db=0.0,
):
    """Quantize weights and activations to INT8 as Q/DQ pairs, calibrated on the recipe's data.

    OpenVINO targets get NNCF on the OpenVINO model, with bias correction. ONNX Runtime on x86 gets
    unsigned activations and signed per-channel weights (`u8s8`); targets of `s8s8` (TensorRT) get
    symmetric signed values everywhere and biases in float.
    """

    calibration: Literal["minmax", "entropy", "percentile"] = Field(default="minmax", description="how ranges are found (ONNX targets)")
    samples: int = Field(default=300, ge=LEAST, description="calibration samples used at most")
    per_channel: bool = Field(default=True, description="one scale per output channel of the weights (ONNX targets)")

    def run(self, model: Artifact, ctx: Context) -> Path:
        count = sum(1 for _ in itertools.islice(ctx.data["calibrate"], self.samples))
        if count < LEAST:
            raise UsageError(f"quantize-int8: {count} calibration samples, at least {LEAST} are needed", remedy="give more in data: calibrate")
        ctx.note("samples", count)
        return self._openvino(model, ctx) if model.format == "openvino" else self._onnx(model, ctx)

    def _feeds(self, split: Split, batch: int) -> Iterator[dict[str, Any]]:
        for seen, (feeds, labels) in enumerate(split.batches(batch)):
            if seen * len(labels) >= self.samples:
                return
            yield feeds

    def _openvino(self, model: Artifact, ctx: Context) -> Path:
        nncf = registry.need("nncf", "openvino")
        from edgeopt.formats import openvino as ov_format

        names = [spec.name for spec in model.signature.inputs]
        data = list(self._feeds(ctx.data["calibrate"], 1))
        dataset = nncf.Dataset(data, lambda feeds: {name: feeds[name] for name in names})
        quantized = nncf.quantize(ov_format.load(model.path), dataset, subset_size=len(data), fast_bias_correction=False)
        return ov_format.save(quantized, ctx.folder / ov_format.MAIN, model.signature)

    def _onnx(self, model: Artifact, ctx: Context) -> Path:
        registry.need("onnxruntime", "onnxruntime")
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process

        signed = ctx.target["int8"] == "s8s8"
        ready = ctx.folder.parent / "ready.onnx"
        quant_pre_process(str(model.path), str(ready), skip_symbolic_shape=True)
        feeds = self._feeds(ctx.data["calibrate"], fixed_batch(model.signature) or 1)

        class Reader(q.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Any:
                return next(feeds, None)

        methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
        out = ctx.folder / "model.onnx"
        q.quantize_static(
            str(ready),
            str(out),
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QInt8 if signed else q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=self.per_channel,
            calibrate_method=q.CalibrationMethod[methods[self.calibration]],
            extra_options={"ActivationSymmetric": signed, "WeightSymmetric": True, "QuantizeBias": not signed},
        )
        ready.unlink()
        if not out.is_file():
            raise StepError("quantize-int8: nothing was written", remedy="run simplify before it")
        return out
