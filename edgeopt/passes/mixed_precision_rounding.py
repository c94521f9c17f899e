"""Weights rounded to 8 bit so that later weights of a row make up for what earlier ones lost (GPTQ, arXiv:2210.17323).

Rounding each weight to its nearest neighbour is the best for the weight and not for the layer: what counts is the layer's output on
inputs that are alike. From the inputs' second moments the loss of one weight is spread over those that are still to be rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# Share of the mean power of inputs that is added to each: keeps the moments invertible when there are few samples.
DAMPING = 0.01
_BLOCK = 64


def rounded(weights: Array, scales: Array, moments: Array, most: int) -> Array:
    """Weights [groups, outputs, inputs] on the grid scale · (−most … most).

    scales [groups, outputs]; moments [groups, inputs, inputs], the summed products of inputs. Returns the rounded values.
    """
    import numpy as np

    order = np.argsort(-np.einsum("gkk->gk", moments), axis=1, kind="stable")  # the strongest inputs while there is room to make up
    each = np.arange(len(weights))[:, None]
    left = np.transpose(weights, (0, 2, 1))[each, order].astype(np.float64)  # [groups, inputs, outputs]
    upper = _upper(moments[each[:, :, None], order[:, :, None], order[:, None, :]].astype(np.float64))
    result, inputs = np.empty_like(left), left.shape[1]
    for first in range(0, inputs, _BLOCK):
        last = min(first + _BLOCK, inputs)
        lost = np.empty_like(left[:, first:last])
        for index in range(first, last):
            result[:, index] = nearest(left[:, index], scales, most)
            lost[:, index - first] = (left[:, index] - result[:, index]) / upper[:, index, index, None]
            left[:, index + 1 : last] -= upper[:, index, index + 1 : last, None] * lost[:, index - first, None]
        left[:, last:] -= np.matmul(upper[:, first:last, last:].transpose(0, 2, 1), lost)
    back = np.empty_like(result)
    back[each, order] = result
    return back.transpose(0, 2, 1).astype(weights.dtype)


def nearest(weights: Array, scales: Array, most: int) -> Array:
    """Each weight on the nearest point of its grid."""
    import numpy as np

    return np.clip(np.rint(weights / scales), -most, most) * scales


def _upper(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse of each damped matrix of moments."""
    import numpy as np

    inputs = moments.shape[-1]
    diagonal = np.einsum("gkk->gk", moments)
    power = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.where(power > 0, DAMPING * power, 1.0)
    inverse = np.linalg.inv(moments)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    try:
        return np.linalg.cholesky(inverse).transpose(0, 2, 1)
    except np.linalg.LinAlgError:  # inputs of widely different power: round each weight for itself
        return np.broadcast_to(np.eye(inputs), moments.shape)


def patches(inputs: Array, kernel: list[int], groups: int, attributes: dict[str, Any], rows: int, seed: int) -> Array:
    """What a convolution sees at up to `rows` random places: [groups, rows, inputs per group · kernel].

    inputs [batch, channels, *space]; attributes as OpenVINO names them: strides, dilations, pads_begin, pads_end, auto_pad.
    """
    import numpy as np

    space = inputs.shape[2:]
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, attributes["dilations"], strict=True)]
    begin, end = _padding(space, spans, attributes)
    padded = np.pad(inputs, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, inputs.ndim)))
    every = (slice(None), slice(None))
    steps = tuple(slice(None, None, step) for step in attributes["strides"]) + tuple(
        slice(None, None, step) for step in attributes["dilations"]
    )
    windows = np.moveaxis(windows[every + steps], 1, 1 + len(space))  # [batch, *places, channels, *kernel]
    places = windows.shape[: 1 + len(space)]
    chosen = np.random.default_rng(seed).permutation(int(np.prod(places)))[:rows]
    seen = windows[np.unravel_index(chosen, places)]
    return seen.reshape(len(chosen), groups, -1).transpose(1, 0, 2)


def _padding(space: tuple[int, ...], spans: list[int], attributes: dict[str, Any]) -> tuple[list[int], list[int]]:
    same = str(attributes.get("auto_pad", "explicit")).lower()
    if "same" not in same:
        return list(attributes["pads_begin"]), list(attributes["pads_end"])
    total = [
        max((-(-size // step) - 1) * step + span - size, 0) for size, step, span in zip(space, attributes["strides"], spans, strict=True)
    ]
    begin = [one // 2 if "upper" in same else one - one // 2 for one in total]
    return begin, [one - first for one, first in zip(total, begin, strict=True)]
