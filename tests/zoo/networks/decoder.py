"""A small GPT-type decoder: causal layers before the norms, GELU."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, barred: torch.Tensor) -> torch.Tensor:
        inner = self.width // self.heads
        parts = self.mix(self.before(x)).view(*x.shape[:2], 3, self.heads, inner).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(parts[0] @ parts[1].transpose(2, 3) * inner**-0.5 + barred, dim=-1)
        x = x + self.out((weights @ parts[2]).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.between(x))))


class Decoder(nn.Module):
    """Characters int64 [N, T], T at most `context`, to logits of the next one [N, T, symbols]."""

    def __init__(self, symbols: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols, bias=False)
        self.register_buffer("barred", torch.full((context, context), -10000.0).triu(1), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        time = tokens.shape[1]
        x = self.symbols(tokens) + self.places.weight[:time]
        for block in self.blocks:
            x = block(x, self.barred[:time, :time])
        return self.head(self.norm(x))


def build(symbols: int, width: int, layers: int, heads: int, context: int) -> nn.Module:
    return Decoder(symbols, width, layers, heads, context)
