"""The conversion of an ONNX model to OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import openvino as openvino_format

# Another runtime rounds in another way, and a saturated output amplifies that: a text detector's reaches 43 dB on images without
# text. What a wrong conversion gives is far below.
ROUNDING_DB = 25.0


class ConvertOpenvino(Pass, accepts=("onnx",), produces="openvino", needs=("openvino",), tolerance_db=ROUNDING_DB):
    """Convert to OpenVINO's format, with its usual graph clean-up done once and weights kept as they are."""

    extra: ClassVar[str] = "openvino"

    def run(self, model: Artifact, ctx: Context) -> Path:
        openvino = registry.need("openvino", "openvino")
        from openvino._offline_transformations import apply_moc_transformations

        try:
            converted = openvino.convert_model(model.path)
        except Exception as error:  # the converter raises a kind for each of its frontends
            raise StepError(
                f"OpenVINO cannot convert this model: {openvino_format.cause(error)}",
                remedy="leave the OpenVINO targets out, or export differently",
            ) from error
        # Later steps match layers by name, and every call of this makes new ones: it happens here, and only here.
        apply_moc_transformations(converted, cf=True)
        for kind, ports in (("inputs", converted.inputs), ("outputs", converted.outputs)):
            wanted = [spec.name for spec in getattr(model.signature, kind)]
            if len(ports) != len(wanted) or any(name not in port.get_names() for name, port in zip(wanted, ports, strict=True)):
                raise StepError(
                    f"OpenVINO gives this model other {kind} than {', '.join(wanted)}",
                    remedy="an output that is an input, unchanged, is a known cause: leave it out of the model",
                )
        return openvino_format.save(converted, ctx.folder / openvino_format.MAIN, model.signature)
