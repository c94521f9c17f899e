"""The torch format: a model at rest as the factory's code, safetensors weights and a record of changed sizes.

Never a pickle. A folder holds `model.json` (the record), `code/` (copies of the project files that the
factory needs, laid out as beside the recipe) and `weights.safetensors`. A model is rebuilt strictly:
the factory builds it anew, recorded sizes are set, and every stored tensor must find its place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine, registry, usercode
from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.errors import EdgeoptError, StepError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    Feeds = dict[str, np.ndarray[Any, Any]]

MAIN, WEIGHTS, CODE = "model.json", "weights.safetensors", "code"
# Samples in made-up inputs: sizes of 1 would hide what varies.
EXAMPLES = 2
# Sizes tried for an axis that may vary and counts no samples: a picture's side, a text's length.
_SIZES = (64, 224, 32, 16, 128, 8, 512)


class Torch:
    """A factory with its weights."""

    def signature(self, path: Path) -> Signature:
        record = Record.read(path)
        return describe(load(path), record.inputs, record.outputs)

    def rounds(self, path: Path) -> bool:
        """Never: quantized models leave this format."""
        return False

    def runner(self, path: Path) -> Callable[[Feeds], Feeds]:
        """Eager execution in FP32 on the CPU."""
        record, module = Record.read(path), load(path)
        return lambda feeds: arrays(run(module, [tensor(feeds[spec.name]) for spec in record.inputs], record.outputs))


@dataclass(frozen=True)
class Record:
    """What `model.json` says. `structure` maps module names to the integer attributes that differ from
    a freshly built model; `base` is where the recipe's folder lies inside `code/`, and the factory is named from there.
    `sparse` names the parameters that were pruned one by one: training keeps their zeros."""

    factory: str
    arguments: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] | None = None
    structure: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: str = "."
    sparse: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path) -> Record:
        value = json.loads(path.read_text())
        inputs = tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in value["inputs"])
        outputs = tuple(value["outputs"]) if value["outputs"] else None
        sparse = tuple(value.get("sparse", ()))
        return Record(value["factory"], value["arguments"], inputs, outputs, value["structure"], value["base"], sparse)

    def write(self, folder: Path) -> Path:
        path = folder / MAIN
        inputs = [{"name": spec.name, "dtype": spec.dtype, "shape": spec.shape} for spec in self.inputs]
        path.write_text(json.dumps({**vars(self), "inputs": inputs}, indent=1) + "\n")
        return path

    def fresh(self, folder: Path) -> nn.Module:
        """A newly built model, from the code in the artifact's folder."""
        return build(self.factory, self.arguments, folder / CODE / self.base)


def build(factory: str, arguments: Mapping[str, Any], base: Path) -> nn.Module:
    """What the factory returns, on the CPU, ready to infer. Raises UsageError with the user's file and line."""
    torch = _torch()
    function = usercode.load(factory, base)
    with torch.random.fork_rng(devices=[]):  # a factory's own weights are the same each time
        torch.manual_seed(0)
        module = usercode.call(lambda: function(**arguments), f"the factory '{factory}'")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"the factory '{factory}' returned {type(module).__name__}, not a torch.nn.Module", remedy="return the model itself"
        )
    made: nn.Module = module.cpu().eval()
    return made


def load(path: Path) -> nn.Module:
    """The model at rest behind `model.json`, on the CPU, ready to infer. Raises StepError when it does not rebuild."""
    from safetensors.torch import load_file, load_model

    record = Record.read(path)
    try:
        module = record.fresh(path.parent)
    except UsageError as error:
        raise StepError(
            f"the model cannot be rebuilt from the copies of its code: {error.cause}",
            place=error.place,
            remedy="the factory must need nothing but installed packages and the modules it imports: give weights under `weights`",
        ) from error
    try:
        _restore(module, record.structure, load_file(path.parent / WEIGHTS))
        load_model(module, path.parent / WEIGHTS)
    except (RuntimeError, AttributeError) as error:
        raise StepError(f"the model cannot be rebuilt: {error}", remedy="the factory must build the same layers each time") from error
    return module


