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
        inputs, batch = model.signature.inputs, model.signature.batch_symbol
        sizes = {axis for spec in inputs for axis in spec.shape}

        def row(spec: TensorSpec) -> list[object]:
            shape = list(spec.shape)
            if batch is not None and shape and isinstance(shape[0], str) and shape[0] not in sizes:
                shape[0] = batch  # an output's own name for its first axis
            return [spec.name, spec.dtype, shape]

        record = {"inputs": [row(spec) for spec in inputs], "outputs": [row(spec) for spec in model.signature.outputs]}
        main = ctx.folder / "null.json"
        main.write_text(json.dumps(record, indent=1) + "\n")
        return main
