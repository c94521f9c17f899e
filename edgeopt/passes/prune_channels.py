"""Structured pruning: whole channels are taken out, so that every runtime gets a smaller dense model."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
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
        groups = []
        for group in whole.groups(self.importance, self.round_to):
            held = next((name for name in group.outward if name in fixed), None)
            if reason := group.refusal or (f"tied to {held}" if held else ""):
                fixed.setdefault(group.name, reason)
            else:
                groups.append(group)
        while True:
            chosen = self._choose(whole, groups, fixed)
            copy = whole.copy()
            ctx.progress(0, 0, f"removing channels in {len(chosen)} groups of layers")
            problem = copy.cut(chosen)
            if not problem:
                return copy
            # Something in the model counts on a size: find the groups that can not even be cut alone.
            refused = {}
            for done, group in enumerate(groups):
                ctx.progress(done, len(groups), f"trying {group.name}")
                if reason := whole.copy().cut({group.name: group.indices(group.steps()[0][2])}):
                    refused[group.name] = reason
            if not refused:
                raise StepError(f"the model cannot be pruned: {problem}", remedy="name the layers that must stay under `keep`")
            fixed.update(refused)
            groups = [group for group in groups if group.name not in refused]

    def _choose(self, whole: _Subject, groups: list[_Group], fixed: dict[str, str]) -> dict[str, list[int]]:
        """The channels that each group loses, so that all shrink evenly and the MACs come close below the goal."""
        macs, sizes = whole.macs(), whole.sizes()
        total = sum(macs.values())

        def share(lost: dict[str, int]) -> float:
            return _macs_left(macs, sizes, groups, lost) / total

        steps = sorted(((at, cost, group.name, lost) for group in groups for at, cost, lost in group.steps()), key=lambda step: step[:2])
        short: dict[str, int] = dict.fromkeys((group.name for group in groups), 0)
        while steps and share(short | {steps[0][2]: steps[0][3]}) > self.macs:
            _, _, name, lost = steps.pop(0)
            short[name] = lost
        if not steps:
            raise self._unreachable(share(short), any(short.values()), fixed)
        # The next step suffices and may go far below the goal: look whether steps soon after it come closer.
        best = short | {steps[0][2]: steps[0][3]}
        for at, _, name, lost in steps:
            trial = short | {name: lost}
            if at > _EVENLY * steps[0][0]:
                break
            if share(trial) > self.macs:
                short = trial
            elif share(trial) > share(best):
                best = trial
        return {group.name: group.indices(best[group.name]) for group in groups if best[group.name]}

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
class _Group:
    """Channels of several layers that go together. A unit is what goes at once: one channel of each of `ways` channel groups."""

    name: str
    units: int
    ways: int
    step: int
    order: tuple[int, ...]  # units, the least important first
    scores: tuple[float, ...]  # their importance, in that order; the mean of a group is 1
    inward: dict[str, float]  # input channels that a layer loses per unit
    outward: dict[str, float]  # output channels
    refusal: str = ""

    def steps(self) -> list[tuple[float, float, int]]:
        """(share of units gone halfway through the step, mean importance of what goes, units gone afterwards) of each step."""
        least = max(self.step, math.ceil(self.units * _LEAST_KEPT / self.step) * self.step)
        found, lost = [], 0
        for kept in range((self.units - 1) // self.step * self.step, least - 1, -self.step):
            gone = self.units - kept
            found.append(((lost + gone) / 2 / self.units, sum(self.scores[lost:gone]) / (gone - lost), gone))
            lost = gone
        return found

    def indices(self, count: int) -> list[int]:
        return sorted(way * self.units + unit for way in range(self.ways) for unit in self.order[:count])


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

    def groups(self, importance: str, round_to: int) -> list[_Group]:
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
        return [_describe(graph, group, names, _rank(scorer, group), round_to) for group in found]

    def cut(self, chosen: Mapping[str, list[int]]) -> str:
        """Remove channels by the name of the group's first layer. Returns why the model broke, or an empty string."""
        layers, before, shared = self.layers(), self.shapes(), _shared(self.module)
        try:
            graph = self.graph()
            for name, indices in chosen.items():
                function = graph.get_pruner_of_module(layers[name]).prune_out_channels
                graph.get_pruning_group(layers[name], function, indices).prune()
            after = self.shapes()
        except Exception as error:  # noqa: BLE001 (a model that counts on a size raises anything)
            return f"the model counts on its size ({(str(error) or type(error).__name__).splitlines()[0]})"
        if shared != _shared(self.module):
            return "it shares its weights with another layer"
        return "" if before == after else "an output would change its shape"


def _describe(graph: Any, group: Any, names: Mapping[Any, str], scores: Tensor | None, round_to: int) -> _Group:
    """What is known of one of torch-pruning's groups; `scores` ranks its channels."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    root = group[0].dep.target.module
    channels, ways, ends = graph.get_out_channels(root), 1, False
    inward: dict[str, float] = {}
    outward: dict[str, float] = {}
    for dep, indices in group:
        layer, out = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
        ends = ends or (out and not dep.target.outputs)
        if isinstance(layer, nn.GroupNorm):
            ways = math.lcm(ways, layer.num_groups)
        elif isinstance(layer, nn.MultiheadAttention):
            ways = math.lcm(ways, layer.num_heads)  # every head loses the same places
        elif isinstance(layer, _ConvNd) and 1 < layer.groups < layer.out_channels:
            ways = math.lcm(ways, layer.groups)
        if layer in names:
            side = outward if out else inward
            side[names[layer]] = side.get(names[layer], 0) + len(indices)
    units = channels // ways
    refusal = ""
    if ends:
        refusal = "it makes an output"
    elif channels % ways:
        refusal = f"{channels} channels do not divide into {ways} channel groups"
    elif scores is None:
        refusal = "nothing ranks its channels"
    ranked = scores.view(ways, -1).mean(dim=0) if scores is not None and not refusal else None
    made = _Group(
        name=names[root],
        units=units,
        ways=ways,
        step=round_to // math.gcd(round_to, ways),
        order=tuple(ranked.argsort(stable=True).tolist()) if ranked is not None else (),
        scores=tuple(ranked.sort(stable=True).values.tolist()) if ranked is not None else (),
        inward={name: count / units for name, count in inward.items()},
        outward={name: count / units for name, count in outward.items()},
        refusal=refusal,
    )
    return made if refusal or made.steps() else replace(made, refusal=f"only {channels} channels")


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


def _macs_left(macs: dict[str, int], sizes: dict[str, tuple[int, int]], groups: list[_Group], lost: dict[str, int]) -> float:
    """MACs after so many units of each group are gone: a layer's shrink with its inputs and with its outputs."""
    total = 0.0
    for name, count in macs.items():
        share = 1.0
        for side, channels in enumerate(sizes[name]):
            gone = sum((group.outward if side else group.inward).get(name, 0) * lost[group.name] for group in groups)
            share *= 1 - gone / channels
        total += count * share
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