def create(module: nn.Module, folder: Path, record: Record, base: Path) -> Path:
    """Put a model to rest that `record.factory` built beside the recipe; copies the factory's code."""
    base = base.resolve()
    roots, files, factory = [base], [], record.factory
    if ".py:" in factory:  # a package stays where it is installed
        files = [path.resolve() for path in usercode.files(factory, base)]
        roots.append(files[0].parent)
        factory = f"{os.path.relpath(files[0], base)}:{factory.rpartition(':')[2]}"
    top = Path(os.path.commonpath(roots))
    for file in files:
        if any(file.is_relative_to(root) for root in roots):
            copy = folder / CODE / file.relative_to(top)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    record = replace(record, factory=factory, base=base.relative_to(top).as_posix())
    return _write(module, folder, record)


def save(module: nn.Module, folder: Path, like: Path, sparse: Iterable[str] = ()) -> Path:
    """Put a changed model to rest: the code of the artifact `like`, its own sizes and weights; more parameters may be sparse now."""
    old = Record.read(like)
    if (like.parent / CODE).is_dir():  # a package's factory has no copies, and empty folders do not travel
        shutil.copytree(like.parent / CODE, folder / CODE)
    found = replace(old, structure=_differences(module, old.fresh(like.parent)), sparse=tuple(sorted({*old.sparse, *sparse})))
    return _write(module, folder, found)


def _write(module: nn.Module, folder: Path, record: Record) -> Path:
    """Write record and weights, and prove that what lies there is the model that was given."""
    from safetensors.torch import save_model

    path = record.write(folder)
    save_model(module, str(folder / WEIGHTS))
    given = examples(module, record.inputs)
    wanted, got = (run(one, given, record.outputs) for one in (module.eval(), load(path)))
    for name, value in wanted.items():
        if value.shape != got[name].shape or not value.allclose(got[name], rtol=1e-5, atol=1e-6, equal_nan=True):
            again = run(module, given, record.outputs)[name]
            if not value.allclose(again, equal_nan=True):
                raise UsageError(
                    f"output '{name}' is another one at each call", remedy="the model must not draw random numbers when it infers"
                )
            raise StepError(
                f"rebuilt from disk, the model gives another output '{name}'",
                remedy="keep all that the model learned in parameters and buffers, and build it from the factory's arguments alone",
            )
    return path


def _differences(module: nn.Module, fresh: nn.Module) -> dict[str, dict[str, Any]]:
    """Integer attributes (sizes) by module in which a model differs from a freshly built one."""
    known = dict(fresh.named_modules(remove_duplicate=False))
    found: dict[str, dict[str, Any]] = {}
    for name, one in module.named_modules(remove_duplicate=False):
        if name not in known:
            raise StepError(f"the model has a layer '{name}' that its factory does not build", remedy="only sizes of layers may change")
        before = _sizes(known[name])
        changed = {key: value for key, value in _sizes(one).items() if before.get(key) != value}
        if changed:
            found[name] = changed
    return found


def _sizes(module: nn.Module) -> dict[str, Any]:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    return {
        key: value
        for key, value in vars(module).items()
        if whole(value) or (isinstance(value, tuple) and value and all(whole(item) for item in value))
    }


