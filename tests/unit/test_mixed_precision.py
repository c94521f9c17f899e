"""mixed-precision: gates that tell the truth, budgets that hold, decisions that are told; every family, both engines."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import helper
from test_quantize_int8 import OPENVINO, PLAIN, TENSORRT, X86, imported, in_openvino, split

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats import openvino as openvino_format
from edgeopt.formats.onnx import Onnx
from edgeopt.formats.openvino import Openvino
from edgeopt.passes.mixed_precision import MixedPrecision
from edgeopt.passes.mixed_precision_mix import Mix, Unit
from edgeopt.passes.quantize_int8_openvino import quantized_layers
from edgeopt.passes.quantize_int8_samples import Calibration
from edgeopt.scores.agreement import Agreement
from edgeopt.scores.sqnr import Sqnr
from edgeopt.scores.top1 import Top1

SCORES = {"sqnr": Sqnr(), "agreement": Agreement(), "top1": Top1()}


def prepared(folder, proto, target):
    made = imported(folder, proto)
    return in_openvino(folder, made) if target["backend"] == "openvino" else made


def context(folder, made, target, notes=None, measure=None, executions=None, count=60, tune=40):
    data = {"calibrate": split(made.signature, count)}
    if tune:
        data["tune"] = split(made.signature, tune, seed=500, name="tune")
    folder.mkdir(exist_ok=True)
    return Context(
        folder,
        data=data,
        target=target,
        scores=SCORES,
        measure=measure,
        execute=(executions if executions is not None else []).append,
        note=(notes if notes is not None else {}).__setitem__,
    )


def engine(folder, proto, target, **options):
    made = prepared(folder, proto, target)
    chosen = MixedPrecision(**{**PLAIN, **options})
    ctx = context(folder / "result", made, target)
    return chosen._engine(made, ctx, Calibration(ctx, 60, judge=True)), made


def alike():
    """Nodes called like the tensors that they make, as MXNet's and other exporters write them."""
    proto = small.cnn()
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


def power(run, reference, feeds):
    noise = signal = 0.0
    for one in feeds:
        for name, exact in reference(one).items():
            noise += float(np.square(exact.astype(np.float64) - run(one)[name]).sum())
            signal += float(np.square(exact.astype(np.float64)).sum())
    return noise / signal


def feeds_of(made, count=6):
    return [feeds for feeds, _ in split(made.signature, count, seed=900).batches(1)]


