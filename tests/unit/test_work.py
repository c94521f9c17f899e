"""What a model multiplies, counted by hand and by `work`, from ONNX and from OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import helper, numpy_helper

from edgeopt.stages.work import Work, bare, found, of_onnx, work


def one(
    operator: str, data: tuple, weights: tuple, out: tuple, more: dict[str, tuple] | None = None, **attributes: object
) -> onnx.ModelProto:
    """A model of one layer and its weights."""
    stored = [small.weight(name, *shape) for name, shape in {"w": weights, **(more or {})}.items()]
    node = helper.make_node(operator, ["x", "w", *(more or {})], ["y"], name="layer", **attributes)
    return small.model([node], [small.value("x", list(data))], [small.value("y", list(out))], stored)


LAYERS = {
    "convolution": (one("Conv", (2, 8, 10, 12), (16, 8, 3, 3), (2, 16, 10, 12), pads=[1, 1, 1, 1]), 2 * 16 * 10 * 12 * 8 * 9),
    "strided": (one("Conv", (1, 8, 10, 10), (16, 8, 2, 2), (1, 16, 5, 5), strides=[2, 2]), 16 * 25 * 8 * 4),
    "depthwise": (one("Conv", (1, 8, 10, 10), (8, 1, 3, 3), (1, 8, 8, 8), group=8), 8 * 64 * 9),
    "grouped": (one("Conv", (1, 8, 10), (6, 4, 3), (1, 6, 8), group=2), 6 * 8 * 4 * 3),
    "transposed": (one("ConvTranspose", (1, 8, 5, 5), (8, 4, 2, 2), (1, 4, 10, 10), strides=[2, 2]), 8 * 25 * 4 * 4),
    "grouped-transposed": (one("ConvTranspose", (1, 6, 5), (6, 2, 4), (1, 4, 8), group=2), 6 * 5 * 2 * 4),
    "gemm": (one("Gemm", (3, 8), (5, 8), (3, 5), transB=1), 3 * 8 * 5),
    "turned": (one("Gemm", (8, 3), (8, 5), (3, 5), transA=1), 3 * 8 * 5),
    "batched": (one("MatMul", (2, 7, 8), (8, 5), (2, 7, 5)), 2 * 7 * 8 * 5),
    "lstm": (one("LSTM", (6, 2, 8), (1, 40, 8), (6, 1, 2, 10), {"r": (1, 40, 10)}, hidden_size=10), 6 * 2 * 40 * 18),
    "gru": (one("GRU", (6, 2, 8), (1, 30, 8), (6, 1, 2, 10), {"r": (1, 30, 10)}, hidden_size=10), 6 * 2 * 30 * 18),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_multiplies_what_its_shapes_say_whoever_reads_it(name: str, tmp_path: Path) -> None:
    model, expected = LAYERS[name]
    path = small.write(model, tmp_path)
    counted = work(path)
    assert counted is not None and counted.macs == expected
    if name in ("lstm", "gru"):
        return  # OpenVINO takes them in other sequences of axes, with transposes around
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "m.xml", compress_to_fp16=False)
    again = work(tmp_path / "m.xml")
    assert again is not None and again.macs == expected
    assert (again.layers[0].moved, again.layers[0].weights) == (counted.layers[0].moved, counted.layers[0].weights)


def test_openvino_s_recurrent_layers_are_counted_too(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    for name in ("lstm", "gru"):
        model, expected = LAYERS[name]
        openvino.save_model(openvino.Core().read_model(small.write(model, tmp_path)), tmp_path / f"{name}.xml", compress_to_fp16=False)
        counted = work(tmp_path / f"{name}.xml")
        assert counted is not None and counted.macs == expected


def test_sizes_are_those_of_the_inputs_or_one_sample(tmp_path: Path) -> None:
    path = small.write(small.cnn(), tmp_path)
    per_pixel, head = 8 * 27 + 8 * 72, 40
    assert work(path, {"x": (2, 3, 16, 16)}).macs == 2 * (256 * per_pixel + head)  # type: ignore[union-attr]
    fixed = small.write(small.cnn(size=(16, 16)), tmp_path, "fixed.onnx")
    assert work(fixed).macs == 256 * per_pixel + head  # type: ignore[union-attr]
    assert of_onnx(onnx.load(path)) is None  # nobody said how large an image is


def test_weights_in_constants_and_quantized_models_count_alike(tmp_path: Path) -> None:
    plain, constants = of_onnx(small.cnn(size=(16, 16))), of_onnx(small.cnn(size=(16, 16), constants=True))
    assert plain and constants and plain.macs == constants.macs
    zero, scale = numpy_helper.from_array(np.array(0, np.int8), "z"), numpy_helper.from_array(np.array(0.1, np.float32), "s")
    weights = numpy_helper.from_array(np.ones((64, 64), np.int8), "w8")  # large: its values are left out of the way
    nodes = [helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    model = small.model(nodes, [small.value("x", ["N", 64])], [small.value("y", ["N", 64])], [weights, scale, zero])
    assert of_onnx(model).macs == 64 * 64  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [small.branches, small.loop])
def test_layers_in_branches_and_loops_are_not_guessed(make: object, tmp_path: Path) -> None:
    assert work(small.write(make(), tmp_path)) is None  # type: ignore[operator]


def test_a_model_that_multiplies_nothing_has_no_work_and_other_files_none_at_all(tmp_path: Path) -> None:
    relu = small.model([helper.make_node("Relu", ["x"], ["y"])], [small.value("x", ["N", 4])], [small.value("y", ["N", 4])])
    assert work(small.write(relu, tmp_path)).layers == []  # type: ignore[union-attr]
    (tmp_path / "model.engine").write_bytes(b"\0")
    assert work(tmp_path / "model.engine") is None


def test_a_layer_is_found_by_what_runtimes_call_it() -> None:
    counted = of_onnx(small.cnn(size=(16, 16)))
    assert counted is not None
    assert [layer.name for layer in counted.layers] == ["conv1", "conv2", "head"]
    assert found(["r1_nchwc"], counted.own) == set() and found(["relu1"], counted.names) == {0}  # what follows alone may be fused
    for name, index in (
        ("conv1_token_7", 0),
        ("c1_nchwc", 0),
        ("conv2/WithoutBiases", 1),
        ("head", 2),
        ("InsertedPrecisionFreeCast_c2", 1),
    ):
        assert found([name], counted.own) == {index}, name
    assert found(["pool", "elsewhere", "", "_nchwc"], counted.own) == set()
    assert bare("conv2/WithoutBiases/DequantizationMultiply") == "conv2" and bare("_nchwc") == "_nchwc"
    assert Work.from_json(counted.to_json()) == counted
