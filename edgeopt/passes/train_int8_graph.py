"""Q/DQ pairs as torch's exporter leaves them, brought into the form that runtimes fuse: integer weights, no norms between, closed ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes.quantize_int8_onnx_prepare import lift_constants

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, NodeProto

    Array = np.ndarray[Any, Any]

Q, DQ = "QuantizeLinear", "DequantizeLinear"
_ACTIVATIONS = ("Relu", "Clip")  # what a runtime takes into the convolution before it


class Graph:
    """One graph under repair. Steps stand in the order in which they are called."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self._look()

    def _look(self) -> None:
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in onnx_format.reads(node):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def clean(self) -> None:
        """Constants become initializers; what only copies goes."""
        from onnx import helper

        lift_constants(self.graph)
        self._look()
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*self.graph.input, *self.graph.value_info)}
        for node in list(self.graph.node):
            same = node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == kinds.get(node.input[0])
            if (node.op_type == "Identity" or same) and node.output[0] not in self.outputs:
                self._rename(node.output[0], node.input[0])
                self.graph.node.remove(node)
                self._look()

    def _rename(self, old: str, new: str) -> None:
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
            for body in onnx_format.bodies(node):
                Graph(body)._rename(old, new)

    def store_weights(self) -> None:
        """Weights are rounded once, here: an integer initializer before each DQ, transposed where the layer wants it so."""
        import numpy as np
        from onnx import helper

        for node in list(self.graph.node):
            if node.op_type != Q or node.input[0] not in self.stored:
                continue
            axis, scale = _axis(node), self._array(node.input[1])
            weights = self._array(node.input[0])
            wide = scale if scale.ndim == 0 else scale.reshape([-1 if one == axis else 1 for one in range(weights.ndim)])
            integers = np.clip(np.rint(weights / wide), -128, 127).astype(np.int8)
            for reader in self.readers.get(node.output[0], []):
                self._store_weight(reader, integers, scale, axis)
            self.graph.node.remove(node)
        self._look()
        for node in list(self.graph.node):
            maker = self.makers.get(node.input[0]) if node.op_type == "Transpose" else None
            if maker is None or maker.op_type != DQ or maker.input[0] not in self.stored:
                continue
            integers = self._array(maker.input[0])
            order = helper.get_node_attr_value(node, "perm") if node.attribute else list(range(integers.ndim))[::-1]
            made = helper.make_node(DQ, ["", "", ""], [node.output[0]], name=f"{node.name}_{DQ}")
            axis = list(order).index(_axis(maker) % integers.ndim)
            self._store_weight(made, integers.transpose(order), self._array(maker.input[1]), axis)
            self.graph.node.remove(node)
            self.graph.node.append(made)
        self._look()

    def _store_weight(self, node: NodeProto, integers: Array, scale: Array, axis: int) -> None:
        """Give a DQ integer weights, their scale and a zero point of 0, all of its own."""
        import numpy as np
        from onnx import helper

        given = {"weight": np.ascontiguousarray(integers), "scale": scale.astype(np.float32), "zero": np.zeros(scale.shape, np.int8)}
        del node.input[:]
        node.input.extend(self._add(f"{node.output[0]}_{name}", array) for name, array in given.items())
        del node.attribute[:]
        if scale.ndim:
            node.attribute.append(helper.make_attribute("axis", axis))

    def fold_norms(self) -> None:
        """Each batch norm behind a quantized layer goes into the layer's scales and bias; its integers stay, but for their sign."""
        import numpy as np

        for node in list(self.graph.node):
            layer = self.makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
            weights = self.makers.get(layer.input[1]) if layer is not None and layer.op_type in ("Conv", "ConvTranspose", "Gemm") else None
            if layer is None or weights is None or weights.op_type != DQ or weights.input[0] not in self.stored:
                continue
            if self.readers[node.input[0]] != [node] or self.readers[layer.input[1]] != [layer] or node.input[0] in self.outputs:
                continue
            axis = _output_axis(layer)
            if axis is None or any(name not in self.stored for name in (*node.input[1:5], *layer.input[2:3])):
                continue
            gamma, beta, mean, variance = (self._array(name).astype(np.float64) for name in node.input[1:5])
            factor = gamma / np.sqrt(variance + next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5))
            integers, scale = self._array(weights.input[0]), self._array(weights.input[1])
            if scale.ndim and _axis(weights) % integers.ndim != axis:
                continue
            signs = np.where(factor < 0, -1, 1).reshape([-1 if one == axis else 1 for one in range(integers.ndim)])
            integers = np.clip(integers * signs * (1 if factor.all() else (factor != 0).reshape(signs.shape)), -128, 127).astype(np.int8)
            scale = np.broadcast_to(scale, factor.shape) * np.where(factor == 0, 1, np.abs(factor))
            bias = self._array(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else 0.0
            self._store_weight(weights, integers, scale, axis)
            del layer.input[2:]
            layer.input.append(self._add(f"{layer.name}_bias", (beta + (bias - mean) * factor).astype(np.float32)))
            layer.output[0] = node.output[0]
            self.graph.node.remove(node)
            self._look()

    def merge(self) -> None:
        """Pairs that round one tensor alike become one."""
        known: dict[tuple[Any, ...], str] = {}
        for node in list(self.graph.node):
            if node.op_type not in (Q, DQ) or node.output[0] in self.outputs or not all(name in self.stored for name in node.input[1:]):
                continue
            parts = (self._array(name) for name in node.input[1:])
            what = (node.op_type, node.input[0], _axis(node), *((one.dtype.str, one.tobytes()) for one in parts))
            if what in known:
                self._rename(node.output[0], known[what])
                self.graph.node.remove(node)
            else:
                known[what] = node.output[0]
        self._look()

    def open_ends(self) -> list[str]:
        """What quantized convolutions make (behind their activation) and somebody reads unrounded: CPU kernels want it rounded."""
        found = []
        for node in self.graph.node:
            if node.op_type != "Conv" or not all(self._dequantized(name) for name in node.input[:2]):
                continue
            name = node.output[0]
            while len(readers := self.readers.get(name, [])) == 1 and readers[0].op_type in _ACTIVATIONS and name not in self.outputs:
                name = readers[0].output[0]
            if name not in self.outputs and any(one.op_type != Q for one in readers):
                found.append(name)
        return found

    def close(self, reach: Mapping[str, float]) -> None:
        """Round open ends to INT8, in the pair that is there, else in one for values up to `reach`; so too what meets them in a sum."""
        import numpy as np
        from onnx import helper

        met = []
        for name, largest in reach.items():
            if not any(one.op_type == Q for one in self.readers[name]):
                scale = self._add(f"{name}_scale", np.array(largest / 127 or 1.0, np.float32))
                zero = self._add(f"{name}_zero", np.array(0, np.int8))
                self.graph.node.append(helper.make_node(Q, [name, scale, zero], [f"{name}_quantized"], name=f"{name}_{Q}"))
                self.graph.node.append(helper.make_node(DQ, [f"{name}_quantized", scale, zero], [f"{name}_rounded"], name=f"{name}_{DQ}"))
            met += [other for one in self.readers[name] for other in one.input if one.op_type in ("Add", "Concat") and other != name]
        self._look()
        for name in dict.fromkeys([*reach, *met]):
            pair = next((one for one in self.readers.get(name, []) if one.op_type == Q), None)
            rounded = next((one.output[0] for one in self.readers.get(pair.output[0], []) if one.op_type == DQ), "") if pair else ""
            for node in self.readers[name] if rounded else ():
                for index in (index for index, given in enumerate(node.input) if given == name and node.op_type != Q):
                    node.input[index] = rounded
        self._look()

    def finish(self) -> None:
        """Remove what nothing reads any more."""
        self._look()
        while unread := [node for node in self.graph.node if not any(name in self.readers or name in self.outputs for name in node.output)]:
            for node in unread:
                self.graph.node.remove(node)
            self._look()
        kept = [tensor for tensor in self.graph.initializer if tensor.name in self.readers or tensor.name in self.outputs]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]

    def _dequantized(self, name: str) -> bool:
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == DQ

    def _array(self, name: str) -> Array:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.stored[name])

    def _add(self, name: str, array: Array) -> str:
        from onnx import numpy_helper

        while name in self.stored:
            name += "_"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.stored[name] = self.graph.initializer[-1]
        return name


def _axis(node: NodeProto) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "axis"), 1)


def _output_axis(layer: NodeProto) -> int | None:
    """The axis of a layer's weights that counts its outputs; None where there is no such axis."""
    attributes = {one.name: one for one in layer.attribute}
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1 if "group" not in attributes or attributes["group"].i == 1 else None
    alike = all(attributes[name].f == 1 for name in ("alpha", "beta") if name in attributes)
    return (0 if "transB" in attributes and attributes["transB"].i else 1) if alike else None
