"""EfficientNet-Lite0 as the package efficientnet-lite-pytorch builds it, without its reach for the network."""

from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def build() -> nn.Module:
    """The factory that the recipe names: picture [N, 3, 224, 224] to logits [N, 1000]."""
    return EfficientNet.from_name("efficientnet-lite0")
