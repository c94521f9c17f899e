"""export-onnx and import-pt2: from torch to ONNX with names, open axes and function kept."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.artifact import TensorSpec
from edgeopt.core.errors import StepError, UntrustedError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import openvino as openvino_format
from edgeopt.formats import torch as torch_format
from edgeopt.formats.onnx import Onnx
from edgeopt.passes.export_onnx import export
from edgeopt.passes.import_pt2 import ImportPt2, refuse_code

pytestmark = pytest.mark.filterwarnings("ignore")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image):
        hidden = torch.relu(self.norm(self.first(image)))
        return self.head((hidden + self.second(hidden)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first=True):
        super().__init__()
        self.rnn, self.batch_first = getattr(nn, kind)(3, 6, batch_first=batch_first), batch_first

    def forward(self, x):
        return self.rnn(x)[0][:, -1] if self.batch_first else self.rnn(x)[0][-1]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, ids, mask):
        return self.layers(self.embed(ids), src_key_padding_mask=mask > 1).mean(1)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.embed = nn.Linear(4, 8), nn.Embedding(10, 8)

    def forward(self, x, ids, scale):
        logits = self.linear(x) + self.embed(ids).mean(1) * scale
        return {"logits": logits, "best": logits.argmax(-1), "unused": x}


class Undecided(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), [spec("x", "N", 8)], None, "dynamo"),
    "names of every kind": (lambda: nn.Linear(8, 4), [spec("x.1-a", "batch size", 8)], ["y/0"], "dynamo"),
    "residual": (Residual, [spec("image", "N", 3, "H", "W")], ["logits"], "dynamo"),
    "fixed batch of one": (Residual, [spec("image", 1, 3, 8, 8)], None, "dynamo"),
    "lstm": (lambda: Recurrent("LSTM"), [spec("x", "N", "T", 3)], None, "dynamo"),
    "gru, time first": (lambda: Recurrent("GRU", batch_first=False), [spec("x", "T", "N", 3)], None, "torchscript"),
    "transformer": (Encoder, [spec("ids", "N", "T", dtype="int64"), spec("mask", "N", "T", dtype="int64")], None, "dynamo"),
    "several": (
        TwoHeads,
        [spec("x", "N", 4), spec("ids", "N", "K", dtype="int64"), spec("scale")],
        ["best", "logits"],
        "dynamo",
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_export_keeps_names_axes_and_function(tmp_path, name):
    make, inputs, outputs, exporter = MODELS[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = make().eval()
    signature = torch_format.describe(module, inputs, outputs)
    notes = {}
    path = onnx_format.save(export(module, signature, outputs, Context(tmp_path, note=notes.__setitem__)), tmp_path / "model.onnx")
    assert Onnx().signature(path) == signature
    assert notes["exporter"] == exporter
    assert b"/tests/unit/" not in path.read_bytes()  # no stack traces
    import openvino

    opened = openvino_format.runner_of(openvino.convert_model(path), signature)
    sizes = {"N": 5, "batch size": 5, "T": 11, "K": 3, "H": 9, "W": 12}
    feeds = onnx_format.examples(signature, sizes=sizes)
    wanted = torch_format.arrays(torch_format.run(module, [torch_format.tensor(array) for array in feeds.values()], outputs))
    for run in (Onnx().runner(path), opened):
        found = run(feeds)
        assert list(found) == list(wanted)
        for key, array in wanted.items():
            np.testing.assert_allclose(found[key], array, rtol=1e-3, atol=1e-5)


def test_a_branch_on_data_is_refused_with_the_reasons():
    module = Undecided()
    signature = torch_format.describe(module, [spec("x", "N", 4)], None)
    with pytest.raises(StepError, match=r"dynamo: .*data-dependent.*torchscript: output 'output' has other values"):
        export(module, signature, None, Context(None))


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A .pt2 file with an open batch and time."""
    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=1)
    given = (torch.randn(3, 4), torch.ones(3, 7, dtype=torch.int64), torch.tensor(0.5))
    program = torch.export.export(TwoHeads().eval(), given, dynamic_shapes=({0: batch}, {0: batch, 1: time}, None))
    path = tmp_path_factory.mktemp("traced") / "model.pt2"
    torch.export.save(program, path)
    return path, program


def test_a_traced_program_becomes_onnx(tmp_path, traced):
    source, program = traced
    path = ImportPt2(file=source.name).run(None, Context(tmp_path, base=source.parent))
    signature = Onnx().signature(path)
    assert [one.name for one in signature.inputs] == ["x", "ids", "scale"]
    assert [one.name for one in signature.outputs] == ["add", "argmax", "output_2"]
    assert signature.batch_symbol == "N" == signature.outputs[0].shape[0]
    feeds = onnx_format.examples(signature, other=5)
    wanted = program.module()(*(torch_format.tensor(array) for array in feeds.values()))
    np.testing.assert_allclose(next(iter(Onnx().runner(path)(feeds).values())), wanted["logits"].detach(), rtol=1e-4, atol=1e-5)
    assert ImportPt2(file=source.name).user_files(source.parent) == [source]


class Payload:
    def __reduce__(self):
        return print, ("code from the file ran",)


def rewritten(source, target, change):
    """A copy of an archive, each record passed through change(name, data)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def pickled(name, data):
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue() if name.endswith("sample_inputs/model.pt") else data


def pickled_weight(name, data):
    if name.endswith("weights_config.json"):
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()
    return pickle.dumps(Payload()) if name.endswith("weights/weight_0") else data


def opaque(name, data):
    return data.replace(b'"weight_0"', b'"opaque_obj_0"') if name.endswith("weights_config.json") else data


def calls(name, data):
    return data.replace(b"torch.ops.aten.linear.default", b"torch.ops.load_library.__call__") if name.endswith("model.json") else data


def formula(name, data):
    return data.replace(b"Symbol('s", b"exec('s") if name.endswith("model.json") else data


@pytest.mark.parametrize("change", [pickled, pickled_weight, opaque, calls, formula])
def test_a_traced_program_that_would_run_code_is_refused(tmp_path, traced, change, capsys):
    rewritten(traced[0], tmp_path / "model.pt2", change)
    with pytest.raises(UntrustedError):
        refuse_code(tmp_path / "model.pt2")
    assert "ran" not in capsys.readouterr().out


def test_an_archive_of_two_programs_or_with_machine_code_is_refused(tmp_path, traced):
    for extra in ("model/data/aotinductor/model/a.so", "model/MODELS/model.json", "other/models/model.json"):
        target = tmp_path / "model.pt2"
        target.write_bytes(traced[0].read_bytes())
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(extra, b"{}")
        with pytest.raises(UntrustedError):
            refuse_code(target)


def test_what_is_no_traced_program(tmp_path, traced):
    path = tmp_path / "model.pt2"
    for data in (b"", b"nothing", traced[0].read_bytes()[:1000]):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"no \.pt2 archive"):
            refuse_code(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UntrustedError, match="pickle of"):
        refuse_code(path)
    with pytest.raises(UsageError, match="no such file"):
        refuse_code(tmp_path / "gone.pt2")
