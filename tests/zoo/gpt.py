"""A small GPT-type decoder: 2 causal layers, GELU; it predicts the next character of Python's help.

Trained on the first nine tenths of the text; calibration, tuning and evaluation have parts of their own of the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo import texts, writing

PACKAGES: tuple[str, ...] = ()
READS = (Path(texts.__file__),)
SCORES = ["perplexity", "sqnr"]
LABELLED = True
SYMBOLS, WIDTH, LAYERS, HEADS, CONTEXT = 128, 128, 2, 4, 128
STEPS, BATCH, RATE = 240, 16, 4e-3
COUNTS = {"calibrate": 64, "tune": 64, "evaluate": 200}


def network() -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, barred: torch.Tensor) -> torch.Tensor:
            parts = self.mix(self.before(x)).view(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(parts[0] @ parts[1].transpose(2, 3) * (WIDTH // HEADS) ** -0.5 + barred, dim=-1)
            x = x + self.out((weights @ parts[2]).transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.between(x))))

    class Decoder(nn.Module):
        """Characters int64 [N, T], T at most 128, to logits of the next one [N, T, 128]."""

        def __init__(self) -> None:
            super().__init__()
            self.symbols, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS, bias=False)
            self.register_buffer("barred", torch.full((CONTEXT, CONTEXT), -10000.0).triu(1), persistent=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            time = tokens.shape[1]
            x = self.symbols(tokens) + self.places.weight[:time]
            for block in self.blocks:
                x = block(x, self.barred[:time, :time])
            return self.head(self.norm(x))

    return Decoder()


def make(folder: Path) -> None:
    import torch
    from torch.nn import functional

    text = np.frombuffer("\n".join(texts.topics()).encode("ascii", "replace"), np.uint8).astype(np.int64)
    learned = torch.from_numpy(text[: len(text) * 9 // 10])
    net, offsets = network(), torch.arange(CONTEXT + 1)
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
    writing.export(net, folder, {"tokens": ("int64", ("N", "T"))}, {"logits": ("float32", ("N", "T", SYMBOLS))})
    rest = text[len(text) * 9 // 10 :]
    windows = np.lib.stride_tricks.sliding_window_view(rest, CONTEXT + 1)[:: CONTEXT + 1]
    start = 0
    for name, count in COUNTS.items():
        part = windows[start : start + count]
        writing.split(folder, name, {"tokens": part[:, :-1]}, part[:, 1:])
        start += count
