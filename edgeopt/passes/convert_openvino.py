"""The conversion of an ONNX model to OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from edgeopt.core import machine, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import openvino as openvino_format
from edgeopt.formats import openvino_masks
from edgeopt.formats.onnx_narrow import narrow

# Another runtime rounds in another way, and a saturated output amplifies that: a text detector's reaches 43 dB on images without
# text. What a wrong conversion gives is far below.
ROUNDING_DB = 25.0


class ConvertOpenvino(
    Pass, accepts=("onnx",), produces="openvino", needs=("openvino", "onnx"), target_fields=("arch",), tolerance_db=ROUNDING_DB
):
    """Convert to OpenVINO's format, with its usual graph clean-up done once and weights kept as they are.

    On x86 without VNNI weights of a model that is quantized already are narrowed where sums of products would leave 16 bits.
    """

    extra: ClassVar[str] = "openvino"

    def here(self, target: Mapping[str, Any]) -> str:
        """Whether this machine lacks VNNI."""
        return machine.lacks_vnni() if target.get("arch") == "x86_64" else ""

    def run(self, model: Artifact, ctx: Context) -> Path:
        with _fitting(model.path, self.here(ctx.target)) as path:
            return openvino_format.save(self._converted(path, model), ctx.folder / openvino_format.MAIN, model.signature)

    def _converted(self, path: Path, model: Artifact) -> Any:
        openvino = registry.need("openvino", "openvino")
        from openvino._offline_transformations import apply_moc_transformations

        try:
            converted = openvino.convert_model(path)
        except Exception as error:  # the converter raises a kind for each of its frontends
            raise StepError(
                f"OpenVINO cannot convert this model: {openvino_format.cause(error)}",
                remedy="leave the OpenVINO targets out, or export differently",
            ) from error
        # Later steps match layers by name, and every call of this makes new ones: it happens here, and only here.
        apply_moc_transformations(converted, cf=True)
        openvino_masks.through_i32(converted)
        for kind, ports in (("inputs", converted.inputs), ("outputs", converted.outputs)):
            wanted = [spec.name for spec in getattr(model.signature, kind)]
            if len(ports) != len(wanted) or any(name not in port.get_names() for name, port in zip(wanted, ports, strict=True)):
                raise StepError(
                    f"OpenVINO gives this model other {kind} than {', '.join(wanted)}",
                    remedy="an output that is an input, unchanged, is a known cause: leave it out of the model",
                )
        return converted


@contextmanager
def _fitting(path: Path, overflows: str) -> Iterator[Path]:
    """The ONNX file, or one with narrower weights where 8 bits overflow."""
    proto = onnx_format.load(path) if overflows and onnx_format.Onnx().rounds(path) else None
    if proto is None or not narrow(proto.graph):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield onnx_format.save(proto, Path(folder) / onnx_format.MAIN)
