"""The mark that a model's float layers execute in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context, Pass


class ExecuteBf16(Pass, accepts=("onnx", "openvino"), sets_execution="bf16"):
    """Let the runtime execute what is float in bfloat16, where the CPU has it: no weight changes, the files stay as they are."""

    def run(self, model: Artifact, ctx: Context) -> Path:
        shutil.copytree(model.files, ctx.folder, dirs_exist_ok=True)
        return ctx.folder / model.main
