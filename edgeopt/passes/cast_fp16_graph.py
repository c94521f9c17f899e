"""The rewriting behind cast-fp16: ONNX's schemas say which tensors may be float16, and casts stand only where types differ."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import cast_fp16_types as types
from edgeopt.passes.cast_fp16_types import NO_TENSOR, UNKNOWN

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnx.defs import OpSchema

FULL, HALF = onnx_format.FLOAT, onnx_format.FLOAT16
_SUFFIX = {FULL: "fp32", HALF: "fp16"}
_CARRIERS = ("If", "Loop", "Scan")  # they hand tensors of any type to their bodies and back
_ANY = ("Cast", "Shape", "Size")  # to these it is all one what type they read
_MOST, _LEAST = 65504.0, 2.0**-24  # of float16: the largest number, and the smallest above 0
_FACTORS = 256  # numbers: what sizes are multiplied by has no more, weights have


@dataclass
class Value:
    """A float32 tensor of the model: the scope that makes it, its names by type, whether it is stored, and the types it is read in."""

    scope: Scope
    names: dict[int, str]
    stored: bool = False
    read: set[int] = field(default_factory=set)


@dataclass
class Scope:
    """A graph while it is rewritten: types, constants and float32 tensors by name, those of the graphs around it included.

    `sizes` are the tensors that are computed of sizes of tensors alone; `nodes` those done so far.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    sizes: set[str] = field(default_factory=set)
    nodes: list[NodeProto] = field(default_factory=list)


def cast(model: ModelProto, kept: Collection[str]) -> ModelProto:
    """The model with weights and arithmetic in float16, but for inputs, outputs and the nodes named in `kept`; `model` is used up.

    Tensors that an operator's schema at the model's opset does not take as float16 stay float32, and so does all of
    quantized operators, of those that ONNX does not define, of those on sequences, and what is computed of sizes alone.
    """
    types.write(model)
    caster = _Caster(model, kept)
    caster.rewrite(model.graph, Scope(), FULL)
    for graph in onnx_format.graphs(model.graph):
        for value in graph.output:
            value.name = caster.renamed.get(value.name, value.name)
        for node in graph.node:
            node.input[:] = [caster.renamed.get(name, name) for name in node.input]
    onnx_format.name_nodes(model)
    return model


class _Caster:
    """One walk over a model in the order of its nodes: the type of what a node reads has been decided before it."""

    def __init__(self, model: ModelProto, kept: Collection[str]) -> None:
        self.kept = frozenset(kept)
        self.opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self.outputs = {value.name for value in model.graph.output}
        self.taken = {name for graph in onnx_format.graphs(model.graph) for name in _names(graph)}
        self.renamed: dict[str, str] = {}

    def rewrite(self, graph: GraphProto, around: Scope, ends: int, whole: bool = False) -> None:
        """Retype a graph. `ends` is what its float32 inputs and outputs become; `whole` leaves all of it float32."""
        kinds, constants = types.of_graph(graph), onnx_format.constants(graph)
        scope = Scope(around.kinds | kinds, around.constants | constants, dict(around.values), set(around.sizes))
        weights = {name: tensor for name, tensor in constants.items() if tensor.data_type == FULL}
        for sparse in graph.sparse_initializer:
            self._add(scope, sparse.values.name, FULL)
        scope.values |= {name: Value(scope, {FULL: name}, stored=True) for name in weights}
        for value in graph.input:
            if types.of_value(value) == FULL:
                value.type.tensor_type.elem_type = ends
                self._add(scope, value.name, ends)
        for node in graph.node:
            self._retype(node, scope, whole)
        for value in graph.output:
            if types.of_value(value) == FULL:
                value.type.tensor_type.elem_type = ends
                value.name = self._form(scope, value.name, ends)
        self._store(graph, scope, weights)
        for value in graph.value_info:
            if value.name in scope.values and scope.values[value.name].names.get(HALF) == value.name:
                value.type.tensor_type.elem_type = HALF
        done = type(graph)(node=scope.nodes)
        del graph.node[:]
        graph.node.extend(done.node)

    def _retype(self, node: NodeProto, scope: Scope, whole: bool) -> None:
        halves = None
        if _sized(node, scope):
            scope.sizes |= set(node.output)
        elif not whole and node.name not in self.kept:
            halves = self._halves(node, scope)
        inputs, outputs = halves or (set[int](), set[int]())
        for index, name in enumerate(node.input):
            if scope.kinds.get(name) == FULL:
                own = next(iter(scope.values[name].names))
                node.input[index] = self._form(scope, name, own if _is(node, *_ANY) else HALF if index in inputs else FULL)
        for body in onnx_format.bodies(node):
            self.rewrite(body, scope, FULL if halves is None else HALF, whole=halves is None)
        for index, name in enumerate(node.output):
            if scope.kinds.get(name) == FULL and name not in scope.constants:
                node.output[index] = self._add(scope, name, HALF if index in outputs else FULL)
        scope.nodes.append(node)  # behind the casts that its bodies want of tensors from here

    def _halves(self, node: NodeProto, scope: Scope) -> tuple[set[int], set[int]] | None:
        """Which inputs and outputs of a node become float16; None for a node that stays as it is."""
        schema = self._schema(node)
        # With scales in float16 (opset 19) EfficientNet-Lite0 fell from 17 to −12 dB in onnxruntime, to 0 in OpenVINO.
        if schema is None or onnx_format.quantized(node):
            return None
        kinds = {scope.kinds.get(name, UNKNOWN) for name in (*node.input, *node.output) if name}
        read, made = ([index for index, name in enumerate(names) if scope.kinds.get(name) == FULL] for names in (node.input, node.output))
        if _is(node, *_CARRIERS):
            kinds |= {types.of_value(value) for body in onnx_format.bodies(node) for value in (*body.input, *body.output)}
            return None if UNKNOWN in kinds else (set(read), set(made))
        if UNKNOWN in kinds or NO_TENSOR in kinds:
            return None
        if made and _turn_half(node):
            return set(), set(made)
        inputs = {index for index in read if "tensor(float16)" in _formal(schema.inputs, index).types}
        outputs = {index for index in made if "tensor(float16)" in _formal(schema.outputs, index).types}
        followed = {_formal(schema.inputs, index).type_str for index in inputs}
        if any(_formal(schema.outputs, index).type_str not in followed for index in outputs):
            return None  # an attribute says the type, or that it is missing does, as of EyeLike and Bernoulli
        return inputs, outputs

    def _schema(self, node: NodeProto) -> OpSchema | None:
        from onnx import defs

        domain = _domain(node.domain)
        known = domain in self.opsets and defs.has(node.op_type, self.opsets[domain], domain)
        return defs.get_schema(node.op_type, self.opsets[domain], domain) if known else None

    def _add(self, scope: Scope, name: str, kind: int) -> str:
        """Note a tensor that the graph makes, by the name that is returned: that of an output of the model is for its float32."""
        made = self._fresh(f"{name}_{_SUFFIX[kind]}") if kind == HALF and name in self.outputs else name
        scope.values[name] = Value(scope, {kind: made})
        return made

    def _form(self, scope: Scope, name: str, kind: int) -> str:
        """The name of a tensor in a type: cast once, where it is made."""
        from onnx import helper

        value = scope.values[name]
        value.read.add(kind)
        if kind not in value.names:
            made = name if kind == FULL and name in self.outputs else self._fresh(f"{name}_{_SUFFIX[kind]}")
            if not value.stored:
                (source,) = value.names.values()
                value.scope.nodes.append(helper.make_node("Cast", [source], [made], name=f"{name}_to_{_SUFFIX[kind]}", to=kind))
            value.names[kind] = made
        return value.names[kind]

    def _store(self, graph: GraphProto, scope: Scope, weights: dict[str, TensorProto]) -> None:
        """Write what is stored in the types that it is read in; a tensor that is read as float16 alone keeps its name."""
        from onnx import helper

        makers = {node.output[0]: node for node in scope.nodes if _is(node, "Constant")}
        for name, tensor in weights.items():
            value = scope.values[name]
            if not value.stored or HALF not in value.names:
                continue
            alone = FULL not in value.read and name not in self.outputs
            if alone:
                self.renamed[value.names[HALF]] = name
                value.names[HALF] = name
            half = _half(tensor, value.names[HALF])
            if name in makers:
                made = helper.make_node("Constant", [], [half.name], name=makers[name].name if alone else half.name, value=half)
                scope.nodes.insert(0, made)
                if alone:
                    scope.nodes.remove(makers[name])
            elif alone:
                tensor.CopyFrom(half)
            else:
                graph.initializer.append(half)

    def _fresh(self, wanted: str) -> str:
        name, copy = wanted, 1
        while name in self.taken:
            name, copy = f"{wanted}_{copy}", copy + 1
        self.taken.add(name)
        return name


