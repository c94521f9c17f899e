"""init: a commented starter recipe, written by looking at a model. It runs at once, on random data."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import registry, target
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import EdgeoptError, Place, UsageError, did_you_mean
from edgeopt.core.model import KINDS
from edgeopt.stages.anatomy import UNNAMED
from edgeopt.stages.inspect import inspect

SAMPLES = 64
_INPUT = re.compile(r"^(?P<name>[\w.]+)=(?P<dtype>\w+)?\[(?P<shape>[^]]*)\]$")


def init(model: str, folder: Path, inputs: Sequence[str] = ()) -> str:
    """The text of a recipe that lies in `folder`. `model` is an .onnx, .pt2, .keras or .h5 file or `file.py:function`.

    `inputs` describe what a factory's model takes, as `image=float32[N,3,224,224]`; a model file says it itself.
    """
    path, _, function = model.rpartition(":") if re.search(r":\w+$", model) else (model, "", "")
    kind = "torch" if function else KINDS.get(Path(path).suffix.lower())
    if kind is None:
        remedy = "give an .onnx, .pt2, .keras or .h5 file, or a factory as file.py:function"
        if path.endswith(".py"):
            remedy = f"name the function that returns the model: {path}:build"
        raise UsageError(f"{model}: not a model that edgeopt imports", remedy=remedy)
    if kind == "torch":
        signature, lines = _factory(path, function, folder, inputs)
    else:
        if inputs:
            raise UsageError("--input is for a torch factory", remedy=f"leave it out: {Path(path).name} says what it takes")
        signature = inspect(Path(path)).signature or {}
        lines = [f"  {kind}: {_scalar(_relative(Path(path), folder))}"]
    if kind != "torch":
        lines += [f"  # {side:<8} {_spec(spec)}" for side in ("inputs", "outputs") for spec in signature.get(side, [])]
    return _recipe(slug(Path(path).stem if kind != "torch" or path.endswith(".py") else path), lines, _Data(signature))


def _recipe(name: str, model: list[str], data: _Data) -> str:
    here = _targets()
    note = [] if here else ["  # No runtime is installed here (see `edgeopt doctor`); this one computes nothing."]
    targets = [f"  - {one}" for one in here] or ['  - "null"']
    parts = [
        "# A recipe for edgeopt: what to make of a model, and what to demand of the result.",
        f"#   edgeopt plan {name}.yaml   shows the steps, runs nothing",
        f"#   edgeopt run {name}.yaml    makes, measures and judges",
        "# Paths are relative to this file. Editors check and complete it once `edgeopt schema > edgeopt.schema.json` is there",
        "# and the first line is  # yaml-language-server: $schema=edgeopt.schema.json",
        "edgeopt: 1",
        f"name: {_scalar(name)}",
        "",
        "model:",
        *model,
        "",
        *data.lines(),
        "",
        "scores:",
        "  - sqnr # how closely the outputs follow the reference, in dB; needs no labels",
        "  # - agreement # share of samples with the same best class as the reference; needs no labels",
        "  # - top1 # accuracy; needs labels",
        "  # - {python: my_score.py:score} # your own",
        "",
        "# Name: passes in order (`edgeopt passes` lists them). The one without passes is the reference.",
        "variants:",
        "  fp32: []",
        "  int8: [quantize-int8]",
        "  # bf16: [execute-bf16] # faster where the processor has bfloat16",
        "  # fp16: [cast-fp16] # half the size",
        "",
        "# `edgeopt targets` lists them; a changed one: {extends: x86-openvino, threads: 1}",
        "targets:",
        *note,
        *targets,
        "",
        "# What a variant must reach to be picked. With real data, demand accuracy too.",
        "gates:",
        "  - {score: sqnr, min: 20} # what differs from the reference is a tenth of it at most",
        "  # - {score: top1, max_drop: 0.01} # at most one point lost against the reference",
        "  # - {latency: p90, max_ms: 5}",
        "  # - {speedup: {min: 1.5}}",
        "  # - {size: {max_mb: 10}}",
        "",
        "pick: latency # of the variants that pass every gate: latency, throughput or size",
    ]
    return "\n".join(parts) + "\n"


class _Data:
    """The data section: random samples that fit the inputs, and how real ones are given."""

    def __init__(self, signature: dict[str, Any]) -> None:
        self.inputs: list[dict[str, Any]] = signature.get("inputs", [])
        batch = Signature.from_json({"outputs": [], **signature, "inputs": self.inputs}).batch_symbol
        self.open = sorted(
            {axis for spec in self.inputs for axis in spec["shape"] if isinstance(axis, str) and axis not in (batch, UNNAMED)}
        )
        self.whole = any("int" in (spec["dtype"] or "") for spec in self.inputs)

    def lines(self) -> list[str]:
        names = ", ".join(spec["name"] for spec in self.inputs) or "like the inputs"
        pictures = {axis for spec in self.inputs if len(spec["shape"]) == 4 for axis in spec["shape"]}
        waves = {spec["shape"][0] for spec in self.inputs if len(spec["shape"]) == 1 and "float" in (spec["dtype"] or "")}
        sizes = ", ".join(f"{_scalar(axis)}: {224 if axis in pictures else 16000 if axis in waves else 16}" for axis in self.open)
        extra = f", sizes: {{{sizes}}}" if sizes else ""
        note = ["  # `sizes` fixes the axes that may vary, but for the batch: give those that the model is used at."] if self.open else []
        note += ["  # Whole numbers are 0 or 1; `high: 1000` draws them below 1000, as large as the vocabulary."] if self.whole else []
        return [
            "data:",
            "  # Random numbers, so that this runs at once: fine for speed and size, without meaning for accuracy.",
            *note,
            f"  calibrate: {{random: normal, samples: {SAMPLES}, seed: 1{extra}}} # ranges for quantization",
            f"  evaluate: {{random: normal, samples: {SAMPLES}{extra}}} # scored once; shares no sample with the others",
            "  # Real data, in place of the above:",
            f"  # evaluate: {{npz: evaluate.npz}} # arrays named {names}, labels; first axis: samples",
            "  # evaluate: {images: photos} # `edgeopt schema` shows resizing, layout, mean and scale",
            "  # evaluate: {csv: evaluate.csv, label: class}",
            "  # evaluate: {python: data.py:evaluate} # a function that yields inputs, or (inputs, label)",
        ]


def _factory(path: str, function: str, folder: Path, inputs: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The signature and the lines of a torch model; the user's code is read, not run."""
    if path.endswith(".py"):
        _check_function(Path(path), function)
        path = _relative(Path(path), folder)
    specs = [_parsed(text) for text in inputs] or [{"name": "image", "dtype": "float32", "shape": ["N", 3, 224, 224]}]
    about = (
        [] if inputs else ["      # The arguments of forward() in order: their names, sizes (a word for an axis that may vary) and dtypes."]
    )
    lines = [
        "  torch:",
        f"    factory: {_scalar(f'{path}:{function}')} # returns the torch.nn.Module",
        "    # weights: weights.safetensors # or a state dict that torch loads with weights_only; {file: …, key: …} for a checkpoint",
        "    inputs:",
        *about,
        *(f"      {_scalar(spec['name'])}: {{shape: [{', '.join(map(str, spec['shape']))}], dtype: {spec['dtype']}}}" for spec in specs),
    ]
    return {"inputs": specs, "outputs": []}, lines


