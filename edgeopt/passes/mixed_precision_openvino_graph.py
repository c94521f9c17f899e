"""Which quantizers of an OpenVINO model belong to which layers, and the model in which each can be switched.

A quantizer computes FQ(x). In the *gated* model it computes x + g·(FQ(x) − x) with g an input: one compiled
model tells what any set of quantized layers costs in accuracy. A convolution is linear in its weights, so
its gate stands behind two convolutions with constant weights, which the CPU plugin wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from edgeopt.core import registry
from edgeopt.passes.mixed_precision_rules import Layer, Rule
from edgeopt.passes.quantize_int8_openvino import MOVES, maker

if TYPE_CHECKING:
    import numpy as np
    import openvino

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
WEIGHTED = (*CONVOLUTIONS, "MatMul")


def layers(model: openvino.Model) -> dict[str, Layer]:
    """The quantized layers by name, in order."""
    found = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in WEIGHTED:
            continue
        data, weights = (_quantizer(operation.input_value(index).get_node()) for index in (0, 1))
        if data is None or weights is None:
            continue
        constant = is_constant(weights)
        names = [data.get_friendly_name(), *([] if constant else [weights.get_friendly_name()])]
        name = operation.get_friendly_name()
        found[name] = Layer(name, operation.get_type_name(), tuple(names), (weights.get_friendly_name(),) if constant else ())
    return found


def rules(model: openvino.Model, quantized: Mapping[str, Layer]) -> dict[str, Rule]:
    """A rule for each quantizer of activations, by name."""
    readers: dict[str, set[str]] = {}
    for layer in quantized.values():
        for name in layer.data:
            readers.setdefault(name, set()).add(layer.name)
    found = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "FakeQuantize" and not is_constant(operation):
            name = operation.get_friendly_name()
            feeds = frozenset(readers.get(name, ()))
            others = any(not _leads_to(target.get_node(), feeds) for target in operation.output(0).get_target_inputs())
            above = _nearest(operation, _makers) if others else set()
            below = _nearest(operation, _readers) if others else set()
            found[name] = Rule(feeds, frozenset(above & set(quantized)), frozenset(below & set(quantized)))
    return found


def bypass(quantizer: Any) -> None:
    """Take a quantizer out: its readers get what it read."""
    source = quantizer.input_value(0)
    for target in quantizer.output(0).get_target_inputs():
        target.replace_source_output(source)


def unquantized_sums(model: openvino.Model) -> list[tuple[Any, Any]]:
    """Inputs of additions that read a tensor in float of which a quantized form is there for a layer, each with that form."""
    found = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "FakeQuantize" or is_constant(operation) or not operation.output(0).get_target_inputs():
            continue
        readers = operation.input_value(0).get_target_inputs()
        found += [(port, operation.output(0)) for port in readers if port.get_node().get_type_name() == "Add"]
    return found


def corrections(layer: Any, original: Mapping[str, Any]) -> Iterator[tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """What bias correction did behind a layer: the input of the addition, the bias now and as it was (0 where there was none)."""
    import numpy as np

    for target in layer.output(0).get_target_inputs():
        add = target.get_node()
        if add.get_type_name() != "Add":
            continue
        before = original.get(add.get_friendly_name())
        for port in add.inputs():
            constant = port.get_source_output().get_node()
            if constant.get_type_name() != "Constant":
                continue
            old = [one.get_node().data for one in before.input_values() if one.get_node().get_type_name() == "Constant"] if before else []
            was = old[0] if old else np.zeros_like(constant.data)
            if (before is None or old) and was.shape == constant.data.shape and not np.array_equal(was, constant.data):
                yield port, constant.data, was


def macs(sized: openvino.Model, quantized: Collection[str]) -> dict[str, int]:
    """Multiply-accumulates by layer of a model with fixed shapes; an open shape counts as its weights."""
    found = {}
    for operation in sized.get_ordered_ops():
        if operation.get_friendly_name() not in quantized:
            continue
        kind = operation.get_type_name()
        data, weight, result = (
            partial.to_shape() if partial.is_static else None
            for partial in (
                operation.input(0).get_partial_shape(),
                operation.input(1).get_partial_shape(),
                operation.output(0).get_partial_shape(),
            )
        )
        if data is None or result is None or weight is None:
            found[operation.get_friendly_name()] = prod(weight or [1])
        elif kind == "MatMul":
            transposed = operation.get_attributes()["transpose_a"]
            found[operation.get_friendly_name()] = prod(result) * data[-2 if transposed and len(data) > 1 else -1]
        else:  # weights are [groups,] out, in, …; those of a transposed convolution [groups,] in, out, …
            skipped = 2 if kind.startswith("Group") else 1
            places = data if kind.endswith("BackpropData") else result
            found[operation.get_friendly_name()] = prod(places) * prod(weight[skipped:])
    return found


def constant(value: np.ndarray[Any, Any]) -> Any:
    """A constant node."""
    from openvino import opset13

    return opset13.constant(value)


def gate(model: openvino.Model, quantized: Mapping[str, Layer], named: Mapping[str, Rule], original: Mapping[str, Any]) -> None:
    """Put a gate on every quantizer of the model, in place: a new last input, of all layers, then of all quantizers of activations."""
    import numpy as np

    openvino = registry.need("openvino", "openvino")
    from openvino import opset13 as ops

    bare = model.clone()
    for operation in bare.get_ordered_ops():
        if operation.get_type_name() == "FakeQuantize" and is_constant(operation):
            bypass(operation)
    plain = {one.get_friendly_name(): one for one in bare.get_ordered_ops()}
    operations = {one.get_friendly_name(): one for one in model.get_ordered_ops()}
    order = [*quantized, *named]
    gates = ops.parameter([len(order)], np.float32, name="edgeopt_gates")

    def gate_of(index: int) -> Any:
        return ops.gather(gates, ops.constant(np.int64(index)), ops.constant(np.int64(0)))

    def blend(off: Any, difference: Any, index: int) -> Any:
        gate = ops.convert_like(gate_of(index), difference)  # parts of a model may be float16
        return ops.add(off, ops.multiply(gate, difference))

    for index, name in enumerate(order):
        operation = operations[name]
        targets = list(operation.output(0).get_target_inputs())
        if name in named:
            mixed = blend(operation.input_value(0), ops.subtract(operation.output(0), operation.input_value(0)), index)
            _redirect(targets, mixed)
            continue
        corrected = list(corrections(operation, original))
        if quantized[name].weights:
            exact = _value(openvino, plain[name].input_value(1))
            difference = (_value(openvino, operation.input_value(1)) - exact).astype(exact.dtype)
            if operation.get_type_name() == "MatMul":
                operation.input(1).replace_source_output(blend(ops.constant(exact), ops.constant(difference), index).output(0))
            else:
                twins = [_with_weights(operation, ops.constant(value)) for value in (exact, difference)]
                _redirect(targets, blend(twins[0], twins[1], index))
        for port, now, was in corrected:
            port.replace_source_output(blend(ops.constant(was), ops.constant(now - was), index).output(0))
    model.add_parameters([gates])
    model.validate_nodes_and_infer_types()


def is_constant(operation: Any) -> bool:
    """Whether a value is known without any input."""
    if operation.get_type_name() == "Parameter":
        return False
    return all(is_constant(value.get_node()) for value in operation.input_values()) and (
        operation.get_input_size() > 0 or operation.get_type_name() == "Constant"
    )


def _quantizer(node: Any) -> Any:
    """The quantizer that makes a value, looking through what hands it on; None where there is none."""
    found = maker(node)
    return found if found.get_type_name() == "FakeQuantize" else None


def _leads_to(node: Any, layers: Collection[str]) -> bool:
    while node.get_type_name() in MOVES:
        readers = _readers(node)
        if len(readers) != 1:
            return False
        node = readers[0]
    return node.get_friendly_name() in layers


def _makers(node: Any) -> list[Any]:
    return [value.get_node() for value in node.input_values()]


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]


def _nearest(start: Any, step: Any) -> set[str]:
    """The first convolutions and matrix products in one direction, on every way."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = step(start)
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() in WEIGHTED:
            found.add(name)
        else:
            waiting += step(node)
    return found


def _redirect(targets: Iterable[Any], source: Any) -> None:
    for target in targets:
        target.replace_source_output(source.output(0))


def _value(openvino: Any, output: Any) -> np.ndarray[Any, Any]:
    """The value of a constant expression."""
    import numpy as np

    node = output.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.data)
    compiled = openvino.Core().compile_model(openvino.Model([output], [], "weights"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0])


def _with_weights(convolution: Any, weights: Any) -> Any:
    """The same convolution with other weights."""
    inputs = [convolution.input_value(0), weights.output(0), *convolution.input_values()[2:]]
    from openvino.utils.node_factory import NodeFactory

    return NodeFactory("opset13").create(convolution.get_type_name(), inputs, convolution.get_attributes())
