"""formats onnx and openvino: signatures, exact execution, reading and writing."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import onnx
import pytest
import small_onnx as small
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core import machine
from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.errors import StepError, UsageError, from_exception
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats.onnx import Onnx, examples
from edgeopt.formats.openvino import Openvino
from edgeopt.passes.convert_openvino import ConvertOpenvino

MODELS = [small.mlp, small.cnn, small.branches, small.loop, small.recurrent, small.embedding, small.attention]


def artifact(folder, proto):
    files = folder / "files"
    files.mkdir()
    path = small.write(proto, files)
    return Artifact(folder, "onnx", "model.onnx", "", "", 0, Onnx().signature(path))


def converted(folder, proto):
    made = artifact(folder, proto)
    (folder / "converted").mkdir()
    return made, ConvertOpenvino().run(made, Context(folder=folder / "converted"))


def test_a_signature_keeps_names_types_and_order(tmp_path):
    signature = Onnx().signature(small.write(small.embedding(), tmp_path))
    assert signature.inputs == (
        TensorSpec("ids", "int64", ("N", "T")),
        TensorSpec("mask", "int64", ("N", "T")),
        TensorSpec("factor", "float32", ()),
    )
    assert [str(spec) for spec in signature.outputs] == ["y: float32[N, 4]", "tokens: float32[N, T, 4]"]


def test_only_first_axes_that_nobody_named_are_the_batch(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    bare = small.model(nodes, [small.value("a", [None, None]), small.value("b", [0, -1])], [small.value("y", [None, None])])
    shapes = [spec.shape for spec in Onnx().signature(small.write(bare, tmp_path)).inputs]
    assert shapes == [("N", "a_d1"), ("N", "b_d1")]
    named = small.model(nodes, [small.value("a", ["rows", 3]), small.value("b", [None, 3])], [small.value("y", [None, 3])])
    shapes = [spec.shape for spec in Onnx().signature(small.write(named, tmp_path)).inputs]
    assert shapes == [("rows", 3), ("b_d0", 3)]


def test_an_input_that_is_no_tensor_is_refused(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    proto = small.model([helper.make_node("SequenceLength", ["s"], ["y"])], [sequence], [small.value("y", [], small.INT64)])
    with pytest.raises(UsageError, match="'s' is no tensor but sequence"):
        Onnx().signature(small.write(proto, tmp_path))


def test_walks_see_bodies_and_constants():
    assert {"tw"} <= {tensor.name for tensor in onnx_format.tensors(small.branches())}
    assert "Tanh" in {node.op_type for node in onnx_format.nodes(small.loop())}
    assert set(onnx_format.constants(small.cnn(constants=True).graph)) == {"w1", "b1", "w2", "b2", "w3", "b3"}


@pytest.mark.parametrize("make", MODELS)
def test_without_onnxruntime_the_reference_evaluator_runs(tmp_path, make, monkeypatch):
    path = small.write(make(), tmp_path)
    feeds = examples(Onnx().signature(path))
    fast = Onnx().runner(path)(feeds)
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    plain = Onnx().runner(path)(feeds)
    for name, array in fast.items():
        np.testing.assert_allclose(plain[name], array, rtol=1e-3, atol=1e-5)


def test_a_large_model_is_written_with_its_weights_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "LARGEST_FILE", 1000)
    proto = small.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [small.value("x", ["N", 64])],
        [small.value("y", ["N", 64])],
        [small.weight("w", 64, 64)],
    )
    plain = small.write(proto, tmp_path, "plain.onnx")
    path = onnx_format.save(onnx.load(plain), tmp_path / "model.onnx")
    assert path.stat().st_size < 1000 < (tmp_path / "model.onnx.data").stat().st_size
    feeds = examples(Onnx().signature(path))
    np.testing.assert_array_equal(Onnx().runner(path)(feeds)["y"], Onnx().runner(plain)(feeds)["y"])
    assert onnx_format.load(path).graph.initializer[0].dims == [64, 64]
    size = (tmp_path / "model.onnx.data").stat().st_size
    onnx_format.save(onnx_format.load(path), path)
    assert (tmp_path / "model.onnx.data").stat().st_size == size, "onnx writes behind what is there"
    monkeypatch.setattr(onnx_format, "LARGEST_FILE", 10**6)
    onnx_format.save(onnx_format.load(path), path)
    assert not (tmp_path / "model.onnx.data").exists()


def test_a_model_beyond_protobuf_is_too_large_and_does_not_raise():
    """Its weights, zeros that are never read, take 2.2 GB for three seconds."""
    proto = small.mlp()
    assert not onnx_format.too_large(proto)
    proto.graph.initializer.add(name="big", data_type=small.FLOAT, dims=[550_000_000], raw_data=bytes(2_200_000_000))
    assert onnx_format.too_large(proto)


def test_a_step_that_needs_one_protobuf_says_so():
    told = from_exception(EncodeError("Failed to serialize proto"), "simplify")
    assert isinstance(told, StepError) and "passes 2 GB" in told.cause and "leave the step out" in told.remedy


@pytest.mark.parametrize("make", MODELS)
def test_openvino_keeps_names_axes_and_function(tmp_path, make):
    made, path = converted(tmp_path, make())
    assert Openvino().signature(path) == made.signature
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    feeds = examples(made.signature)
    before, after = Onnx().runner(made.path)(feeds), Openvino().runner(path)(feeds)
    assert list(before) == list(after)
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_allclose(after[name], array, rtol=1e-4, atol=1e-5)


def test_openvino_keeps_outputs_that_are_one_tensor_and_inputs_nobody_reads(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Identity", ["r"], ["again"]),
    ]
    inputs = [small.value("x", ["N", 3]), small.value("unread", ["N", 2])]
    made, path = converted(tmp_path, small.model(nodes, inputs, [small.value(name, ["N", 3]) for name in ("same", "r", "again")]))
    assert Openvino().signature(path) == made.signature
    feeds = examples(made.signature)
    np.testing.assert_array_equal(Openvino().runner(path)(feeds)["again"], np.maximum(feeds["x"], 0))


def test_openvino_writes_into_no_array_of_the_caller(tmp_path):
    """A state that is passed through casts is computed in the place of the input: the next run wrote into the arrays of the one before."""
    nodes = [
        helper.make_node("Cast", ["state"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["state_out"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    inputs = [small.value("x", ["N", 16]), small.value("state", ["N", 4])]
    outputs = [small.value("y", ["N", 8]), small.value("state_out", ["N", 4])]
    made, path = converted(tmp_path, small.model(nodes, inputs, outputs, [small.weight("w", 16, 8)]))
    feeds = [examples(made.signature, seed) for seed in range(3)]
    run = Openvino().runner(path)
    found = [run(one)["state_out"] for one in feeds]
    for seed, (one, result) in enumerate(zip(feeds, found, strict=True)):
        np.testing.assert_array_equal(one["state"], examples(made.signature, seed)["state"])
        np.testing.assert_allclose(result, one["state"], rtol=1e-2)


def test_openvino_knows_bool_and_half(tmp_path):
    nodes = [helper.make_node("Not", ["flag"], ["not"]), helper.make_node("Relu", ["h"], ["r"])]
    inputs = [small.value("flag", ["N"], small.BOOL), small.value("h", ["N"], TensorProto.FLOAT16)]
    outputs = [small.value("not", ["N"], small.BOOL), small.value("r", ["N"], TensorProto.FLOAT16)]
    made, path = converted(tmp_path, small.model(nodes, inputs, outputs))
    assert Openvino().signature(path) == made.signature
    feeds = examples(made.signature)
    result = Openvino().runner(path)(feeds)
    assert (result["not"] == ~feeds["flag"]).all() and result["r"].dtype == np.float16


@pytest.mark.parametrize("kind", ["foreign", "passed through"])
def test_what_openvino_cannot_convert_is_a_failed_step(tmp_path, kind):
    if kind == "foreign":
        proto = small.model(
            [helper.make_node("Odd", ["x"], ["y"], domain="v")], [small.value("x", ["N"])], [small.value("y", ["N"])], domains=["v"]
        )
    else:
        proto = small.model(
            [helper.make_node("Relu", ["x"], ["y"])], [small.value("x", ["N"])], [small.value("x", ["N"]), small.value("y", ["N"])]
        )
    with pytest.raises(StepError, match=r"v\.Odd" if kind == "foreign" else "other inputs"):
        converted(tmp_path, proto)


def test_openvino_and_nncf_come_without_telemetry():
    code = (
        "import sys\nfrom edgeopt.core import registry\nregistry.need('nncf', 'openvino'); registry.need('openvino', 'openvino')\n"
        "import openvino.tools.ovc as ovc\nprint(type(ovc.telemetry).__module__, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("openvino.tools.ovc.telemetry_stub None")


@pytest.mark.parametrize("lacks", ["this CPU has no VNNI", ""])
def test_weights_of_quantized_products_fit_a_cpu_without_vnni(tmp_path, monkeypatch, lacks):
    """A perceptron's products of 8 bits overflowed there: 44 dB became 9."""
    numbers = np.random.default_rng(0)
    scales = {"s": np.float32(1 / 127), "z": np.int8(0), "w_s": np.float32(0.01), "w": numbers.choice([-127, 127], (64, 8)).astype(np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_s", "z"], ["v"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in scales.items()]
    made = artifact(tmp_path, small.model(nodes, [small.value("x", ["N", 64])], [small.value("y", ["N", 8])], stored))
    (tmp_path / "converted").mkdir()
    if lacks:
        monkeypatch.setattr(machine, "lacks_vnni", lambda: lacks)
    path = ConvertOpenvino().run(made, Context(folder=tmp_path / "converted", target={"arch": "x86_64"}))
    feeds = {"x": numbers.uniform(0, 1, (16, 64)).astype(np.float32)}
    wanted, found = Onnx().runner(made.path)(feeds)["y"], Openvino().runner(path)(feeds)["y"]
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 30
    told = ConvertOpenvino().here({"arch": "x86_64"})
    assert told == (lacks or machine.lacks_vnni())
    assert ConvertOpenvino().here({"arch": "aarch64"}) == ""
