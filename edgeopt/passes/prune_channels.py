"""Structured pruning: whole channels are taken out, so that every runtime gets a smaller dense model."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context, Pass, fixed_batch
from edgeopt.formats import torch as torch_format

if TYPE_CHECKING:
    from torch import Tensor, nn

# A group keeps at least this share of its channels: below it fine-tuning seldom brings a model back.
_LEAST_KEPT = 0.25
# To come close to the goal, groups may shrink by this factor more than the rest.
_EVENLY = 1.4


class PruneChannels(Pass, accepts="torch", produces="torch", needs=("torch", "torch-pruning"), changes_function=True):
    """Remove the least important channels until at most the share `macs` of the multiply-accumulates is left.

    Layers whose channels are tied (by sums, depthwise convolutions, normalizations) shrink together
    (Fang et al., DepGraph, arXiv:2301.12900), all evenly; the outputs keep their size. MACs are those of
    convolutions and linear layers. What cannot be pruned is left alone, and noted. Fine-tune afterwards.
    """

    extra: ClassVar[str] = "torch"

    macs: float = Field(default=0.5, gt=0, lt=1, description="share of the MACs to keep: 0.4 leaves at most 40 %")
    importance: Literal["magnitude", "bn-scale"] = Field(
        default="magnitude", description="ranks channels by their weights, or by their batch-norm scales"
    )
    round_to: int = Field(default=8, ge=1, le=256, description="channel counts become multiples of this, which runtimes like")
    keep: list[str] = Field(default_factory=list, description="names or patterns of layers whose channels all stay: head, blocks.0.*")

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("torch_pruning", "torch")
        record = torch_format.Record.read(model.path)
        module = torch_format.load(model.path)
        whole = _Subject(
            module,
            torch_format.examples(module, record.inputs, record.outputs),
            lambda value: list(torch_format.named(value, record.outputs).values()),
        )
        fixed = dict.fromkeys(_matching(self.keep, list(whole.layers())), "named under `keep`")
        pruned = self._prune(whole, fixed, ctx)
        before, after = whole.sizes(), pruned.sizes()
        macs = [sum(each.macs().values()) // (fixed_batch(model.signature) or torch_format.EXAMPLES) for each in (whole, pruned)]
        ctx.note("macs", macs)
        ctx.note("macs_kept", round(macs[1] / macs[0], 4))
        ctx.note("parameters", [sum(one.numel() for one in each.module.parameters()) for each in (whole, pruned)])
        ctx.note("channels", {name: [before[name][1], after[name][1]] for name in before if before[name][1] != after[name][1]})
        ctx.note("left_alone", fixed)
        return torch_format.save(pruned.module, ctx.folder, model.path)

    def _prune(self, whole: _Subject, fixed: dict[str, str], ctx: Context) -> _Subject:
        """A pruned copy. Adds to `fixed`, why by layer, what cannot be pruned."""
        parts = []
        for part in whole.parts(self.importance, self.round_to):
            held = next((name for name in part.outward if name in fixed), None)
            if reason := part.refusal or (f"tied to {held}" if held else ""):
                fixed.setdefault(part.name, reason)
            else:
                parts.append(part)
        while True:
            copy = whole.copy()
            ctx.progress(0, 0, "removing channels")
            problem = copy.cut(self._choose(whole, parts, fixed))
            if not problem:
                return copy
            # Something in the model counts on a size: find the channels that can not even be cut alone.
            able = []
            for done, part in enumerate(parts):
                ctx.progress(done, len(parts), f"trying {part.name}")
                if reason := whole.copy().cut([(part, part.steps()[0][2])]):
                    fixed[part.name] = reason
                else:
                    able.append(part)
            if len(able) == len(parts):
                raise StepError(f"the model cannot be pruned: {problem}", remedy="name the layers that must stay under `keep`")
            parts = able

    def _choose(self, whole: _Subject, parts: list[_Part], fixed: dict[str, str]) -> list[tuple[_Part, int]]:
        """How many units each part loses, so that all shrink evenly and the MACs come close below the goal."""
        macs, sizes = whole.macs(), whole.sizes()
        total = sum(macs.values())

        def share(lost: dict[int, int]) -> float:
            return _macs_left(macs, sizes, [(parts[index], count) for index, count in lost.items()]) / total

        steps = sorted((at, cost, index, count) for index, part in enumerate(parts) for at, cost, count in part.steps())
        short: dict[int, int] = {}
        while steps and share(short | {steps[0][2]: steps[0][3]}) > self.macs:
            _, _, index, count = steps.pop(0)
            short[index] = count
        if not steps:
            raise self._unreachable(share(short), bool(short), fixed)
        # The next step suffices and may go far below the goal: look whether steps soon after it come closer.
        best = short | {steps[0][2]: steps[0][3]}
        for at, _, index, count in steps:
            trial = short | {index: count}
            if at > _EVENLY * steps[0][0]:
                break
            if share(trial) > self.macs:
                short = trial
            elif share(trial) > share(best):
                best = trial
        return [(parts[index], count) for index, count in best.items()]

    def _unreachable(self, nearest: float, some: bool, fixed: dict[str, str]) -> StepError:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(fixed.items())[:5])
        if not some:
            return StepError(
                f"no channels can be removed ({why or 'the model has no convolution or linear layer'})",
                remedy="leave prune-channels out, or choose a smaller round_to",
            )
        return StepError(
            f"{self.macs:.0%} of the MACs cannot be reached, {nearest:.1%} is the nearest" + (f" ({why})" if why else ""),
            remedy=f"ask for macs: {math.ceil(100 * nearest) / 100:.2f}, keep fewer layers, or choose a smaller round_to",
        )


@dataclass(frozen=True)
class _Part:
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
        least = max(self.step, math.ceil(units * _LEAST_KEPT / self.step) * self.step)
        found, lost = [], 0
        for kept in range((units - 1) // self.step * self.step, least - 1, -self.step):
            gone = units - kept
            found.append(((lost + gone) / 2 / units, sum(self.scores[lost:gone]) / (gone - lost), gone))
            lost = gone
        return found


@dataclass(frozen=True)
class _Subject:
    """A model under the knife, inputs for it, and what makes a list of tensors of its result."""

    module: nn.Module
    given: list[Tensor]
    outputs: Callable[[Any], list[Tensor]]

    def copy(self) -> _Subject:
        return _Subject(deepcopy(self.module), self.given, self.outputs)

    def layers(self) -> dict[str, Any]:
        """Convolutions and linear layers by name."""
        from torch import nn
        from torch.nn.modules.conv import _ConvNd

        return {name: one for name, one in self.module.named_modules() if isinstance(one, (_ConvNd, nn.Linear))}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Input and output channels by layer."""
        return {
            name: (one.in_features, one.out_features) if hasattr(one, "in_features") else (one.in_channels, one.out_channels)
            for name, one in self.layers().items()
        }

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of the example inputs, by layer."""
        counts: dict[str, int] = {}

        def watch(name: str) -> Callable[..., None]:
            def count(layer: Any, given: tuple[Tensor, ...], result: Tensor) -> None:
                transposed = getattr(layer, "transposed", False)
                places = given[0].numel() // layer.in_channels if transposed else result.numel() // layer.weight.shape[0]
                counts[name] = counts.get(name, 0) + places * layer.weight.numel()

            return count

        hooks = [one.register_forward_hook(watch(name)) for name, one in self.layers().items()]
        self.shapes()
        for hook in hooks:
            hook.remove()
        return counts

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs, by running the model."""
        import torch

        with torch.no_grad():
            return [tuple(one.shape) for one in self.outputs(self.module(*self.given))]

    def graph(self) -> Any:
        """torch-pruning's dependency graph. Each output gets a node of its own, so that what feeds one is known."""
        import torch_pruning

        self.module.requires_grad_(True)  # it follows the gradients
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of guesses about parameters outside of layers: wrong ones are found by trying
            return torch_pruning.DependencyGraph().build_dependency(
                self.module,
                example_inputs=self.given,
                forward_fn=lambda module, given: module(*given),
                output_transform=lambda value: [one * 1 for one in self.outputs(value) if one.grad_fn is not None],
            )

    def parts(self, importance: str, round_to: int) -> list[_Part]:
        """Every set of tied channels, ranked."""
        import torch_pruning

        ranking = torch_pruning.importance
        scorer = ranking.BNScaleImportance() if importance == "bn-scale" else ranking.GroupMagnitudeImportance(p=2)
        try:
            graph = self.graph()
            found = list(graph.get_all_groups())
        except Exception as error:
            raise StepError(
                f"the model's channels cannot be followed: {error}", remedy="leave prune-channels out for this model"
            ) from error
        names = {one: name for name, one in self.layers().items()}
        return [part for group in found for part in _parts(graph, group, names, _rank(scorer, group), round_to)]

    def cut(self, chosen: list[tuple[_Part, int]]) -> str:
        """Remove so many units of each part. Returns why the model broke, or an empty string."""
        layers, before, shared = self.layers(), self.shapes(), _shared(self.module)
        channels: dict[str, list[int]] = {}
        for part, count in chosen:
            channels.setdefault(part.root, []).extend(channel for unit in part.order[:count] for channel in unit)
        try:
            graph = self.graph()
            for root, indices in channels.items():
                function = graph.get_pruner_of_module(layers[root]).prune_out_channels
                graph.get_pruning_group(layers[root], function, sorted(indices)).prune()
            after = self.shapes()
        except Exception as error:  # noqa: BLE001 (a model that counts on a size raises anything)
            return f"the model counts on its size ({(str(error) or type(error).__name__).splitlines()[0]})"
        if shared != _shared(self.module):
            return "it shares its weights with another layer"
        return "" if before == after else "an output would change its shape"


