"""quantize-weights: both engines, 8 and 4 bits, on models of every habit; layers kept, errors said, activations in float."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import helper
from test_quantize_int8 import MODELS, OPENVINO, TENSORRT, X86, decibels, imported, prepared, split
from test_quantize_int8 import quantize as quantize_int8

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx, examples, load
from edgeopt.formats.openvino import Openvino, narrow_weights
from edgeopt.formats.openvino import load as load_openvino
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.passes.quantize_weights import QuantizeWeights
from edgeopt.passes.simplify import Simplify
from edgeopt.runner import onnxruntime, openvino

TARGETS = pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
FORMATS = {"onnx": Onnx, "openvino": Openvino}


def quantize(folder, made, target, **options):
    """The result's path and what the pass noted."""
    notes = {}
    result = folder / "result" / "files"
    result.mkdir(parents=True, exist_ok=True)
    step = QuantizeWeights(**options)
    data = {"calibrate": split(made.signature)} if step.splits() else {}
    return step.run(made, Context(result, data=data, target={"backend": target["backend"]}, note=notes.__setitem__)), notes


def result_of(folder, made, path):
    return Artifact(folder / "result", made.format, path.name, "", "", 0, made.signature)


def transformer(width=64, tokens=50, shared=False):
    """Token ids to logits: embedding, attention with one head, two layers, a head; all but the head are products with stored matrices."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name], name=name) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["m"], name="mix"),
        helper.make_node("MatMul", ["m", "wq" if shared else "wo"], ["o"], name="out"),
        helper.make_node("Add", ["x", "o"], ["r"]),
        helper.make_node("MatMul", ["r", "wh"], ["y"], name="head"),
    ]
    weights = [small.weight("table", tokens, width, scale=1.0), small.weight("wh", width, tokens, seed=9)]
    weights += [small.weight(f"w{name}", width, width, seed=seed, scale=0.1) for seed, name in enumerate("qkv" if shared else "qkvo")]
    ids = small.value("ids", ["N", "T"], small.INT64)
    return small.model(nodes, [ids], [small.value("y", ["N", "T", tokens])], weights)


def shared_transformer():
    return transformer(shared=True)


@TARGETS
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_transformer_shrinks_and_keeps_its_function(tmp_path, target, bits, symmetric):
    made = prepared(tmp_path, transformer(), target)
    path, notes = quantize(tmp_path, made, target, bits=bits, symmetric=symmetric, group_size=32)
    few = {"Gather, 8 bits": 1, "MatMul, 4 bits": 4, "MatMul, 8 bits": 1}
    assert notes["quantized_weights"] == (few if bits == 4 else {"Gather, 8 bits": 1, "MatMul, 8 bits": 5})
    assert notes["engine"] == ("nncf" if target is OPENVINO else "onnxruntime")
    assert FORMATS[made.format]().signature(path) == made.signature
    assert not FORMATS[made.format]().rounds(path)
    assert decibels(made, path) > (35 if bits == 8 else 15)
    stored = path.with_suffix(".bin") if target is OPENVINO else path
    assert stored.stat().st_size < 0.45 * len(transformer().SerializeToString())


@TARGETS
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("make", [*MODELS, shared_transformer])
def test_models_of_every_habit_stay_whole_or_are_refused_in_words(tmp_path, target, make, bits):
    made = prepared(tmp_path, make(), target)
    try:
        path, notes = quantize(tmp_path, made, target, bits=bits, group_size=16)
    except StepError as error:
        assert "nothing was quantized" in str(error)
        return
    assert notes["quantized_weights"]
    assert FORMATS[made.format]().signature(path) == made.signature
    assert decibels(made, path) > 10
    if target is X86:
        onnx.checker.check_model(load(path))


@TARGETS
def test_activations_are_not_rounded_where_it_is_run(tmp_path, target):
    """What the shipped runner computes is what the plain one does, and no layer is counted as 8 bit: data stay float."""
    made = prepared(tmp_path, transformer(), target)
    path, _ = quantize(tmp_path, made, target)
    feeds = examples(made.signature, 3, {"N": 1, "T": 7})
    plain = FORMATS[made.format]().runner(path)(feeds)["y"]
    runtime = openvino if target is OPENVINO else onnxruntime
    with contextlib.closing(runtime.open(path, threads=1, requests=1, options={}, execution={"float": "f32"})) as session:
        session.load(feeds)
        session.start()
        np.testing.assert_allclose(session.read()["y"], plain, rtol=1e-3, atol=1e-3)
        counts = session.facts(feeds)["precision"]
    assert counts["int8"] == 0 and counts["fp32"] > 5


@TARGETS
def test_layers_under_keep_stay_float(tmp_path, target):
    made = prepared(tmp_path, transformer(), target)
    path, notes = quantize(tmp_path, made, target, keep=["Gather", "out"])
    assert notes["quantized_weights"] == {"MatMul, 8 bits": 4}
    assert any(name.startswith("out") for name in notes["kept"])
    assert path.exists()
    with pytest.raises(StepError, match="nothing was quantized"):
        quantize(tmp_path, made, target, keep=["*"])
    with pytest.raises(UsageError, match="'heat'"):
        quantize(tmp_path, made, target, keep=["heat"])


def test_a_layer_with_a_bias_is_kept_by_its_name_in_openvino(tmp_path):
    made = prepared(tmp_path, small.mlp(), OPENVINO)
    path, notes = quantize(tmp_path, made, OPENVINO, keep=["first"])
    assert notes["quantized_weights"] == {"MatMul, 8 bits": 1} and "first/WithoutBiases" in notes["kept"]
    assert [name.partition("/")[0] for name in narrow_weights(load_openvino(path))] == ["second"]


@TARGETS
def test_what_has_no_weights_to_quantize_is_a_failed_step(tmp_path, target):
    relu = small.model([helper.make_node("Relu", ["x"], ["y"])], [small.value("x", ["N", 4])], [small.value("y", ["N", 4])])
    with pytest.raises(StepError, match="nothing was quantized"):
        quantize(tmp_path, prepared(tmp_path, relu, target), target)


@TARGETS
def test_quantized_once_is_enough(tmp_path, target):
    made = prepared(tmp_path, transformer(), target)
    path, _ = quantize(tmp_path, made, target)
    again = result_of(tmp_path, made, path)
    for step in (quantize, quantize_int8):
        folder = tmp_path / step.__module__
        folder.mkdir()
        with pytest.raises(StepError, match="quantized already"):
            step(folder, again, target)


@TARGETS
def test_a_model_in_int8_is_refused(tmp_path, target):
    made = prepared(tmp_path, small.mlp(), target)
    path, _ = quantize_int8(tmp_path, made, target)
    folder = tmp_path / "int8"
    folder.mkdir()
    path.parent.rename(folder / "files")
    with pytest.raises(StepError, match="quantized already"):
        quantize(tmp_path, Artifact(folder, made.format, path.name, "", "", 0, made.signature), target)


@pytest.mark.parametrize("method", ["rtn", "awq", "scale-estimation", "gptq"])
@TARGETS
def test_each_engine_offers_what_it_has(tmp_path, target, method):
    made = prepared(tmp_path, transformer(), target)
    if target is X86 and method != "rtn":
        with pytest.raises(UsageError, match=f"'{method}' is not offered for 4-bit weights of onnx models"):
            quantize(tmp_path, made, target, bits=4, method=method)
        return
    path, notes = quantize(tmp_path, made, target, bits=4, method=method, group_size=32)
    assert notes["method"] == method and decibels(made, path) > 15
    assert QuantizeWeights(method=method).splits() == (() if method == "rtn" else ("calibrate",))
    if method != "rtn":
        with pytest.raises(UsageError, match="8-bit weights"):
            quantize(tmp_path, made, target, method=method)


def test_only_onnxruntime_gets_its_own_operators(tmp_path):
    with pytest.raises(StepError, match="tensorrt does not run onnxruntime's form"):
        quantize(tmp_path, imported(tmp_path, transformer()), TENSORRT)


def test_groups_that_do_not_divide_are_smaller(tmp_path):
    made = prepared(tmp_path, transformer(width=48), OPENVINO)
    path, notes = quantize(tmp_path, made, OPENVINO, bits=4, group_size=128)
    assert notes["quantized_weights"]["MatMul, 4 bits"] == 4 and decibels(made, path) > 15
    assert {bits for _, bits in narrow_weights(load_openvino(path)).values()} == {4, 8}


def test_passes_behind_it_keep_the_weights_small_or_say_no(tmp_path):
    made = imported(tmp_path, transformer())
    path, _ = quantize(tmp_path, made, X86)
    after = result_of(tmp_path, made, path)
    for step in (Simplify(), CastFp16()):
        folder = tmp_path / type(step).__name__
        folder.mkdir()
        result = step.run(after, Context(folder, target=X86))
        assert result.stat().st_size < 1.2 * path.stat().st_size
        assert decibels(made, result) > 30
