"""Two recurrent layers (sigmoid, tanh), the last step decides."""

import torch
from torch import nn


class Net(nn.Module):
    """Series [N, T, features] to logits [N, classes]; `kind` is LSTM, GRU or RNN."""

    def __init__(self, kind: str, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.memory = getattr(nn, kind)(features, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(series)[0][:, -1])


def build(kind: str, features: int, width: int, classes: int) -> nn.Module:
    return Net(kind, features, width, classes)
