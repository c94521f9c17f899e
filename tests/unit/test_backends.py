"""The backends: what they compile, what they refuse, and what they say really executes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from edgeopt.core import machine, registry
from edgeopt.core.artifact import Artifact, Signature, TensorSpec
from edgeopt.core.errors import MissingError, StepError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.stages.children import Child

PROBED = {name: registry.load("backends", name)().probe() for name in registry.names("backends")}
RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(PROBED[name]), reason=PROBED[name] or "-")) for name in ("onnxruntime", "openvino")
]
both_runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


def artifact(folder: Path, proto: onnx.ModelProto, execution: str = "f32", **saving: object) -> Artifact:
    files = folder / "model" / "files"
    files.mkdir(parents=True)
    path = small.write(proto, files, **saving)
    return Artifact(files.parent, "onnx", path.name, "", "", 0, Onnx().signature(path), {"float": execution})


def compiled(folder: Path, runtime: str, proto: onnx.ModelProto, execution: str = "f32", **saving: object) -> tuple[Artifact, Path]:
    model = artifact(folder, proto, execution, **saving)
    (folder / "out").mkdir()
    return model, registry.load("backends", runtime)().compile(model, Context(folder=folder / "out"))


def facts(path: Path, runtime: str, execution: str = "f32", feeds: dict | None = None, **options: str) -> tuple[dict, list]:
    with Child(runtime) as child:
        child.ask("open", path=str(path), backend=runtime, threads=1, requests=1, options=options, execution={"float": execution})
        if feeds:
            child.ask("feeds", {f"0/{name}": array for name, array in feeds.items()})
        return child.ask("facts")[0], child.ask("profile")[0]["layers"]


def quantized(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    from onnxruntime import quantization

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.batches = iter([{"x": rng.standard_normal((2, 3, 16, 16), np.float32)} for _ in range(3)])

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    folder.mkdir()
    quantization.quantize_static(
        small.write(proto, folder, "float.onnx"),
        folder / "int8.onnx",
        Calibration(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(folder / "int8.onnx")


# --- what executes


@both_runtimes
def test_a_float_model_executes_in_fp32_and_nothing_else(runtime, tmp_path):
    found, layers = facts(compiled(tmp_path, runtime, small.cnn())[1], runtime, feeds={"x": np.ones((1, 3, 16, 16), np.float32)})
    assert found["runtime"].startswith(f"{runtime} ")
    # Two convolutions, the pool and the linear layer; the addition and the ReLUs may be fused into them.
    assert 4 <= found["precision"]["fp32"] == found["layers"] and sum(found["precision"].values()) == found["layers"]
    assert [layer["precision"] for layer in layers if "Conv" in layer["type"]] == ["fp32", "fp32"]
    assert all(layer["us"] >= 0 and layer["name"] and layer["type"] for layer in layers)


@both_runtimes
def test_a_quantized_model_executes_in_int8(runtime, tmp_path):
    pytest.importorskip("onnxruntime")
    _, path = compiled(tmp_path, runtime, quantized(small.cnn(size=(16, 16)), tmp_path / "q"))
    found, layers = facts(path, runtime)
    assert found["precision"]["int8"] >= 3 and found["precision"]["bf16"] == found["precision"]["fp16"] == 0
    heavy = [
        layer
        for layer in layers
        if any(word in layer["type"] for word in ("Conv", "Gemm", "MatMul", "FullyConnected")) and layer["type"] != "Convert"
    ]
    assert len(heavy) == 3 and {layer["precision"] for layer in heavy} == {"int8"}
    assert {layer["precision"] for layer in layers if "quantize" in layer["type"].lower()} <= {"other"}


@pytest.mark.skipif(bool(PROBED["openvino"]), reason=PROBED["openvino"] or "-")
def test_bf16_execution_is_honoured_and_f32_is_not_silently_bf16(tmp_path):
    if reason := registry.load("backends", "openvino")().refuses({"float": "bf16"}):
        pytest.skip(reason)
    _, path = compiled(tmp_path, "openvino", small.cnn(size=(16, 16)), "bf16")
    assert facts(path, "openvino", "bf16")[0]["precision"]["bf16"] >= 3
    assert facts(path, "openvino", "f32")[0]["precision"]["bf16"] == 0


@both_runtimes
def test_logic_on_booleans_is_not_counted_as_int8(runtime, tmp_path):
    """OpenVINO executes booleans as u8."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["big"]),
        helper.make_node("Not", ["big"], ["small"]),
        helper.make_node("Less", ["x", "one"], ["low"]),
        helper.make_node("And", ["low", "small"], ["both"]),
        helper.make_node("Where", ["both", "x", "zero"], ["kept"]),
        helper.make_node("MatMul", ["kept", "w"], ["y"]),
    ]
    numbers = [numpy_helper.from_array(np.array(number, np.float32), name) for name, number in (("zero", 0), ("one", 1))]
    proto = small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 4])], [small.weight("w", 8, 4), *numbers])
    found, layers = facts(compiled(tmp_path, runtime, proto)[1], runtime)
    assert found["precision"]["int8"] == 0 and found["precision"]["fp32"] >= 1, layers


