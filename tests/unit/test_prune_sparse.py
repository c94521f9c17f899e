"""prune-magnitude and prune-2-4: the zeros that were asked for, where sparse kernels want them, kept by training; no speed promised."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import small_torch as small
import torch

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Sample, Split
from edgeopt.formats import torch as torch_format
from edgeopt.passes.fine_tune import FineTune
from edgeopt.passes.prune_2_4 import Prune24
from edgeopt.passes.prune_magnitude import PruneMagnitude

needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")
TOKENS = {"tokens": {"shape": ["N", 6], "dtype": "int64"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.project(tmp_path_factory.mktemp("user"))


def data(artifact, count=32, label=True):
    def samples():
        numbers = np.random.default_rng(0)
        for index in range(count):
            spec = artifact.signature.inputs[0]
            shape = spec.shape[1:]
            array = numbers.integers(0, 9, shape) if spec.dtype == "int64" else numbers.random(shape, dtype=np.float32)
            yield Sample({spec.name: array}, index % 3 if label else None)

    return {name: Split(name, samples, artifact.signature) for name in ("train", "calibrate")}


def prune(step, artifact, folder, base):
    notes = {}
    return small.at_rest(step.run(artifact, small.context(folder, base, notes, data=data(artifact)))), notes


def zeros(artifact):
    return {name: (one == 0) for name, one in torch_format.load(artifact.path).named_parameters() if one.ndim > 1}


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_the_smallest_weights_become_zeros(base, tmp_path, scope):
    artifact = small.imported(base, tmp_path / "whole")
    pruned, notes = prune(PruneMagnitude(sparsity=0.75, scope=scope, keep=["head"]), artifact, tmp_path / "pruned", base)
    whole = dict(torch_format.load(artifact.path).named_parameters())
    found = zeros(pruned)
    assert notes["zeros"] == pytest.approx(0.75, abs=0.01)
    assert not found.pop("head.weight").any()
    for name, gone in found.items():
        if scope == "layer":
            assert gone.float().mean() == pytest.approx(0.75, abs=0.01), name
            assert whole[name][gone].abs().max() <= whole[name][~gone].abs().min()
    if scope == "model":
        assert max(whole[name][gone].abs().max() for name, gone in found.items()) <= min(
            whole[name][~gone].abs().min() for name, gone in found.items() if not gone.all()
        )
    assert "no speed" in notes["warning"]
    assert pruned.signature == artifact.signature


def test_recurrent_weights_are_pruned_and_embeddings_are_not(base, tmp_path):
    sequence = small.imported(base, tmp_path / "rnn", "Sequence", arguments={"kind": "GRU"}, inputs={"x": {"shape": ["N", 7, 6]}})
    _, notes = prune(PruneMagnitude(), sequence, tmp_path / "a", base)
    assert notes["zeros_by_weight"]["rnn.weight_hh_l0"] == 0.5
    tied = small.imported(base, tmp_path / "tied", "Tied", inputs=TOKENS)
    pruned, notes = prune(PruneMagnitude(), tied, tmp_path / "b", base)
    assert set(notes["zeros_by_weight"]) == {"middle.weight", "wide.weight"}
    module = torch_format.load(pruned.path)
    assert module.head.weight is module.embedding.weight


@needs_modelopt
@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_two_of_four_inputs_go_in_layers_that_have_sparse_kernels(base, tmp_path, method):
    artifact = small.imported(base, tmp_path / "whole")
    pruned, notes = prune(Prune24(method=method), artifact, tmp_path / "pruned", base)
    found = zeros(pruned)
    for name in ("left.0.weight", "right.0.weight", "residual.0.weight"):
        groups = found[name].movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(dim=1) >= 2).all(), name
    assert "multiples" in notes["left_alone"]["stem.0"]  # one input
    assert "multiples" in notes["left_alone"]["depthwise"]
    assert "none on CPUs" in notes["warning"]
    assert notes["zeros"] == pytest.approx(0.5, abs=0.02)


@needs_modelopt
def test_too_few_samples_choose_no_weights(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Embedded", inputs=TOKENS)
    ctx = small.context(tmp_path / "pruned", base, data=data(artifact, count=7))
    with pytest.raises(UsageError, match="sparsegpt needs at least 8 samples, and 'calibrate' has 7"):
        Prune24(method="sparsegpt").run(artifact, ctx)


@needs_modelopt
def test_data_decide_where_inputs_differ(base, tmp_path):
    """Inputs that are always zero carry nothing, however large their weights."""
    artifact = small.imported(base, tmp_path / "whole", "Embedded", inputs=TOKENS)
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        module.embedding.weight[:, ::2] = 0
        module.first.weight.uniform_(0.05, 0.1)
        module.first.weight[:, ::2] = 1.0
    (tmp_path / "quiet" / "files").mkdir(parents=True)
    artifact = small.at_rest(torch_format.save(module, tmp_path / "quiet" / "files", artifact.path))
    by_size, by_data = (zeros(prune(Prune24(method=method), artifact, tmp_path / method, base)[0]) for method in ("magnitude", "sparsegpt"))
    assert not by_size["first.weight"][:, ::2].any()
    assert by_data["first.weight"][:, ::2].all()


@needs_modelopt
def test_training_keeps_the_zeros_and_moves_the_rest(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    for name, step in (("a", PruneMagnitude(sparsity=0.6)), ("b", Prune24())):
        pruned, _ = prune(step, artifact, tmp_path / name, base)
        tuned = small.at_rest(FineTune(epochs=2, batch=8).run(pruned, small.context(tmp_path / f"{name}-tuned", base, data=data(pruned))))
        sparse = set(torch_format.Record.read(tuned.path).sparse)
        assert sparse
        before, after = torch_format.load(pruned.path), torch_format.load(tuned.path)
        for parameter, gone in zeros(pruned).items():
            if parameter in sparse:
                assert torch.equal(zeros(tuned)[parameter], gone), parameter
            assert not torch.equal(before.get_parameter(parameter), after.get_parameter(parameter))


@needs_modelopt
def test_nothing_to_prune_and_names_that_match_nothing_are_told(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "probabilities", inputs={"image": {"shape": ["N", 64]}})
    with pytest.raises(StepError, match=r"no layer can be pruned 2:4 .*its 4 outputs and 64 inputs are no multiples of 8 and 16"):
        prune(Prune24(), artifact, tmp_path / "a", base)
    with pytest.raises(StepError, match="no weights to set to zero, or all are kept"):
        prune(PruneMagnitude(keep=["*"]), artifact, tmp_path / "b", base)
    for step in (PruneMagnitude(keep=["haed"]), Prune24(keep=["haed"])):
        with pytest.raises(UsageError, match="keep: no layer with weights is named 'haed'"):
            prune(step, artifact, tmp_path / type(step).__name__, base)
    assert (Prune24().splits(), Prune24(method="sparsegpt").splits()) == ((), ("calibrate",))
