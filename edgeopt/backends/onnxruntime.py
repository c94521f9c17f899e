"""The backend of ONNX Runtime, on the CPU or through its providers for NVIDIA GPUs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import MissingError, StepError
from edgeopt.core.protocols import Backend, Context, Options
from edgeopt.formats import onnx as onnx_format


class OnnxruntimeOptions(Options):
    """What a target may ask of onnxruntime."""

    graph_optimization: Literal["all", "extended", "basic", "off"] = Field(
        default="all", description="how far the graph is rewritten when it is opened"
    )
    provider: Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"] = Field(
        default="cpu", description="what executes the nodes; a node on the way of the data that falls back to the CPU fails the row"
    )


class Onnxruntime(Backend):
    """ONNX Runtime: takes ONNX as it is and rewrites the graph each time it is opened.

    Q/DQ pairs execute as 8-bit kernels, the float rest as f32; FP16 models run, through casts to f32. For x86,
    S8 activations become U8 of the same scale, unless the target says `int8: s8s8`. With `provider: cuda`, `tensorrt` or
    `tensorrt-rtx` the nodes run on the GPU, where that is what is installed.
    """

    formats = ("onnx",)
    extra = "onnxruntime"
    needs = ("onnxruntime", "onnx")
    target_fields = ("arch", "int8")
    executions = ("f32",)
    Options = OnnxruntimeOptions

    def probe(self) -> str:
        spec = find_spec("onnxruntime")
        return "" if spec and spec.origin else "onnxruntime is not installed: pip install 'edgeopt[onnxruntime]'"

    def can_build(self, target: Mapping[str, Any]) -> str:
        return self.can_measure(target)

    def can_measure(self, target: Mapping[str, Any]) -> str:
        provider = _provider(target)
        if (reason := self.probe()) or provider == "cpu":
            return reason
        from edgeopt.runner import onnxruntime as runtime
        from edgeopt.runner import tensorrt_library

        return tensorrt_library.look("tensorrt").gpu or runtime.why_not(provider)

    def contradiction(self, target: Mapping[str, Any]) -> str:
        """A pass sees `int8` and no options: where the former lets U8 pass, TensorRT would load it and compute at half range."""
        provider = _provider(target)
        if provider == "cpu" or target.get("int8") == "s8s8":
            return ""
        return f"provider {provider} takes INT8 as symmetric S8 only, and this target says int8: {target.get('int8')} → write `int8: s8s8`"

    def on_gpu(self, target: Mapping[str, Any]) -> bool:
        return _provider(target) != "cpu"

    def here(self, target: Mapping[str, Any]) -> str:
        return machine.lacks_vnni() if _retypes(target) else ""

    def refuses(self, execution: Mapping[str, str]) -> str:
        asked = execution.get("float", "f32")
        if asked in self.executions:
            return ""
        remedy = f"give the variant to an OpenVINO target, or leave execute-{asked} out"
        return f"onnxruntime executes floats as f32 on the CPU, not {asked}: {remedy}"

    def compile(self, model: Artifact, ctx: Context) -> Path:
        """Copies, never hard links: onnx refuses external data with several links, here and in the store."""
        if reason := self.can_build(ctx.target):
            raise MissingError(reason)
        from edgeopt.runner import Problem
        from edgeopt.runner import onnxruntime as runtime

        shutil.copytree(model.files, ctx.folder, dirs_exist_ok=True)
        main = ctx.folder / model.main
        if _retypes(ctx.target) and _provider(ctx.target) == "cpu":
            _retype(main, bool(self.here(ctx.target)))
        options = ctx.target.get("options", {})
        try:
            runtime.open(main, threads=machine.threads(), requests=1, options=options, execution=model.execution).close()
        except Problem as problem:
            raise StepError(problem.cause, remedy=problem.remedy) from problem
        return main


def _provider(target: Mapping[str, Any]) -> str:
    return str(target.get("options", {}).get("provider", "cpu"))


def _retypes(target: Mapping[str, Any]) -> bool:
    """Whether S8 activations become U8 for a target; those of providers on GPUs say `int8: s8s8`."""
    return target.get("arch") == "x86_64" and target.get("int8") != "s8s8"


def _retype(main: Path, overflows: bool) -> None:
    """Rewrite the model where it has S8 activations; other models stay as they are, to the byte."""
    from edgeopt.backends.onnxruntime_u8 import retype, round_biases
    from edgeopt.formats.onnx_narrow import narrow

    if retype(onnx_format.load(main, weights=False).graph):
        proto = onnx_format.load(main)
        retype(proto.graph)
        if overflows:
            narrow(proto.graph)
        round_biases(proto.graph)
        main.with_name(onnx_format.WEIGHTS).unlink(missing_ok=True)
        onnx_format.save(proto, main)
