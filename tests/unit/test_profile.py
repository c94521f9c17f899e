"""Where the time goes: layers found again, islands and conversions named, the roofline by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import small_onnx as small
import test_backends as backends

from edgeopt.core.profile import Bandwidth, Peak, Peaks
from edgeopt.core.store import Store
from edgeopt.runner import profiled, steady
from edgeopt.stages import breakdown, figures, profile
from edgeopt.stages.peaks import OPENS_ONNX, peaks
from edgeopt.stages.work import Layer, Work, work

PEAKS = Peaks(
    threads=1,
    gops=[Peak(precision="fp32", gops=100.0, by="a"), Peak(precision="int8", gops=400.0, by="b")],
    bandwidth=[Bandwidth(bytes=1000, gb_per_s=50.0), Bandwidth(bytes=1_000_000, gb_per_s=10.0)],
    measured_at="2026-01-31T11:58:00+00:00",
    seconds=1.0,
)


def row(name: str, kind: str, precision: str = "other", us: float = 10.0, *made_of: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "precision": precision, "us": us, "made_of": list(made_of)}


def told(raw: list[dict[str, Any]], counted: Work | None = None, ms: float | None = None) -> Any:
    return profile.profile(raw, counted, PEAKS, ms)


def test_sums_by_precision_conversions_and_the_rest() -> None:
    raw = [row("q", "QuantizeLinear", us=3), row("c", "Conv", "int8", 50), row("t", "Transpose", us=4), row("d", "DequantizeLinear", us=5)]
    short, layers = told([*raw, row("s", "Softmax", "fp32", 8)])
    assert (short.total_us, short.by_precision) == (70, {"int8": 50, "fp32": 8})
    assert (short.conversions, short.conversions_us, short.movement_us) == (2, 8, 4)
    assert [layer.kind for layer in layers] == ["conversion", "compute", "movement", "conversion", "compute"]
    assert short.by_type == {"Conv": 50, "Softmax": 8, "DequantizeLinear": 5, "Transpose": 4, "QuantizeLinear": 3}
    assert [layer.name for layer in short.top] == ["c", "s", "d", "t", "q"]
    assert breakdown.split(short) == "INT8 71 %, FP32 11 %, conversions 11 %, moving data 5.7 %"


def test_an_island_lies_between_layers_of_another_precision_and_tells_what_it_costs() -> None:
    raw = [
        row("first", "Conv", "int8"),
        row("out", "DequantizeLinear", us=2),
        row("norm", "LayerNormalization", "fp32", 7),
        row("act", "Sigmoid", "fp32", 3),
        row("in", "QuantizeLinear", us=1),
        row("second", "Conv", "int8"),
        row("third", "Conv", "int8"),
        row("end", "DequantizeLinear", us=4),
        row("softmax", "Softmax", "fp32", 9),  # at the end: no island, nothing comes after it
    ]
    short, _ = told(raw)
    assert short.island_count == 1
    [island] = short.islands
    assert (island.precision, island.layers, island.us, island.conversions_us) == ("fp32", ["norm", "act"], 10, 3)
    assert breakdown.islands(short) == ["FP32 between INT8 layers: norm, act, 10.0 µs and 3.00 µs of conversions around it"]
    swapped = [{**one, "precision": {"int8": "fp32", "fp32": "int8"}.get(one["precision"], "other")} for one in raw]
    assert breakdown.islands(told(swapped)[0]) == ["INT8 between FP32 layers: norm, act, 10.0 µs and 3.00 µs of conversions around it"]


def test_many_islands_are_counted_and_the_dearest_told() -> None:
    raw = [row("start", "Conv", "int8")]
    for index in range(9):
        raw += [
            row(f"float{index}", "Softmax", "fp32", 10.0 + index),
            row(f"conv{index}", "Conv", "int8"),
            row(f"more{index}", "Conv", "int8"),
        ]
    short, _ = told(raw)
    assert short.island_count == 9
    assert [island.layers for island in short.islands] == [[f"float{index}"] for index in (8, 7, 6, 5, 4)]
    assert breakdown.islands(short)[-1] == "and 4 smaller islands"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_precision_throughout_has_no_island(precision: str) -> None:
    assert told([row(f"l{index}", "Conv", precision) for index in range(3)])[0].island_count == 0
    assert told([])[0].total_us == 0 and breakdown.split(told([])[0]) == "–" and breakdown.costs(told([])[0]) == []


def model(*layers: Layer) -> Work:
    made = Work()
    for layer in layers:
        made.add(layer, layer.name)
    return made


def test_the_roofline_by_hand() -> None:
    # 100,000 MACs: 2 µs at 100 GOP/s, 0.5 µs at 400; 600 elements in 4 bytes: 0.24 µs at the 10 GB/s of a working set beyond 1,000 bytes.
    counted = model(Layer("a", "convolution", 100_000, 400, 200), Layer("b", "matrix", 1000, 50, 9950))
    short, layers = told([row("a", "Conv", "fp32", 20), row("b", "Gemm", "fp32", 5)], counted, 0.025)
    assert [layer.macs for layer in layers] == [100_000, 1000]
    # b waits for memory: 10,000 elements are 40,000 bytes, 4 µs.
    assert [layer.attainable_us for layer in layers] == [2.0, 4.0]
    roof = short.roofline
    assert roof is not None and (roof.macs, roof.bytes) == (101_000, 4 * 10_600)
    assert (
        roof.attainable_ms == pytest.approx(0.006)
        and roof.reached == pytest.approx(6 / 25)
        and roof.memory_bound == pytest.approx(4 / 6, abs=1e-4)
    )
    assert roof.gops == pytest.approx(2 * 101_000 / 25_000, rel=1e-3)
    eight = told([row("a", "Conv", "int8", 20), row("b", "Gemm", "int8", 5)], counted, 0.025)[1]
    assert [layer.attainable_us for layer in eight] == [0.5, 1.0]


def test_without_peaks_or_shapes_there_is_no_roofline_and_everything_else() -> None:
    raw = [row("a", "Conv", "fp16", 20)]
    counted = model(Layer("a", "convolution", 100, 4, 2))
    short, layers = told(raw, counted, 1.0)  # FP16 has no peak here
    assert short.roofline is None and layers[0].macs == 100 and layers[0].attainable_us is None
    assert profile.profile(raw, None, PEAKS, 1.0)[0].roofline is None
    assert profile.profile(raw, counted, None, 1.0)[0].roofline is None
    assert told(raw, Work(), 1.0)[0].roofline is None


def test_layers_are_found_by_their_own_names_then_by_what_is_fused_then_in_order() -> None:
    counted = model(*(Layer(name, "convolution", size, 1, 1) for name, size in (("a", 10), ("b", 20), ("c", 30), ("d", 40))))
    counted.names |= {"relu_b": 1, "add_a": 0}
    raw = [
        row("reorder of a", "Reorder", "other", 1, "a"),
        row("add_a", "Add", "fp32", 1),  # follows a, but is executed on its own
        row("x+y", "Convolution", "fp32", 1, "a", "relu"),
        row("relu_b_nchwc", "Conv", "fp32", 1),
        row("unknown1", "Conv", "fp32", 1),
        row("unknown2", "Conv", "fp32", 1),
    ]
    assert [layer.macs for layer in told(raw, counted)[1]] == [None, None, 10, 20, 30, 40]
    assert [layer.macs for layer in told(raw[:-1], counted)[1]][-1] is None  # two are left there, one here: no guess
    assert [layer.macs for layer in told([row("c + relu + d", "Myelin", "fp16", 1)], counted)[1]] == [70]  # two in one


@pytest.mark.parametrize("backend", backends.RUNTIMES)
@pytest.mark.parametrize("quantized", [False, True], ids=["fp32", "int8"])
def test_every_layer_of_a_real_model_is_found_in_what_a_runtime_executed(backend: str, quantized: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    proto = small.cnn(size=(16, 16))
    _, path = backends.compiled(tmp_path, backend, backends.quantized(proto, tmp_path / "q") if quantized else proto)
    feeds = {"x": np.ones((1, 3, 16, 16), np.float32)}
    _, raw = backends.facts(path, backend, feeds=feeds)
    short, layers = profile.profile(raw, work(path, {"x": (1, 3, 16, 16)}), PEAKS, 1.0)
    assert sorted(layer.macs for layer in layers if layer.macs) == [40, 256 * 8 * 27, 256 * 8 * 72]
    assert {layer.precision for layer in layers if layer.macs} == {"int8" if quantized else "fp32"}
    assert short.roofline is not None and short.roofline.macs == 256 * 8 * 99 + 40
    assert short.conversions >= 1 or not quantized


def test_the_file_holds_every_layer_and_nonsense_is_no_profile(tmp_path: Path) -> None:
    layers = {name: reports.profiled(name, 2.0)[1] for name in ("fp32", 'odd "name"')}
    profile.write(tmp_path, "here", PEAKS, layers)
    assert profile.read(tmp_path) == layers
    assert json.loads((tmp_path / profile.FILE).read_text())["peaks"]["threads"] == 1
    for nonsense in ("", "[]", '{"variants": [1]}', '{"variants": {"a": [{"name": 1}]}}'):
        (tmp_path / profile.FILE).write_text(nonsense)
        assert profile.read(tmp_path) == {}
    assert profile.read(tmp_path / "nowhere") == {}


def test_of_very_many_layers_the_small_neighbours_are_drawn_as_one() -> None:
    raw = [row(f"l{index}", "Conv", "int8", 100.0 if index % 10 == 0 else 1.0) for index in range(1000)]
    layers = told(raw)[1]
    pieces = figures._pieces(layers)
    assert len(pieces) <= 2 * figures.STRIPS + 1 and pieces[1][0] == "9 small layers"
    assert sum(us for *_, us in pieces) == pytest.approx(sum(layer.us for layer in layers))


def test_a_steady_figure_forgives_runs_that_were_disturbed() -> None:
    assert steady([10, 11, 10, 9000, 10, 9, 11, 4000]) == pytest.approx(10.5, abs=0.51)
    assert steady([7]) == 7
    assert 5 <= len(list(profiled())) <= 100


def test_the_machine_s_peaks_are_measured_once_and_never_sink(tmp_path: Path) -> None:
    if all(backends.PROBED[name] for name in OPENS_ONNX):
        pytest.skip("; ".join(backends.PROBED[name] for name in OPENS_ONNX))
    store = Store(tmp_path)
    found = peaks(1, store)
    assert found is not None and {"fp32", "int8"} <= {one.precision for one in found.gops}
    assert all(one.gops > 0.1 for one in found.gops) and all(one.gb_per_s > 0.1 for one in found.bandwidth)
    assert [one.bytes for one in found.bandwidth] == sorted(one.bytes for one in found.bandwidth)
    assert found.bandwidth_at(1) == found.bandwidth[0].gb_per_s and found.bandwidth_at(1 << 60) == found.bandwidth[-1].gb_per_s
    assert peaks(1, store) == found  # from the store
    [entry] = [one for one in store.entries() if one.kind == "peaks"]
    high = found.model_copy(update={"gops": [one.model_copy(update={"gops": 1e9}) for one in found.gops]})
    (entry.path / "peaks.json").write_text(high.model_dump_json())
    again = peaks(1, store, fresh=True)
    assert again is not None and all(one.gops == 1e9 for one in again.gops) and again.measured_at != "" and again.seconds > 0
