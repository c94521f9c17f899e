"""What layers and quantizers have to do with each other, whatever the format.

A quantizer computes FQ(x). In an engine's *gated* model it computes x + g·(FQ(x) − x) with g an input: one
model tells what any set of quantized layers costs in accuracy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product that reads quantized numbers on both sides."""

    name: str
    kind: str
    data: tuple[str, ...]  # the quantizers of what it reads
    weights: tuple[str, ...]  # the quantizers of its constant weights; none for a product of activations


@dataclass(frozen=True)
class Rule:
    """When a quantizer of activations stays: a layer that it feeds is quantized, or it lies between two that are."""

    feeds: frozenset[str]
    above: frozenset[str]
    below: frozenset[str]

    def active(self, on: Collection[str]) -> bool:
        return not self.feeds.isdisjoint(on) or not (self.above.isdisjoint(on) or self.below.isdisjoint(on))


def groups(quantized: Mapping[str, Layer]) -> list[list[Layer]]:
    """Layers that share a quantizer, of what they read or of their weights, together: they can only be switched at once."""
    found: list[list[Layer]] = []
    for layer in quantized.values():
        tied = [group for group in found if any({*layer.data, *layer.weights} & {*other.data, *other.weights} for other in group)]
        found = [group for group in found if group not in tied]
        found.append([*(other for group in tied for other in group), layer])
    order = {name: index for index, name in enumerate(quantized)}
    return sorted((sorted(group, key=lambda one: order[one.name]) for group in found), key=lambda group: order[group[0].name])


def gates_for(quantized: Iterable[str], named: Mapping[str, Rule], on: Collection[str]) -> np.ndarray[Any, Any]:
    """The gates' values that switch on the layers `on` and the quantizers that they need: those of all layers, then of all quantizers.

    By place and not by name: many exporters call a layer and the tensor that it makes alike.
    """
    import numpy as np

    return np.array([*(name in on for name in quantized), *(rule.active(on) for rule in named.values())], np.float32)