@both_runtimes
def test_a_picture_of_bytes_is_not_counted_as_int8(runtime, tmp_path):
    """OpenVINO scales it as it reads it, and calls that u8."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "most"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    inputs = [small.value("image", ["N", 16, 16, 3], TensorProto.UINT8)]
    weights = [small.weight("w", 8, 3, 3, 3), numpy_helper.from_array(np.float32(255), "most")]
    proto = small.model(nodes, inputs, [small.value("y", ["N", 8, 14, 14])], weights)
    found, layers = facts(compiled(tmp_path, runtime, proto)[1], runtime)
    assert found["precision"]["int8"] == 0 and found["precision"]["fp32"] >= 1, layers


@both_runtimes
def test_weights_stored_in_int8_are_not_int8_execution(runtime, tmp_path):
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.integers(-127, 127, (64, 32)).astype(np.int8), "w8"),
        numpy_helper.from_array(np.float32(0.01), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = small.model(nodes, [small.value("x", ["N", 64])], [small.value("y", ["N", 32])], weights)
    _, path = compiled(tmp_path, runtime, proto)
    found, layers = facts(path, runtime)
    assert found["precision"]["int8"] == 0 and found["precision"]["fp32"] >= 1, layers
    x = rng.standard_normal((3, 64), np.float32)
    with Child(runtime) as child:
        child.ask("open", path=str(path), backend=runtime, threads=1, requests=1, options={}, execution={"float": "f32"})
        outputs = child.ask("infer", {"x": x})[1]
    # Both runtimes quantize the activations here by default, to 45 dB, and OpenVINO even when asked for f32.
    np.testing.assert_allclose(outputs["y"], x @ (numpy_helper.to_array(weights[0]) * np.float32(0.01)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(bool(PROBED["onnxruntime"]), reason=PROBED["onnxruntime"] or "-")
def test_the_option_of_onnxruntime_reaches_its_graph(tmp_path):
    _, path = compiled(tmp_path, "onnxruntime", small.cnn(size=(16, 16)))
    plain = {layer["type"] for layer in facts(path, "onnxruntime", graph_optimization="off")[1]}
    assert "Relu" in plain and "Relu" not in {layer["type"] for layer in facts(path, "onnxruntime")[1]}
    options = registry.load("backends", "onnxruntime").Options
    with pytest.raises(ValidationError, match="extended"):
        options(graph_optimization="most")
    with pytest.raises(ValidationError, match="Extra"):
        options(graph="all")


# --- what is compiled


@both_runtimes
@pytest.mark.parametrize("make", [small.mlp, small.cnn, small.branches, small.loop, small.recurrent, small.embedding, small.attention])
def test_compiled_models_compute_what_the_original_does(runtime, make, tmp_path):
    model, path = compiled(tmp_path, runtime, make())
    rng = np.random.default_rng(3)
    feeds = {}
    for name, dtype, shape in ((spec.name, spec.dtype, spec.shape) for spec in model.signature.inputs):
        sizes = [axis if isinstance(axis, int) else {"N": 2, "T": 5}.get(axis, 16) for axis in shape]
        feeds[name] = np.asarray(rng.standard_normal(sizes) if dtype == "float32" else rng.integers(0, 2, sizes), dtype)
    wanted = onnx.reference.ReferenceEvaluator(str(model.path)).run(None, feeds)
    with Child(runtime) as child:
        opened = child.ask("open", path=str(path), backend=runtime, threads=1, requests=1, options={}, execution=model.execution)[0]
        outputs = child.ask("infer", feeds)[1]
        assert child.ask("facts")[0]["precision"]["fp32"] >= 1
    assert [entry[:2] for entry in opened["inputs"]] == [[spec.name, spec.dtype] for spec in model.signature.inputs]
    assert list(outputs) == [spec.name for spec in model.signature.outputs]
    for got, array in zip(outputs.values(), wanted, strict=True):
        np.testing.assert_allclose(got, array, rtol=1e-3, atol=1e-4)


@both_runtimes
def test_external_data_is_compiled_and_every_copy_stays_readable(runtime, tmp_path):
    saving = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    model, path = compiled(tmp_path, runtime, small.mlp(), **saving)
    assert (model.files / "model.onnx.data").is_file()
    onnx.load(model.path)  # onnx refuses external data that has a hard link elsewhere
    if path.suffix == ".onnx":
        onnx.load(path)
    assert facts(path, runtime)[0]["layers"] >= 2


@pytest.mark.skipif(bool(PROBED["openvino"]), reason=PROBED["openvino"] or "-")
def test_openvino_takes_its_own_format_and_keeps_weights_and_names(tmp_path):
    from edgeopt.formats.openvino import Openvino

    (tmp_path / "first").mkdir()
    model, path = compiled(tmp_path / "first", "openvino", small.cnn())
    own = Artifact(path.parent.parent, "openvino", path.name, "", "", 0, model.signature)
    (own.root / "files").symlink_to(path.parent)
    (tmp_path / "second").mkdir()
    again = registry.load("backends", "openvino")().compile(own, Context(folder=tmp_path / "second"))
    assert {one.name: one.read_bytes() for one in again.parent.iterdir()} == {one.name: one.read_bytes() for one in path.parent.iterdir()}
    assert Openvino().signature(again) == model.signature
    stored = sum(numpy_helper.to_array(one).nbytes for one in onnx.load(model.path).graph.initializer)
    assert again.with_suffix(".bin").stat().st_size >= stored, "weights are not compressed to FP16"


@both_runtimes
def test_a_model_that_the_runtime_cannot_run_fails_with_the_culprit(runtime, tmp_path):
    nodes = [helper.make_node("NoSuchOp", ["x"], ["y"], name="culprit")]
    proto = small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 8])])
    with pytest.raises(StepError, match="NoSuchOp") as caught:
        compiled(tmp_path, runtime, proto)
    assert "\n" not in caught.value.cause and caught.value.remedy


@both_runtimes
def test_damaged_files_fail_in_one_line(runtime, tmp_path):
    model = artifact(tmp_path, small.mlp())
    data = model.path.read_bytes()
    for index, damage in enumerate((b"", b"garbage" * 99, data[: len(data) // 2])):
        model.path.write_bytes(damage)
        (tmp_path / str(index)).mkdir()
        with pytest.raises(StepError, match=r"model\.onnx") as caught:
            registry.load("backends", runtime)().compile(model, Context(folder=tmp_path / str(index)))
        assert "\n" not in caught.value.cause


@pytest.mark.skipif(bool(PROBED["onnxruntime"]), reason=PROBED["onnxruntime"] or "-")
def test_outputs_that_are_no_tensors_are_refused_in_words(tmp_path):
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])]
    proto = small.model(nodes, [small.value("x", ["N", 8])], [helper.make_tensor_sequence_value_info("y", small.FLOAT, None)])
    files = tmp_path / "files"
    files.mkdir()
    small.write(proto, files)
    model = Artifact(tmp_path, "onnx", "model.onnx", "", "", 0, Signature((), ()))
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError, match=r"'y' is seq\(tensor\(float\)\)"):
        registry.load("backends", "onnxruntime")().compile(model, Context(folder=tmp_path / "out"))


# --- what is refused, and what is missing


def test_refusals_of_bf16_say_what_to_do():
    load = registry.load
    assert load("backends", "null")().refuses({"float": "bf16"}) == ""
    assert "leave execute-bf16 out" in load("backends", "onnxruntime")().refuses({"float": "bf16"})
    refusal = load("backends", "openvino")().refuses({"float": "bf16"})
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(machine.fingerprint()["isa"])
    assert refusal == "" if has_bf16 else "leave execute-bf16 out" in refusal
    for name in registry.names("backends"):
        assert load("backends", name)().refuses({"float": "f32"}) == "" == load("backends", name)().refuses({})
        assert load("backends", name)().refuses({"float": "fp8"})


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_not_installed_says_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # what Python itself does for a module that is not there
    backend = registry.load("backends", name)()
    assert backend.probe() == f"{name} is not installed: pip install 'edgeopt[{name}]'"
    with pytest.raises(MissingError, match="pip install"):
        backend.compile(artifact(tmp_path, small.mlp()), Context(folder=tmp_path))


def test_probing_imports_nothing_heavy():
    code = """
