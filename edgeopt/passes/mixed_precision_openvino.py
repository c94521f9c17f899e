"""The mix on OpenVINO models, out of NNCF's quantizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Candidate, Context
from edgeopt.formats import openvino as openvino_format
from edgeopt.passes import mixed_precision_openvino_graph as graph
from edgeopt.passes import quantize_int8_openvino
from edgeopt.passes.mixed_precision_mix import Mix, Unit, units_of
from edgeopt.passes.mixed_precision_rules import gates_for

if TYPE_CHECKING:
    import numpy as np
    import openvino

    from edgeopt.passes.quantize_int8 import QuantizeInt8
    from edgeopt.passes.quantize_int8_samples import Calibration

    Feeds = dict[str, np.ndarray[Any, Any]]

_PROFILED_RUNS = 6


class Engine:
    """A model with a quantizer on all that NNCF gives one, taken out again where a mix does without."""

    def __init__(self, model: Artifact, options: QuantizeInt8, ctx: Context, calibration: Calibration) -> None:
        self.model = model
        exact = self.load()
        self.full = quantize_int8_openvino.quantized(model, options, ctx, calibration, compress=False)
        self.original = {one.get_friendly_name(): one for one in exact.get_ordered_ops()}
        self._exact = exact  # holds what `original` points into
        self.layers = graph.layers(self.full)
        self.rules = graph.rules(self.full, self.layers)
        self.units = units_of(self.layers)
        fast = bool(set(machine.BF16_FLAGS).intersection(machine.fingerprint()["isa"]))
        self.executions: tuple[str, ...] = ("f32", "bf16") if fast else ("f32",)
        self.untimed: tuple[str, ...] = ("f32",)
        self._gated: Any = None

    def load(self) -> openvino.Model:
        return openvino_format.load(self.model.path)

    def build(self, mix: Mix) -> openvino.Model:
        made = self._mixed(mix)
        if mix.units:
            quantize_int8_openvino.compress(made)
        return made

    def sums(self, mix: Mix) -> bool:
        return bool(graph.unquantized_sums(self._mixed(mix)))

    def _mixed(self, mix: Mix) -> openvino.Model:
        """The model of a mix, its weights still float behind their quantizers."""
        if not mix.units:
            return self.load()
        on = mix.layers(self.units)
        made = self.full.clone()
        operations = {one.get_friendly_name(): one for one in made.get_ordered_ops()}
        for layer in self.layers.values():
            if layer.name not in on:
                for quantizer in layer.weights:
                    graph.bypass(operations[quantizer])
                for port, _, was in graph.corrections(operations[layer.name], self.original):
                    port.replace_source_output(graph.constant(was).output(0))
        for name, rule in self.rules.items():
            if not rule.active(on):
                graph.bypass(operations[name])
        for port, quantized in graph.unquantized_sums(made) if mix.sums else ():
            port.replace_source_output(quantized)
        made.validate_nodes_and_infer_types()
        return made

    def runner(self, made: openvino.Model, execution: str) -> Callable[[Feeds], Feeds]:
        return openvino_format.runner_of(made, self.model.signature, execution)

    def alone(self, unit: Unit) -> Callable[[Feeds], Feeds]:
        if self._gated is None:
            gated = self.full.clone()
            graph.gate(gated, self.layers, self.rules, self.original)
            self._gated = openvino_format.compiled(gated)
        run, values = self._gated, gates_for(self.layers, self.rules, set(unit.layers))
        inputs = [spec.name for spec in self.model.signature.inputs]
        outputs = [spec.name for spec in self.model.signature.outputs]

        def named(feeds: Feeds) -> Feeds:
            results = openvino_format.results(run, [*(feeds[name] for name in inputs), values])
            return {name: results[index] for index, name in enumerate(outputs)}

        return named

    def macs(self, feeds: Feeds) -> dict[str, int]:
        sized = self.full.clone()
        sized.reshape({sized.inputs[index]: list(feeds[spec.name].shape) for index, spec in enumerate(self.model.signature.inputs)})
        found = graph.macs(sized, self.layers)
        return {unit.name: sum(found[layer] for layer in unit.layers) for unit in self.units}

    def times(self, made: openvino.Model, execution: str, feeds: Feeds) -> dict[str, float]:
        compiled = openvino_format.compiled(made, execution, PERF_COUNT=True)
        request = compiled.create_infer_request()
        ordered = [feeds[spec.name] for spec in self.model.signature.inputs]
        owner = {layer: unit.name for unit in self.units for layer in unit.layers}
        owners = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            made_of = node.get_rt_info()["originalLayersNames"].astype(str).split(",")
            owners[node.get_friendly_name()] = [owner[name] for name in made_of if name in owner]
        runs: dict[str, list[float]] = defaultdict(list)
        for _ in range(_PROFILED_RUNS):
            request.infer(ordered)
            spent: dict[str, float] = defaultdict(float)
            for entry in request.profiling_info:
                units = owners.get(entry.node_name, [])
                for unit in units:
                    spent[unit] += entry.real_time.total_seconds() * 1e6 / len(units)
            for unit, us in spent.items():
                runs[unit].append(us)
        return {unit: min(found) for unit, found in runs.items()}

    def candidate(self, made: openvino.Model, execution: str, folder: Path) -> Candidate:
        (folder / "files").mkdir(parents=True)
        return Candidate(self.save(made, folder / "files"), execution)

    def save(self, made: openvino.Model, folder: Path) -> Path:
        return openvino_format.save(made, folder / openvino_format.MAIN, self.model.signature)

    def close(self) -> None:
        self._gated = None
