"""train-int8: what was trained with rounding in it is what is exported, in a form that every backend takes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import small_torch as small
import torch
from onnx import TensorProto, numpy_helper

from edgeopt.backends import tensorrt_check
from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Sample, Split
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format
from edgeopt.passes import export_onnx
from edgeopt.stages.children import Child

pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed")

from edgeopt.passes.train_int8 import TrainInt8

RTX = {"batch": 1, "options": {"product": "rtx", "compute_capabilities": ["8.9"]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.project(tmp_path_factory.mktemp("user"))


def samples(signature, count, seed):
    numbers = np.random.default_rng(seed)
    for _ in range(count):
        inputs = {}
        for spec in signature.inputs:
            shape = [8 if isinstance(size, str) else size for size in spec.shape[1:]]
            inputs[spec.name] = (
                numbers.integers(0, 4, shape) if spec.dtype == "int64" else numbers.standard_normal(shape).astype(spec.dtype)
            )
        yield Sample(inputs, int(numbers.integers(3)))


def quantize(artifact, folder, base, train=True, **options):
    notes = {}
    names = ("train", "tune", "calibrate") if train else ("calibrate",)
    data = {
        name: Split(name, lambda seed=seed: samples(artifact.signature, 24, seed), artifact.signature) for seed, name in enumerate(names)
    }
    ctx = small.context(folder, base, notes, data=data, seed=1)
    return TrainInt8(**{"epochs": 1, "batch": 8, **options}).run(artifact, ctx), notes


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture(scope="module")
def cnn(base, tmp_path_factory):
    """A CNN with a sum, a concatenation and a depthwise convolution, trained for an epoch; its batch norms are not trivial."""
    folder = tmp_path_factory.mktemp("cnn")
    artifact = small.imported(base, folder / "whole")
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        for norm in (module.stem[1], module.left[1], module.residual[1]):
            norm.weight.copy_(torch.linspace(-1.5, 1.5, len(norm.weight)))
            norm.weight[0] = 0
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    (folder / "norms" / "files").mkdir(parents=True)
    artifact = small.at_rest(torch_format.save(module, folder / "norms" / "files", artifact.path))
    return artifact, *quantize(artifact, folder / "int8", base, lr=1e-3)


def test_the_export_is_symmetric_s8_with_integer_weights_and_no_norms(cnn):
    artifact, path, notes = cnn
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert onnx_format.signature_of(model) == artifact.signature
    found = kinds(path)
    assert not {"BatchNormalization", "Identity", "Cast", "Constant", "Transpose"} & found.keys()
    assert found["Conv"] == notes["quantized_layers"]["Conv"] == 5
    assert len(notes["quantized"]) == 6
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [stored[node.input[0]] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}
    assert len(weights) == 6
    assert all(
        node.input[2] in stored and not numpy_helper.to_array(stored[node.input[2]]).any()
        for node in model.graph.node
        if "Linear" in node.op_type
    )


def test_the_exported_model_computes_what_was_trained(cnn, base, tmp_path):
    artifact, _, notes = cnn
    assert notes["export_db"] > 20
    assert len(notes["losses"]) == 1
    _, only = quantize(artifact, tmp_path / "ranges", base, train=False, epochs=0)
    assert "losses" not in only
    assert only["export_db"] > 20
    run, wanted = onnx_format.Onnx().runner(tmp_path / "ranges" / "files" / "model.onnx"), torch_format.Torch().runner(artifact.path)
    feeds = {"image": np.stack([one.inputs["image"] for one in samples(artifact.signature, 16, 9)])}
    x, y = wanted(feeds)["output"], run(feeds)["output"]
    assert 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()) > 20


def test_every_sum_and_convolution_stands_between_rounded_tensors(cnn):
    """onnxruntime computes in 8 bit only between pairs."""
    model = onnx.load(cnn[1])
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Add", "Concat"):
            assert {makers[name] for name in node.input[: 2 if node.op_type == "Conv" else 9]} == {"DequantizeLinear"}, node.name


def test_tensorrt_takes_it_and_the_runtimes_here_execute_it_in_int8(cnn, tmp_path):
    artifact, path, _ = cnn
    assert [one for one in tensorrt_check.read(path, RTX) if one.level == "error"] == []
    model = Artifact(path.parent.parent, "onnx", path.name, "", "", 0, artifact.signature)
    for name in ("onnxruntime", "openvino"):
        if reason := registry.load("backends", name)().probe():
            pytest.skip(reason)
        assert executed(name, model, tmp_path / name)["int8"] >= 5


def executed(name, model, folder):
    """Layers executed, by precision."""
    folder.mkdir()
    target = {"arch": "x86_64", "int8": "any", "options": {}}
    main = registry.load("backends", name)().compile(model, Context(folder=folder, target=target))
    feeds = onnx_format.examples(model.signature)
    with Child(name) as child:
        child.ask("open", path=str(main), backend=name, threads=1, requests=1, options={}, execution={"float": "f32"})
        child.ask("feeds", {f"0/{name}": array for name, array in feeds.items()})
        return child.ask("facts")[0]["precision"]


MODELS = {
    "Sequence": ({"kind": "LSTM"}, {"x": {"shape": ["N", 7, 6]}}, {"rnn": "recurrent"}, ["embed", "fc", "head"]),
    "Attention": ({}, {"x": {"shape": ["N", 5, 8]}}, {}, ["embed", "qkv", "out", "up", "down", "head"]),
    "Tied": ({}, {"tokens": {"shape": ["N", 6], "dtype": "int64"}}, {}, ["middle", "wide", "head"]),
    "Upward": ({}, {"x": {"shape": ["N", 3, 16]}}, {}, ["down", "up", "grouped", "last"]),
    "Encoder": (
        {},
        {"tokens": {"shape": ["N", 6], "dtype": "int64"}},
        {"layer.self_attn": "attention"},
        ["layer.linear1", "layer.linear2", "head"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_simulated_stays_float_and_is_told(base, tmp_path, name):
    arguments, inputs, floats, quantized = MODELS[name]
    artifact = small.imported(base, tmp_path / "whole", name, arguments=arguments, inputs=inputs)
    path, notes = quantize(artifact, tmp_path / "int8", base, train=False, epochs=0)
    assert notes["quantized"] == quantized
    assert {layer: reason for layer, reason in notes.get("left_float", {}).items() if floats[layer] not in reason} == {}
    assert notes.get("left_float", {}).keys() == floats.keys()
    assert notes["export_db"] > 25
    assert [one for one in tensorrt_check.read(path, RTX) if one.level == "error"] == []


def test_weights_of_linear_layers_on_sequences_stand_as_matmul_wants_them(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Attention", inputs={"x": {"shape": ["N", 5, 8]}})
    path, notes = quantize(artifact, tmp_path / "int8", base, train=False, epochs=0)
    assert notes["quantized_layers"]["MatMul"] == 5
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output}
    axes = [
        [one.i for one in makers[node.input[1]].attribute]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in makers
    ]
    assert axes.count([1]) == 5


def test_layers_under_keep_stay_float(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    _, notes = quantize(artifact, tmp_path / "int8", base, train=False, epochs=0, keep=["left", "head"])
    assert notes["left_float"] == dict.fromkeys(("left.0", "head"), "named under `keep`")
    with pytest.raises(UsageError, match=r"keep: .*'haed'.*\n.*did you mean 'head'"):
        quantize(artifact, tmp_path / "wrong", base, train=False, epochs=0, keep=["haed"])
    with pytest.raises(StepError, match=r"no layer of this model can be trained in INT8 .*named under `keep`"):
        quantize(artifact, tmp_path / "none", base, train=False, epochs=0, keep=["*"])


def test_too_few_samples_set_no_ranges(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    data = {"calibrate": Split("calibrate", lambda: samples(artifact.signature, 7, 0), artifact.signature)}
    with pytest.raises(UsageError, match="train-int8 needs at least 8 samples, and 'calibrate' has 7"):
        TrainInt8(epochs=0).run(artifact, small.context(tmp_path / "int8", base, data=data))


def test_a_layer_that_sees_only_zeros_stays_float(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        module.depthwise.weight.zero_()
        module.depthwise.bias.fill_(-1)
    (tmp_path / "dead" / "files").mkdir(parents=True)
    dead = small.at_rest(torch_format.save(module, tmp_path / "dead" / "files", artifact.path))
    _, notes = quantize(dead, tmp_path / "int8", base, train=False, epochs=0)
    assert notes["left_float"] == {"residual.0": "its inputs reach 0"}


def test_sparse_weights_are_zeros_in_the_integers_too(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        module.stem[0].weight[:, :, ::2] = 0
    (tmp_path / "sparse" / "files").mkdir(parents=True)
    sparse = small.at_rest(torch_format.save(module, tmp_path / "sparse" / "files", artifact.path, sparse=["stem.0.weight"]))
    path, _ = quantize(sparse, tmp_path / "int8", base)
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    [stem] = [array for array in stored if array.dtype == np.int8 and array.shape == (16, 1, 3, 3)]
    assert not stem[:, :, ::2].any()
    assert stem[:, :, 1].any()


def test_training_goes_on_from_a_checkpoint_with_its_ranges(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    kept = tmp_path / "checkpoints"
    data = {name: Split(name, lambda: samples(artifact.signature, 24, 3), artifact.signature) for name in ("train", "calibrate")}

    def train(folder, epochs, checkpoints):
        ctx = small.context(folder, base, data=data, checkpoints=checkpoints)
        return TrainInt8(epochs=epochs, batch=8, schedule="constant").run(artifact, ctx).read_bytes()

    train(tmp_path / "one", 1, kept)
    assert train(tmp_path / "three", 3, kept) == train(tmp_path / "whole-three", 3, None)


def test_only_the_splits_that_the_options_need_are_seen():
    assert (TrainInt8(epochs=0).splits(), TrainInt8(epochs=0).doors()) == (("calibrate",), ())
    assert TrainInt8().splits() == ("train", "tune?", "calibrate")


def test_the_worst_output_says_whether_the_export_is_what_was_trained(base, tmp_path):
    """A large output that agrees must not hide a small one that does not; indices are no noise."""
    from edgeopt.passes.train_int8_export import _agreement

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.large, self.small = torch.nn.Linear(4, 8), torch.nn.Linear(4, 2)

        def forward(self, x):
            small = self.small(x)
            return 1000 * self.large(x), small, small.argmax(dim=1)

    torch.manual_seed(0)
    module = Two().eval()
    inputs = (TensorSpec("x", "float32", ("N", 4)),)
    names = ("large", "small", "which")
    signature = torch_format.describe(module, inputs, names)
    proto = export_onnx.traced(module, signature, names)
    record = torch_format.Record("", {}, inputs, names)
    ctx = Context(tmp_path, data={"calibrate": Split("calibrate", lambda: samples(signature, 4, 0), signature)})
    assert _agreement(proto, module, record, ctx) > 100
    with torch.no_grad():
        module.small.weight.mul_(-1)
    with pytest.raises(StepError, match=r"agrees with the trained one to -\d"):
        _agreement(proto, module, record, ctx)
