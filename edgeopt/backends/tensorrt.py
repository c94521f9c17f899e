"""The backend of TensorRT and of TensorRT for RTX: engines for NVIDIA GPUs, built here or prepared for the device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgeopt.backends import tensorrt_check, tensorrt_profiles
from edgeopt.core import digest, machine
from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.errors import EdgeoptError, MissingError, ResourceError, StepError, UnfitError, UsageError
from edgeopt.core.protocols import Backend, Context, Finding, Options
from edgeopt.core.store import Store

if TYPE_CHECKING:
    from edgeopt.runner import tensorrt_library as library

PLAN, ENGINE, RECORD, VERDICT = "build-plan.json", "engine.plan", "build.json", "check.json"
_KINDS: dict[str, type[EdgeoptError]] = {"usage": UsageError, "missing": MissingError, "resource": ResourceError}
Size = Annotated[int, Field(gt=0)]


class TensorrtOptions(Options):
    """What a target may ask of TensorRT."""

    product: Literal["tensorrt", "rtx"] = Field(
        default="tensorrt", description="tensorrt: data-centre GPUs and Jetson; rtx: TensorRT for RTX, builds without a GPU"
    )
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] = Field(
        default=(), description="the GPUs the engine is for, as 8.9; rtx builds for all of them at once"
    )
    profiles: dict[str, Size | tuple[Size, Size, Size]] = Field(
        default_factory=dict, description="axis name → its one size, or [min, opt, max]; the batch axis has 1 to the target's batch"
    )
    workspace_mb: Size | None = Field(default=None, description="most memory that layers may use for scratch; unlimited without it")
    builder_level: Annotated[int, Field(ge=0, le=5)] | None = Field(default=None, description="0 to 5: how hard the builder searches")
    build_limit_s: Size = Field(default=3600, description="a build that takes longer is stopped and fails")
    tf32: bool = Field(default=False, description="round the operands of FP32 layers to TF32, 10 bits of mantissa")
    version_compatible: bool = Field(default=False, description="the engine also runs on other versions of TensorRT (not rtx)")
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        default="none", description="other GPUs that the engine also runs on (not rtx)"
    )
    cuda_graph: bool = Field(default=True, description="launch an inference as one CUDA graph")
    spin_wait: bool = Field(default=True, description="wait for results by polling: lower latency, one busy core")

    @model_validator(mode="after")
    def _fits_product(self) -> TensorrtOptions:
        if self.product == "rtx" and not self.compute_capabilities:
            raise ValueError("product rtx needs compute_capabilities, as [8.9] in quotes")
        if self.product == "rtx" and (self.version_compatible or self.hardware_compatibility != "none"):
            raise ValueError(
                "version_compatible and hardware_compatibility are for product tensorrt; rtx takes several compute_capabilities"
            )
        for axis, sizes in self.profiles.items():
            if not isinstance(sizes, int) and list(sizes) != sorted(sizes):
                raise ValueError(f"profiles: {axis}: {list(sizes)} is not min ≤ opt ≤ max")
        return self


class Tensorrt(Backend):
    """TensorRT 10, 11 and TensorRT for RTX: strongly typed engines; precision comes from the model's casts and Q/DQ pairs alone.

    With `compile_on: device` it writes what `python -m edgeopt.runner build` compiles there.
    """

    formats = ("onnx",)
    extra = "tensorrt-rtx"
    needs = ("tensorrt_rtx", "tensorrt")
    target_fields = ("arch", "batch", "compile_on", "int8")
    executions = ("f32",)
    Options = TensorrtOptions

    def probe(self) -> str:
        from edgeopt.runner import tensorrt_library as library

        reasons = [library.why_not_run(product) for product in library.PACKAGES]
        if "" in reasons:
            return ""
        able = [product for product in library.PACKAGES if not library.why_not_build(product)]
        return (
            f"builds for {library.TITLES[able[0]]} and cannot run: {library.why_not_run(able[0])}"
            if able
            else "; ".join(dict.fromkeys(reasons))
        )

    def can_build(self, target: Mapping[str, Any]) -> str:
        from edgeopt.runner import tensorrt_library as library

        if target.get("compile_on") == "device":
            return ""
        options = _options(target)
        if reason := library.why_not_build(options.product):
            return reason  # TensorRT builds for the GPU it finds, RTX for those it is told
        bound = options.product == "tensorrt" and options.hardware_compatibility != "ampere_plus"
        return _other_gpu(options, library.look(options.product)) if bound else ""

    def can_measure(self, target: Mapping[str, Any]) -> str:
        from edgeopt.runner import tensorrt_library as library

        if target.get("compile_on") == "device":
            return "it is compiled on the device: python -m edgeopt.runner build BUNDLE"
        options = _options(target)
        return library.why_not_run(options.product) or _other_gpu(options, library.look(options.product))

    def on_gpu(self, target: Mapping[str, Any]) -> bool:
        return True

    def here(self, target: Mapping[str, Any]) -> str:
        """TensorRT builds for the GPU and the driver that it finds."""
        bound = target.get("compile_on") != "device" and _options(target).product == "tensorrt"
        return "; ".join(f"{name}: {value}" for name, value in machine.gpus().items()) if bound else ""

    def refuses(self, execution: Mapping[str, str]) -> str:
        asked = execution.get("float", "f32")
        return "" if asked == "f32" else f"TensorRT takes precision from the model: use cast-fp16 instead of execute-{asked}"

    def check(self, path: Path, target: Mapping[str, Any]) -> list[Finding]:
        return tensorrt_check.check(path, {**target, "options": _options(target).model_dump()})

    def compile(self, model: Artifact, ctx: Context) -> Path:
        """An engine with its build record, or for a device the ONNX with its build plan; the checker's verdict beside either."""
        target, options = ctx.target, _options(ctx.target)
        if reason := self.can_build(target):
            raise MissingError(reason)
        if target.get("int8", "s8s8") != "s8s8":
            raise UsageError(f"TensorRT runs symmetric INT8, not {target['int8']}", remedy="give the target `int8: s8s8`")
        verdict = self.check(model.path, target)
        _refuse(verdict)
        (ctx.folder / VERDICT).write_text(json.dumps([vars(one) for one in verdict], indent=1) + "\n")
        ctx.note("findings", [f"{one.layer}: {one.node}: {one.cause}" for one in verdict])
        plan = build_plan(model, int(target.get("batch", 1)), options)
        if target.get("compile_on") == "device":
            shutil.copytree(model.files, ctx.folder, dirs_exist_ok=True)
            (ctx.folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n")
            return ctx.folder / model.main
        return _build(model, plan, options, ctx)


def _options(target: Mapping[str, Any]) -> TensorrtOptions:
    return TensorrtOptions.model_validate(dict(target.get("options", {})))


def _other_gpu(options: TensorrtOptions, here: library.Finding) -> str:
    """Why the GPU here is none that the target is for, or an empty string."""
    wanted, found = options.compute_capabilities, here.gpus[0]["compute_capability"]
    return "" if not wanted or found in wanted else f"the GPU here is {found}, the target is {' or '.join(wanted)}"


def build_plan(model: Artifact, batch: int, options: TensorrtOptions) -> dict[str, Any]:
    """All that a build needs besides the ONNX, as plain values."""

    def ports(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
        return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]

    return {
        "edgeopt_engine": 1,
        "product": options.product,
        "model": model.main,
        "files": {
            path.relative_to(model.files).as_posix(): digest.of_file(path) for path in sorted(model.files.rglob("*")) if path.is_file()
        },
        "options": options.model_dump(mode="json", exclude={"product", "profiles"}),
        "profile": tensorrt_profiles.shapes(model.signature, tensorrt_profiles.ranges(model.signature, batch, options.profiles)),
        "inputs": ports(model.signature.inputs),
        "outputs": ports(model.signature.outputs),
    }


def _refuse(verdict: list[Finding]) -> None:
    """A model with an error never reaches the builder: what would run wrongly might well build."""
    wrong = [one for one in verdict if one.level == "error"]
    if wrong:
        first, others = wrong[0], len(wrong) - 1
        more = f" (and {others} more error{'s' if others > 1 else ''})" if others else ""
        kind = UnfitError if all(one.unfit for one in wrong) else StepError
        raise kind(f"'{first.node}': {first.cause}{more} [checker, layer {first.layer}]", remedy=first.remedy)


def _build(model: Artifact, plan: dict[str, Any], options: TensorrtOptions, ctx: Context) -> Path:
    from edgeopt.runner import Problem, tensorrt_engine
    from edgeopt.runner import tensorrt_library as library
    from edgeopt.runner.build import driver

    found = library.look(options.product)
    gpu = found.gpus[0] if found.gpus else None
    main = ctx.folder / ENGINE
    cache = Store().path("timings", digest.of_value([options.product, found.version, gpu])) / "tensorrt.timing" if gpu else None
    request = {**plan, "do": "build", "model": str(model.path), "engine": str(main), "timing_cache": str(cache) if cache else None}
    try:
        made = tensorrt_engine.ask(request, options.build_limit_s)
    except Problem as problem:
        raise _KINDS.get(problem.kind, StepError)(f"{problem.cause} [checker, layer C]", remedy=problem.remedy) from problem
    record = {**plan, **made, "engine": ENGINE, "gpu": gpu, **driver(found), "compute_capabilities": _built_for(options, gpu)}
    (ctx.folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    for name in ("version", "seconds", "size_bytes", "warnings"):
        ctx.note(f"engine_{name}" if name != "warnings" else name, made[name])
    return main


def _built_for(options: TensorrtOptions, gpu: dict[str, Any] | None) -> list[str]:
    """RTX builds for the GPUs asked for, TensorRT for the one it finds."""
    return list(options.compute_capabilities) if options.product == "rtx" else [gpu["compute_capability"]] if gpu else []
