"""The import of a torch model: the user's factory and its trained weights, put to rest without a pickle."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.core import registry, usercode
from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.errors import UntrustedError, UsageError, did_you_mean
from edgeopt.core.model import TorchModel, WeightsRef
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import torch as torch_format

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Feeds = dict[str, np.ndarray[Any, Any]]
    State = dict[str, Tensor]

# What wrappers put before every name: DataParallel, torch.compile, Lightning modules.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SAVE = "save them as safetensors: safetensors.torch.save_model(model, 'weights.safetensors')"


class ImportTorch(Pass, TorchModel, produces="torch", needs=("torch", "safetensors")):
    """Build the torch model with its factory (your own code, which runs), load the weights and check that it comes back from disk."""

    extra: ClassVar[str] = "torch"

    def user_files(self, base: Path) -> list[Path]:
        return [*usercode.files(self.factory, base), *([self.weights.locate(base)] if self.weights else [])]

    def packages(self, base: Path) -> list[str]:
        return usercode.packages(self.factory, base)

    def run(self, model: Artifact, ctx: Context) -> Path:
        inputs = tuple(TensorSpec(name, spec.dtype, tuple(spec.shape)) for name, spec in self.inputs.items())
        outputs = tuple(self.outputs) if self.outputs else None
        module = self._trained(ctx)
        if not self.weights:
            ctx.note("weights", "none given: those that the factory made")
        ctx.note("parameters", sum(one.numel() for one in module.parameters()))
        torch_format.describe(module, inputs, outputs)  # refuses inputs that the model cannot take, before anything is written
        return torch_format.create(module, ctx.folder, torch_format.Record(self.factory, self.arguments, inputs, outputs), ctx.base)

    def original(self, base: Path) -> Callable[[Feeds], Feeds]:
        """The factory's own module, its weights read from the user's file."""
        module = self._trained(Context(folder=Path(), base=base))
        return lambda feeds: torch_format.arrays(
            torch_format.run(module, [torch_format.tensor(feeds[name]) for name in self.inputs], self.outputs)
        )

    def _trained(self, ctx: Context) -> nn.Module:
        module = torch_format.build(self.factory, self.arguments, ctx.base)
        if self.weights:
            load_weights(module, read_weights(self.weights, ctx.base), self.weights.file, ctx)
        return module


def read_weights(ref: WeightsRef, base: Path) -> State:
    """The tensors of a safetensors or torch file by name. Raises UntrustedError when the file would run code."""
    path = ref.locate(base)
    if not path.is_file():
        raise UsageError(f"no such file: {ref.file}", remedy="paths are relative to the recipe's folder")
    with path.open("rb") as file:
        head = file.read(9)
    pickled = head.startswith((b"PK", b"\x80"))
    if head[8:] == b"{" or (path.suffix == ".safetensors" and not pickled):
        return _safetensors(ref, path)
    found = _at_key(_torch_file(ref, path, pickled), ref)
    return {name: value for name, value in found.items() if registry.need("torch", "torch").is_tensor(value)}


def _safetensors(ref: WeightsRef, path: Path) -> State:
    registry.need("safetensors", "torch")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if ref.key:
        raise UsageError("a safetensors file has no keys to choose from", remedy="remove `key`")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{ref.file} is no safetensors file, or is cut off: {error}", remedy="write or copy it again") from None


def _torch_file(ref: WeightsRef, path: Path, pickled: bool) -> Any:
    torch = registry.need("torch", "torch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if not refused and not pickled:
            raise UsageError(f"{ref.file} is no torch file, or is damaged", remedy=_SAVE) from None
        reason = f"it wants to call {refused[1]}" if refused else "it is no plain file of tensors"
        raise UntrustedError(f"{ref.file} is a pickle that may run code and is not opened: {reason}", remedy=_SAVE) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{ref.file} is no torch state dict, or is cut off: {first}", remedy=_SAVE) from None


def _at_key(value: Any, ref: WeightsRef) -> Mapping[str, Any]:
    """The state dict inside what a torch file holds: under `key`, whose dots nest, or the whole."""
    rest = ref.key or ""
    while rest:
        names = [str(name) for name in value] if isinstance(value, Mapping) else []
        fitting = [name for name in names if rest == name or rest.startswith(name + ".")]
        if not fitting:
            raise UsageError(f"{ref.file} has no key '{ref.key}'", remedy=did_you_mean(rest.split(".")[0], names))
        name = max(fitting, key=len)
        value, rest = value[name], rest[len(name) + 1 :]
    if not _is_state(value):
        inside = [str(name) for name, item in value.items() if _is_state(item)] if isinstance(value, Mapping) else []
        where = f"under '{ref.key}' " if ref.key else ""
        remedy = f"name where it lies: weights: {{file: {ref.file}, key: {inside[0]}}}" if inside else _SAVE
        raise UsageError(f"{ref.file} {where}is no state dict but {type(value).__name__}", remedy=remedy)
    return dict(value)


def _is_state(value: Any) -> bool:
    torch = registry.need("torch", "torch")
    return isinstance(value, Mapping) and any(torch.is_tensor(item) for item in value.values())


def load_weights(module: nn.Module, state: State, file: str, ctx: Context) -> None:
    """Give every parameter and buffer its stored tensor. Raises UsageError unless names and shapes fit."""
    wanted = module.state_dict()
    state = _unwrapped(state, wanted, ctx)
    wrong = [
        f"{name} is {list(state[name].shape)} in the file and {list(wanted[name].shape)} in the model"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise UsageError(f"{file} does not fit the factory: {_some(wrong)}", remedy="give the factory the `arguments` it was trained with")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UsageError(f"{file} holds NaN or infinity: {_some(broken)}", remedy="take a checkpoint from before the training diverged")
    missing, unexpected = module.load_state_dict(state, strict=False)
    given = {_memory(wanted[name]) for name in wanted if name in state}
    missing = [name for name in missing if _memory(wanted[name]) not in given]  # a tied weight is stored once
    if missing or unexpected:
        told = []
        if missing:
            told.append(f"{len(missing)} missing: {_some([_near(name, unexpected) for name in missing])}")
        if unexpected:
            told.append(f"{len(unexpected)} of no use: {_some([_near(name, missing) for name in unexpected])}")
        raise UsageError(
            f"{file} does not fit the factory: {'; '.join(told)}",
            remedy="name the factory and `arguments` that the weights were trained with",
        )
    cast = {str(state[name].dtype).removeprefix("torch.") for name in wanted if name in state and state[name].dtype != wanted[name].dtype}
    if cast:
        ctx.note("cast_from", sorted(cast))


def _unwrapped(state: State, wanted: State, ctx: Context) -> State:
    """The state with the names that the model uses: prefixes of training wrappers are taken off."""
    taken: list[str] = []
    while not any(name in wanted for name in state):
        prefix = next((one for one in _PREFIXES if state and all(name.startswith(one) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        taken.append(prefix)
    if taken:
        ctx.note("prefix_removed", "".join(taken))
    return state


def _memory(one: Tensor) -> tuple[int, Any]:
    return one.data_ptr(), one.shape


def _near(name: str, others: list[str]) -> str:
    close = did_you_mean(name, others)
    return f"{name} ({close})" if close.startswith("did you mean") else name


def _some(words: list[str]) -> str:
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return ", ".join(words[:5]) + more
