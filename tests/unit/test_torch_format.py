"""The torch format and its import: rebuilt strictly from code and safetensors, and never from a pickle."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import small_torch as small
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from edgeopt.core import usercode
from edgeopt.core.artifact import TensorSpec
from edgeopt.core.errors import EdgeoptError, MissingError, StepError, UntrustedError, UsageError
from edgeopt.formats import torch as torch_format
from edgeopt.passes.import_torch import ImportTorch


@pytest.fixture
def base(tmp_path):
    return small.project(tmp_path / "user")


def net(base, width=16):
    torch.manual_seed(3)
    return usercode.load("net/model.py:build", base)(width).eval()


def weights(base, state, name="weights.pt"):
    torch.save(state, base / name)
    return {"file": name}


def outputs_of(artifact, seed=0):
    feeds = {
        spec.name: np.random.default_rng(seed).random([3 if size == "N" else size for size in spec.shape], dtype=np.float32)
        for spec in artifact.signature.inputs
    }
    return torch_format.Torch().runner(artifact.path)(feeds), feeds


def test_an_imported_model_comes_back_from_its_folder_alone(base, tmp_path):
    module = net(base)
    save_model(module, base / "weights.safetensors")
    artifact = small.imported(base, tmp_path / "rest", weights={"file": "weights.safetensors"})
    names = {path.relative_to(artifact.files).as_posix() for path in artifact.files.rglob("*") if path.is_file()}
    assert names == {"model.json", "weights.safetensors", "code/net/model.py", "code/net/blocks.py"}
    shutil.rmtree(base)
    found, feeds = outputs_of(artifact.at(artifact.root.rename(tmp_path / "elsewhere")))
    with torch.no_grad():
        assert np.allclose(found["output"], module(torch.from_numpy(feeds["image"])).numpy(), atol=1e-6)


def test_the_copy_of_the_code_is_used_not_the_user_s_changed_file(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    before, _ = outputs_of(artifact)
    (base / "net" / "blocks.py").write_text("def block(inner, outer):\n    raise RuntimeError('changed since')\n")
    after, _ = outputs_of(artifact)
    assert np.array_equal(before["output"], after["output"])


def test_code_beside_the_recipe_s_folder_is_found(base, tmp_path):
    (base / "recipes").mkdir()
    made = ImportTorch.model_validate({"factory": "../net/model.py:build", "inputs": small.IMAGE})
    path = made.run(None, small.context(tmp_path / "rest", base / "recipes"))
    shutil.rmtree(base)
    assert torch_format.load(path).head.in_features == 64


def test_signature_names_follow_what_really_varies(base, tmp_path):
    inputs = {"tokens": {"shape": ["N", "T"], "dtype": "int64"}, "mask": {"shape": ["N", "T"]}}
    signature = small.imported(base, tmp_path / "a", "several", arguments={"kind": "dict"}, inputs=inputs).signature
    assert [str(spec) for spec in signature.inputs] == ["tokens: int64[N, T]", "mask: float32[N, T]"]
    assert [str(spec) for spec in signature.outputs] == [
        "hidden: float32[N, T, 5]",
        "pooled: float32[N, 5]",
        "twice: float32[N, twice_d1, 5]",
    ]
    signature = small.imported(base, tmp_path / "b", "several", arguments={"kind": "tuple"}, inputs=inputs).signature
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1_0"]
    signature = small.imported(base, tmp_path / "c", "several", arguments={"kind": "dict"}, inputs=inputs, outputs=["pooled"]).signature
    assert [str(spec) for spec in signature.outputs] == ["pooled: float32[N, 5]"]
    signature = small.imported(base, tmp_path / "d", "several", arguments={"kind": "scalar"}, inputs=inputs, outputs=["sum"]).signature
    assert [str(spec) for spec in signature.outputs] == ["sum: float32[]"]


def test_tied_weights_are_stored_once_and_stay_tied(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest", "Tied", inputs={"tokens": {"shape": ["N", 6], "dtype": "int64"}})
    module = torch_format.load(artifact.path)
    assert module.head.weight is module.embedding.weight
    stored = usercode.load("net/model.py:Tied", base)()
    save_model(stored, base / "tied.safetensors")
    again = small.imported(
        base, tmp_path / "again", "Tied", weights={"file": "tied.safetensors"}, inputs={"tokens": {"shape": ["N", 6], "dtype": "int64"}}
    )
    assert torch.equal(torch_format.load(again.path).embedding.weight, stored.head.weight)


def test_changed_sizes_are_recorded_and_restored(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    module = torch_format.load(artifact.path)
    module.head = nn.Linear(64, 7)
    folder = tmp_path / "smaller"
    folder.mkdir()
    path = torch_format.save(module, folder, artifact.path)
    assert torch_format.Record.read(path).structure == {"head": {"out_features": 7}}
    rebuilt = torch_format.load(path)
    assert torch.equal(rebuilt.head.weight, module.head.weight)
    assert rebuilt.head.out_features == 7


def test_a_new_layer_or_a_hidden_state_cannot_be_put_to_rest(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    module = torch_format.load(artifact.path)
    module.head = nn.Sequential(module.head, nn.ReLU())
    (tmp_path / "a").mkdir()
    with pytest.raises(StepError, match=r"'head\.0' that its factory does not build"):
        torch_format.save(module, tmp_path / "a", artifact.path)
    module = torch_format.load(artifact.path)
    module.stem[2] = nn.Sigmoid()
    (tmp_path / "b").mkdir()
    with pytest.raises(StepError, match="rebuilt from disk"):
        torch_format.save(module, tmp_path / "b", artifact.path)


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        ("fails", small.IMAGE, r"net/model\.py:\d+: the factory .* RuntimeError: no such width"),
        ("no_model", small.IMAGE, "returned int, not a torch.nn.Module"),
        ("bild", small.IMAGE, "did you mean 'build'"),
        ("build", {"image": {"shape": ["N", 3, 12, 12]}}, r"running the model on image float32\[2, 3, 12, 12\]"),
        ("build", {"image": {"shape": ["N", 1, 12, 12]}, "more": {"shape": ["N"]}}, "running the model on"),
        ("Random", {"x": {"shape": ["N", 2]}}, "another one at each call"),
    ],
)
def test_a_factory_that_does_not_work_is_told_with_its_place(base, tmp_path, function, inputs, message):
    with pytest.raises(UsageError, match=message):
        small.imported(base, tmp_path / "rest", function, inputs=inputs)


def test_outputs_that_cannot_be_named_are_refused(base, tmp_path):
    inputs = {"tokens": {"shape": ["N", "T"], "dtype": "int64"}, "mask": {"shape": ["N", "T"]}}
    with pytest.raises(UsageError, match="returns str"):
        small.imported(base, tmp_path / "a", "several", arguments={"kind": "text"}, inputs=inputs)
    with pytest.raises(UsageError, match="names 3 outputs and the model returns 2"):
        small.imported(base, tmp_path / "b", "several", arguments={"kind": "tuple"}, inputs=inputs, outputs=["a", "b", "c"])


def test_a_factory_that_reads_files_cannot_rest(base, tmp_path):
    (base / "net" / "weights.txt").write_text("1")
    with pytest.raises(StepError, match=r"cannot be rebuilt from the copies of its code.*\n.*give weights under"):
        small.imported(base, tmp_path / "rest", "remembers", inputs={"x": {"shape": ["N", 2]}})


@pytest.mark.parametrize(
    ("wrap", "key", "removed"),
    [
        (lambda state: state, None, None),
        (lambda state: {"epoch": 3, "state_dict": state}, "state_dict", None),
        (lambda state: {"run": {"model.ema": state}}, "run.model.ema", None),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, None, "module."),
        (
            lambda state: {"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}},
            "state_dict",
            "model._orig_mod.",
        ),
    ],
)
def test_checkpoints_of_training_are_understood(base, tmp_path, wrap, key, removed):
    module = net(base)
    given = weights(base, wrap(module.state_dict()))
    notes = {}
    artifact = small.imported(base, tmp_path / "rest", weights={**given, "key": key}, notes=notes)
    assert torch.equal(torch_format.load(artifact.path).head.weight, module.head.weight)
    assert notes.get("prefix_removed") == removed


def test_half_precision_weights_are_cast_and_noted(base, tmp_path):
    notes = {}
    small.imported(base, tmp_path / "rest", weights=weights(base, net(base).half().state_dict()), notes=notes)
    assert notes["cast_from"] == ["float16"]


def test_no_weights_are_noted(base, tmp_path):
    notes = {}
    small.imported(base, tmp_path / "rest", notes=notes)
    assert "factory" in notes["weights"]


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_that_wants_to_call_something_is_refused_with_exit_6(base, tmp_path):
    for name, value in {"whole.pt": net(base), "evil.pt": {"w": torch.ones(1), "x": Evil()}}.items():
        given = weights(base, value, name)
        with pytest.raises(UntrustedError, match=r"wants to call \S+\n.*safetensors") as caught:
            small.imported(base, tmp_path / name, weights=given)
        assert caught.value.exit_code == 6


@pytest.mark.filterwarnings("ignore")  # torch announces what it will do with TorchScript
def test_files_that_are_no_weights_are_refused_with_exit_2(base, tmp_path):
    state = net(base).state_dict()
    torch.save(state, base / "cut.pt")
    (base / "cut.pt").write_bytes((base / "cut.pt").read_bytes()[:5000])
    save_file(state, base / "cut.safetensors")
    (base / "cut.safetensors").write_bytes((base / "cut.safetensors").read_bytes()[:5000])
    (base / "text.pt").write_text("hello, this is text and no model at all")
    (base / "empty.pt").write_bytes(b"")
    torch.jit.script(nn.Linear(2, 2)).save(base / "script.pt")
    for name in ("cut.pt", "cut.safetensors", "text.pt", "empty.pt", "script.pt", "absent.pt"):
        with pytest.raises(EdgeoptError) as caught:
            small.imported(base, tmp_path / name, weights={"file": name})
        assert caught.value.exit_code == 2, name
        assert caught.value.remedy


def test_weights_that_do_not_fit_name_the_keys_and_the_near_ones(base, tmp_path):
    state = net(base).state_dict()
    renamed = {name.replace("head.", "heat."): value for name, value in state.items()}
    with pytest.raises(UsageError, match=r"2 missing: head\.weight \(did you mean 'heat\.weight'\?\)"):
        small.imported(base, tmp_path / "a", weights=weights(base, renamed))
    with pytest.raises(UsageError, match=r"stem\.0\.weight is \[8, 1, 3, 3\] in the file and \[16, 1, 3, 3\] in the model"):
        small.imported(base, tmp_path / "b", weights=weights(base, net(base, 8).state_dict()))
    with pytest.raises(UsageError, match=r"no key 'modle'.*\n.*did you mean 'model'"):
        small.imported(base, tmp_path / "c", weights={**weights(base, {"model": state}), "key": "modle"})
    with pytest.raises(UsageError, match=r"no state dict but dict.*\n.*key: model"):
        small.imported(base, tmp_path / "d", weights=weights(base, {"model": state, "epoch": 1}))
    state["head.bias"][0] = float("nan")
    with pytest.raises(UsageError, match=r"holds NaN or infinity: head\.bias"):
        small.imported(base, tmp_path / "e", weights=weights(base, state))


def test_weights_inside_a_package_are_found_without_importing_it(base, tmp_path, monkeypatch):
    package = tmp_path / "site" / "weights_of_a_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    save_file(net(base).state_dict(), package / "data" / "w.safetensors")
    monkeypatch.syspath_prepend(tmp_path / "site")
    inside = {"package": "weights_of_a_package", "file": "data/w.safetensors"}
    artifact = small.imported(base, tmp_path / "rest", weights=inside)
    assert torch.equal(torch_format.load(artifact.path).head.weight, net(base).head.weight)
    with pytest.raises(UntrustedError, match="outside the package"):
        small.imported(base, tmp_path / "b", weights={**inside, "file": "../../user/w.pt"})
    with pytest.raises(MissingError):
        small.imported(base, tmp_path / "c", weights={**inside, "package": "not_installed_anywhere"})


def test_user_files_are_the_code_and_the_weights(base):
    made = ImportTorch.model_validate({"factory": "net/model.py:build", "weights": "w.pt", "inputs": small.IMAGE})
    assert [path.name for path in made.user_files(base)] == ["model.py", "blocks.py", "w.pt"]
    assert made.packages(base) == ["torch"]


def test_a_model_with_learnt_positions_is_seen_at_shorter_sequences():
    """It runs at 64, the first size tried, and no longer."""

    class Positions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places = torch.nn.Embedding(8, 4), torch.nn.Embedding(64, 4)

        def forward(self, ids):
            return self.table(ids) + self.places(torch.arange(ids.shape[1]))

    found = torch_format.describe(Positions().eval(), [TensorSpec("ids", "int64", ("N", "T"))], ["y"])
    assert found.outputs == (TensorSpec("y", "float32", ("N", "T", 4)),)
