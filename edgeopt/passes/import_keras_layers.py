"""Layers of Keras that torch has whole: exporters keep those, where they unroll Keras's loop over steps and write normalizations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def keep_whole(model: Any) -> dict[str, int]:
    """Change every layer that torch has the like of, for inference only; recurrent layers are counted, kept and unrolled."""
    import keras

    counts = {"kept": 0, "unrolled": 0}
    for layer in layers(model):
        if isinstance(layer, keras.layers.RNN):
            loop = _loop(layer)
            counts["kept" if loop else "unrolled"] += 1
            if loop:
                layer.inner_loop = loop
        elif type(layer) is keras.layers.BatchNormalization:
            layer.call = _normalization(layer)
    return counts


def layers(model: Any) -> Iterator[Any]:
    """Every layer, those inside of wrappers and inner models too."""
    yield from model._flatten_layers(include_self=False, recursive=True)


def _loop(layer: Any) -> Callable[..., Any] | None:
    """What computes all steps of a layer, or None where torch has not the same formulas."""
    import keras

    cell = layer.cell
    gates = {keras.layers.LSTMCell: "lstm", keras.layers.GRUCell: "gru"}.get(type(cell))
    usual = gates and cell.activation is keras.activations.tanh and cell.recurrent_activation is keras.activations.sigmoid
    if not usual or not cell.use_bias or not getattr(cell, "reset_after", True):
        return None
    weights = _weights(cell, gates == "gru")
    masked = layer.inner_loop

    def loop(sequences: Tensor, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """Results as `inner_loop` gives them: the last output, those of all steps [N, T, units], states."""
        import torch

        if mask is not None:  # torch has no steps that are left out
            return masked(sequences, initial_state, mask, training)
        given = sequences.flip(1) if layer.go_backwards else sequences
        parameters = [one.to(given.dtype) for one in weights]
        states = [one.unsqueeze(0) for one in initial_state]
        options = (True, 1, 0.0, False, False, True)  # biases, layers, dropout, training, both directions, batch first
        if gates == "lstm":
            outputs, *last = torch.lstm(given, states, parameters, *options)
        else:
            outputs, *last = torch.gru(given, states[0], parameters, *options)
        return outputs[:, -1], outputs, [one.squeeze(0) for one in last]

    return loop


def _weights(cell: Any, gru: bool) -> list[Tensor]:
    """Kernel, recurrent kernel and the two biases as torch has them: gates along the first axis; of a GRU reset before update."""
    import torch

    kernel, recurrent, bias = (one.value.detach() for one in (cell.kernel, cell.recurrent_kernel, cell.bias))
    biases = list(bias) if bias.ndim == 2 else [bias, torch.zeros_like(bias)]
    found = [kernel.T, recurrent.T, *biases]
    if gru:
        found = [torch.cat([reset, update, new]) for update, reset, new in (one.chunk(3) for one in found)]
    return [one.contiguous().clone() for one in found]


def _normalization(layer: Any) -> Callable[..., Tensor]:
    """A batch normalization with what it learned of its data: behind a convolution it becomes part of that."""
    import torch

    stored = (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
    mean, variance, gamma, beta = (None if one is None else one.value.detach().clone() for one in stored)

    def call(inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        first = inputs.movedim(layer.axis, 1)
        found = torch.nn.functional.batch_norm(first, mean, variance, gamma, beta, training=False, eps=layer.epsilon)
        return found.movedim(1, layer.axis)

    return call
