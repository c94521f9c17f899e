"""Recurrent layers for torch-pruning: it knows LSTM alone, follows its insides, and cuts the wrong rows out of its gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@cache
def recurrent_pruners() -> dict[type, Any]:
    """One pruner for RNN, LSTM and GRU: a hidden unit goes out of every gate, direction and layer at once."""
    from torch import nn
    from torch_pruning.pruner.function import BasePruningFunc

    class Recurrent(BasePruningFunc):  # type: ignore[misc]  # torch-pruning has no types
        TARGET_MODULES = nn.RNNBase

        def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
            kept = sorted(set(range(layer.input_size)) - set(idxs))
            for name in _weights(layer, "weight_ih_l0"):
                setattr(layer, name, self._prune_parameter_and_grad(getattr(layer, name), kept, 1))
            layer.input_size = len(kept)
            return layer

        def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
            units, ways = layer.hidden_size, 1 + layer.bidirectional
            gone = {index % units for index in idxs}
            if layer.proj_size or len(gone) * ways != len(set(idxs)):
                raise ValueError("a recurrent layer's states cannot lose these channels alone")
            kept = [unit for unit in range(units) if unit not in gone]
            for name in _weights(layer, ""):
                old = getattr(layer, name)
                rows = [gate * units + unit for gate in range(old.shape[0] // units) for unit in kept]
                new = self._prune_parameter_and_grad(old, rows, 0)
                if name.startswith("weight_hh"):
                    new = self._prune_parameter_and_grad(new, kept, 1)
                elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):  # it reads the layer below
                    columns = [way * units + unit for way in range(ways) for unit in kept]
                    new = self._prune_parameter_and_grad(new, columns, 1)
                setattr(layer, name, new)
            layer.hidden_size = len(kept)
            return layer

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.input_size)

        def get_out_channels(self, layer: Any) -> int:
            return int((layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional))

    return {kind: Recurrent() for kind in (nn.RNN, nn.LSTM, nn.GRU)}


def _weights(layer: Any, start: str) -> list[str]:
    return [name for name, _ in layer.named_parameters() if name.startswith(start)]


@contextmanager
def opaque(module: nn.Module) -> Iterator[None]:
    """Recurrent layers seen from outside, as one operation from inputs to outputs, while a graph is built.

    The final states of a single layer of one direction have the outputs' channels. Those of several stand one after
    another, in an order that torch-pruning mistakes: they are not followed, and a layer whose states are read stays.
    """
    import torch
    from torch import nn

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: Any, *found: Any) -> Any:
            return tuple(one.clone() for one in found)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError

    def seen(layer: Any, given: Any, *states: Any) -> Any:
        with torch.no_grad():
            output, final = type(layer).forward(layer, given, *states)
        packed = isinstance(output, nn.utils.rnn.PackedSequence)
        finals = final if isinstance(final, tuple) else (final,)
        several = layer.bidirectional or layer.num_layers > 1
        values = [output.data if packed else output, *(() if several else finals)]
        inputs = given.data if packed else given
        made = Through.apply(inputs if inputs.requires_grad else inputs.detach().requires_grad_(), *values)  # type: ignore[no-untyped-call]
        finals = finals if several else made[1:]
        return output._replace(data=made[0]) if packed else made[0], finals if isinstance(final, tuple) else finals[0]

    layers = [one for one in module.modules() if isinstance(one, nn.RNNBase)]
    for layer in layers:
        layer.forward = partial(seen, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
