"""The classic multilayer perceptron for digits: 784 pixels, 128 hidden units, 10 classes."""

import torch
from torch import nn


class Net(nn.Module):
    """Image [N, 784] in 0…1 to class probabilities [N, 10]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, hidden)
        self.output = nn.Linear(hidden, 10)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """What the cross-entropy of training is taken of."""
        return self.output(torch.relu(self.hidden(image)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(image), dim=1)


def build(hidden: int = 128) -> nn.Module:
    """The factory that the recipe names."""
    return Net(hidden)
