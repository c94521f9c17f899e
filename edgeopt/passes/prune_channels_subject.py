"""A torch model under the knife: its layers, its multiply-accumulates, its tied channels, and the cut itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.core.errors import StepError
from edgeopt.passes.prune_channels_parts import Part, parts_of
from edgeopt.passes.prune_channels_recurrent import opaque, recurrent_pruners

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Subject:
    """A model, inputs for it, and what makes a list of tensors of its result."""

    module: nn.Module
    given: list[Tensor]
    outputs: Callable[[Any], list[Tensor]]

    def copy(self) -> Subject:
        return Subject(deepcopy(self.module), self.given, self.outputs)

    def layers(self) -> dict[str, Any]:
        """Convolutions, linear and recurrent layers, and attentions (by the name of their output's layer, which they never call)."""
        from torch import nn
        from torch.nn.modules.conv import _ConvNd

        found = {name: one for name, one in self.module.named_modules() if isinstance(one, (_ConvNd, nn.Linear, nn.RNNBase))}
        attentions = {f"{name}.out_proj": one for name, one in self.module.named_modules() if isinstance(one, nn.MultiheadAttention)}
        return found | attentions

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Input and output channels by layer; those of a recurrent layer's states stand under `<name>.hidden`."""
        from torch import nn

        found: dict[str, tuple[int, int]] = {}
        for name, one in self.layers().items():
            if isinstance(one, nn.RNNBase):
                channels = one.hidden_size * (1 + one.bidirectional)
                found |= {name: (one.input_size, channels), f"{name}.hidden": (channels, channels)}
            elif isinstance(one, nn.MultiheadAttention):
                found[name] = (one.embed_dim, one.embed_dim)
            else:
                found[name] = (one.in_features, one.out_features) if hasattr(one, "in_features") else (one.in_channels, one.out_channels)
        return found

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of the example inputs, by layer: convolutions, linear and recurrent layers, attention's projections."""
        import torch
        from torch import nn

        counts: dict[str, int] = {}

        def watch(name: str) -> Callable[..., None]:
            def count(layer: Any, given: tuple[Any, ...], result: Any) -> None:
                if isinstance(layer, nn.RNNBase):
                    steps = given[0].data.numel() // layer.input_size  # a packed sequence has its values there too
                    weights = {key: one.numel() for key, one in layer.named_parameters() if key.startswith("weight")}
                    found = steps * sum(size for key, size in weights.items() if key.startswith("weight_ih_l0"))
                    counts[f"{name}.hidden"] = counts.get(f"{name}.hidden", 0) + steps * sum(weights.values()) - found
                elif isinstance(layer, nn.MultiheadAttention):
                    found = sum(one.numel() // one.shape[-1] for one in (result[0], *given[:3])) * layer.embed_dim**2
                elif getattr(layer, "transposed", False):
                    found = given[0].numel() // layer.in_channels * layer.weight.numel()
                else:
                    found = result.numel() // layer.weight.shape[0] * layer.weight.numel()
                counts[name] = counts.get(name, 0) + found

            return count

        hooks = [one.register_forward_hook(watch(name)) for name, one in self.layers().items()]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one call for a whole layer, which no hook sees
        try:
            self.shapes()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
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

        learns = {name: one.requires_grad for name, one in self.module.named_parameters()}
        self.module.requires_grad_(True)  # it follows the gradients
        with warnings.catch_warnings(), opaque(self.module):
            warnings.simplefilter("ignore")  # of guesses about parameters outside of layers: wrong ones are found by trying
            graph = torch_pruning.DependencyGraph().build_dependency(
                self.module,
                example_inputs=self.given,
                forward_fn=lambda module, given: module(*given),
                output_transform=lambda value: [one * 1 for one in self.outputs(value) if one.grad_fn is not None],
                customized_pruners=recurrent_pruners(),
            )
        self._learn(learns)
        return graph

    def _learn(self, learns: dict[str, bool]) -> None:
        for name, one in self.module.named_parameters():
            one.requires_grad_(learns[name])

    def parts(self, importance: str, round_to: int) -> list[Part]:
        """Every set of tied channels, ranked. `taylor` looks at gradients that are there already."""
        import torch_pruning
        from torch import nn
        from torch.nn.modules.conv import _ConvNd

        ranking = torch_pruning.importance
        scorers = {
            "magnitude": lambda: ranking.GroupMagnitudeImportance(p=2),
            "taylor": ranking.GroupTaylorImportance,
            "bn-scale": ranking.BNScaleImportance,
        }
        scorer = scorers[importance]()
        try:
            graph = self.graph()
            found = list(graph.get_all_groups(root_module_types=(_ConvNd, nn.Linear, nn.RNNBase)))
        except Exception as error:
            raise StepError(
                f"the model's channels cannot be followed: {error}", remedy="leave prune-channels out for this model"
            ) from error
        names = {one: name for name, one in self.layers().items()}
        return [part for group in found for part in parts_of(graph, group, names, scorer, round_to)]

    def cut(self, chosen: list[tuple[Part, int]]) -> str:
        """Remove so many units of each part. Returns why the model broke, or an empty string."""
        layers, before, shared = self.layers(), self.shapes(), _shared(self.module)
        learns = {name: one.requires_grad for name, one in self.module.named_parameters()}
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
        self._learn(learns)
        return "" if before == after else "an output would change its shape"


def _shared(module: nn.Module) -> set[frozenset[str]]:
    """Names of parameters that are one and the same."""
    by_id: dict[int, set[str]] = {}
    for name, one in module.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(one), set()).add(name)
    return {frozenset(names) for names in by_id.values() if len(names) > 1}
