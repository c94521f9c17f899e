"""A target: a kind of machine, as data."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from edgeopt.core import machine, registry
from edgeopt.core.checks import problems_of
from edgeopt.core.errors import Place, RecipeErrors, UsageError, did_you_mean
from edgeopt.core.places import Document, read_yaml
from edgeopt.core.protocols import Backend, Options

Need = Literal["measured", "built", "bundled"]
Scenario = Literal["latency", "throughput", "mlperf-singlestream", "mlperf-offline"]
UNDER_LOAD = ("throughput", "mlperf-offline")  # scenarios in which what counts is how much is done at once


class Target(Options):
    """A kind of machine: which runtime, how many threads, which scenario, which INT8 flavour is right."""

    edgeopt_target: Literal[1] = Field(default=1, description="version of this file format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="short name, used in reports and file names")
    backend: str = Field(description="onnxruntime, openvino, tensorrt, null, or one of an installed package")
    arch: str = Field(default="x86_64", description="processor or GPU architecture")
    compile_on: Literal["host", "device"] = "host"
    threads: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(default="auto", description="auto: what the CPU quota allows")
    batch: int = Field(default=1, gt=0, description="samples per inference")
    scenario: Scenario = Field(default="latency", description="mlperf-…: the same, and MLPerf's LoadGen has its say after our own timing")
    int8: Literal["any", "u8s8", "s8s8"] = Field(default="any", description="INT8 flavours that are right and fast here")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the backend")

    @model_validator(mode="after")
    def _single(self) -> Target:
        if self.scenario == "mlperf-singlestream" and self.batch != 1:
            raise ValueError("mlperf-singlestream asks one sample at a time → batch: 1, or scenario: mlperf-offline")
        return self

    @property
    def thread_count(self) -> int:
        return machine.threads() if self.threads == "auto" else self.threads

    @property
    def on_gpu(self) -> bool:
        """Whether it executes on a GPU: no CPU's threads and peaks say anything of it."""
        backend: Backend = registry.load("backends", self.backend)()
        return backend.on_gpu(self.model_dump(mode="json"))

    def refuses_machine(self) -> str:
        """Why this machine is of another architecture than the target, or an empty string."""
        here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
        if self.arch in ("x86_64", "aarch64") and self.arch != here:
            return f"the target is {self.arch}, this machine {here}: build and measure on such a machine"
        return ""


def folder() -> Path:
    """Where the shipped targets stand: in the wheel, or in the clone."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "targets"
    return inside if inside.is_dir() else package.parent / "targets"


def shipped() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load(name: str, base: Path, place: Place | None = None) -> Target:
    """A target by the name of a shipped one or by the path of a file below `base`."""
    own = base / name
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return parse(read_yaml(own, shown=name, missing="check the path: it is relative to the recipe's folder"))
    if name not in shipped():
        raise UsageError(f"unknown target '{name}'", place=place, remedy=f"{did_you_mean(name, shipped())} (see `edgeopt targets`)")
    return parse(read_yaml(folder() / f"{name}.yaml"))


def extend(document: Document, base: Path) -> Target:
    """An inline target `{extends: NAME, field: value}`."""
    fields = dict(document.value)
    name, place = fields.pop("extends"), document.place(("extends",))
    if not isinstance(name, str):
        raise UsageError("extends should be the name of a target", place=place, remedy=f"known here: {', '.join(shipped())}")
    parent = load(name, base, place)
    changed = {**parent.model_dump(), **fields}
    if "options" in fields and isinstance(fields["options"], dict):
        changed["options"] = {**parent.options, **fields["options"]}
    if "name" not in fields and fields:
        marks = "-".join(f"{key}{value}" for key, value in sorted(fields.items()) if not isinstance(value, dict))
        changed["name"] = f"{parent.name}-{re.sub('[^A-Za-z0-9._-]+', '', marks) or 'custom'}"
    return parse(document.below((), changed))


def parse(document: Document) -> Target:
    """Check one target's fields and its backend's options."""
    try:
        target = Target.model_validate(document.value)
    except ValidationError as error:
        raise RecipeErrors(problems_of(error, document, Target)) from None
    try:
        backend = registry.load("backends", target.backend)
    except UsageError as error:
        raise UsageError(error.cause, place=document.place(("backend",)), remedy=error.remedy) from None
    try:
        backend.Options.model_validate(target.options)
    except ValidationError as error:
        raise RecipeErrors(problems_of(error, document, backend.Options, ("options",))) from None
    cause, _, remedy = backend().contradiction(target.model_dump(mode="json")).partition(" → ")
    if cause:
        raise UsageError(cause, place=document.place(("options",)), remedy=remedy)
    return target
