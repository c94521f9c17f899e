"""How the files of the zoo are written: seeds, ONNX export, splits and what about.json says."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import registry, usercode
from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.protocols import Context

ROOT = Path(__file__).resolve().parents[2]


def make(module: Any, folder: Path) -> None:
    """All files of one model, with the same random numbers each time."""
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    module.make(folder)
    (folder / "about.json").write_text(json.dumps(about(module, folder), indent=1) + "\n")


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{name}': `make test` installs it", name=name)
    return Path(spec.submodule_search_locations[0])


def recipe_module(recipe: str, name: str) -> Any:
    """A module beside a shipped recipe, imported under a name of its own."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"zoo_{recipe}_{name}".replace("-", "_"), ROOT / "recipes" / recipe / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def network(file: Path, arguments: Mapping[str, Any] | None = None) -> Any:
    """What the function `build` of a file of networks returns."""
    return usercode.load(f"{file}:build", ROOT)(**(arguments or {}))


def export(
    module: Any, folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], file: Path, arguments: Mapping[str, Any] | None = None
) -> None:
    """`model.onnx` by edgeopt's own exporter; `weights.safetensors`, and `torch.json` with the rest of a recipe's `model: {torch: …}`.

    Inputs and outputs: name → (dtype, shape with names for open axes). `file` and `arguments` are those of `network`.
    """
    import onnx
    from safetensors.torch import save_model

    from edgeopt.passes import export_onnx

    signature = Signature(*(tuple(TensorSpec(name, *spec) for name, spec in ports.items()) for ports in (inputs, outputs)))
    proto = export_onnx.export(module.eval(), signature, list(outputs), Context(folder=folder))
    onnx.save(proto, folder / "model.onnx")
    save_model(module, str(folder / "weights.safetensors"))
    given = {
        "factory": f"{file.relative_to(ROOT).as_posix()}:build",
        "arguments": arguments or {},
        "inputs": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in inputs.items()},
        "outputs": list(outputs),
    }
    (folder / "torch.json").write_text(json.dumps(given, indent=1) + "\n")


def split(folder: Path, name: str, inputs: Mapping[str, Any], labels: Any = None) -> None:
    """One split: arrays named like the inputs, the first axis counting samples."""
    np.savez(folder / f"{name}.npz", **inputs, **({} if labels is None else {"labels": labels}))


def about(module: Any, folder: Path) -> dict[str, Any]:
    """Facts of a finished folder; `fp32` is what the model scores on `evaluate` by the scores that need labels."""
    return {
        "about": (module.__doc__ or "").splitlines()[0],
        "labelled": module.LABELLED,
        "samples": {path.stem: len(next(iter(np.load(path).values()))) for path in sorted(folder.glob("*.npz"))},
        "fp32": _scored(module, folder),
    }


def _scored(module: Any, folder: Path) -> dict[str, float]:
    session = registry.need("onnxruntime", "onnxruntime").InferenceSession(folder / "model.onnx")
    data = np.load(folder / "evaluate.npz")
    labels = data.get("labels", [])
    names, made = [one.name for one in session.get_outputs()], {}
    values: dict[str, list[Any]] = {}
    for entry in module.SCORES:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        score = registry.load("scores", name).model_validate(options)
        if score.needs_labels and len(labels):
            score.ready(folder)
            made[score.label or name] = score
    for index, label in enumerate(labels):
        feeds = {one.name: data[one.name][index : index + 1] for one in session.get_inputs()}
        outputs = {name: array[0] for name, array in zip(names, session.run(None, feeds), strict=True)}
        for name, score in made.items():
            values.setdefault(name, []).append(score.sample(outputs, label, None))
    return {name: score.finish(np.asarray(values[name], dtype=np.float64)) for name, score in made.items()}
