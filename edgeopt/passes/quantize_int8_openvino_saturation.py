"""Quantizers of weights in OpenVINO models, widened where neighbouring products would overflow 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeopt.formats import saturation

if TYPE_CHECKING:
    import numpy as np
    import openvino

    Array = np.ndarray[Any, Any]

# What a quantizer is widened by where the order in which its layer adds is not known: 7 bits instead of 8.
_HALF = 2.0
# Which axis of a convolution's weights has its inputs.
_INPUTS = {"Convolution": 1, "GroupConvolution": 2, "ConvolutionBackpropData": 0, "GroupConvolutionBackpropData": 1}


@contextmanager
def widening(active: bool) -> Iterator[None]:
    """Widen the quantizers of weights as soon as NNCF has put them in, before it corrects biases by what comes out."""
    from nncf.quantization.algorithms.post_training import pipeline

    whole = pipeline.MinMaxQuantization

    class Widened(whole):  # type: ignore[misc, valid-type]
        def apply(self, *given: Any, **named: Any) -> Any:
            made = super().apply(*given, **named)
            widen(made)
            return made

    pipeline.MinMaxQuantization = Widened if active else whole
    try:
        yield
    finally:
        pipeline.MinMaxQuantization = whole


def widen(model: openvino.Model) -> None:
    """Widen every quantizer of stored weights, in place, as far as the sums of its layers need."""
    import numpy as np
    from openvino import opset13 as ops

    for quantizer in [one for one in model.get_ordered_ops() if one.get_type_name() == "FakeQuantize"]:
        stored = _stored(quantizer)
        if stored is None:
            continue
        limits = [quantizer.input_value(index).get_node() for index in (1, 2, 3, 4)]
        shape = limits[1].data.shape
        factors = [_factor(target.get_node(), target.get_index(), stored, shape) for target in quantizer.output(0).get_target_inputs()]
        for index, limit in enumerate(limits, 1):
            wider = limit.data * np.max(factors, axis=0).astype(limit.data.dtype)
            quantizer.input(index).replace_source_output(ops.constant(wider).output(0))


def _stored(quantizer: Any) -> Array | None:
    """The weights that a quantizer reads, or None where it reads something that is computed."""
    source = quantizer.input_value(0).get_node()
    if source.get_type_name() == "Convert":  # weights that are stored as float16
        source = source.input_value(0).get_node()
    found: Array | None = source.data if source.get_type_name() == "Constant" else None
    return found


def _factor(layer: Any, index: int, weights: Array, shape: tuple[int, ...]) -> Array:
    """By how much a layer wants the range of its weights wider, to be multiplied by limits of this shape."""
    import numpy as np

    if layer.get_type_name() == "Gather":  # rows of a table are looked up, and nothing is added
        return np.ones(shape)
    axes = _summed(layer, weights.shape) if index == 1 else None
    shared = tuple(axis for axis, size in enumerate((1,) * (weights.ndim - len(shape)) + shape) if size == 1)
    if axes is None or not set(axes) <= set(shared):
        return np.full(shape, _HALF)
    wanted, largest = (one.max(axis=shared, keepdims=True) for one in (saturation.reach(weights, axes), np.abs(weights)))
    found: Array = np.divide(wanted, largest, out=np.ones_like(wanted), where=largest > 0)
    return found.reshape(shape)


def _summed(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of a layer's weights that are added up in 16 bits; None for what is no such layer."""
    kind, rank = layer.get_type_name(), len(shape)
    if kind == "MatMul":
        return (rank - 1 if layer.get_attributes()["transpose_b"] or rank == 1 else rank - 2,)
    inputs = _INPUTS.get(kind)
    if inputs is None:
        return None
    kernel = range(2 + kind.startswith("Group"), rank)
    return saturation.convolution(kernel, inputs, depthwise=kind == "GroupConvolution" and shape[inputs] == 1 < shape[0])