def _restore(module: nn.Module, structure: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Set recorded sizes and make room for stored tensors of another shape or type; shared ones stay shared."""
    import torch

    for name, changed in structure.items():
        for key, value in changed.items():
            setattr(module.get_submodule(name), key, tuple(value) if isinstance(value, list) else value)
    made: dict[int, Tensor] = {}
    places = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, old in places:
        new = state.get(name)
        if new is not None and (new.shape != old.shape or new.dtype != old.dtype):
            room = torch.empty_like(new)
            made[id(old)] = torch.nn.Parameter(room, requires_grad=old.requires_grad) if isinstance(old, torch.nn.Parameter) else room
    for name, old in places:
        if id(old) in made:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, made[id(old)])


def describe(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None) -> Signature:
    """The signature, found by running the model with each named axis at two sizes.

    An output axis that follows a named axis one to one gets its name; one that follows in another way
    gets a name of its own, `<output>_d<axis>`.
    """
    sizes = _sizes_that_run(module, inputs, outputs)
    first = _shapes(module, inputs, sizes, outputs)
    varied = {axis: _varied(module, inputs, outputs, sizes, axis) for axis in sizes}
    specs = []
    for name, (dtype, shape) in first.items():
        found: list[int | str] = list(shape)
        for index, size in enumerate(shape):
            moved = {axis: seen[name][1][index] for axis, (seen, _) in varied.items() if seen[name][1][index] != size}
            if moved:
                [axis, *more] = moved
                exact = not more and size == sizes[axis] and moved[axis] == varied[axis][1]
                found[index] = axis if exact else f"{name}_d{index}"
        specs.append(TensorSpec(name, dtype, tuple(found)))
    return Signature(tuple(inputs), tuple(specs))


def examples(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None = None) -> list[Tensor]:
    """Made-up inputs that the model accepts, in order: small reals, integers 0 and 1."""
    return _inputs(inputs, _sizes_that_run(module, inputs, outputs))


def _batch(inputs: Sequence[TensorSpec]) -> str | None:
    return Signature(tuple(inputs), ()).batch_symbol


def _sizes_that_run(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None) -> dict[str, int]:
    """A size for each named axis at which the model runs."""
    axes = list(dict.fromkeys(size for spec in inputs for size in spec.shape if isinstance(size, str)))
    others = [axis for axis in axes if axis != _batch(inputs)]
    problem: EdgeoptError | None = None
    for size in _SIZES if others else _SIZES[:1]:
        sizes = {axis: size if axis in others else EXAMPLES for axis in axes}
        try:
            _shapes(module, inputs, sizes, outputs)
        except UsageError as error:
            problem = problem or error
            continue
        return sizes
    raise problem or AssertionError("no sizes were tried")


def _varied(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None, sizes: Mapping[str, int], axis: str
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """What the model gives with one axis at another size, and that size: a model with learnt positions takes no longer sequences."""
    size = sizes[axis]
    problem: EdgeoptError | None = None
    for other in (size + 1,) if axis == _batch(inputs) else (2 * size, size // 2, size + 1):
        try:
            return _shapes(module, inputs, {**sizes, axis: other}, outputs), other
        except UsageError as error:
            problem = problem or error
    raise problem or AssertionError("no sizes were tried")


def _shapes(
    module: nn.Module, inputs: Sequence[TensorSpec], sizes: Mapping[str, int], outputs: Sequence[str] | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    given = _inputs(inputs, sizes)
    shown = ", ".join(f"{spec.name} {spec.dtype}{list(one.shape)}" for spec, one in zip(inputs, given, strict=True))
    found = arrays(usercode.call(lambda: run(module, given, outputs), f"running the model on {shown}"))
    return {name: (str(array.dtype), array.shape) for name, array in found.items()}


def _inputs(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> list[Tensor]:
    import numpy as np

    numbers = np.random.default_rng(0)
    found = []
    for spec in inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        array = numbers.integers(0, 2, shape) if np.dtype(spec.dtype).kind in "iub" else numbers.standard_normal(shape)
        found.append(tensor(np.asarray(array, dtype=spec.dtype)))
    return found


def run(module: nn.Module, given: Sequence[Tensor], outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """The named outputs of one inference, without gradients."""
    torch = _torch()
    with torch.inference_mode():
        return named(module(*given), outputs)


def named(value: Any, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """What forward() returned as named tensors: the declared names, else its own keys, else output, output_0 ….

    Declared names that are keys of a returned dict choose among them; otherwise they stand in order.
    """
    found = dict(_flat("" if isinstance(value, Mapping) else "output", value))
    if outputs is None:
        return found
    if set(outputs) <= set(found):
        return {name: found[name] for name in outputs}
    if len(outputs) != len(found):
        raise UsageError(
            f"the recipe names {len(outputs)} outputs and the model returns {len(found)} ({', '.join(found)})",
            remedy="give every output a name under `outputs`",
        )
    return dict(zip(outputs, found.values(), strict=True))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}_{key}" if name else str(key), item)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _flat(f"{name}_{index}", item)
    elif value is not None:
        raise UsageError(
            f"the model returns {type(value).__name__} as '{name}'", remedy="return tensors, or tuples, lists or dicts of them"
        )


def tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the array's memory; a copy where it may not be written."""
    import numpy as np
    import torch

    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def arrays(found: Mapping[str, Tensor]) -> Feeds:
    """Tensors as numpy arrays; bfloat16, which numpy has not, as float32."""
    import torch

    return {name: (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy() for name, value in found.items()}


def _torch() -> Any:
    torch = registry.need("torch", "torch")
    torch.set_num_threads(machine.threads())
    return torch