@pytest.mark.parametrize("target", [X86, OPENVINO, TENSORRT], ids=["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize(
    "model",
    [small.mlp, small.cnn, lambda: small.cnn(constants=True), small.pooled, alike, small.attention, small.recurrent],
    ids=["mlp", "cnn", "constants", "pooled", "alike", "attention", "lstm"],
)
def test_gates_tell_what_the_real_model_loses(tmp_path, model, target):
    found, made = engine(tmp_path, model(), target)
    exact, feeds = found.runner(found.load(), "f32"), feeds_of(made)
    assert power(found.alone(Unit("none", (), ())), exact, feeds) < 1e-9
    every = Mix("f32", frozenset(unit.name for unit in found.units))
    real = power(found.runner(found.build(every), "f32"), exact, feeds)
    told = power(found.alone(Unit("all", tuple(found.layers), ())), exact, feeds)
    assert 10 * abs(np.log10(told / real)) < 0.7, (told, real)
    found.close()


@pytest.mark.parametrize("target", [X86, OPENVINO, TENSORRT], ids=["onnxruntime", "openvino", "tensorrt"])
def test_layers_behind_what_only_hands_values_on_are_units(tmp_path, target):
    """NNCF puts the quantizer before the MaxPool and the Gather."""
    found, _ = engine(tmp_path, small.pooled(), target)
    assert len(found.layers) == 3
    found.close()
    if target is OPENVINO:
        every = found.build(Mix("f32", frozenset(unit.name for unit in found.units)))
        told = quantized_layers(every)
        assert (told["Convolution"], told["MatMul"]) == (2, 1)


@pytest.mark.parametrize(
    "target, model",
    [(X86, small.cnn), (OPENVINO, small.cnn), (TENSORRT, small.cnn), (OPENVINO, small.half_inside)],
    ids=["onnxruntime", "openvino", "tensorrt", "openvino-half"],
)
def test_a_unit_alone_is_what_the_built_model_of_it_does(tmp_path, target, model):
    found, made = engine(tmp_path, model(), target)
    exact, feeds = found.runner(found.load(), "f32"), feeds_of(made, 40)
    for unit in found.units:
        real = power(found.runner(found.build(Mix("f32", frozenset([unit.name]))), "f32"), exact, feeds)
        assert 10 * abs(np.log10(power(found.alone(unit), exact, feeds) / real)) < 1, unit
    found.close()


@pytest.mark.parametrize("target", [X86, OPENVINO, TENSORRT], ids=["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("least", [20.0, 32.0, 38.0, 60.0])
def test_the_budget_holds(tmp_path, target, least):
    made, notes, executions = prepared(tmp_path, small.cnn(), target), {}, ["f32"]
    ctx = context(tmp_path / "result", made, target, notes, executions=executions)
    path = MixedPrecision(**PLAIN, budget={"score": "sqnr", "min": least}, seconds=4).run(made, ctx)
    run = {"onnx": Onnx, "openvino": Openvino}[made.format]()
    exact = run.runner(made.path)
    if executions[-1] == "f32":
        assert -10 * np.log10(max(power(run.runner(path), exact, feeds_of(made, 40)), 1e-15)) >= least - 0.5
    kinds = {row["precision"] for row in notes["layers"]}
    assert ("int8" in kinds) == (least < 60)
    assert notes["trials"] and len(notes["layers"]) >= 3
    assert all(row["why"] for row in notes["layers"] if row["precision"] != "int8")
    assert ("nearest" in notes) == (least == 60)


def test_finalists_are_timed_and_the_fastest_is_taken(tmp_path):
    made, notes, seen = prepared(tmp_path, small.cnn(), OPENVINO), {}, {}

    def measure(candidates, seconds):
        assert seconds > 0
        for name, one in candidates.items():
            assert one.path.is_file() and one.path.parent.name == "files"
            seen[name] = one.execution
        return {name: 1.0 if name == "all f32" else 2.0 for name in candidates}

    executions = []
    ctx = context(tmp_path / "result", made, OPENVINO, notes, measure, executions)
    MixedPrecision(**PLAIN, budget={"score": "sqnr", "min": 15}, seconds=4).run(made, ctx)
    assert len(seen) > 1 and executions == ["f32"]
    assert notes["int8_layers"].startswith("0 of") and notes["timed_ms"]["all f32"] == 1.0


def test_sums_read_what_layers_read_where_that_is_faster(tmp_path):
    made, notes, again = prepared(tmp_path, small.cnn(), OPENVINO), {}, {}

    def measure(candidates, seconds):
        return {name: 1.0 if name.endswith("sums too") else 2.0 for name in candidates}

    asked = {**PLAIN, "model_type": "transformer", "budget": {"score": "sqnr", "min": 15}}
    first = MixedPrecision(**asked, seconds=4).run(made, context(tmp_path / "first", made, OPENVINO, notes, measure))
    assert notes["mix"]["sums"] is True and "and their sums" in notes["trials"][-1]
    sums = [one for one in openvino_format.load(first).get_ordered_ops() if one.get_friendly_name() == "add"]
    assert [one.input_value(index).get_node().get_type_name() for one in sums for index in (0, 1)].count("FakeQuantize") == 1
    exact = Openvino().runner(made.path)
    assert -10 * np.log10(power(Openvino().runner(first), exact, feeds_of(made, 40))) >= 14.5
    second = MixedPrecision(**asked, mix=notes["mix"]).run(made, context(tmp_path / "second", made, OPENVINO, again))
    for one in feeds_of(made):
        assert np.array_equal(Openvino().runner(first)(one)["y"], Openvino().runner(second)(one)["y"])
    with pytest.raises(UsageError, match="no sum beside a quantized layer is float here"):
        MixedPrecision(**asked, mix={"int8": ["conv1*"], "sums": True}).run(made, context(tmp_path / "fourth", made, OPENVINO))
    (tmp_path / "onnx").mkdir()
    plain = prepared(tmp_path / "onnx", small.cnn(), X86)
    with pytest.raises(UsageError, match="no sum beside a quantized layer is float here"):
        MixedPrecision(mix={"int8": ["conv2"], "sums": True}).run(plain, context(tmp_path / "third", plain, X86))


def test_a_budget_on_a_drop_uses_labels(tmp_path):
    made = prepared(tmp_path, small.mlp(), X86)
    with pytest.raises(UsageError, match="needs labels"):
        MixedPrecision(**PLAIN, budget={"score": "top1", "max_drop": 0.01}).run(made, context(tmp_path / "result", made, X86))
    notes = {}
    MixedPrecision(**PLAIN, budget={"score": "agreement", "min": 0.9}, seconds=10).run(made, context(tmp_path / "a", made, X86, notes))
    assert notes["budget"] == "agreement at least 0.9"


def test_what_cannot_be_is_said(tmp_path):
    made = prepared(tmp_path, small.mlp(), X86)
    with pytest.raises(StepError, match="met by no mix: the float model itself reaches 150"):
        MixedPrecision(**PLAIN, budget={"score": "sqnr", "min": 200}).run(made, context(tmp_path / "a", made, X86))
    with pytest.raises(UsageError, match="no score is called 'top2'"):
        MixedPrecision(**PLAIN, budget={"score": "top2", "min": 0.5}).run(made, context(tmp_path / "b", made, X86))
    with pytest.raises(UsageError, match="at least 8 samples to judge by, and there are 3"):
        MixedPrecision(**PLAIN).run(made, context(tmp_path / "c", made, X86, tune=3))
    with pytest.raises(ValueError, match="exactly one of max_drop, min, max"):
        MixedPrecision(budget={"score": "top1"})
    (tmp_path / "log").mkdir()
    logarithms = small.model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["r"]), helper.make_node("Log", ["r"], ["y"])],
        [small.value("x", ["N", 8])], [small.value("y", ["N", 4])], [small.weight("w", 8, 4)],
    )  # fmt: skip
    made = prepared(tmp_path / "log", logarithms, X86)
    with pytest.raises(StepError, match="the float model gives NaN or infinity in output 'y'"):
        MixedPrecision(**PLAIN).run(made, context(tmp_path / "d", made, X86))