def _check_function(file: Path, function: str) -> None:
    try:
        tree = ast.parse(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}", remedy="check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}", remedy="check its permissions") from None
    except SyntaxError as error:
        raise UsageError(f"not valid Python: {error.msg}", place=Place(str(file), error.lineno), remedy="mend it") from None
    known = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    imported = [name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names]
    if function not in (*known, *imported):
        raise UsageError(f"{file} has no function '{function}'", remedy=did_you_mean(function, known))


def _parsed(text: str) -> dict[str, Any]:
    found = _INPUT.match(text.replace(" ", ""))
    axes = [axis for axis in found["shape"].split(",") if axis] if found else []
    if not found or not all(re.fullmatch(r"[1-9]\d*|[A-Za-z]\w*", axis) for axis in axes):
        raise UsageError(f"--input {text}: not an input", remedy="write NAME=DTYPE[SIZES], as image=float32[N,3,224,224]")
    shape = [int(axis) if axis.isdigit() else axis for axis in axes]
    return {"name": found["name"], "dtype": found["dtype"] or "float32", "shape": shape}


def _targets() -> list[str]:
    """Shipped targets that can be measured here, for latency."""
    found = []
    for name in target.shipped():
        try:
            one = target.load(name, Path())
            usable = one.backend != "null" and not one.refuses_machine() and not registry.load("backends", one.backend)().probe()
        except EdgeoptError:
            continue
        if usable and one.scenario == "latency":
            found.append(name)
    return found


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _scalar(text: str) -> str:
    """A text as YAML, quoted where it has to be."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _spec(spec: dict[str, Any]) -> str:
    return f"{spec['name']}: {spec['dtype'] or '?'}[{', '.join(map(str, spec['shape']))}]"


def slug(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"
