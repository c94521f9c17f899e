"""The export of a model with quantizers: Q/DQ pairs as runtimes fuse them, checked against the model that was trained."""

from __future__ import annotations

import math
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format
from edgeopt.passes import export_onnx
from edgeopt.passes.quantize_int8_onnx import quantized_layers, refuse_unsigned
from edgeopt.passes.train_int8_graph import Graph
from edgeopt.passes.train_int8_layers import batches

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgeopt.passes.train_int8 import TrainInt8

# The exported model rounds where the trained one does, and at shortcuts besides: below this SQNR it is another model.
_LEAST_DB, _MOST_DB, _CHECKED = 15.0, 150.0, 4


def exported(module: nn.Module, options: TrainInt8, model: Artifact, ctx: Context) -> ModelProto:
    """The ONNX model. Raises StepError where it does not compute what the module does."""
    import onnx

    record = torch_format.Record.read(model.path)
    ctx.progress(0, 0, "exporting")
    proto = onnx.shape_inference.infer_shapes(export_onnx.traced(module, model.signature, record.outputs))
    graph = Graph(proto.graph)
    graph.clean()
    graph.store_weights()
    graph.fold_norms()
    graph.merge()
    open_ends = graph.open_ends()
    graph.close(_reach(proto, open_ends, options, ctx) if open_ends else {})
    graph.finish()
    onnx_format.sort_nodes(proto.graph)
    onnx_format.name_nodes(proto)
    layers = quantized_layers(proto)
    if not layers:
        raise StepError("the exported model has no quantized layer", remedy="report this; leave train-int8 out meanwhile")
    refuse_unsigned(proto)
    ctx.note("quantized_layers", layers)
    ctx.note("export_db", _agreement(proto, module, record, ctx))
    return proto


def _reach(proto: ModelProto, names: list[str], options: TrainInt8, ctx: Context) -> dict[str, float]:
    """The largest absolute value of each tensor on the calibration samples."""
    import numpy as np
    from onnx import helper

    watched = type(proto)()
    watched.CopyFrom(proto)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    found = dict.fromkeys(names, 0.0)
    run = _runner(watched)
    for feeds in batches(options, ctx, "finding ranges"):
        outputs = run(feeds)
        for name in names:
            found[name] = max(found[name], float(np.abs(outputs[name]).max()))
    return found


def _runner(proto: ModelProto) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return onnx_format.Onnx().runner(onnx_format.save(proto, Path(folder) / onnx_format.MAIN))


def _agreement(proto: ModelProto, module: nn.Module, record: torch_format.Record, ctx: Context) -> float:
    """SQNR in dB between the trained module and its export on calibration samples: that of the worst real-valued output."""
    import numpy as np

    run = _runner(proto)
    powers: dict[str, Any] = {}
    for feeds, _ in islice(ctx.data["calibrate"].batches(1), _CHECKED):
        wanted = torch_format.arrays(
            torch_format.run(module, [torch_format.tensor(feeds[spec.name]) for spec in record.inputs], record.outputs)
        )
        for name, one in run(feeds).items():
            if wanted[name].dtype.kind == "f":
                exact = wanted[name].astype(np.float64)
                powers[name] = powers.get(name, 0) + np.array([(exact**2).sum(), ((exact - one) ** 2).sum()])
    whole = sum(float(signal) for signal, _ in powers.values())  # an output of zeros is held against all
    found = min((_decibels(float(signal) or whole, float(noise)) for signal, noise in powers.values()), default=_MOST_DB)
    if found < _LEAST_DB:
        raise StepError(
            f"the exported model agrees with the trained one to {found:.1f} dB SQNR only",
            remedy="keep the layers that it breaks under `keep`, or leave train-int8 out",
        )
    return round(found, 2)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return _MOST_DB
    return min(_MOST_DB, 10 * math.log10(signal / noise)) if signal and math.isfinite(noise) else -_MOST_DB
