"""A small GPT-type decoder: 2 causal layers, GELU; it predicts the next character of Python's help.

Trained on the first nine tenths of the text; calibration, tuning and evaluation have parts of their own of the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.zoo import texts, writing

PACKAGES: tuple[str, ...] = ()
NETWORK = writing.ROOT / "tests/zoo/networks/decoder.py"
READS = (Path(texts.__file__), NETWORK)
SCORES = ["perplexity", "sqnr"]
LABELLED = True
SYMBOLS, CONTEXT = 128, 128
ARGUMENTS = {"symbols": SYMBOLS, "width": 128, "layers": 2, "heads": 4, "context": CONTEXT}
STEPS, BATCH, RATE = 240, 16, 4e-3
TRAIN = 400
COUNTS = {"calibrate": 64, "tune": 64, "evaluate": 200}


def make(folder: Path) -> None:
    import torch
    from torch.nn import functional

    text = np.frombuffer("\n".join(texts.topics()).encode("ascii", "replace"), np.uint8).astype(np.int64)
    learned = torch.from_numpy(text[: len(text) * 9 // 10])
    net, offsets = writing.network(NETWORK, ARGUMENTS), torch.arange(CONTEXT + 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        windows = learned[torch.randint(len(learned) - CONTEXT, (BATCH, 1)) + offsets]
        loss = functional.cross_entropy(net(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    writing.export(net, folder, {"tokens": ("int64", ("N", "T"))}, {"logits": ("float32", ("N", "T", SYMBOLS))}, NETWORK, ARGUMENTS)
    known, rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    windows = np.lib.stride_tricks.sliding_window_view(known, CONTEXT + 1)[:: len(known) // TRAIN][:TRAIN]
    writing.split(folder, "train", {"tokens": windows[:, :-1]}, windows[:, 1:])
    windows = np.lib.stride_tricks.sliding_window_view(rest, CONTEXT + 1)[:: CONTEXT + 1]
    start = 0
    for name, count in COUNTS.items():
        part = windows[start : start + count]
        writing.split(folder, name, {"tokens": part[:, :-1]}, part[:, 1:])
        start += count
