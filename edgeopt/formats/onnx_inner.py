"""The layers of an ONNX file, executed as they are written: no rewrite by the runtime comes between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import registry
from edgeopt.core.errors import StepError
from edgeopt.core.inner import Graph, Node
from edgeopt.formats import onnx as onnx_format

if TYPE_CHECKING:
    from onnx import GraphProto

    from edgeopt.core.inner import Feeds

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


class OnnxInner:
    def __init__(self, path: Path) -> None:
        self.name, self.model = path.name, onnx_format.load(path)
        self.signature = onnx_format.signature_of(self.model)
        self.graph = graph_of(self.model.graph, [spec.name for spec in self.signature.inputs])
        self._own = len(self.model.graph.output)

    def runner(self, tensors: Sequence[str], folder: Path) -> Callable[[Feeds], Feeds]:
        runtime = registry.need("onnxruntime", "onnxruntime")
        from onnx import helper

        outputs = self.model.graph.output
        del outputs[self._own :]
        present = {value.name for value in outputs}
        outputs.extend(helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(tensors) if name not in present)
        options = onnx_format.session_options(runtime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        try:
            path = onnx_format.save(self.model, folder / onnx_format.MAIN)
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 (onnxruntime raises kinds of its own)
            raise self._failed(error) from None

        def run(feeds: Feeds) -> Feeds:
            try:
                return dict(zip(tensors, session.run(list(tensors), feeds), strict=True))
            except Exception as error:  # noqa: BLE001 (kinds of its own, as above)
                raise self._failed(error) from None

        return run

    def _failed(self, error: Exception) -> StepError:
        return StepError(f"{self.name} does not run: {onnx_format.cause(error)}", remedy="give it data that it was made for, with --data")


def graph_of(graph: GraphProto, inputs: list[str]) -> Graph:
    """The layers of the outermost graph; bodies of If, Loop and Scan stay closed."""
    found = Graph(inputs={name: name for name in inputs}, names={name: (name,) for name in inputs})
    rounds: dict[str, Any] = {}
    for node in graph.node:
        reads = tuple(name for name in dict.fromkeys([*node.input, *sorted(onnx_format.reads(node))]) if name in found.names)
        if not reads:
            continue
        makes = tuple(name for name in node.output if name)
        found.nodes.append(Node(node.name or makes[0], node.op_type, makes, reads))
        found.names |= {name: (name,) for name in makes}
        if node.op_type == _Q:
            rounds[node.output[0]] = node.input[0]
        elif node.op_type == _DQ and node.input[0] in rounds:
            found.rounded[node.output[0]] = rounds[node.input[0]]
    found.outputs = {value.name: value.name for value in graph.output}
    return found
