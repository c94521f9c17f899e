"""BERT (Devlin and others, 2018), parameters named as in its files of weights, mean pooling and normalization; GELU."""

import torch
from torch import nn
from torch.nn import functional


def tree(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.attention = tree(
            self=tree(query=nn.Linear(width, width), key=nn.Linear(width, width), value=nn.Linear(width, width)),
            output=tree(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, epsilon)),
        )
        self.intermediate = tree(dense=nn.Linear(width, inner))
        self.output = tree(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width, epsilon))

    def forward(self, x: torch.Tensor, barred: torch.Tensor) -> torch.Tensor:
        each = self.width // self.heads

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(*y.shape[:2], self.heads, each).transpose(1, 2)

        parts = self.attention["self"]
        query, key, value = (split(parts[name](x)) for name in ("query", "key", "value"))
        weights = torch.softmax(query @ key.transpose(2, 3) * each**-0.5 + barred, dim=-1)
        mixed = self.attention["output"]
        x = mixed["LayerNorm"](mixed["dense"]((weights @ value).transpose(1, 2).flatten(2)) + x)
        return self.output["LayerNorm"](self.output["dense"](functional.gelu(self.intermediate["dense"](x))) + x)


class Encoder(nn.Module):
    """Token ids and mask, int64 [N, T], to sentence embeddings of length 1 [N, width]."""

    def __init__(self, vocabulary: int, places: int, kinds: int, width: int, inner: int, layers: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.embeddings = tree(
            word_embeddings=nn.Embedding(vocabulary, width),
            position_embeddings=nn.Embedding(places, width),
            token_type_embeddings=nn.Embedding(kinds, width),
            LayerNorm=nn.LayerNorm(width, epsilon),
        )
        self.encoder = tree(layer=nn.ModuleList(Layer(width, inner, heads, epsilon) for _ in range(layers)))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = self.embeddings
        places = parts["position_embeddings"].weight[: ids.shape[1]]
        x = parts["LayerNorm"](parts["word_embeddings"](ids) + places + parts["token_type_embeddings"].weight[0])
        kept = mask.to(x.dtype)
        barred = (1 - kept)[:, None, None, :] * -10000.0
        for layer in self.encoder["layer"]:
            x = layer(x, barred)
        mean = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)


def build(vocabulary: int, places: int, kinds: int, width: int, inner: int, layers: int, heads: int, epsilon: float) -> nn.Module:
    return Encoder(vocabulary, places, kinds, width, inner, layers, heads, epsilon)