import sys
from edgeopt.core import registry
for name in registry.names("backends"):
    registry.load("backends", name)().probe()
print({name.partition(".")[0] for name in sys.modules} & {"onnxruntime", "openvino", "onnx", "torch", "numpy"})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_null_backend_works_where_no_framework_is(tmp_path):
    code = """
import sys
from pathlib import Path
for name in ("torch", "onnx", "onnxruntime", "openvino", "numpy"):
    sys.modules[name] = None
from edgeopt.backends.null import Null
from edgeopt.core.artifact import Artifact, Signature, TensorSpec
from edgeopt.core.protocols import Context
signature = Signature(
    (TensorSpec("x", "float32", ("N", 3, "T")), TensorSpec("k", "int64", ())),
    (TensorSpec("y", "float32", ("y_d0", "T", 7)), TensorSpec("z", "bool", ("unknown",)), TensorSpec("s", "float16", ())),
)
print(Null().compile(Artifact(Path(), "onnx", "", "", "", 0, signature), Context(folder=Path(sys.argv[1]))))
"""
    path = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout.strip()
    with Child("null") as child:
        child.ask("open", path=path, backend="null", threads=1, requests=1, options={}, execution={"float": "bf16"})
        outputs = child.ask("infer", {"x": np.ones((4, 3, 5), np.float32), "k": np.int64(1)})[1]
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "y": ((4, 5, 7), "float32"),
        "z": ((4,), "bool"),
        "s": ((), "float16"),
    }


def test_the_null_backend_keeps_fixed_shapes(tmp_path):
    signature = Signature((TensorSpec("x", "float32", (1, 8)),), (TensorSpec("y", "float32", (1, "found", 4)),))
    path = registry.load("backends", "null")().compile(Artifact(tmp_path, "onnx", "", "", "", 0, signature), Context(folder=tmp_path))
    with Child("null") as child:
        opened = child.ask("open", path=str(path), backend="null", threads=1, requests=1, options={}, execution={})[0]
        assert opened["inputs"] == [["x", "float32", [1, 8]]]
        assert child.ask("infer", {"x": np.ones((1, 8), np.float32)})[1]["y"].shape == (1, 1, 4)
