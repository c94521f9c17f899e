"""import-onnx: what is believed of a file, what is refused, and in what form it arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import helper

from edgeopt.core.errors import MissingError, UntrustedError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx, examples, inputs, load, nodes, opset
from edgeopt.passes.import_onnx import ImportOnnx


def run(folder, name="model.onnx", **options):
    """The imported model's path and what the pass noted."""
    notes = {}
    result = folder / "result"
    result.mkdir(exist_ok=True)
    path = ImportOnnx(file=name, **options).run(None, Context(folder=result, base=folder, note=notes.__setitem__))
    return path, notes


def same_function(original, imported, **sizes):
    feeds = examples(Onnx().signature(imported), **sizes)
    before, after = Onnx().runner(original)(feeds), Onnx().runner(imported)(feeds)
    assert list(before) == list(after)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [small.mlp, small.cnn, small.branches, small.loop, small.recurrent, small.embedding, small.attention])
def test_models_arrive_with_function_and_axes_kept(tmp_path, make):
    original = small.write(make(), tmp_path)
    path, _ = run(tmp_path)
    same_function(original, path)
    assert Onnx().signature(path) == Onnx().signature(original)


def test_weights_in_constant_nodes_stay(tmp_path):
    original = small.write(small.cnn(constants=True), tmp_path)
    path, _ = run(tmp_path)
    same_function(original, path)
    assert sum(node.op_type == "Constant" for node in nodes(load(path))) == 6


@pytest.mark.parametrize("old", [9, 11, 12])
def test_an_old_opset_is_raised(tmp_path, old):
    original = small.write(small.cnn(opset=old), tmp_path)
    path, notes = run(tmp_path)
    assert opset(load(path)) == notes["opset"] == 17
    same_function(original, path)


def test_an_opset_whose_raising_changes_the_function_is_kept(tmp_path):
    """onnx's converter forgets that Resize 10 samples asymmetrically."""
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    nodes = [helper.make_node("Resize", ["x", "s"], ["y"], mode="linear")]
    original = small.write(small.model(nodes, [small.value("x", ["N", 3, 4, 4])], [small.value("y", None)], [scales], 10, 5), tmp_path)
    path, notes = run(tmp_path)
    assert opset(load(path)) == 10
    assert "other values" in notes["opset_kept"]
    same_function(original, path)


def test_weights_listed_as_inputs_are_no_inputs_afterwards(tmp_path):
    proto = small.mlp(opset=9, ir=3)
    proto.graph.input.extend(small.value(w.name, list(w.dims)) for w in list(proto.graph.initializer))
    original = small.write(proto, tmp_path)
    path, _ = run(tmp_path)
    assert [value.name for value in load(path).graph.input] == ["x"]
    same_function(original, path)


def test_every_node_gets_its_own_name(tmp_path):
    proto = small.mlp(unnamed=True)
    proto.graph.node[0].name = proto.graph.node[2].name = "layer"
    small.write(proto, tmp_path)
    path, _ = run(tmp_path)
    assert [node.name for node in load(path).graph.node] == ["layer", "Relu_1", "layer_1"]


def test_axes_without_names_get_stable_ones(tmp_path):
    proto = small.cnn(batch=None, size=(None, None))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    small.write(proto, tmp_path)
    path, _ = run(tmp_path)
    signature = Onnx().signature(path)
    assert signature.inputs[0].shape == ("N", 3, "x_d2", "x_d3")
    assert signature.outputs[0].shape == ("N", 5)


def test_what_exporters_write_for_any_size_is_no_name(tmp_path):
    """Or height and width would have to be equal, as two axes of one name are."""
    small.write(small.cnn(size=("?", "?"), batch="None"), tmp_path)
    path, _ = run(tmp_path)
    assert Onnx().signature(path).inputs[0].shape == ("N", 3, "x_d2", "x_d3")


def test_local_functions_are_inlined(tmp_path):
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto = small.model(
        [helper.make_node("Twice", ["x"], ["y"], domain="own")], [small.value("x", ["N", 3])], [small.value("y", ["N", 3])], domains=["own"]
    )
    proto.functions.append(function)
    original = small.write(proto, tmp_path)
    path, _ = run(tmp_path)
    assert [node.op_type for node in load(path).graph.node] == ["Add"]
    same_function(original, path)


def test_operators_of_foreign_domains_are_told(tmp_path):
    proto = small.model(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        [small.value("x", ["N", 3])],
        [small.value("y", ["N", 3])],
        domains=["com.microsoft"],
    )
    small.write(proto, tmp_path)
    assert run(tmp_path)[1]["foreign_operators"] == ["com.microsoft"]


def external(folder, location="model.onnx.data"):
    return small.write(small.mlp(), folder, save_as_external_data=True, location=location, size_threshold=0)


