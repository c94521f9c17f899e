"""simplify, cast-fp16 and execute-bf16 on models of every habit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Sample, Split
from edgeopt.formats.onnx import Onnx, examples, load, nodes, sort_nodes, tensors
from edgeopt.formats.openvino import Openvino
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.passes.convert_openvino import ConvertOpenvino
from edgeopt.passes.execute_bf16 import ExecuteBf16
from edgeopt.passes.simplify import Simplify


def constant_cnn():
    return small.cnn(constants=True)


def old_branches():
    return small.branches(opset=11)


def gru():
    return small.recurrent("GRU")


def fixed_cnn():
    return small.cnn(batch=1, size=(8, 8))


def unnamed():
    return small.mlp(opset=13, unnamed=True)


def stored_output():
    """One output is a weight as it is, one is the input unchanged, and one input is read by nobody."""
    nodes = [helper.make_node("MatMul", ["x", "k"], ["z"]), helper.make_node("Identity", ["x"], ["same"])]
    outputs = [small.value("z", ["N", 4]), small.value("k", [3, 4]), small.value("same", ["N", 3])]
    return small.model(nodes, [small.value("x", ["N", 3]), small.value("unread", ["N", 2])], outputs, [small.weight("k", 3, 4)])


def twin_weights():
    """Both branches of an If call their weight alike."""
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"o{i}"])],
            f"b{i}",
            [],
            [small.value(f"o{i}", ["N", 4])],
            [small.weight("w", 8, 4, seed=i)],
        )
        for i in range(2)
    ]
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=bodies[0], else_branch=bodies[1])]
    return small.model(nodes, [small.value("x", ["N", 8]), small.value("flag", [], small.BOOL)], [small.value("y", ["N", 4])])


MODELS = [
    small.mlp, small.cnn, small.branches, small.loop, small.recurrent, small.embedding, small.attention,
    constant_cnn, old_branches, gru, fixed_cnn, unnamed, stored_output, twin_weights,
]  # fmt: skip


def artifact(folder, proto):
    (folder / "files").mkdir()
    path = small.write(proto, folder / "files")
    return Artifact(folder, "onnx", "model.onnx", "", "", 0, Onnx().signature(path))


def apply(made, step, folder):
    """The result's path and what the step noted."""
    notes = {}
    result = folder / "result"
    result.mkdir()
    return step.run(made, Context(result, note=notes.__setitem__)), notes


def decibels(made, path, format=Onnx):
    signal = noise = 0.0
    for seed in range(4):
        feeds = examples(made.signature, seed, {"N": seed + 1})
        before, after = Onnx().runner(made.path)(feeds), format().runner(path)(feeds)
        for name, array in before.items():
            assert after[name].dtype == array.dtype and after[name].shape == array.shape
            signal += float((array.astype(np.float64) ** 2).sum())
            noise += float(((array.astype(np.float64) - after[name]) ** 2).sum())
    return 150.0 if noise == 0 else 10 * np.log10(signal / noise)


@pytest.mark.parametrize("make", MODELS)
def test_simplify_keeps_function_and_signature(tmp_path, make):
    made = artifact(tmp_path, make())
    path, notes = apply(made, Simplify(), tmp_path)
    assert Onnx().signature(path) == made.signature
    assert notes["nodes"][1] <= notes["nodes"][0]
    assert decibels(made, path) > 100
    names = [node.name for node in nodes(load(path))]
    assert all(names) and len(set(names)) == len(names)


def test_simplify_folds_constants(tmp_path):
    made = artifact(tmp_path, constant_cnn())
    assert apply(made, Simplify(), tmp_path)[1]["nodes"] == [13, 7]


@pytest.mark.parametrize("make", MODELS)
def test_fp16_keeps_types_and_function(tmp_path, make):
    made = artifact(tmp_path, make())
    path, notes = apply(made, CastFp16(), tmp_path)
    assert Onnx().signature(path) == made.signature
    assert decibels(made, path) > 50
    onnx.checker.check_model(path)
    if make not in (stored_output, twin_weights):
        assert not [tensor.name for tensor in tensors(load(path)) if tensor.data_type == TensorProto.FLOAT]
        assert notes["tensors_cast"] > 0
    (tmp_path / "ov").mkdir()
    cast = Artifact(tmp_path, "onnx", "../result/model.onnx", "", "", 0, made.signature)
    assert decibels(made, ConvertOpenvino().run(cast, Context(tmp_path / "ov")), Openvino) > 50