def _parts(graph: Any, group: Any, names: Mapping[Any, str], scores: Tensor | None, round_to: int) -> list[_Part]:
    """The parts of one of torch-pruning's groups; `scores` ranks its channels."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    root = group[0].dep.target.module
    channels, ways, ends = graph.get_out_channels(root), 1, False
    through: list[Counter[tuple[bool, str]]] = [Counter() for _ in range(channels)]
    for item in group:
        layer, out = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        ends = ends or (out and not item.dep.target.outputs)
        if isinstance(layer, nn.GroupNorm):
            ways = math.lcm(ways, layer.num_groups)
        elif isinstance(layer, nn.MultiheadAttention):
            ways = math.lcm(ways, layer.num_heads)  # every head loses the same places
        elif isinstance(layer, _ConvNd) and 1 < layer.groups < layer.out_channels:
            ways = math.lcm(ways, layer.groups)
        for channel in item.root_idxs if layer in names else ():
            through[channel if channel is not None else 0][out, names[layer]] += 1
    refusal = "it makes an output" if ends else "its channels cannot be ranked" if scores is None else ""
    if channels % ways:
        refusal = refusal or f"its {channels} channels do not divide into {ways} groups"
    if refusal or scores is None:
        return [_Part(names[root], names[root], outward={name: 1 for out, name in through[0] if out}, refusal=refusal)]
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
        part = _Part(
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


def _rank(scorer: Any, group: Any) -> Tensor | None:
    """Importance by channel; None where the method has nothing to look at, or does not know such layers."""
    try:
        scores: Tensor | None = scorer(group)
    except (IndexError, RuntimeError):  # depthwise convolutions that multiply their channels
        return None
    return scores


def _shared(module: nn.Module) -> set[frozenset[str]]:
    """Names of parameters that are one and the same."""
    by_id: dict[int, set[str]] = {}
    for name, one in module.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(one), set()).add(name)
    return {frozenset(names) for names in by_id.values() if len(names) > 1}


def _macs_left(macs: dict[str, int], sizes: dict[str, tuple[int, int]], chosen: list[tuple[_Part, int]]) -> float:
    """MACs after so many units of each part are gone: a layer's shrink with its inputs and with its outputs."""
    total = 0.0
    for name, count in macs.items():
        inner, outer = sizes[name]
        gone_in = sum(part.inward.get(name, 0) * lost for part, lost in chosen)
        gone_out = sum(part.outward.get(name, 0) * lost for part, lost in chosen)
        total += count * (1 - gone_in / inner) * (1 - gone_out / outer)
    return total


def _matching(patterns: list[str], layers: list[str]) -> list[str]:
    """The layers that the patterns name. Raises UsageError when one names none."""
    found = []
    for pattern in patterns:
        matched = [name for name in layers if fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")]
        if not matched:
            raise UsageError(f"keep: no convolution or linear layer is named '{pattern}'", remedy=did_you_mean(pattern, layers))
        found += matched
    return found
