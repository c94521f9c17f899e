"""Classifiers of spoken vowels: two recurrent layers (sigmoid, tanh), the last step decides. 9 Japanese speakers, 12 cepstra, 25 steps.

The series (Kudo, Toyama and Shimbo, 1999; UCI, CC BY 4.0) lie in the package aeon, stretched to one length.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.zoo import writing

NETWORK = writing.ROOT / "tests/zoo/networks/recurrent.py"
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


def make(kind: str, folder: Path) -> None:
    import torch
    from torch.nn import functional

    given, answers = series("TRAIN")
    arguments = {"kind": kind, "features": 12, "width": WIDTH, "classes": 9}
    net = writing.network(NETWORK, arguments)
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
    ports = {"series": ("float32", ("N", "T", 12))}, {"logits": ("float32", ("N", 9))}
    writing.export(net, folder, *ports, NETWORK, arguments)
    unseen, truth = series("TEST")
    writing.split(folder, "train", {"series": given[CALIBRATE:]}, answers[CALIBRATE:])
    writing.split(folder, "calibrate", {"series": given[:CALIBRATE]}, answers[:CALIBRATE])
    writing.split(folder, "tune", {"series": unseen[:TUNE]}, truth[:TUNE])
    writing.split(folder, "evaluate", {"series": unseen[TUNE:]}, truth[TUNE:])