def test_a_batch_that_is_fixed_counts_with_all_its_samples(tmp_path):
    made, notes = prepared(tmp_path, small.mlp(batch=8), X86), {}
    MixedPrecision(**PLAIN, seconds=5).run(made, context(tmp_path / "result", made, X86, notes, tune=16))
    assert notes["reached"]


def test_without_tune_the_last_of_calibrate_judge(tmp_path):
    made, notes = prepared(tmp_path, small.mlp(), X86), {}
    MixedPrecision(**PLAIN, seconds=10).run(made, context(tmp_path / "result", made, X86, notes, tune=0))
    assert notes["calibration_samples"] == 48


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=["onnxruntime", "openvino"])
def test_a_layer_with_a_bias_that_is_kept_by_its_name_is_in_no_unit(tmp_path, target):
    found, _ = engine(tmp_path, small.cnn(), target, keep=["conv1"])
    assert {name.partition("/")[0] for name in found.layers} >= {"conv2", "head"}
    assert not [name for name in found.layers if name.startswith("conv1")]
    found.close()


def test_layers_that_are_kept_are_no_units(tmp_path):
    found, _ = engine(tmp_path, small.cnn(), X86, keep=["head"])
    assert "head" not in found.layers and "conv1" in found.layers
    found.close()


def test_for_tensorrt_the_rest_is_float16(tmp_path):
    made, notes, executions = prepared(tmp_path, small.cnn(), TENSORRT), {}, []
    ctx = context(tmp_path / "result", made, TENSORRT, notes, executions=executions)
    path = MixedPrecision(**PLAIN, keep=["head"], budget={"score": "sqnr", "min": 20}, seconds=4).run(made, ctx)
    assert notes["rest"] == "fp16" and not executions
    proto = onnx.load(path)
    head = next(node for node in proto.graph.node if node.op_type == "Gemm")
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {kinds[name] for name in head.input[1:]} == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.INT8 in kinds.values()


