"""The mix on ONNX models, out of onnxruntime's Q/DQ pairs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Candidate, Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.passes import cast_fp16, cast_fp16_graph, quantize_int8_onnx
from edgeopt.passes import mixed_precision_onnx_graph as graph
from edgeopt.passes.mixed_precision_mix import Mix, Unit, units_of
from edgeopt.passes.mixed_precision_rules import gates_for

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from edgeopt.passes.quantize_int8 import QuantizeInt8
    from edgeopt.passes.quantize_int8_samples import Calibration

    Feeds = dict[str, np.ndarray[Any, Any]]

_PROFILED_RUNS = 6


class Engine:
    """A model that is quantized anew for each mix, without the nodes that stay float; its ranges are found once."""

    def __init__(self, model: Artifact, options: QuantizeInt8, ctx: Context, calibration: Calibration) -> None:
        self.model, self.ctx = model, ctx
        self.quantizer = quantize_int8_onnx.Quantizer(model, options, ctx, calibration)
        full = self.quantizer.build(keep_activations=True)
        self.layers, self.rules = graph.layers(full), graph.rules(full)
        self.between = graph.between(full)
        self.units = units_of(self.layers)
        # TensorRT computes in the types that stand in the model, so that the float rest may be cast to float16 there.
        self.executions: tuple[str, ...] = ("f32", "fp16") if ctx.target["backend"] == "tensorrt" else ("f32",)
        self.untimed: tuple[str, ...] = self.executions[::-1]
        self.large = cast_fp16.outgrown(model.path, ctx, options.samples) if "fp16" in self.executions else {}
        self._gated: Callable[[Feeds], Feeds] | None = None

    def load(self) -> ModelProto:
        return onnx_format.load(self.model.path)

    def build(self, mix: Mix) -> ModelProto:
        made = self._quantized(mix) if mix.units else self.load()
        return cast_fp16_graph.cast(made, self.large) if mix.execution == "fp16" else made

    def _quantized(self, mix: Mix) -> ModelProto:
        on = mix.layers(self.units)
        off = {name for name in self.layers if name not in on}
        off |= {name for name, rule in self.between.items() if not rule.active(on)}
        return self.quantizer.build(off)

    def sums(self, mix: Mix) -> bool:
        return False

    def runner(self, made: ModelProto, execution: str) -> Callable[[Feeds], Feeds]:
        return self.quantizer.runner(made)

    def alone(self, unit: Unit) -> Callable[[Feeds], Feeds]:
        if self._gated is None:
            full, exact = self.quantizer.build(keep_activations=True), onnx_format.load(self.quantizer.prepared)
            self._gated = self.quantizer.runner(graph.gated(full, exact, self.layers, self.rules))
        run, values = self._gated, gates_for(self.layers, self.rules, set(unit.layers))
        return lambda feeds: run({**feeds, graph.GATES: values})

    def macs(self, feeds: Feeds) -> dict[str, int]:
        found = graph.macs(onnx_format.load(self.quantizer.prepared), self.layers, feeds, self.quantizer.runner)
        return {unit.name: sum(found[layer] for layer in unit.layers) for unit in self.units}

    def times(self, made: ModelProto, execution: str, feeds: Feeds) -> dict[str, float]:
        """By the runtime's own trace. What it fused is told by the tensor that comes out."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        threads = self.ctx.target.get("threads", "auto")
        options.intra_op_num_threads = machine.threads() if threads == "auto" else threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(self.quantizer.folder / "trace")
        path = onnx_format.save(made, self.quantizer.folder / "profiled.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(_PROFILED_RUNS):
            session.run(None, feeds)
        trace = json.loads(Path(session.end_profiling()).read_text())
        runs: dict[str, list[float]] = defaultdict(list)
        for event in trace:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                runs[event["name"].removesuffix("_kernel_time")].append(event["dur"])
        owner = {layer: unit.name for unit in self.units for layer in unit.layers}
        layer_of = graph.owners(made, set(owner))
        spent: dict[str, float] = defaultdict(float)
        for name, durations in runs.items():
            if (layer := layer_of(name)) is not None:
                spent[owner[layer]] += min(durations)
        return spent

    def candidate(self, made: ModelProto, execution: str, folder: Path) -> Candidate:
        (folder / "files").mkdir(parents=True)
        return Candidate(onnx_format.save(made, folder / "files" / onnx_format.MAIN), execution)

    def save(self, made: ModelProto, folder: Path) -> Path:
        return quantize_int8_onnx.save(made, self.ctx)

    def close(self) -> None:
        self.quantizer.close()