def test_external_data_is_taken_in_and_part_of_the_key(tmp_path):
    external(tmp_path)
    assert ImportOnnx(file="model.onnx").user_files(tmp_path) == [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    path, _ = run(tmp_path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    same_function(tmp_path / "model.onnx", path)


def test_external_data_in_a_folder_below_is_found(tmp_path):
    (tmp_path / "parts").mkdir()
    external(tmp_path, "parts/weights.bin")
    assert tmp_path / "parts/weights.bin" in ImportOnnx(file="model.onnx").user_files(tmp_path)
    run(tmp_path)


def point_at(folder, location):
    """A model whose first weight claims to lie at `location`."""
    path = external(folder)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret", "parts/../../secret", "C:\\secret", "..\\secret"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4096))
    point_at(folder, location)
    with pytest.raises(UntrustedError, match="external data"):
        run(folder)
    assert not list((folder / "result").iterdir())


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4096))
    (folder / "link").symlink_to(tmp_path / "secret")
    point_at(folder, "link")
    with pytest.raises(UntrustedError, match="link"):
        run(folder)
    assert ImportOnnx(file="model.onnx").user_files(folder)[1:] == [folder / "model.onnx.data"]


def test_external_data_in_an_if_branch_is_checked_too(tmp_path):
    proto = small.branches()
    tensor = proto.graph.node[1].attribute[1].g.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UntrustedError, match="absolute"):
        run(tmp_path)


def test_missing_and_short_external_data(tmp_path):
    external(tmp_path)
    data = tmp_path / "model.onnx.data"
    os.truncate(data, 40)
    with pytest.raises(UsageError, match="too short"):
        run(tmp_path)
    data.unlink()
    with pytest.raises(UsageError, match="missing"):
        run(tmp_path)


def broken():
    good = small.mlp().SerializeToString()
    cyclic = small.mlp()
    cyclic.graph.node[0].input[0] = "nowhere"
    mismatch = small.mlp()
    mismatch.graph.initializer[0].CopyFrom(small.weight("w1", 16, 9))
    silent = small.mlp()
    del silent.graph.node[:]
    deaf = small.mlp()
    del deaf.graph.input[:]
    deaf.graph.initializer.append(small.weight("x", 1, 8))
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "random": bytes(range(256)),
        "cut": good[: len(good) // 2],
        "cut at a field": good[:2],
        "undefined tensor": cyclic.SerializeToString(),
        "shapes do not fit": mismatch.SerializeToString(),
        "no nodes": silent.SerializeToString(),
        "no inputs": deaf.SerializeToString(),
    }


@pytest.mark.parametrize("kind", list(broken()))
def test_what_is_no_whole_model_is_a_usage_error_in_one_line(tmp_path, kind):
    (tmp_path / "model.onnx").write_bytes(broken()[kind])
    with pytest.raises(UsageError) as caught:
        run(tmp_path)
    assert "\n" not in caught.value.cause and caught.value.remedy
    assert not list((tmp_path / "result").iterdir())


def test_a_missing_file_and_a_missing_package(tmp_path):
    assert ImportOnnx(file="gone.onnx").user_files(tmp_path) == [tmp_path / "gone.onnx"]
    with pytest.raises(UsageError, match="no such file"):
        run(tmp_path, "gone.onnx")
    with pytest.raises(MissingError, match="no_such_package"):
        run(tmp_path, "m.onnx", package="no_such_package")
    with pytest.raises(UntrustedError, match="outside"):
        run(tmp_path, "../m.onnx", package="onnx")


def test_a_file_inside_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "modelbox"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    small.write(small.mlp(), package)
    monkeypatch.syspath_prepend(tmp_path)
    path, _ = run(tmp_path, package="modelbox")
    assert len(inputs(load(path))) == 1


def test_planning_imports_no_framework(tmp_path):
    external(tmp_path)
    code = (
        "import sys; from pathlib import Path; from edgeopt.passes.import_onnx import ImportOnnx\n"
        f"print(len(ImportOnnx(file='model.onnx').user_files(Path({str(tmp_path)!r}))))\n"
        "print([name for name in ('onnx', 'numpy', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2", "[]"]


def test_sparse_weights_become_plain_ones(tmp_path):
    original = small.write(small.sparse(), tmp_path)
    path, notes = run(tmp_path)
    same_function(original, path)
    assert not load(path).graph.sparse_initializer and "shapes" not in notes


def drawn():
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["noise"], name="draw"), helper.make_node("Add", ["x", "noise"], ["y"])]
    return small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 8])])


def labelled():
    names = helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_int64s=[0, 1], values_strings=["cat", "dog"], default_string="?"
    )
    made = small.model([names], [small.value("x", ["N"], small.INT64)], [small.value("y", ["N"], onnx.TensorProto.STRING)])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made


def unheard_of():
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="it", domain="acme")]
    return small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 8])], domains=["acme"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (drawn, "draws random numbers \\('draw', RandomNormalLike\\)"),
        (labelled, "the output 'y' is text"),
        (unheard_of, "acme:Frobnicate.* is not a registered"),
    ],
)
def test_what_no_sample_can_judge_is_refused_at_the_door(tmp_path, make, words):
    small.write(make(), tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        run(tmp_path)
    assert caught.value.remedy and str(tmp_path / "result") not in str(caught.value)
