"""Ranges of a model's activations, found by onnxruntime's calibrators from one batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeopt.core.errors import StepError
from edgeopt.passes.quantize_int8_samples import Calibration

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto

    Feeds = dict[str, np.ndarray[Any, Any]]
    Ranges = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]

_BINS = {"entropy": 128, "percentile": 2048, "mse": 2048}  # the first two: those of onnxruntime
_LIMITS = 96  # how many are tried for the least squared error


class _Once:
    """A reader of one batch, so that the calibrator keeps nothing."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds: Feeds | None = feeds

    def get_next(self) -> Feeds | None:
        feeds, self.feeds = self.feeds, None
        return feeds


class Found(NamedTuple):
    """Ranges by method and activation; `none` names the activations that have none: infinite on some sample, or empty on all."""

    ranges: dict[str, Ranges]
    none: set[str]


def find_ranges(model: Path, types: Sequence[str], calibration: Calibration, methods: list[str], folder: Path) -> Found:
    """Each method's ranges of all activations, from one batch at a time. Raises StepError where one is NaN.

    Infinity is no fault: masks of attention are made of it. An empty tensor (what a suppression kept of nothing) sets no range.

    onnxruntime's own loop keeps the outputs of all samples, and with `CalibMaxIntermediateOutputs` it forgets
    all but the last ones (1.32). Histograms are laid over the extremes found first: so each batch
    adds up to exactly what all samples at once would give.
    """
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    large = model.with_name(model.name + ".data").exists()
    calibrator = create_calibrator(
        model,
        types,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=large,
    )
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    sums: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    infinite: set[str] = set()
    for feeds in calibration:
        calibrator.calibrate_tensors_range = None
        calibrator.collect_data(_Once(feeds))
        for name, one in calibrator.calibrate_tensors_range.data.items():
            least, most = one.range_value
            if np.isnan(least).any() or np.isnan(most).any():
                raise StepError(f"calibration: '{name}' is NaN", remedy="look at the calibration data and the model")
            low[name], high[name] = np.minimum(low.get(name, least), least), np.maximum(high.get(name, most), most)
            if (least > most).any():  # the extremes of nothing
                continue
            if np.isinf(least).any() or np.isinf(most).any():
                infinite.add(name)
                continue
            seen[name] += 1
            sums[name] = sums.get(name, 0) + np.stack([least, most]).astype(np.float64)
    none = {name for name in low if name in infinite or not seen[name]}
    extremes = {name: (low[name], high[name]) for name in low if name not in none}
    found: dict[str, Ranges] = {}
    for method in methods:
        if method == "minmax":
            found[method] = extremes
        elif method == "mean-minmax":
            found[method] = {name: tuple((sums[name] / seen[name]).astype(low[name].dtype)) for name in extremes}
        else:
            found[method] = _from_histograms(model, types, calibration, method, extremes, folder)
    return Found(found, none)


def without_range(graph: GraphProto, none: set[str], types: Sequence[str]) -> list[str]:
    """Nodes of these types that cannot be quantized: one of their tensors has no range, or is stored with infinity in it."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    real = (TensorProto.FLOAT, TensorProto.FLOAT16)
    stored = [one for one in graph.initializer if one.data_type in real and not np.isfinite(numpy_helper.to_array(one)).all()]
    tensors = none | {one.name for one in stored}
    return [node.name for node in graph.node if node.op_type in types and not tensors.isdisjoint([*node.input, *node.output])]


def _from_histograms(model: Path, types: Sequence[str], calibration: Calibration, method: str, extremes: Ranges, folder: Path) -> Ranges:
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import HistogramCollector, create_calibrator

    kind = CalibrationMethod.Entropy if method == "entropy" else CalibrationMethod.Percentile
    calibrator = create_calibrator(
        model, types, augmented_model_path=str(folder / f"{method}.onnx"), calibrate_method=kind, extra_options={"symmetric": False}
    )
    collector = HistogramCollector(
        method="entropy" if method == "entropy" else "percentile",
        symmetric=False,
        num_bins=_BINS[method],
        num_quantized_bins=128,
        percentile=99.999,
        scenario="same",
    )
    for name, (low, high) in extremes.items():
        least, most = low.reshape(()), high.reshape(())
        reach = np.maximum(abs(least), abs(most))
        counts, edges = np.histogram(np.zeros(0, least.dtype), _BINS[method], range=(-reach, reach))
        collector.histogram_dict[name] = (counts, edges.astype(least.dtype), least, most, reach)
    calibrator.collector, calibrator.tensors_to_calibrate = collector, set(extremes)
    for feeds in calibration:
        calibrator.collect_data(_Once(feeds))
    if method == "mse":
        return {
            name: _least_squares(counts, edges, *(one.reshape(()) for one in extremes[name]))
            for name, (counts, edges, *_) in collector.histogram_dict.items()
        }
    ranges = {name: one.range_value for name, one in calibrator.compute_data().data.items()}
    return {name: (np.asarray(low), np.asarray(high)) for name, (low, high) in ranges.items()}


def _least_squares(counts: Any, edges: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """The extremes, cut off where 256 steps between give the least squared error on a histogram.

    Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1 (MSE based range setting).
    """
    import numpy as np

    values, weights = (edges[:-1] + edges[1:]) / 2, counts.astype(np.float64)
    least, most = min(float(low), 0.0), max(float(high), 0.0)
    if most == least:
        return np.asarray(low), np.asarray(high)
    limits = max(-least, most) * np.linspace(0.05, 1.0, _LIMITS)[:, None]
    lows, highs = np.maximum(least, -limits), np.minimum(most, limits)
    step = (highs - lows) / 255
    offset = np.round(-lows / step)
    rounded = (np.clip(np.round(values / step) + offset, 0, 255) - offset) * step
    best = (weights * (rounded - values) ** 2).sum(axis=1).argmin()
    return np.asarray(lows[best, 0], dtype=low.dtype), np.asarray(highs[best, 0], dtype=high.dtype)
