"""`edgeopt inspect MODEL --against OTHER`: where a model lost the function of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_onnx as small
import test_quantize_int8 as quantizing
from onnx import helper, numpy_helper

from edgeopt.cli import call
from edgeopt.core.inner import Graph, Node
from edgeopt.formats.onnx_inner import graph_of
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.stages import against as stage
from edgeopt.stages.noise import MAX_DB, Pair, matched

CNN = small.cnn(size=(16, 16))


def answered(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()  # what quantizers print
    assert call(["inspect", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)["against"]
    stage.Against.model_validate(found)
    return found


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(["inspect", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    assert call(["inspect", *map(str, arguments)]) == code
    return " ".join(capsys.readouterr().err.split())


def place(found: Any) -> Any:
    [one] = [layer for layer in found["layers"] if layer["place"]]
    return one


def stored(proto: onnx.ModelProto, name: str) -> Any:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def data(folder: Path, count: int = 24) -> Path:
    np.savez(folder / "x.npz", x=np.random.default_rng(1).standard_normal((count, 3, 16, 16), np.float32))
    return folder / "x.npz"


@pytest.mark.parametrize("target", [quantizing.X86, quantizing.TENSORRT, quantizing.OPENVINO], ids=["u8s8", "s8s8", "openvino"])
def test_a_quantized_model_keeps_its_function_and_each_layer_tells_how_well(
    target: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = quantizing.prepared(tmp_path, CNN, target)
    path, _ = quantizing.quantize(tmp_path, made, target)
    found = answered(capsys, made.path, "--against", path, "--data", data(tmp_path))
    assert (found["samples"], found["fed"]) == (16, "x.npz")
    assert found["summary"].startswith("the function is kept, to ")
    [output] = [layer for layer in found["layers"] if layer["output"]]
    assert output["output"] == "y" and 20 < output["sqnr_db"] < 70
    roundings = [layer for layer in found["layers"] if layer["type"] == "rounding"]
    assert roundings and roundings[0]["name"] == "x" and roundings[0]["before_db"] == MAX_DB
    assert all(layer["sqnr_db"] > 20 for layer in found["layers"]), "a layer is held against something else"
    assert {"conv2", "head"} <= {layer["name"].removesuffix("/WithoutBiases") for layer in found["layers"]}


@pytest.mark.parametrize("form", ["onnx", "openvino", "onnx against openvino"])
def test_a_ruined_layer_is_named_as_the_place(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ruined = onnx.ModelProto.FromString(CNN.SerializeToString())
    weight = stored(ruined, "w2")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "w2"))
    paths = []
    for name, proto, openvino in (("good", CNN, form == "openvino"), ("bad", ruined, form != "onnx")):
        (tmp_path / name).mkdir()
        paths.append(quantizing.prepared(tmp_path / name, proto, quantizing.OPENVINO if openvino else quantizing.X86).path)
    found = answered(capsys, paths[0], "--against", paths[1])
    assert place(found)["name"].removesuffix("/WithoutBiases") == "conv2" and place(found)["before_db"] > 100
    assert found["summary"].startswith("the function is lost first at conv2")
    assert "random numbers: x [1, 3, 16, 16]" in found["fed"]


def test_a_wrong_scale_is_a_rounding_that_lost_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = quantizing.prepared(tmp_path, CNN, quantizing.X86)
    path, _ = quantizing.quantize(tmp_path, made, quantizing.X86)
    wrong = onnx.load(path)
    quantizer = next(node for node in wrong.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "f")
    scale = stored(wrong, quantizer.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(40), scale.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    found = answered(capsys, made.path, "--against", tmp_path / "wrong.onnx", "--data", data(tmp_path))
    one = place(found)
    assert one["name"] in ("pool", "flatten") and one["type"] == "rounding" and one["sqnr_db"] < 5 < 20 < one["before_db"]
    text = shown(capsys, made.path, "--against", tmp_path / "wrong.onnx", "--data", data(tmp_path))
    assert f"the function is lost first at {one['name']} (rounding)" in text and "◄" in text and "output y" in text


def test_fp16_and_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = quantizing.imported(tmp_path, CNN)
    (tmp_path / "half").mkdir()
    from edgeopt.core.protocols import Context

    half = CastFp16().run(made, Context(tmp_path / "half", data={}))
    found = answered(capsys, made.path, "--against", half, "--samples", 3)
    assert found["samples"] == 3 and all(layer["sqnr_db"] > 40 for layer in found["layers"])
    assert "the outputs are identical" in shown(capsys, made.path, "--against", made.path)


def test_it_fits_the_terminal_and_all_shows_every_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    nodes, weights = [], []
    for index in range(30):
        nodes.append(
            helper.make_node("Gemm", [f"t{index}", f"w{index}"], [f"t{index + 1}"], name=f"a_rather_long_name_of_a_layer/{index}" * 2)
        )
        weights.append(small.weight(f"w{index}", 8, 8, seed=index, scale=0.35))
    good = small.model(nodes, [small.value("t0", ["N", 8])], [small.value("t30", ["N", 8])], weights)
    path = small.write(good, tmp_path)
    stored(good, "w3").CopyFrom(small.weight("w3", 8, 8, seed=99))
    bad = small.write(good, tmp_path, "bad.onnx")
    text = shown(capsys, path, "--against", bad)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    assert "and 9 layers that lost less" in text and "output t30" in text
    everything = shown(capsys, path, "--against", bad, "--all")
    assert "lost less" not in everything and everything.count("Gemm") == 31
    assert place(answered(capsys, path, "--against", bad))["name"].endswith("/3")


def test_samples_of_a_recipe_are_those_that_may_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small.write(CNN, tmp_path)
    data(tmp_path, 5)
    recipe = (
        "edgeopt: 1\nname: r\nmodel: {onnx: %s}\ndata: {evaluate: {random: normal, samples: 3}%s}\nvariants: {fp32: []}\ntargets: [null]\n"
    )
    recipe = recipe.replace("[null]", "['null']")
    (tmp_path / "r.yaml").write_text(recipe % (path.name, ", calibrate: {npz: x.npz}"))
    found = answered(capsys, path, "--against", path, "--recipe", tmp_path / "r.yaml")
    assert (found["samples"], found["fed"]) == (5, "'calibrate' of r.yaml")
    (tmp_path / "r.yaml").write_text(recipe % (path.name, ""))
    assert "'evaluate' is not looked at" in refused(capsys, path, "--against", path, "--recipe", tmp_path / "r.yaml")


def test_integers_bodies_and_odd_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, proto in {
        "embedding": small.embedding(),
        "branches": small.branches(),
        "loop": small.loop(),
        "lstm": small.recurrent(),
    }.items():
        path = small.write(proto, tmp_path, f"{name}.onnx")
        assert "identical" in answered(capsys, path, "--against", path)["summary"], name
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("ArgMax", ["h"], ["y"], name="best", axis=1)]
    classes = small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 1], small.INT64)], [small.weight("w", 8, 8)])
    path = small.write(classes, tmp_path, "classes.onnx")
    stored(classes, "w").CopyFrom(small.weight("w", 8, 8, seed=5))
    other = small.write(classes, tmp_path, "other.onnx")
    found = answered(capsys, path, "--against", other)
    assert found["layers"][-1]["equal"] < 1 and found["layers"][-1]["sqnr_db"] is None
    assert "% equal" in shown(capsys, path, "--against", other)


def test_what_cannot_be_compared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small.write(CNN, tmp_path)
    assert "no such file" in refused(capsys, path, "--against", tmp_path / "none.onnx")
    assert "no such file" in refused(capsys, path, "--against", path, "--data", tmp_path / "none.npz")
    assert "the inputs differ: model.onnx takes x [N, 3, 16, 16], mlp.onnx x [N, 8]" in refused(
        capsys, path, "--against", small.write(small.mlp(), tmp_path, "mlp.onnx")
    )
    other = small.model(
        [helper.make_node("Relu", ["x"], ["z"])], [small.value("x", ["N", 3, 16, 16])], [small.value("z", ["N", 3, 16, 16])]
    )
    told = refused(capsys, path, "--against", small.write(other, tmp_path, "relu.onnx"))
    assert "no tensor in common by name" in told and "→" in told
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    assert "the model wants [3, 16, 16]" in refused(capsys, path, "--against", path, "--data", tmp_path / "bad.npz")
    assert "says nothing without --against" in refused(capsys, path, "--data", tmp_path / "bad.npz")
    assert "exclude each other" in refused(capsys, path, "--against", path, "--profile")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert "is no ONNX model, or is cut off" in refused(capsys, path, "--against", tmp_path / "broken.onnx")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="shaped")]
    bad = small.model(nodes, [small.value("x", ["N", 4])], [small.value("y", [3])], [small.ints("shape", 3)])
    broken = small.write(bad, tmp_path, "reshape.onnx")
    assert "reshape.onnx does not run: " in refused(capsys, broken, "--against", broken, code=8)


def test_an_activation_that_the_quantizer_does_is_not_held_against_its_input() -> None:
    """Where a Clip went, onnxruntime's quantizer gives the convolution the Clip's name, or leaves it its own."""
    first = Graph([Node("conv", "Conv", ("c",), ("x",)), Node("clip", "Clip", ("r",), ("c",)), Node("head", "Gemm", ("y",), ("r",))])
    first.names, first.inputs, first.outputs = {name: (name,) for name in "xcry"}, {"x": "x"}, {"y": "y"}
    for kept in ("c", "r"):
        nodes = [
            Node("conv", "Conv", (kept,), ("x",)),
            Node("q", "QuantizeLinear", ("q",), (kept,)),
            Node("d", "DequantizeLinear", ("d",), ("q",)),
        ]
        second = Graph([*nodes, Node("head", "Gemm", ("y",), ("d",))], outputs={"y": "y"}, inputs={"x": "x"}, rounded={"d": kept})
        second.names = {name: (name,) for name in ("x", kept, "q", "d", "y")}
        found = [(pair.name, pair.kind, pair.first, pair.second) for pair in matched(first, second)]
        assert found == [("conv", "Conv", "c", kept), ("clip", "rounding", "r", "d"), ("head", "Gemm", "y", "y")]


def test_signal_and_noise_add_up() -> None:
    pair = Pair("a", "Conv", "a", "a")
    pair.add(np.array([3.0, 4.0], np.float32), np.array([3.0, 3.5], np.float32))
    pair.add(np.array([0.0, np.inf], np.float16), np.array([0.0, np.inf], np.float16))
    assert pair.sqnr_db == pytest.approx(20.0)
    pair.add(np.array([1.0], np.float32), np.array([np.nan], np.float32))
    assert pair.sqnr_db == -MAX_DB
    assert Pair("a", "Conv", "a", "a").sqnr_db == MAX_DB


def test_weights_are_no_layers() -> None:
    nodes = [helper.make_node("Mul", ["w", "w"], ["ww"]), helper.make_node("MatMul", ["x", "ww"], ["y"], name="m")]
    found = graph_of(small.model(nodes, [small.value("x", [1, 2])], [small.value("y", [1, 2])], [small.weight("w", 2, 2)]).graph, ["x"])
    assert found.nodes == [Node("m", "MatMul", ("y",), ("x",))]


def test_an_activation_that_a_quantizer_does_makes_no_false_row_between_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = quantizing.prepared(tmp_path, CNN, quantizing.X86)
    exact = quantizing.in_openvino(tmp_path, made)
    path, _ = quantizing.quantize(tmp_path, made, quantizing.X86)
    found = answered(capsys, exact.path, "--against", path, "--data", data(tmp_path))
    assert found["summary"].startswith("the function is kept, to ")
    assert all(layer["sqnr_db"] > 15 for layer in found["layers"])
