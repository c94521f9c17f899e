"""A small torch project of a user, with blocks in a file of their own, and what brings it to rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats.torch import Torch
from edgeopt.passes.import_torch import ImportTorch

torch.set_num_threads(1)

BLOCKS = """
from torch import nn

def block(inner, outer):
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU())
"""

MODEL = """
import torch
from torch import nn
from blocks import block

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = block(1, width)
        self.left, self.right = block(width, 2 * width), block(width, 2 * width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.residual = block(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image):
        x = self.stem(image)
        x = torch.relu(self.depthwise(torch.cat([self.left(x), self.right(x)], dim=1)))
        x = x + self.residual(x)
        return self.head(x.mean((2, 3)))

def build(width=16):
    return Net(width)

def probabilities():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(dim=1))

def dropping():
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4), nn.Softmax(dim=1))

def several(kind):
    class Several(nn.Module):
        def forward(self, tokens, mask):
            hidden = torch.nn.functional.one_hot(tokens, 5).float() * mask[:, :, None]
            pooled = hidden.mean(1)
            return {"dict": {"hidden": hidden, "pooled": pooled, "twice": torch.cat([hidden, hidden], 1)},
                    "tuple": (hidden, [pooled]), "text": "no tensor", "scalar": hidden.sum()}[kind]
    return Several()

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.wide = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.wide(torch.relu(self.middle(self.embedding(tokens)))))

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (one.view(*one.shape[:2], 4, 8).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=2))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))

class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        features = self.second(torch.relu(self.first(image)))
        return features, self.head(self.third(torch.relu(features)).mean((2, 3)))

class Reshaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 64), nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, x):
        halves = torch.relu(self.first(x)).reshape(-1, 2, 32)
        return self.head(torch.relu(self.second(halves.sum(1))))

class Sequence(nn.Module):
    def __init__(self, kind, layers=1, both=False, state=False):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.rnn = getattr(nn, kind)(16, 16, layers, batch_first=True, bidirectional=both)
        self.state, self.fc, self.head = state, nn.Linear(16 if state or not both else 32, 32), nn.Linear(32, 4)

    def forward(self, x):
        output, final = self.rnn(torch.relu(self.embed(x)))
        final = final[0] if isinstance(final, tuple) else final
        return self.head(torch.relu(self.fc(final[-1] if self.state else output.mean(1))))

class Upward(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv1d(3, 16, 3, stride=2, padding=1), nn.BatchNorm1d(16)
        self.up, self.grouped = nn.ConvTranspose1d(16, 16, 2, 2), nn.ConvTranspose1d(16, 16, 3, padding=1, groups=4)
        self.last = nn.Conv1d(16, 3, 1)

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.down(x)))
        return self.last(torch.relu(self.grouped(torch.relu(self.up(x))))).mean(2)

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(1))

class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.head = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, tokens):
        return self.head(torch.relu(self.first(self.embedding(tokens))).mean(1))

class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

def fails():
    raise RuntimeError("no such width")

def no_model():
    return 3

def remembers():
    from pathlib import Path
    (Path(__file__).parent / "weights.txt").read_text()
    return nn.Linear(2, 2)
"""

IMAGE = {"image": {"shape": ["N", 1, 12, 12]}}


def project(folder: Path) -> Path:
    """The user's folder with its two files."""
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "blocks.py").write_text(BLOCKS)
    (folder / "net" / "model.py").write_text(MODEL)
    return folder


def context(folder: Path, base: Path, notes: dict[str, Any] | None = None, **fields: Any) -> Context:
    files = folder / "files"
    files.mkdir(parents=True)
    return Context(folder=files, base=base, note=(notes if notes is not None else {}).__setitem__, **fields)


def at_rest(path: Path) -> Artifact:
    """The artifact that `apply` would make of a pass's result."""
    return Artifact(path.parent.parent, "torch", path.name, "key", "digest", 0, Torch().signature(path))


def imported(base: Path, folder: Path, function: str = "build", notes: dict[str, Any] | None = None, **options: Any) -> Artifact:
    """A model of the project, imported; with no weights given, those of the factory."""
    options.setdefault("inputs", IMAGE)
    made = ImportTorch.model_validate({"factory": f"net/model.py:{function}", **options})
    return at_rest(made.run(Artifact(Path(), "", "", "", "", 0, None), context(folder, base, notes)))  # type: ignore[arg-type]
