"""Masks that are added to attention's scores, kept out of what OpenVINO takes for dequantization."""

from __future__ import annotations

from typing import Any

from edgeopt.formats.openvino import bodies

# Beyond it a float32 score that such a number is added to has lost what softmax needs of it.
_LOUD = 1e5
_NARROW = ("boolean", "u8", "i8")
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Slice", "StridedSlice", "Concat", "Tile", "Broadcast")
_SCALES = ("Add", "Subtract", "Multiply", "Divide")


def through_i32(model: Any) -> int:
    """Let masks of 8 bits become float by way of int32, in place; returns how many. What is computed stays the same.

    `(1 - mask) * -1e9` looks like the dequantization of 8-bit numbers. Where the scores are quantized, OpenVINO's
    low-precision transformations (2026.4.1) then move the -1e9 in front of the mask's addition, and the scores are rounded away.
    """
    from openvino import opset13 as ops

    found = [one for one in model.get_ordered_ops() if _widens(one) and _loud(one)]
    for one in found:
        one.input(0).replace_source_output(ops.convert(one.input_value(0), "i32").output(0))
    return len(found) + sum(through_i32(body) for one in model.get_ordered_ops() for body in bodies(one))


def _widens(one: Any) -> bool:
    """Whether it makes floats of 8-bit numbers that are no stored weights."""
    if one.get_type_name() != "Convert" or not one.get_output_element_type(0).is_real():
        return False
    source = one.input_value(0)
    return source.get_element_type().get_type_name() in _NARROW and source.get_node().get_type_name() != "Constant"


def _loud(one: Any) -> bool:
    """Whether a large constant is multiplied or added to what comes of it."""
    import numpy as np

    ahead, seen = [one], set()
    while ahead:
        for target in ahead.pop().output(0).get_target_inputs():
            user = target.get_node()
            if user.get_type_name() not in (*_SCALES, *_MOVES) or user.get_name() in seen:
                continue
            seen.add(user.get_name())
            ahead.append(user)
            other = user.input_value(1 - target.get_index()).get_node() if user.get_type_name() in _SCALES else None
            if other is not None and other.get_type_name() == "Constant" and np.abs(other.data).max(initial=0) > _LOUD:
                return True
    return False