def test_a_layer_too_large_for_float16_stays_float32(tmp_path):
    proto = small.mlp()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, factor in (("w1", 1e6), ("b1", 1e6), ("w2", 1e-6)):
        weights[name].CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights[name]) * np.float32(factor), name))
    made, notes = prepared(tmp_path, proto, TENSORRT), {}
    ctx = context(tmp_path / "result", made, TENSORRT, notes)
    path = MixedPrecision(**PLAIN, keep=["first"], budget={"score": "sqnr", "min": 20}, seconds=4).run(made, ctx)
    assert "first" in notes["kept_float32"] and notes["rest"] == "fp16"
    assert -10 * np.log10(power(Onnx().runner(path), Onnx().runner(made.path), feeds_of(made, 20))) > 20


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=["onnxruntime", "openvino"])
def test_a_mix_is_taken_again_without_a_search(tmp_path, target):
    made, notes, again = prepared(tmp_path, small.cnn(), target), {}, {}
    asked = {**PLAIN, "budget": {"score": "sqnr", "min": 32}}
    first = MixedPrecision(**asked, seconds=4).run(made, context(tmp_path / "first", made, target, notes))
    replayed = MixedPrecision(**asked, mix=notes["mix"])
    assert "measure" not in replayed.doors()
    second = replayed.run(made, context(tmp_path / "second", made, target, again))
    run = {"onnx": Onnx, "openvino": Openvino}[made.format]().runner
    for one in feeds_of(made):
        assert np.array_equal(run(first)(one)["y"], run(second)(one)["y"])
    assert again["mix"] == notes["mix"] and len(again["trials"]) == 1
    with pytest.raises(UsageError, match="mix: no layer is named or of type 'conv9'"):
        MixedPrecision(**asked, mix={"int8": ["conv9"]}).run(made, context(tmp_path / "a", made, target))
    with pytest.raises(UsageError, match="not as fp16"):
        MixedPrecision(**asked, mix={"rest": "fp16"}).run(made, context(tmp_path / "b", made, target))


@pytest.mark.parametrize("target, sizes", [(X86, [1, 2]), (OPENVINO, [1, 1, 1])], ids=["onnxruntime", "openvino"])
def test_layers_that_share_quantized_weights_are_switched_together(tmp_path, target, sizes):
    """NNCF gives each reader a quantizer of its own, onnxruntime one to the tensor."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        onnx.helper.make_node("Relu", ["a"], ["r"], name="relu"),
        onnx.helper.make_node("MatMul", ["r", "w"], ["b"], name="second"),
        onnx.helper.make_node("Relu", ["b"], ["s"], name="relu2"),
        onnx.helper.make_node("MatMul", ["s", "v"], ["y"], name="third"),
    ]
    ports = small.value("x", ["N", 8]), small.value("y", ["N", 4])
    proto = small.model(nodes, [ports[0]], [ports[1]], [small.weight("w", 8, 8), small.weight("v", 8, 4, seed=1)])
    found, _ = engine(tmp_path, proto, target)
    assert sorted(len(unit.layers) for unit in found.units) == sizes
    found.close()


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=["onnxruntime", "openvino"])
def test_where_nothing_quantizes_the_rest_still_competes(tmp_path, target):
    made, notes = prepared(tmp_path, small.mlp(), target), {}
    kept = ["Gemm"] if target is X86 else ["MatMul"]
    path = MixedPrecision(**PLAIN, keep=kept, seconds=10).run(made, context(tmp_path / "result", made, target, notes))
    assert path.is_file() and notes["int8_layers"] == "0 of 0" and "quantized_layers" not in notes
