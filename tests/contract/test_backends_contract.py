"""What every backend in the table promises, third-party ones included once they stand in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, Signature, TensorSpec
from edgeopt.core.protocols import Backend, Context, Options
from edgeopt.stages.children import Child

every_backend = pytest.mark.parametrize("name", registry.names("backends"))


def tiny_mlp(root: Path) -> Artifact:
    (root / "files").mkdir(parents=True)
    weights = {"w": np.ones((4, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ["N", size]) for end, size in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(array, key) for key, array in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), root / "files" / "model.onnx")
    signature = Signature((TensorSpec("x", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", 3)),))
    return Artifact(root, "onnx", "model.onnx", "", "", 0, signature)


@every_backend
def test_it_is_a_documented_backend_with_frozen_options(name):
    cls = registry.load("backends", name)
    assert issubclass(cls, Backend) and cls is not Backend
    assert cls.__doc__ and len(cls.__doc__.splitlines()[0]) > 20
    assert issubclass(cls.Options, Options) and cls.Options.model_config["frozen"] and cls.Options.model_config["extra"] == "forbid"
    assert all(field.description for field in cls.Options.model_fields.values()), "each option has a line for the help"
    cls.Options()  # every option has a default


@every_backend
def test_its_facts_are_known_words(name):
    cls = registry.load("backends", name)
    assert cls.formats and set(cls.formats) <= set(registry.names("formats"))
    assert set(cls.executions) <= {"f32", "bf16"} and "f32" in cls.executions
    assert cls.extra or not cls.needs
    assert set(cls.target_fields) <= {"arch", "threads", "batch", "scenario", "int8", "compile_on"}


@every_backend
def test_its_probe_answers_a_string_and_its_refusals_do(name):
    backend = registry.load("backends", name)()
    assert isinstance(backend.probe(), str) and backend.probe() == backend.probe()
    assert backend.refuses({"float": "f32"}) == ""
    assert backend.refuses({"float": "unheard-of"})


@every_backend
def test_it_compiles_a_model_that_the_runner_opens_and_runs(name, tmp_path):
    backend = registry.load("backends", name)()
    if reason := backend.probe():
        pytest.skip(reason)
    model = tiny_mlp(tmp_path / "model")
    folder = tmp_path / "out"
    folder.mkdir()
    main = backend.compile(model, Context(folder=folder, target={"options": backend.Options().model_dump()}))
    assert main.is_file() and folder in main.parents
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with Child(name) as child:
        opened = child.ask("open", path=str(main), backend=name, threads=1, requests=1, options={}, execution={"float": "f32"})[0]
        assert [entry[0] for entry in opened["inputs"] + opened["outputs"]] == ["x", "y"] and opened["slots"] == 1
        child.ask("feeds", {"0/x": x})
        outputs = child.ask("infer", {"x": x})[1]
        found = child.ask("facts")[0]
        assert len(child.ask("time", runs=3)[1]["compute_ns"]) == 3
        assert isinstance(child.ask("profile")[0]["layers"], list)
        assert child.ask("close")[0]["ok"]
    assert list(outputs) == ["y"] and outputs["y"].shape == (2, 3) and outputs["y"].dtype == np.float32
    assert sorted(found["precision"]) == ["bf16", "fp16", "fp32", "int8"] and found["layers"] == sum(found["precision"].values())
    assert found["runtime"]
    if found["layers"]:  # it computes
        np.testing.assert_allclose(outputs["y"], x.sum(1, keepdims=True) + np.arange(3), rtol=1e-5)


@every_backend
def test_it_opens_several_slots(name, tmp_path):
    backend = registry.load("backends", name)()
    if reason := backend.probe():
        pytest.skip(reason)
    main = backend.compile(tiny_mlp(tmp_path / "model"), Context(folder=tmp_path))
    with Child(name) as child:
        opened = child.ask("open", path=str(main), backend=name, threads=2, requests="auto", options={}, execution={"float": "f32"})[0]
        child.ask("feeds", {"0/x": np.ones((1, 4), np.float32)})
        assert opened["slots"] >= 1 and child.ask("flood", seconds=0.05)[0]["count"] >= opened["slots"]
