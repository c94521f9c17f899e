"""Classifiers of spoken vowels: two recurrent layers (sigmoid, tanh), the last step decides. 9 Japanese speakers, 12 cepstra, 25 steps.

The series (Kudo, Toyama and Shimbo, 1999; UCI, CC BY 4.0) lie in the package aeon, stretched to one length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo import writing

WIDTH, EPOCHS, BATCH, RATE = 128, 40, 32, 3e-3
CALIBRATE, TUNE = 70, 70


def series(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Series float32 [n, 25, 12] and the speakers int64 [n] of the file TRAIN or TEST, shuffled."""
    path = writing.package_folder("aeon") / f"datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts"
    rows, labels = [], []
    for line in path.read_text().partition("@data\n")[2].splitlines():
        *channels, label = line.split(":")
        rows.append([[float(value) for value in channel.split(",")] for channel in channels])
        labels.append(int(label) - 1)
    order = np.random.default_rng(1).permutation(len(labels))
    return np.asarray(rows, np.float32).transpose(0, 2, 1)[order], np.asarray(labels)[order]


def network(kind: str) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        """Series [N, T, 12] to logits [N, 9]."""

        def __init__(self) -> None:
            super().__init__()
            self.memory = getattr(nn, kind)(12, WIDTH, num_layers=2, batch_first=True)
            self.head = nn.Linear(WIDTH, 9)

        def forward(self, series: torch.Tensor) -> torch.Tensor:
            return self.head(self.memory(series)[0][:, -1])

    return Net()


def make(kind: str, folder: Path) -> None:
    import torch
    from torch.nn import functional

    given, answers = series("TRAIN")
    net = network(kind)
    steps, speakers = torch.from_numpy(given[CALIBRATE:]), torch.from_numpy(answers[CALIBRATE:])
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(steps)).split(BATCH):
            noisy = steps[part] + 0.05 * torch.randn_like(steps[part])
            loss = functional.cross_entropy(net(noisy), speakers[part])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    writing.export(net, folder, {"series": ("float32", ("N", "T", 12))}, {"logits": ("float32", ("N", 9))})
    unseen, truth = series("TEST")
    writing.split(folder, "calibrate", {"series": given[:CALIBRATE]}, answers[:CALIBRATE])
    writing.split(folder, "tune", {"series": unseen[:TUNE]}, truth[:TUNE])
    writing.split(folder, "evaluate", {"series": unseen[TUNE:]}, truth[TUNE:])
