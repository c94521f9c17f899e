"""Parts: channels of a model that go through the same layers, in units that can only go together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# A group keeps at least this share of its channels: below it fine-tuning seldom brings a model back.
LEAST_KEPT = 0.25


@dataclass(frozen=True)
class Part:
    """Channels that go through the same layers. A unit is what goes at once: one channel of each of `ways` channel groups.

    Tied layers make a group, cut by its `root`; where some of them are concatenated it has several parts.
    """

    name: str
    root: str
    order: tuple[tuple[int, ...], ...] = ()  # the root's channels by unit, the least important first
    scores: tuple[float, ...] = ()  # their importance, in that order; the mean of a group is 1
    step: int = 1
    inward: dict[str, int] = field(default_factory=dict)  # input channels that a layer loses per unit
    outward: dict[str, int] = field(default_factory=dict)  # output channels
    refusal: str = ""

    def steps(self) -> list[tuple[float, float, int]]:
        """(share of units gone halfway through the step, mean importance of what goes, units gone afterwards) of each step."""
        units = len(self.order)
        least = max(self.step, math.ceil(units * LEAST_KEPT / self.step) * self.step)
        found, lost = [], 0
        for kept in range((units - 1) // self.step * self.step, least - 1, -self.step):
            gone = units - kept
            found.append(((lost + gone) / 2 / units, sum(self.scores[lost:gone]) / (gone - lost), gone))
            lost = gone
        return found


def parts_of(graph: Any, group: Any, names: Mapping[Any, str], scorer: Any, round_to: int) -> list[Part]:
    """The parts of one of torch-pruning's groups; `scorer` is its way to rank channels, `names` the layers' names."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    scores = _rank(scorer, group)
    root = group[0].dep.target.module
    channels, ways, ends, held = graph.get_out_channels(root), 1, False, ""
    through: list[Counter[tuple[bool, str]]] = [Counter() for _ in range(channels)]
    for item in group:
        layer, out = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        ends = ends or (out and not item.dep.target.outputs)
        if isinstance(layer, nn.GroupNorm):
            ways = math.lcm(ways, layer.num_groups)
        elif isinstance(layer, nn.RNNBase) and out:
            ways = math.lcm(ways, 1 + layer.bidirectional)  # both directions lose the same units
            held = held or ("its outputs are a projection of its states" if layer.proj_size else "")
        elif isinstance(layer, nn.MultiheadAttention):
            ways = math.lcm(ways, layer.num_heads)  # every head loses the same places
        elif isinstance(layer, _ConvNd) and 1 < layer.groups < layer.out_channels:
            ways = math.lcm(ways, layer.groups)
        for channel in item.root_idxs if layer in names else ():
            for way, name in _crossed(layer, out, names[layer]):
                through[channel if channel is not None else 0][way, name] += 1
    refusal = "it makes an output" if ends else held or ("its channels cannot be ranked" if scores is None else "")
    if channels % ways:
        refusal = refusal or f"its {channels} channels do not divide into {ways} groups"
    if refusal or scores is None:
        return [Part(names[root], names[root], outward={name: 1 for out, name in through[0] if out}, refusal=refusal)]
    units = [tuple(range(first, channels, channels // ways)) for first in range(channels // ways)]
    rank = {unit: float(scores[list(unit)].mean()) for unit in units}
    alike: dict[frozenset[tuple[tuple[bool, str], int]], list[tuple[int, ...]]] = {}
    for unit in sorted(units, key=rank.__getitem__):
        crossed: Counter[tuple[bool, str]] = sum((through[channel] for channel in unit), Counter())
        alike.setdefault(frozenset(crossed.items()), []).append(unit)
    parts = []
    for layers, order in alike.items():
        inward = {name: count for (out, name), count in layers if not out}
        outward = {name: count for (out, name), count in layers if out}
        alone = [layer for layer, name in names.items() if name in outward and graph.get_out_channels(layer) == len(order) * ways]
        part = Part(
            name=names[root] if root in alone or not alone else names[alone[0]],
            root=names[root],
            order=tuple(order),
            scores=tuple(rank[unit] for unit in order),
            step=round_to // math.gcd(round_to, ways),
            inward=inward,
            outward=outward,
        )
        parts.append(part if part.steps() else replace(part, refusal=f"only {len(order) * ways} channels"))
    return parts


def _crossed(layer: Any, out: bool, name: str) -> list[tuple[bool, str]]:
    """What a channel that goes takes with it, as (outputs or inputs, name in the count of MACs)."""
    from torch import nn

    if isinstance(layer, nn.MultiheadAttention):
        return [(True, name), (False, name)]
    if isinstance(layer, nn.RNNBase) and out:
        return [(True, name), (True, f"{name}.hidden"), (False, f"{name}.hidden")]
    return [(out, name)]


def _rank(scorer: Any, group: Any) -> Tensor | None:
    """Importance by channel; None where the method has nothing to look at, or does not know such layers."""
    try:
        scores: Tensor | None = scorer(group)
    except (IndexError, RuntimeError):  # depthwise convolutions that multiply their channels
        return None
    return None if scores is None else scores.nan_to_num(0.0)  # where all are 0, its mean divides by 0


def macs_left(macs: Mapping[str, int], sizes: Mapping[str, tuple[int, int]], chosen: list[tuple[Part, int]]) -> float:
    """MACs after so many units of each part are gone: a layer's shrink with its inputs and with its outputs."""
    total = 0.0
    for name, count in macs.items():
        inner, outer = sizes[name]
        gone_in = sum(part.inward.get(name, 0) * lost for part, lost in chosen)
        gone_out = sum(part.outward.get(name, 0) * lost for part, lost in chosen)
        total += count * (1 - gone_in / inner) * (1 - gone_out / outer)
    return total
