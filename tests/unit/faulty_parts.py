"""What the faulty models for TensorRT are made of, and the lists that keep them.

`parser` is what the parser of TensorRT for RTX 1.7 says of the same model: `refuses` or `accepts`. Where
that differs from layer A, `why` explains the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_onnx import FLOAT, model, value, weight

INT8, UINT8, INT16, UINT16, INT32 = TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32
FP16, BF16, FP64, FP8 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN
INT4, UINT4 = TensorProto.INT4, TensorProto.UINT4
BOOL, STRING, UINT32, UINT64 = TensorProto.BOOL, TensorProto.STRING, TensorProto.UINT32, TensorProto.UINT64
MICROSOFT = "com.microsoft"
SILENT = (
    "the parser is no lint: it takes this in silence; TensorRT's guide allows one scale per activation, one per output channel of a weight"
)
ACCURACY = "it builds; that accuracy is lost there no parser can know"
GPU = "the parser does not know the GPU; the builder then refuses"


@dataclass(frozen=True)
class Case:
    """One model. `node` and `says` must stand in the finding; `level` is that of layer A, None for a good model."""

    name: str
    make: Callable[[], ModelProto]
    level: str | None = None
    node: str = ""
    says: str = ""
    parser: str = "accepts"
    why: str = ""
    target: dict[str, Any] = field(default_factory=dict)


FAULTY: list[Case] = []
GOOD: list[Case] = []


def fault(level: str, node: str, says: str, parser: str = "refuses", why: str = "", **target: Any) -> Callable[[Any], Any]:
    def keep(make: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        FAULTY.append(Case(make.__name__, make, level, node, says, parser, why, target))
        return make

    return keep


def good(make: Callable[[], ModelProto] | None = None, **target: Any) -> Any:
    def keep(made: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        GOOD.append(Case(made.__name__, made, target=target))
        return made

    return keep(make) if make else keep


def scalar(name: str, number: Any, kind: int = FLOAT) -> TensorProto:
    shape = [len(number)] if isinstance(number, (list, tuple)) else []
    return helper.make_tensor(name, kind, shape, number if shape else [number])


def pair(source: str, name: str, scale: Any = 0.1, zero: Any = 0, kind: int = INT8, axis: int | None = None) -> tuple[list[Any], list[Any]]:
    """Nodes and tensors of `name` = DQ(Q(source)); the nodes are called `name`_q and `name`_dq."""
    extra = {} if axis is None else {"axis": axis}
    tensors = [scalar(f"{name}_s", scale), scalar(f"{name}_z", zero, kind)]
    nodes = [
        helper.make_node("QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [f"{name}_8"], name=f"{name}_q", **extra),
        helper.make_node("DequantizeLinear", [f"{name}_8", f"{name}_s", f"{name}_z"], [name], name=f"{name}_dq", **extra),
    ]
    return nodes, tensors


def stored(
    name: str, shape: tuple[int, ...], axis: int | None = 0, zero: int = 0, kind: int = INT8, scale: Any = None
) -> tuple[Any, list[Any]]:
    """A DQ of stored integers and its tensors; per channel along `axis`, per tensor when that is None."""
    low, high = (0, 255) if kind == UINT8 else (-127, 128)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    numbers = np.random.default_rng(7).integers(low, high, shape).astype(dtype)
    count = 1 if axis is None else shape[axis]
    scales = scale if scale is not None else ([0.01] * count if axis is not None else 0.01)
    zeros = [zero] * count if axis is not None else zero
    tensors = [numpy_helper.from_array(numbers, f"{name}_i"), scalar(f"{name}_s", scales), scalar(f"{name}_z", zeros, kind)]
    extra = {} if axis is None else {"axis": axis}
    return helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], [name], name=f"{name}_dq", **extra), tensors


def conv(x: dict[str, Any] | None = None, w: dict[str, Any] | None = None, bias: tuple[Any, list[Any]] | None = None) -> ModelProto:
    """Q/DQ → Conv(8) with stored INT8 weights and an FP32 bias, on a [1, 3, 8, 8] image."""
    nodes, tensors = pair("x", "a", **(x or {}))
    weights, more = stored("w", (8, 3, 3, 3), **(w or {}))
    if bias:
        nodes.append(bias[0])
    nodes += [weights, helper.make_node("Conv", ["a", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 8, 8, 8])], [*tensors, *more, *(bias[1] if bias else [weight("b", 8)])])


def after(op: str, *, inputs: list[str] | None = None, tensors: Any = (), opset: int = 20, **attributes: Any) -> ModelProto:
    """MatMul → the operator `op`, called `op` → Q/DQ → MatMul: the operator's output is quantized."""
    nodes, scales = pair("o", "a")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node(op, inputs or ["m"], ["o"], name="op", **attributes),
        *nodes,
        helper.make_node("MatMul", ["a", "v"], ["y"], name="last"),
    ]
    return model(
        nodes, [value("x", [2, 8])], [value("y", [2, 8])], [weight("w", 8, 8), weight("v", 8, 8, seed=1), *tensors, *scales], opset
    )


def one(op: str, inputs: Any, outputs: Any, tensors: Any = (), opset: int = 20, domain: str = "", **attributes: Any) -> ModelProto:
    """A model of a single node called `op`."""
    names = [spec.name for spec in inputs] + [tensor.name for tensor in tensors]
    node = helper.make_node(op, names, [spec.name for spec in outputs], name="op", domain=domain, **attributes)
    return model([node], inputs, outputs, tensors, opset, domains=[domain] if domain else ())
