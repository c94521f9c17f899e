"""Trains the CNN and writes weights.safetensors beside this file: python recipes/mnist-cnn/train.py

Same seed, same machine, same versions: same weights. The evaluation digits are looked at once, at the end.
"""

import math
from pathlib import Path

import data
import model
import torch
from safetensors.torch import save_file
from torch.nn import functional

EPOCHS, BATCH, RATE, SEED = 24, 64, 4e-3, 1


def distort(images: torch.Tensor) -> torch.Tensor:
    """Each image turned up to 12°, scaled and sheared by up to 12 %, moved by up to 2.5 pixels."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * math.radians(24)
    scale = 1 + (torch.rand(count, 2) - 0.5) * 0.24
    shear = (torch.rand(count) - 0.5) * 0.24
    shift = (torch.rand(count, 2) - 0.5) * (5 / 14)
    sin, cos = torch.sin(angle), torch.cos(angle)
    rows = torch.stack([cos * scale[:, 0], shear - sin, shift[:, 0], sin, cos * scale[:, 1], shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def accuracy(net: torch.nn.Module, split: str) -> float:
    images, labels = (torch.from_numpy(array) for array in data.arrays(split))
    right = [(net(part).argmax(1) == target).sum() for part, target in zip(images.split(250), labels.split(250), strict=True)]
    return float(sum(right)) / len(labels)


def main() -> None:
    torch.manual_seed(SEED)
    images, labels = (torch.from_numpy(array) for array in data.arrays("train"))
    net = model.build()
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(EPOCHS):
        net.train()
        total = 0.0
        for part in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(net(distort(images[part])), labels[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part)
        net.eval()
        print(f"epoch {epoch + 1:2}/{EPOCHS}: loss {total / len(images):.4f}, tune {accuracy(net, 'tune'):.2%}", flush=True)
    path = Path(__file__).with_name("weights.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    print(f"evaluate {accuracy(net, 'evaluate'):.2%}, {path.name} {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
