"""Trains the perceptron and writes weights.safetensors beside this file: python recipes/mnist-mlp/train.py

Adam, cross-entropy, batches of 128, 150 epochs of distorted digits. Same seed, same machine, same
versions: same weights. The evaluation digits are looked at once, at the end.
"""

import math
from pathlib import Path

import data
import model
import torch
from safetensors.torch import save_file
from torch.nn import functional

EPOCHS, BATCH, RATE, SEED = 150, 128, 4e-3, 1


def distort(images: torch.Tensor) -> torch.Tensor:
    """Each image turned up to 12°, scaled by up to 12 %, moved by up to 2.5 pixels."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * math.radians(24)
    scale = 1 + (torch.rand(count) - 0.5) * 0.24
    shift = (torch.rand(count, 2) - 0.5) * (5 / 14)
    sin, cos = torch.sin(angle) * scale, torch.cos(angle) * scale
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.view(count, 2, 3), [count, 1, 28, 28], align_corners=False)
    return functional.grid_sample(images.view(count, 1, 28, 28), grid, align_corners=False).flatten(1)


@torch.no_grad()
def accuracy(net: torch.nn.Module, split: str) -> float:
    images, labels = (torch.from_numpy(array) for array in data.arrays(split))
    return float((net(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(SEED)
    images, labels = (torch.from_numpy(array) for array in data.arrays("train"))
    net = model.build()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        total = 0.0
        for part in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(net.logits(distort(images[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(part)
        schedule.step()
        if epoch % 25 == 24:
            print(f"epoch {epoch + 1:3}/{EPOCHS}: loss {total / len(images):.4f}, tune {accuracy(net, 'tune'):.2%}", flush=True)
    path = Path(__file__).with_name("weights.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    print(f"evaluate {accuracy(net, 'evaluate'):.2%}, {path.name} {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
