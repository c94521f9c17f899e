"""The JSON Schema for editors: it accepts what the recipe reader accepts, and sees what editors should underline."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.core import recipe, registry
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.places import Document, parse_yaml, read_yaml
from edgeopt.stages.schema import schema

jsonschema = pytest.importorskip("jsonschema")
RECIPES = Path(__file__).parents[2] / "recipes"

FULL = """\
edgeopt: 1
name: demo
model:
  torch: {factory: m.py:build, weights: w.safetensors, inputs: {image: {shape: [N, 1, 28, 28], dtype: float32}}}
data:
  train: {python: data.py:train}
  tune: {npz: tune.npz}
  calibrate: {random: normal, samples: 256, seed: 1}
  evaluate: {csv: evaluate.csv, label: class}
scores: [top1, {topk: {k: 3}}, {python: score.py:score}]
reference: fp32
variants:
  fp32: []
  none:
  fp16: [cast-fp16]
  tuned: [simplify, {fine-tune: {epochs: 3, optimizer: sgd}}, {simplify: }]
targets:
  - x86-openvino
  - mine/target.yaml
  - {x86-onnxruntime: {need: built}}
  - {extends: x86-openvino, threads: 1, need: bundled, name: slow}
gates:
  - {score: top1, max_drop: 0.01, variants: [fp16], targets: [x86-openvino]}
  - {latency: p90, max_ms: 5}
  - {speedup: {min: 1.5}, inconclusive: pass}
  - {size: {max_mb: 10}}
pick: size
measure: {budget_s: 3}
seed: 3
"""


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return schema()


@pytest.fixture(scope="module")
def judge(made: dict[str, Any]) -> Any:
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_every_form_that_a_recipe_may_have_is_accepted(judge: Any) -> None:
    judge.validate(parse_yaml(FULL, "r.yaml").value)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[a-z]*.yaml")), ids=lambda path: path.name)
def test_the_shipped_recipes_are_accepted(judge: Any, path: Path) -> None:
    judge.validate(read_yaml(path).value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("edgeopt: 1", "edgeopt: 2"),
        ("name: demo", "name: my demo"),
        ("name: demo\n", ""),
        ("seed: 3", "sed: 3"),
        ("weights:", "wieghts:"),
        ("[N, 1, 28, 28]", "[N, -1]"),
        ("factory: m.py:build, ", ""),
        ("  evaluate: {csv: evaluate.csv, label: class}\n", ""),
        ("{npz: tune.npz}", "tune.npz"),
        ("{npz: tune.npz}", "{nzp: tune.npz}"),
        ("samples: 256", "sampels: 256"),
        ("samples: 256", "samples: 0"),
        ("[top1,", "[top11,"),
        ("{k: 3}", "{kk: 3}"),
        ("[cast-fp16]", "cast-fp16"),
        ("[cast-fp16]", "[cast-fp15]"),
        ("[cast-fp16]", "[import-onnx]"),
        ("epochs: 3", "epochs: 0"),
        ("optimizer: sgd", "optimizer: sgdd"),
        ("{need: built}", "{need: buildt}"),
        ("threads: 1", "thread: 1"),
        ("max_drop: 0.01", "max_drop: small"),
        ("{latency: p90, max_ms: 5}", "{latency: p90}"),
        ("{latency: p90, max_ms: 5}", "{latency: p91, max_ms: 5}"),
        ("{size: {max_mb: 10}}", "{size: {max_mb: 10}, memory: {max_mb: 10}}"),
        ("{size: {max_mb: 10}}", "{size: 10}"),
        ("pick: size", "pick: price"),
        ("budget_s: 3", "budget: 3"),
    ],
)
def test_what_the_reader_refuses_the_schema_refuses_too(judge: Any, old: str, new: str) -> None:
    assert old in FULL
    value = parse_yaml(FULL.replace(old, new, 1), "r.yaml").value
    assert not judge.is_valid(value)
    with pytest.raises(EdgeoptError):
        recipe.check(Document("r.yaml", value, {}), Path("nowhere"))


def test_every_plug_stands_in_it_with_its_options_and_what_it_is(made: dict[str, Any]) -> None:
    words = {entry["const"]: entry["description"] for entry in made["$defs"]["Pass"]["anyOf"] if "const" in entry}
    assert {name for name in registry.names("passes") if registry.load("passes", name).accepts} == set(words)
    assert all(text.endswith(".") for text in words.values())
    assert {next(iter(source["properties"])) for source in made["$defs"]["Source"]["anyOf"]} == set(registry.names("datasets"))
    assert "epochs" in made["$defs"]["FineTune"]["properties"]


def test_the_file_for_editors_is_what_the_code_makes(made: dict[str, Any]) -> None:
    kept = json.loads((RECIPES / "edgeopt.schema.json").read_text(encoding="utf-8"))
    assert kept == made, "make it anew: edgeopt schema > recipes/edgeopt.schema.json"
