"""prune-channels: reaches the MACs it was asked for, keeps outputs and ties, and says what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import small_torch as small
import torch
from torch import nn

from edgeopt.core import usercode
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Sample, Split
from edgeopt.formats import torch as torch_format
from edgeopt.passes.prune_channels import PruneChannels
from edgeopt.passes.prune_channels_choice import Unreachable
from edgeopt.passes.prune_channels_latency import Latency
from edgeopt.passes.prune_channels_subject import Subject


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
    subject = Subject(module, [torch.randn(2, 5, 6)], lambda value: [value])
    [stream] = [part for part in subject.parts("magnitude", 8) if "0" in part.outward]
    assert all([channel // 8 for channel in unit] == [0, 1, 2, 3] for unit in stream.order)
    assert subject.cut([(stream, 2)]) == ""
    assert module[1].self_attn.embed_dim == 24


SEQUENCE = {"x": {"shape": ["N", 7, 6]}}


@pytest.mark.parametrize(("kind", "layers", "both"), [("LSTM", 1, False), ("LSTM", 2, True), ("GRU", 2, False), ("RNN", 1, True)])
def test_recurrent_layers_lose_hidden_units_from_every_gate(base, kind, layers, both):
    """Units that nothing reads go, and the outputs stay what they were."""
    torch.manual_seed(0)
    module = usercode.load("net/model.py:Sequence", base)(kind, layers, both).eval()
    dead = torch.randperm(16)[:8]
    with torch.no_grad():
        for name, one in module.rnn.named_parameters():
            if name.startswith(("weight_hh", "weight_ih_l1")):
                one.view(-1, one.shape[1] // 16, 16)[..., dead] = 0
        module.fc.weight.view(32, -1, 16)[..., dead] = 0
    given = torch.randn(3, 7, 6)
    wanted = module(given)
    subject = Subject(module, [given], lambda value: [value])
    [part] = [part for part in subject.parts("magnitude", 8) if part.name == "rnn"]
    assert subject.cut([(part, 8)]) == ""
    assert module.rnn.hidden_size == 8
    assert torch.allclose(module(given), wanted, atol=1e-6)


def test_a_recurrent_model_reaches_its_goal_and_comes_back_from_disk(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Sequence", arguments={"kind": "GRU", "layers": 2}, inputs=SEQUENCE)
    pruned, notes = prune(artifact, tmp_path / "pruned", macs=0.5)
    assert notes["macs_kept"] <= 0.5
    assert torch_format.load(pruned.path).rnn.hidden_size == 8
    assert notes["channels"]["rnn"] == [16, 8]


def test_a_recurrent_layer_whose_states_are_read_in_an_order_of_their_own_stays(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", "Sequence", arguments={"kind": "LSTM", "layers": 2, "state": True}, inputs=SEQUENCE)
    pruned, notes = prune(artifact, tmp_path / "pruned", ratio=0.5)
    assert torch_format.load(pruned.path).rnn.hidden_size == 16
    assert notes["left_alone"] == {
        "head": "it makes an output",
        **dict.fromkeys(("embed", "rnn"), "what reads its channels cannot be followed"),
    }
    assert notes["channels"] == {"fc": [32, 16]}


def test_every_layer_loses_the_ratio_and_patterns_choose_among_them(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    _, notes = prune(artifact, tmp_path / "all", ratio=0.5)
    assert {name: after / before for name, (before, after) in notes["channels"].items()} == dict.fromkeys(notes["channels"], 0.5)
    _, notes = prune(artifact, tmp_path / "some", ratios={"left.*": 0.75, "right": 0.25})
    assert (notes["channels"]["left.0"], notes["channels"]["right.0"]) == ([32, 8], [32, 24])
    assert "stem.0" not in notes["channels"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratios": {"head": 0.5}}, StepError, "'head' names can lose that share of its channels .head: it makes an output"),
        ({"ratios": {"left.0": 0.1}}, StepError, "'left.0' names .*round_to leaves them all"),
        ({"ratios": {"lfet": 0.5}}, UsageError, "ratios: no convolution or linear layer is named 'lfet'"),
        ({"importance": "taylor"}, UsageError, "importance: taylor needs samples"),
    ],
)
def test_goals_that_make_no_sense_are_told(base, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        prune(small.imported(base, tmp_path / "whole"), tmp_path / "pruned", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "ratio": 0.5}, "`macs` and `ratio` are both goals"),
        ({"fine_tune": {"epochs": 2}}, "`fine_tune` is for between steps"),
        ({"ratios": {}}, "at least 1 item"),
        ({"latency": 1.0}, "less than 1"),
    ],
)
def test_options_that_exclude_one_another_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PruneChannels(**options)


def test_only_data_and_doors_that_the_options_use_are_in_the_key():
    assert (PruneChannels().splits(), PruneChannels().doors()) == ((), ())
    assert PruneChannels(importance="taylor").splits() == ("train?", "calibrate?")
    assert PruneChannels(steps=2).splits() == ("train", "tune?")
    assert (PruneChannels(steps=2).doors(), PruneChannels(latency=0.5).doors()) == (("reference",), ("machine",))


def images(count, label="class"):
    numbers = np.random.default_rng(0)
    for _ in range(count):
        image = numbers.random((1, 12, 12), dtype=np.float32)
        labels = {"class": int(image.sum()) % 10, "boxes": np.ones((3, 5), np.float32), "none": None}
        yield Sample({"image": image}, labels[label])


@pytest.mark.parametrize("label", ["class", "boxes", "none"])
def test_taylor_removes_the_channels_that_the_loss_does_not_feel(base, tmp_path, label):
    """Large weights that nothing reads mislead magnitude, and not the gradient."""
    artifact = small.imported(base, tmp_path / "whole")
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        module.left[0].weight[::2] *= 100
        module.left[1].weight[::2] *= 100
        module.depthwise.weight[:32:2] = 0
        module.depthwise.bias[:32:2] = 0
        module.residual[1].weight[:32:2] = 0
        module.residual[1].bias[:32:2] = 0
    loud = [row.clone() for row in module.left[0].weight[::2]]
    (tmp_path / "loud" / "files").mkdir(parents=True)
    artifact = small.at_rest(torch_format.save(module, tmp_path / "loud" / "files", artifact.path))

    notes = {}

    def kept(importance):
        data = {"train": Split("train", lambda: images(64, label), artifact.signature)}
        ctx = small.context(tmp_path / importance, base, notes, data=data)
        made = PruneChannels(ratios={"left": 0.5}, importance=importance).run(artifact, ctx)
        left = torch_format.load(made).left[0].weight
        return sum(any(torch.equal(row, one) for one in loud) for row in left)

    assert kept("magnitude") == 16
    assert kept("taylor") <= 2
    assert ("do not fit" in notes.get("ranked_without_labels", "")) == (label == "boxes")


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_samples_rank_no_channels(base, tmp_path, count):
    artifact = small.imported(base, tmp_path / "whole")
    ctx = small.context(tmp_path / "pruned", base, data={"train": Split("train", lambda: images(count), artifact.signature)})
    with pytest.raises(UsageError, match=f"taylor needs at least 8 samples, and .train. has {count}"):
        PruneChannels(ratios={"left": 0.5}, importance="taylor").run(artifact, ctx)


def stepwise(artifact, folder, base, checkpoints=None, fails_at=99, **options):
    """Prune in three steps; the training data breaks at that walk."""
    walks = iter(range(99))

    def samples():
        if next(walks) == fails_at:
            raise KeyboardInterrupt
        return images(40)

    notes = {}
    data = {"train": Split("train", samples, artifact.signature)}
    ctx = small.context(folder, base, notes, data=data, seed=3, checkpoints=checkpoints)
    tuning = {"epochs": 2, "batch": 10}
    return small.at_rest(PruneChannels(steps=3, fine_tune=tuning, **{"macs": 0.3, **options}).run(artifact, ctx)), notes


def test_steps_come_down_evenly_with_training_between_them(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    _, notes = stepwise(artifact, tmp_path / "pruned", base, round_to=4)
    shares = [step["macs_kept"] for step in notes["steps"]]
    assert 1 > shares[0] > shares[1] > notes["macs_kept"]
    assert notes["macs_kept"] <= 0.3
    assert all(len(step["losses"]) == 2 for step in notes["steps"])
    _, notes = stepwise(artifact, tmp_path / "ratio", base, macs=None, ratio=0.5, round_to=4)
    assert notes["channels"]["left.0"] == [32, 16]


def test_a_run_killed_between_steps_goes_on_to_the_same_weights(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole")
    wanted, told = stepwise(artifact, tmp_path / "unbroken", base, tmp_path / "other", round_to=4)
    with pytest.raises(KeyboardInterrupt):
        stepwise(artifact, tmp_path / "killed", base, tmp_path / "checkpoints", fails_at=1, round_to=4)  # one walk for each training
    assert (tmp_path / "checkpoints" / "step-1").is_dir()
    found, notes = stepwise(artifact, tmp_path / "resumed", base, tmp_path / "checkpoints", round_to=4)
    assert notes == told
    assert (found.files / "weights.safetensors").read_bytes() == (wanted.files / "weights.safetensors").read_bytes()


def test_a_latency_is_met_on_this_machine_and_what_was_measured_is_told(base, tmp_path):
    artifact = small.imported(base, tmp_path / "whole", arguments={"width": 32})
    pruned, notes = prune(artifact, tmp_path / "pruned", latency=0.9)
    assert notes["macs_kept"] < 1
    assert len(notes["latency_ms"]) == 2
    assert notes["latency_measured"].startswith("onnxruntime, batch 1, ")
    assert pruned.signature == artifact.signature


class Timer(Latency):
    """Latency as this rule makes it of the share of MACs, for the search alone."""

    def __init__(self, goal, rule):
        super().__init__(goal, None, None, small.Context(folder=None))
        self.rule = rule

    def _session(self, module):
        return module

    def _ratio(self, before, after, blocks):
        return self.rule(after), 1.0, self.rule(after)


def share_of(least):
    def pruned(share):
        if share < least:
            raise Unreachable("too small", "", least)
        return share

    return pruned


def test_the_search_for_a_latency_finds_the_largest_model_that_meets_it():
    assert Timer(0.6, lambda share: 0.2 + 0.8 * share).search(1.0, share_of(0.1)) == pytest.approx(0.5, abs=0.03)
    assert Timer(0.4, lambda share: share).search(1.0, share_of(0.39)) == pytest.approx(0.4, abs=0.02)
    with pytest.raises(StepError, match=r"10% of the latency cannot be reached: 30% is the nearest, with 30% of the MACs"):
        Timer(0.1, lambda share: share).search(1.0, share_of(0.3))
    with pytest.raises(StepError, match="20% of the latency cannot be reached: 5"):
        Timer(0.2, lambda share: 0.5 + share / 2).search(1.0, share_of(0.0))
