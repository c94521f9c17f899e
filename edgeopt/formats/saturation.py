"""How large 8-bit weights may be where a CPU adds up their products in 16 bits.

x86 without VNNI multiplies U8 by S8 and adds two neighbouring products with saturation (vpmaddubsw, Intel 64 and IA-32
manual, volume 2). Weights of 7 bits never saturate, at twice the rounding error. But what saturates is a sum of two:
where the largest sum of two neighbours of one sign is 127, each is rounded by half at most, and 255 · 128 is below 2¹⁵.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    Array = np.ndarray[Any, Any]


def reach(weights: Array, axes: Sequence[int]) -> Array:
    """What weights must have for their range in place of their largest magnitude: the largest sum of two neighbours of one sign.

    `axes` are those that the layer adds up in 16 bits, in the order in which kernels go along them, the fastest last.
    The result has 1 there and the weights' size elsewhere.
    """
    import numpy as np

    others = [axis for axis in range(weights.ndim) if axis not in axes]
    rows = weights.transpose(*others, *axes).reshape([weights.shape[axis] for axis in others] + [-1])
    signed = np.stack([np.maximum(rows, 0), np.maximum(-rows, 0)])
    if rows.shape[-1] > 1:
        signed = signed[..., 1:] + signed[..., :-1]
    found: Array = signed.max(axis=(0, -1), initial=0)
    return found.reshape([1 if axis in axes else size for axis, size in enumerate(weights.shape)])


def by_channel(weights: Array, channel: int, axes: Sequence[int]) -> Array:
    """The reach of each channel, the other axes 1."""
    found: Array = reach(weights, axes).max(axis=tuple(axis for axis in range(weights.ndim) if axis != channel), keepdims=True, initial=0)
    return found


def place(node: NodeProto, weight: str, shape: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
    """Of an ONNX layer's weights the axis of its outputs, and those for `reach`; None for what is no layer with these weights."""
    if [index for index, name in enumerate(node.input) if name == weight] != [1]:
        return None
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv" and len(shape) > 2:
        return 0, convolution(range(2, len(shape)), 1, depthwise=shape[1] == 1 < given.get("group", 1))
    if node.op_type in ("Gemm", "MatMul") and len(shape) == 2:
        return (0, (1,)) if given.get("transB", 0) else (1, (0,))
    return None


def convolution(kernel: range, inputs: int, depthwise: bool) -> tuple[int, ...]:
    """The axes for `reach` of a convolution's weights: kernels add up the inputs at one place, then at the next.

    Those for depthwise convolutions add up in 32 bits (seen of onnxruntime 1.32 and OpenVINO 2026.4, in one to three dimensions).
    """
    return () if depthwise else (*kernel, inputs)