@pytest.mark.parametrize("name", ["conv2", "Net/Sequential[layer1]/Conv2d[conv]"])  # the second as torch once wrote them
def test_fp16_leaves_named_layers_in_float(tmp_path, name):
    proto = small.cnn()
    next(node for node in proto.graph.node if node.name == "conv2").name = name
    made = artifact(tmp_path, proto)
    path, _ = apply(made, CastFp16(keep=["Gemm", name]), tmp_path)
    kept = {tensor.name for tensor in tensors(load(path)) if tensor.data_type == TensorProto.FLOAT}
    assert kept == {"w2", "b2", "w3", "b3"}
    assert decibels(made, path) > 50


def test_a_layer_that_does_not_exist_is_named(tmp_path):
    made = artifact(tmp_path, small.cnn())
    with pytest.raises(UsageError, match="'conv3'") as caught:
        apply(made, CastFp16(keep=["conv3"]), tmp_path)
    assert "conv" in caught.value.remedy


def test_fp16_that_overflows_shows_in_the_outputs(tmp_path):
    weight = numpy_helper.from_array(np.full((4, 4), 3e5, np.float32), "w")
    proto = small.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], [small.value("x", ["N", 4])], [small.value("y", ["N", 4])], [weight]
    )
    made = artifact(tmp_path, proto)
    path, _ = apply(made, CastFp16(), tmp_path)
    with np.errstate(all="ignore"):
        assert not decibels(made, path) > CastFp16.tolerance_db
    (tmp_path / "again").mkdir()
    path, _ = apply(made, CastFp16(keep=["mm"]), tmp_path / "again")
    assert decibels(made, path) > 100


def test_fp16_keeps_in_float_what_calibration_shows_to_be_too_large(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "up"], ["large"], name="up"),
        helper.make_node("Mul", ["large", "down"], ["back"], name="down"),
        helper.make_node("MatMul", ["back", "w"], ["y"], name="last"),
    ]
    stored = [
        small.weight("w", 4, 4),
        *(numpy_helper.from_array(np.float32(value), name) for name, value in (("up", 4e5), ("down", 2.5e-6))),
    ]
    made = artifact(tmp_path, small.model(nodes, [small.value("x", ["N", 4])], [small.value("y", ["N", 4])], stored))
    for folder in ("blind", "looking"):
        (tmp_path / folder).mkdir()
    notes = {}
    path = CastFp16().run(made, Context(tmp_path / "blind"))
    with np.errstate(all="ignore"):
        assert not decibels(made, path) > CastFp16.tolerance_db
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    split = Split("calibrate", lambda: (Sample({"x": row}) for row in rows), made.signature)
    path = CastFp16().run(made, Context(tmp_path / "looking", data={"calibrate": split}, note=notes.__setitem__))
    assert decibels(made, path) > 50
    assert set(notes["kept_float32"]) == {"up", "down"} and notes["tensors_cast"] > 0


def test_fp16_says_where_it_could_not_look(tmp_path):
    """Samples that the model refuses when it runs: sizes that its Reshape does not take."""
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["r"], name="reshape"), helper.make_node("Relu", ["r"], ["y"], name="relu")]
    stored = [numpy_helper.from_array(np.array([-1, 4], np.int64), "sizes")]
    made = artifact(tmp_path, small.model(nodes, [small.value("x", ["N", "T"])], [small.value("y", ["M", 4])], stored))
    split = Split("calibrate", lambda: (Sample({"x": np.ones(3, np.float32)}) for _ in range(2)), made.signature)
    notes = {}
    (tmp_path / "result").mkdir()
    path = CastFp16().run(made, Context(tmp_path / "result", data={"calibrate": split}, note=notes.__setitem__))
    assert path.is_file() and notes["warning"].startswith("ranges were not looked at: ")


def test_a_caster_that_fails_is_a_failed_step(tmp_path):
    proto = small.model(
        [helper.make_node("Odd", ["x"], ["y"], domain="v")], [small.value("x", ["N"])], [small.value("y", ["N"])], domains=["v"]
    )
    with pytest.raises(StepError, match="cannot be cast"):
        apply(artifact(tmp_path, proto), CastFp16(), tmp_path)


def test_nodes_are_sorted_by_what_bodies_read():
    proto = small.branches()
    proto.graph.node.reverse()
    sort_nodes(proto.graph)
    assert [node.name for node in proto.graph.node] == ["first", "choose"]
    onnx.checker.check_model(proto)


def test_bf16_marks_and_copies(tmp_path):
    made = artifact(tmp_path, small.mlp())
    path, _ = apply(made, ExecuteBf16(), tmp_path)
    assert path.read_bytes() == made.path.read_bytes()
    assert ExecuteBf16.sets_execution == "bf16" and ExecuteBf16.produces == ""


@pytest.mark.parametrize("make", [small.half_inside, small.integers_inside])
def test_fp16_leaves_types_alone_that_are_the_models_own(tmp_path, make):
    made = artifact(tmp_path, make())
    path, _ = apply(made, CastFp16(), tmp_path)
    assert decibels(made, path) > 60
