"""prune-channels: reaches the MACs it was asked for, keeps outputs and ties, and says what it leaves alone."""

from __future__ import annotations

import pytest
import small_torch as small
import torch
from torch import nn

from edgeopt.core.errors import StepError, UsageError
from edgeopt.formats import torch as torch_format
from edgeopt.passes.prune_channels import PruneChannels, _Subject


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.project(tmp_path_factory.mktemp("user"))


def prune(artifact, folder, **options):
    notes = {}
    return small.at_rest(PruneChannels(**options).run(artifact, small.context(folder, folder, notes))), notes


@pytest.mark.parametrize("macs", [0.8, 0.5, 0.3])
def test_macs_come_close_below_the_goal_and_channels_stay_multiples_of_eight(base, tmp_path, macs):
    artifact = small.imported(base, tmp_path / "whole")
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=macs)
    assert 0.7 * macs < notes["macs_kept"] <= macs
    assert notes["macs"][1] / notes["macs"][0] == pytest.approx(notes["macs_kept"], abs=1e-4)
    assert all(after % 8 == 0 and after < before for before, after in notes["channels"].values())
    assert pruned.signature == artifact.signature
    assert sum(one.numel() for one in torch_format.load(pruned.path).parameters()) == notes["parameters"][1] < notes["parameters"][0]


def test_tied_layers_shrink_together_and_the_output_layer_stays(base, tmp_path):
    pruned, notes = prune(small.imported(base, tmp_path / "whole"), tmp_path / "pruned", macs=0.4)
    module = torch_format.load(pruned.path)
    both = module.left[0].out_channels + module.right[0].out_channels  # concatenated, then depthwise, then summed
    assert module.depthwise.groups == module.depthwise.out_channels == module.residual[0].out_channels == module.head.in_features == both
    assert module.residual[1].num_features == both
    assert module.head.out_features == 10
    assert notes["left_alone"]["head"] == "it makes an output"


def test_what_is_under_keep_keeps_its_weights_and_the_rest_loses_whole_rows(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    whole = torch_format.load(artifact.path)
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.6, keep=["stem", "left.0"])
    module = torch_format.load(pruned.path)
    assert torch.equal(module.stem[0].weight, whole.stem[0].weight)
    assert torch.equal(module.left[0].weight, whole.left[0].weight)
    rows = {tuple(row.flatten().tolist()) for row in whole.right[0].weight}
    kept = {tuple(row.flatten().tolist()) for row in module.right[0].weight}
    assert len(kept) == module.right[0].out_channels < len(rows)
    assert kept < rows
    assert module.depthwise.out_channels == 32 + len(kept)  # concatenated with the side that is kept
    assert notes["left_alone"]["left.0"] == "named under `keep`"


def test_the_result_is_the_same_each_time(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    first, second = (prune(artifact, tmp_path / name, macs=0.5, importance="bn-scale")[0] for name in "ab")
    assert (first.files / "weights.safetensors").read_bytes() == (second.files / "weights.safetensors").read_bytes()


def test_a_pruned_model_can_be_pruned_again(base, tmp_path):
    once, _ = prune(small.imported(base, tmp_path / "whole"), tmp_path / "once", macs=0.7)
    twice, notes = prune(once, tmp_path / "twice", macs=0.7)
    assert notes["macs_kept"] <= 0.7
    assert twice.signature == once.signature


def test_layers_that_the_code_counts_on_are_left_alone(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Attention", inputs={"x": {"shape": ["N", 5, 8]}})
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.7)
    module = torch_format.load(pruned.path)
    assert module.qkv.out_features == 96  # heads are cut from it by fixed sizes
    assert "qkv" in notes["left_alone"]
    assert module.up.out_features < 64


def test_a_feature_that_is_an_output_too_keeps_its_channels(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Features")
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.6)
    assert torch_format.load(pruned.path).second.out_channels == 32
    assert notes["left_alone"]["second"] == "it makes an output"


def test_shared_weights_stay_shared(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Tied", inputs={"tokens": {"shape": ["N", 6], "dtype": "int64"}})
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.65)
    module = torch_format.load(pruned.path)
    assert module.head.weight is module.embedding.weight
    assert module.middle.out_features < 32
    assert "shares its weights" in notes["left_alone"]["wide"]


def test_goals_out_of_reach_name_the_nearest_and_why(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    with pytest.raises(StepError, match=r"1% of the MACs cannot be reached, \d+\.\d% is the nearest") as caught:
        prune(artifact, tmp_path / "a", macs=0.01)
    nearest = float(caught.value.remedy.split("macs: ")[1].split(",")[0])
    _, notes = prune(artifact, tmp_path / "b", macs=nearest)
    assert notes["macs_kept"] <= nearest
    with pytest.raises(StepError, match=r"no channels can be removed .*stem\.0: only 16 channels"):
        prune(artifact, tmp_path / "c", round_to=64)


def test_a_pattern_under_keep_that_names_nothing_is_told(base, tmp_path):
    with pytest.raises(UsageError, match=r"keep: .*'residul\.0'.*\n.*did you mean 'residual\.0'"):
        prune(small.imported(base, tmp_path / "whole"), tmp_path / "pruned", keep=["residul.0"])


def test_a_size_that_the_code_counts_on_is_found_by_trying(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Reshaping", inputs={"x": {"shape": ["N", 16]}})
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.8)
    assert "counts on its size" in notes["left_alone"]["first"]
    assert torch_format.load(pruned.path).second.out_features < 64


def test_heads_of_torch_s_attention_lose_the_same_places():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 32), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 3)).eval()
    subject = _Subject(module, [torch.randn(2, 5, 6)], lambda value: [value])
    [stream] = [part for part in subject.parts("magnitude", 8) if "0" in part.outward]
    assert all([channel // 8 for channel in unit] == [0, 1, 2, 3] for unit in stream.order)
    assert subject.cut([(stream, 2)]) == ""
    assert module[1].self_attn.embed_dim == 24