def _sized(node: NodeProto, scope: Scope) -> bool:
    """Whether a node computes on sizes of tensors alone: float16 counts pixels and positions to 2048 only, and scales decide shapes.

    What is filled with a constant is none of it, masks above all: their large numbers become infinite when they are cast at run time.
    """
    if _is(node, "Shape", "Size"):
        return True
    if _is(node, "ConstantOfShape", "Expand"):
        return False
    read = onnx_format.reads(node) - {""}
    factors = [scope.constants[name] for name in read if name in scope.constants and scope.kinds.get(name) == FULL]
    return bool(read & scope.sizes) and read <= scope.sizes | scope.constants.keys() and all(map(_is_factor, factors))


def _is_factor(tensor: TensorProto) -> bool:
    import numpy as np
    from onnx import numpy_helper

    return math.prod(tensor.dims) <= _FACTORS and bool((np.abs(numpy_helper.to_array(tensor)) <= _MOST).all())


def _turn_half(node: NodeProto) -> bool:
    """Let a node that makes float32 by an attribute make float16. Whether it is one."""
    from onnx import helper

    if _is(node, "Cast"):
        for attribute in node.attribute:
            attribute.i = HALF if attribute.name == "to" else attribute.i
    elif _is(node, "ConstantOfShape"):
        given = next((attribute.t for attribute in node.attribute), helper.make_tensor("", FULL, [1], [0]))
        half = _half(given, "")
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", half))
    return _is(node, "Cast", "ConstantOfShape")


def _half(tensor: TensorProto, name: str) -> TensorProto:
    """A tensor in float16; finite numbers stay finite, and what is not 0 stays so: it may be what saves a division."""
    import numpy as np
    from onnx import numpy_helper

    exact = numpy_helper.to_array(tensor)
    half = np.where(np.isfinite(exact), np.clip(exact, -_MOST, _MOST), exact).astype(np.float16)
    least = np.copysign(_LEAST, exact).astype(np.float16)
    return numpy_helper.from_array(np.where((half == 0) & (exact != 0), least, half), name)


def _names(graph: GraphProto) -> set[str]:
    found = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return found | {name for node in graph.node for name in (*node.input, *node.output)}


def _formal(parameters: Sequence[Any], index: int) -> Any:
    """A schema's word on an input or output; the last one may stand for any number."""
    return parameters[min(index, len(parameters) - 1)]


def _is(node: NodeProto, *operators: str) -> bool:
    return node.op_type in operators and node.domain in onnx_format.DEFAULT_DOMAINS


def _domain(name: str) -> str:
    return "" if name in onnx_format.DEFAULT_DOMAINS else name
