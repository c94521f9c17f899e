"""The backend of OpenVINO on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import MissingError, StepError
from edgeopt.core.protocols import Backend, Context


class Openvino(Backend):
    """OpenVINO's CPU plugin: takes its own format or ONNX, and compiles for the CPU each time it is opened.

    Quantized layers execute in 8 bit; the float rest as f32, or as bf16 where the CPU has it and `execute-bf16` asks for it.
    """

    formats = ("openvino", "onnx")
    extra = "openvino"
    needs = ("openvino",)
    executions = ("f32", "bf16")

    def probe(self) -> str:
        spec = find_spec("openvino")
        return "" if spec and spec.origin else "openvino is not installed: pip install 'edgeopt[openvino]'"

    def refuses(self, execution: Mapping[str, str]) -> str:
        if execution.get("float") == "bf16" and not set(machine.BF16_FLAGS).intersection(machine.fingerprint()["isa"]):
            return f"this CPU has neither {' nor '.join(machine.BF16_FLAGS)}: leave execute-bf16 out, or measure on a CPU that has one"
        return super().refuses(execution)

    def compile(self, model: Artifact, ctx: Context) -> Path:
        """Writes OpenVINO's format with weights as they are, and compiles it once: what OpenVINO cannot run fails here."""
        if reason := self.probe():
            raise MissingError(reason)
        from edgeopt.formats import openvino as openvino_format
        from edgeopt.runner import Problem
        from edgeopt.runner import openvino as runtime

        try:
            if model.format == "onnx":
                main = openvino_format.save(runtime.read(model.path), ctx.folder / openvino_format.MAIN, model.signature)
            else:
                shutil.copytree(model.files, ctx.folder, dirs_exist_ok=True)
                main = ctx.folder / model.main
            runtime.open(main, threads=machine.threads(), requests=1, options={}, execution=model.execution).close()
        except Problem as problem:
            raise StepError(problem.cause, remedy=problem.remedy) from problem
        return main
