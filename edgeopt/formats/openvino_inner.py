"""The layers of an OpenVINO model, each made a result of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.errors import StepError
from edgeopt.core.inner import Graph, Node
from edgeopt.formats import openvino as openvino_format

if TYPE_CHECKING:
    import openvino

    from edgeopt.core.inner import Feeds

_NO_LAYER = ("Parameter", "Constant", "Result")


class OpenvinoInner:
    def __init__(self, path: Path, execution: str) -> None:
        self.path, self.execution = path, execution
        model = openvino_format.load(path)
        self.signature = openvino_format.signature_of(model)
        self.graph = Graph()
        for spec, port in zip(self.signature.inputs, model.inputs, strict=True):
            self.graph.inputs[spec.name] = _tensor(port)
            self.graph.names[_tensor(port)] = (*sorted(port.get_names()), _tensor(port))
        for op in model.get_ordered_ops():
            reads = tuple(dict.fromkeys(tensor for port in op.inputs() if (tensor := _source(port)) in self.graph.names))
            if not reads or op.get_type_name() in _NO_LAYER:
                continue
            makes = tuple(_tensor(port) for port in op.outputs())
            self.graph.nodes.append(Node(op.friendly_name, op.get_type_name(), makes, reads))
            self.graph.names |= {_tensor(port): (*sorted(port.get_names()), _tensor(port)) for port in op.outputs()}
            if op.get_type_name() == "FakeQuantize":
                self.graph.rounded[_scaled_back(op)] = reads[0]
        self.graph.outputs = {
            spec.name: _source(result.input(0)) for spec, result in zip(self.signature.outputs, model.get_results(), strict=True)
        }

    def runner(self, tensors: Sequence[str], folder: Path) -> Callable[[Feeds], Feeds]:
        model = openvino_format.load(self.path)
        present = {_source(result.input(0)) for result in model.get_results()}
        wanted = set(tensors) - present
        model.add_outputs([port for port in _ports(model) if _tensor(port) in wanted])
        places = {_source(result.input(0)): index for index, result in enumerate(model.get_results())}
        compiled = openvino_format.compiled(model, self.execution)
        inputs = [spec.name for spec in self.signature.inputs]

        def run(feeds: Feeds) -> Feeds:
            try:
                results = openvino_format.results(compiled, [feeds[name] for name in inputs])
            except RuntimeError as error:
                cause = openvino_format.cause(error)
                remedy = "give it data that it was made for, with --data"
                raise StepError(f"{self.path.name} does not run: {cause}", remedy=remedy) from None
            return {tensor: results[places[tensor]] for tensor in tensors}

        return run


def _ports(model: openvino.Model) -> Iterator[Any]:
    return (port for op in model.get_ordered_ops() if op.get_type_name() not in _NO_LAYER for port in op.outputs())


def _tensor(port: Any) -> str:
    node = port.get_node()
    name = str(node.friendly_name)
    return name if node.get_output_size() == 1 else f"{name}:{port.get_index()}"


def _source(port: Any) -> str:
    return _tensor(port.get_source_output())


def _scaled_back(quantizer: Any) -> str:
    """The tensor that has a quantizer's values on the scale of what it rounds: behind integers follow Convert, Subtract, Multiply."""
    port = quantizer.output(0)
    if not any(
        str(target.get_node().get_element_type()) in ("<Type: 'uint8_t'>", "<Type: 'int8_t'>") for target in port.get_target_inputs()
    ):
        return _tensor(port)
    while len(targets := port.get_target_inputs()) == 1:
        node = next(iter(targets)).get_node()
        if node.get_type_name() not in ("Convert", "Subtract", "Multiply"):
            break
        port = node.output(0)
        if node.get_type_name() == "Multiply":
            break
    return _tensor(port)
