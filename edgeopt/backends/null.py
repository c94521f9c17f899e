"""The backend that computes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.protocols import Backend, Context


class Null(Backend):
    """Answers zeros of the model's outputs: walks every stage on a bare machine, and shows what measuring itself costs."""

    formats = ("onnx", "openvino")
    executions = ("f32", "bf16")

    def probe(self) -> str:
        return ""

    def compile(self, model: Artifact, ctx: Context) -> Path:
        """Writes the signature as `null.json`; no framework is needed to make or to open it."""
        signature = model.signature
        batch = signature.batch_symbol

        def row(spec: TensorSpec) -> list[object]:
            # An output's own name for its first axis is the batch under another name.
            open_first = batch is not None and signature.batch_axis(spec) == 0
            return [spec.name, spec.dtype, [batch, *spec.shape[1:]] if open_first else list(spec.shape)]

        record = {"inputs": [row(spec) for spec in signature.inputs], "outputs": [row(spec) for spec in signature.outputs]}
        main = ctx.folder / "null.json"
        main.write_text(json.dumps(record, indent=1) + "\n")
        return main
