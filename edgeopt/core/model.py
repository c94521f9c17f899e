"""The model of a recipe: where it comes from, and how its files are found."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgeopt.core.checks import NAME_PATTERN
from edgeopt.core.errors import MissingError, UntrustedError
from edgeopt.core.protocols import Options

_Name = Annotated[str, Field(pattern=NAME_PATTERN)]
_Axis = Annotated[int, Field(gt=0)] | _Name
# What a model file of that name is under `model`.
KINDS = {".onnx": "onnx", ".pt2": "pt2", ".keras": "keras", ".h5": "keras", ".hdf5": "keras"}


class InputSpec(Options):
    """One input of a torch model."""

    shape: list[_Axis] = Field(description="sizes; a name (N) for an axis that may vary")
    dtype: Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"] = "float32"


class FileRef(Options):
    """A file beside the recipe, or inside an installed package."""

    file: str = Field(description="path relative to the recipe, or to the package")
    package: str | None = Field(default=None, description="import name of an installed package that holds the file")

    def locate(self, base: Path) -> Path:
        """Where the file should be; the package is found without being imported. It need not exist."""
        if self.package is None:
            return base / self.file
        try:
            spec = importlib.util.find_spec(self.package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise MissingError(
                f"the package '{self.package}' is not installed", remedy="install it, or correct the import name under `package`"
            )
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        path = folder / self.file
        if not Path(os.path.normpath(path)).is_relative_to(folder):
            raise UntrustedError(
                f"'{self.file}' lies outside the package '{self.package}'", remedy="name a file inside the package's folder"
            )
        return path


class WeightsRef(FileRef):
    """Weights: safetensors, or a torch state dict that loads with weights_only."""

    key: str | None = Field(default=None, description="key of the state dict inside a training checkpoint, dots nest")


def _file(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


class TorchModel(Options):
    """A factory function and its weights."""

    factory: str = Field(description="file.py:function or package.module:function, returns the torch.nn.Module")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    weights: Annotated[WeightsRef | None, BeforeValidator(_file)] = None
    inputs: dict[str, InputSpec] = Field(min_length=1, description="the inputs in the order of forward()")
    outputs: list[_Name] | None = Field(default=None, description="names of the outputs")


class Model(Options):
    """Where the trained model comes from: exactly one of these."""

    torch: TorchModel | None = None
    onnx: Annotated[FileRef | None, BeforeValidator(_file)] = None
    pt2: Annotated[FileRef | None, BeforeValidator(_file)] = None
    keras: Annotated[FileRef | None, BeforeValidator(_file)] = None

    @model_validator(mode="after")
    def _one(self) -> Model:
        if len(self._given) != 1:
            raise ValueError("give exactly one of torch, onnx, pt2, keras → model: {onnx: model.onnx}, for example")
        return self

    @property
    def _given(self) -> list[str]:
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def kind(self) -> str:
        return self._given[0]
