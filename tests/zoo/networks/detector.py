"""A single-shot detector: convolutions (residual, depthwise), SiLU, sigmoid."""

import torch
from torch import nn

STRIDE = 8


def layer(inner: int, outer: int, stride: int = 1, groups: int = 1, side: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.SiLU())


class Residual(nn.Module):
    """A shortcut around two convolutions, or around a depthwise one between two that mix channels."""

    def __init__(self, width: int, depthwise: bool = False) -> None:
        super().__init__()
        mixed = (layer(width, 2 * width, side=1), layer(2 * width, 2 * width, groups=2 * width), layer(2 * width, width, side=1))
        self.layers = nn.Sequential(*(mixed if depthwise else (layer(width, width), layer(width, width))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Detector(nn.Module):
    """Image [N, 1, H, W] to boxes [N, cells, 4] (x, y, x, y in pixels) and scores [N, cells, classes] in 0…1."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(layer(1, 16, 2), layer(16, 32, 2), Residual(32)),
            *(layer(32, 64, 2), Residual(64), Residual(64, depthwise=True)),
        )
        self.neck = layer(64, 64)
        self.kinds, self.sides = nn.Conv2d(64, classes, 1), nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.kinds.bias, -4.0)

    def raw(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, classes, h, w] and distances from the cell's centre to the box's sides, in cells, [N, 4, h, w]."""
        x = self.neck(self.backbone(image))
        return self.kinds(x), torch.nn.functional.softplus(self.sides(x))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, sides = self.raw(image)
        height, width = sides.shape[2:]
        y = (torch.arange(height).to(sides.dtype) + 0.5)[:, None].expand(height, width)
        x = (torch.arange(width).to(sides.dtype) + 0.5)[None, :].expand(height, width)
        left, top, right, bottom = sides.unbind(1)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], dim=-1) * STRIDE
        return boxes.flatten(1, 2), torch.sigmoid(logits).flatten(2).transpose(1, 2)


def build(classes: int) -> nn.Module:
    return Detector(classes)
