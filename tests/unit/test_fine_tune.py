"""fine-tune: learns, keeps the best epoch, is the same each time, and says what is wrong with losses and labels."""

from __future__ import annotations

import numpy as np
import pytest
import small_torch as small
import torch

from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Sample, Split
from edgeopt.formats import torch as torch_format
from edgeopt.passes import fine_tune_samples
from edgeopt.passes.fine_tune import FineTune


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = small.project(tmp_path_factory.mktemp("user"))
    (base / "augment.py").write_text(
        "def flip(batch, numbers):\n    return {'image': batch['image'][:, ::-1].copy()}\n\ndef wrong(batch, numbers):\n    return {}\n"
    )
    return base


@pytest.fixture(scope="module")
def model(base, tmp_path_factory):
    """Sixty-four pixels to the probabilities of four classes."""
    return small.imported(base, tmp_path_factory.mktemp("model") / "rest", "probabilities", inputs={"image": {"shape": ["N", 64]}})


def samples(count, seed=0, label=lambda image: int(image.reshape(4, 16).mean(axis=1).argmax())):
    """Images with one bright quarter; the label says which."""
    numbers = np.random.default_rng(seed)
    for _ in range(count):
        image = numbers.random((4, 16), dtype=np.float32)
        image[numbers.integers(4)] += 0.5
        yield Sample({"image": image.ravel()}, label(image))


def splits(artifact, train=300, tune=100, **options):
    sizes = {"train": train, "tune": tune}
    return {
        name: Split(name, lambda count=count, seed=seed: samples(count, seed, **options), artifact.signature)
        for seed, (name, count) in enumerate(sizes.items())
        if count
    }


def train(artifact, folder, base, data=None, reference=None, **options):
    notes, told = {}, []
    ctx = small.context(
        folder, base, notes, data=data or splits(artifact), seed=5, reference=reference, progress=lambda *what: told.append(what)
    )
    return small.at_rest(FineTune(**{"epochs": 4, "lr": 0.02, **options}).run(artifact, ctx)), notes, told


def accuracy(artifact):
    run = torch_format.Torch().runner(artifact.path)
    [(feeds, labels)] = splits(artifact, train=200)["train"].batches(200)
    return float((run(feeds)["output"].argmax(axis=1) == np.array(labels)).mean())


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "lr": 0.3}, {"optimizer": "adam", "schedule": "constant"}])
def test_training_learns_and_notes_its_losses(base, model, tmp_path, options):
    tuned, notes, told = train(model, tmp_path / "tuned", base, **options)
    assert accuracy(tuned) > 0.9 > accuracy(model)
    assert notes["loss"] == "cross-entropy"
    assert len(notes["losses"]) == 4
    assert len(notes["tune_losses"]) == 5  # the start included
    assert notes["tune_losses"][notes["best_epoch"]] == min(notes["tune_losses"])
    assert [done for done, total, _ in told[:-1] if total == 4 * 300 and not done % 300] == [0, 300, 600, 900]
    assert told[-1] == (1, 1, f"epoch 4: loss {notes['losses'][-1]:.4f}, tune {notes['tune_losses'][-1]:.4f}")
    assert tuned.signature == model.signature


def test_softmax_outputs_are_trained_on_their_logarithms(base, model, tmp_path):
    _, notes, _ = train(model, tmp_path / "tuned", base, epochs=1, lr=1e-9)
    run = torch_format.Torch().runner(model.path)
    [(feeds, labels)] = splits(model)["tune"].batches(100)
    wanted = -np.log(run(feeds)["output"][np.arange(100), labels]).mean()
    assert notes["tune_losses"][0] == pytest.approx(wanted, rel=1e-4)


def test_the_same_seed_gives_the_same_weights(base, model, tmp_path):
    first, second = (train(model, tmp_path / name, base, epochs=2)[0] for name in "ab")
    assert (first.files / "weights.safetensors").read_bytes() == (second.files / "weights.safetensors").read_bytes()


def test_the_process_s_random_state_is_left_as_it_was(base, model, tmp_path):
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    train(model, tmp_path / "tuned", base, epochs=1)
    assert torch.equal(torch.rand(1), wanted)
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_that_only_hurts_keeps_the_start_and_stops(base, model, tmp_path):
    good, _, _ = train(model, tmp_path / "good", base, epochs=6)
    worse, notes, _ = train(good, tmp_path / "worse", base, optimizer="sgd", lr=500, schedule="constant", epochs=6, patience=2)
    assert notes["best_epoch"] == 0
    assert len(notes["losses"]) == 2
    assert accuracy(worse) == accuracy(good)


def test_without_a_tune_split_the_last_epoch_counts(base, model, tmp_path):
    _, notes, _ = train(model, tmp_path / "tuned", base, splits(model, tune=0), epochs=2)
    assert notes["best_epoch"] == 2
    assert notes["tune_losses"] == []


def test_distillation_learns_from_the_reference_without_labels(base, model, tmp_path):
    teacher, _, _ = train(model, tmp_path / "teacher", base, epochs=6)
    unlabelled = splits(model, label=lambda image: None)
    student, notes, _ = train(model, tmp_path / "student", base, unlabelled, reference=teacher, temperature=2)
    assert notes["loss"] == "distill"
    assert accuracy(student) > 0.85
    _, notes, _ = train(model, tmp_path / "both", base, reference=teacher, loss="distill", label_weight=1.0, epochs=1, lr=1e-9)
    _, plain, _ = train(model, tmp_path / "plain", base, epochs=1, lr=1e-9)
    assert notes["tune_losses"] == pytest.approx(plain["tune_losses"], rel=1e-5)


def test_regression_takes_the_mean_squared_error(base, model, tmp_path):
    data = splits(model, label=lambda image: image.mean(axis=1))
    _, notes, _ = train(model, tmp_path / "tuned", base, data)
    assert notes["loss"] == "mse"
    assert notes["tune_losses"][-1] < notes["tune_losses"][0]


def test_a_set_larger_than_memory_is_shuffled_through_a_buffer(base, model, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tune_samples, "IN_MEMORY", 50 * 264)
    data = splits(model)
    shuffled = fine_tune_samples.Shuffled(data["train"])
    assert (shuffled.held, shuffled.count) == ([], 300)
    walks = [[float(sample.inputs["image"].sum()) for sample in shuffled.samples(np.random.default_rng(seed))] for seed in (0, 0, 1)]
    plain = [float(sample.inputs["image"].sum()) for sample in data["train"]]
    assert sorted(walks[0]) == sorted(plain)
    assert walks[0] == walks[1] != walks[2]
    assert accuracy(train(model, tmp_path / "tuned", base, data)[0]) > 0.9


def test_augment_runs_on_batches_with_seeded_numbers(base, model, tmp_path):
    tuned, _, _ = train(model, tmp_path / "tuned", base, augment="augment.py:flip", epochs=6)
    assert accuracy(tuned) < 0.5  # it learned the labels of mirrored images
    assert [path.name for path in FineTune(augment="augment.py:flip").user_files(base)] == ["augment.py"]
    with pytest.raises(UsageError, match="did not return the batch"):
        train(model, tmp_path / "wrong", base, augment="augment.py:wrong")


def test_a_fixed_batch_counts_only_real_samples(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest", "probabilities", inputs={"image": {"shape": [8, 64]}})
    _, notes, _ = train(artifact, tmp_path / "tuned", base, splits(artifact, train=20, tune=9), epochs=1, lr=1e-9)
    run = torch_format.Torch().runner(artifact.path)
    losses = [
        -np.log(run(feeds)["output"][row, label])
        for feeds, labels in splits(artifact, tune=9)["tune"].batches(8)
        for row, label in enumerate(labels)
    ]
    assert len(losses) == 9
    assert notes["tune_losses"][0] == pytest.approx(np.mean(losses), rel=1e-4)


def test_batch_norm_survives_a_last_batch_of_one(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    images = [Sample({"image": np.full((1, 12, 12), index, np.float32)}, index % 10) for index in range(9)]
    data = {"train": Split("train", lambda: iter(images), artifact.signature)}
    _, notes, _ = train(artifact, tmp_path / "tuned", base, data, batch=4, epochs=1)
    assert np.isfinite(notes["losses"]).all()


def test_a_loss_that_is_not_a_number_names_epoch_and_batch(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    images = [Sample({"image": np.ones((1, 12, 12), np.float32) * index}, index % 10) for index in range(12)]
    data = {"train": Split("train", lambda: iter(images), artifact.signature)}
    with pytest.raises(StepError, match=r"loss is (nan|inf) in epoch \d, batch \d\n.*lower the learning rate"):
        train(artifact, tmp_path / "tuned", base, data, optimizer="sgd", lr=1e30, batch=4)


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (lambda image: None, {"loss": "cross-entropy"}, "'train' has no labels, and 'cross-entropy' needs them"),
        (lambda image: None, {}, "distillation learns from the reference variant"),
        (lambda image: 4, {}, "the label 4 is out of range: the model has 4 classes"),
        (lambda image: 0.5, {"loss": "cross-entropy"}, "are no class indices"),
        (lambda image: image[:2].mean(axis=1), {}, r"labels of shape \[64, 2\] do not fit an output of shape \[64, 4\]"),
        (lambda image: "cat", {"loss": "cross-entropy"}, "the label 'cat' is not a number"),
        (lambda image: 1, {"output": "outptu"}, "no output 'outptu'.*\n.*did you mean 'output'"),
    ],
)
def test_labels_and_outputs_that_do_not_fit_are_told(base, model, tmp_path, label, options, message):
    with pytest.raises(UsageError, match=message):
        train(model, tmp_path / "tuned", base, splits(model, label=label), **options)


def test_a_pruned_model_comes_back(base, tmp_path):
    from edgeopt.passes.prune_channels import PruneChannels

    artifact = small.imported(base, tmp_path / "rest")
    pruned = small.at_rest(PruneChannels(macs=0.5).run(artifact, small.context(tmp_path / "pruned", base)))
    teacher = torch_format.Torch().runner(artifact.path)
    images = [Sample({"image": np.random.default_rng(index).random((1, 12, 12), dtype=np.float32) * (index % 7)}) for index in range(64)]
    data = {name: Split(name, lambda: iter(images), artifact.signature) for name in ("train", "tune")}
    tuned, notes, _ = train(pruned, tmp_path / "tuned", base, data, reference=artifact, batch=16, epochs=3, lr=3e-3)
    [(feeds, _)] = data["tune"].batches(64)
    before, after = (
        np.abs(torch_format.Torch().runner(one.path)(feeds)["output"] - teacher(feeds)["output"]).mean() for one in (pruned, tuned)
    )
    assert notes["tune_losses"][-1] < notes["tune_losses"][0]
    assert after < before


STEPS = """
import torch
from torch.nn import functional

def step(model, batch, labels, teacher):
    assert model.training == torch.is_grad_enabled()
    given = model(batch["image"])
    with torch.no_grad():
        wanted = teacher(batch["image"])
    return functional.kl_div(given.log(), wanted, reduction="batchmean") + 0.0 * len(labels)

def label_step(model, batch, labels, teacher):
    return functional.cross_entropy(model(batch["image"]).clamp_min(1e-12).log(), torch.tensor(labels))

def two(model, batch, labels, teacher):
    return model(batch["image"]).mean(dim=1)

def detached(model, batch, labels, teacher):
    return torch.zeros(())

def broken(model, batch, labels, teacher):
    return model(batch["picture"])
"""


@pytest.fixture(scope="module")
def stepped(base):
    (base / "steps.py").write_text(STEPS)
    return base


def test_a_step_of_one_s_own_sees_model_batch_labels_and_teacher(stepped, model, tmp_path):
    teacher, _, _ = train(model, tmp_path / "teacher", stepped, epochs=6)
    student, notes, _ = train(model, tmp_path / "student", stepped, reference=teacher, step="steps.py:step", epochs=6)
    assert notes["loss"] == "step"
    assert accuracy(student) > 0.85
    plain, ours = (train(model, tmp_path / name, stepped, epochs=2, **options)[0] for name, options in (("a", {}), ("b", LABEL_STEP)))
    assert (plain.files / "weights.safetensors").read_bytes() == (ours.files / "weights.safetensors").read_bytes()
    assert [path.name for path in FineTune(**LABEL_STEP).user_files(stepped)] == ["steps.py"]


LABEL_STEP = {"step": "steps.py:label_step"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("two", r"returned torch.float32 of shape \[\d+\], not one number"),
        ("detached", "a loss that no weight leads to"),
        ("broken", r"steps.py:\d+: step 'steps.py:broken': KeyError"),
    ],
)
def test_a_step_that_returns_no_loss_is_told(stepped, model, tmp_path, function, message):
    with pytest.raises(UsageError, match=message):
        train(model, tmp_path / "tuned", stepped, splits(model, tune=0), step=f"steps.py:{function}")


def test_a_step_and_a_loss_exclude_one_another():
    with pytest.raises(ValueError, match="`step` computes the loss by itself, and `loss` says another"):
        FineTune(step="steps.py:step", loss="mse")


def test_outputs_that_are_no_classes_are_taught_by_their_squared_distance(base, model, tmp_path):
    teacher, _, _ = train(model, tmp_path / "teacher", base, epochs=6)
    unlabelled = splits(model, label=lambda image: None)
    student, notes, _ = train(model, tmp_path / "student", base, unlabelled, reference=teacher, loss="distill-mse", lr=0.05, epochs=6)
    assert notes["tune_losses"][-1] < 0.3 * notes["tune_losses"][0]
    assert accuracy(student) > 0.85


HEADS = """
import torch
from torch import nn

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.large, self.small = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, image):
        hidden = torch.tanh(self.trunk(image))
        return {"large": 100 * self.large(hidden), "small": self.small(hidden) / 100}

def build(seed):
    torch.manual_seed(seed)
    return Heads()
"""


def test_all_outputs_are_taught_alike_and_those_that_are_not_trained_are_named(base, tmp_path):
    (base / "heads.py").write_text(HEADS)
    given = {"factory": "heads.py:build", "inputs": {"image": {"shape": ["N", 64]}}}
    teacher, student = (small.imported(base, tmp_path / str(seed), arguments={"seed": seed}, **given) for seed in (1, 2))
    unlabelled = splits(teacher, label=lambda image: None)
    taught, notes, _ = train(student, tmp_path / "taught", base, unlabelled, reference=teacher, loss="distill-mse", epochs=16)
    assert "untrained_outputs" not in notes
    [(feeds, _)] = unlabelled["tune"].batches(100)
    wanted, before, after = (torch_format.Torch().runner(one.path)(feeds) for one in (teacher, student, taught))
    for name in ("large", "small"):
        assert np.square(after[name] - wanted[name]).sum() < 0.25 * np.square(before[name] - wanted[name]).sum()
    _, notes, _ = train(student, tmp_path / "first", base, unlabelled, reference=teacher, loss="distill", epochs=1)
    assert notes["untrained_outputs"] == ["small"]
    _, notes, _ = train(student, tmp_path / "named", base, unlabelled, reference=teacher, loss="distill-mse", output="small", epochs=1)
    assert "untrained_outputs" not in notes


def test_patience_without_a_split_to_watch_is_told(base, model, tmp_path):
    with pytest.raises(UsageError, match="`patience` watches the loss on 'tune'"):
        train(model, tmp_path / "tuned", base, splits(model, tune=0), patience=2)


def test_clipped_gradients_survive_a_rate_that_diverges_without(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    images = [Sample({"image": np.ones((1, 12, 12), np.float32) * 1e4 * index}, index % 10) for index in range(12)]
    data = {"train": Split("train", lambda: iter(images), artifact.signature)}
    _, notes, _ = train(artifact, tmp_path / "tuned", base, data, optimizer="sgd", lr=1e-3, batch=4, clip=1e-3)
    assert np.isfinite(notes["losses"]).all()


def test_zeros_of_sparse_weights_stay_zeros(base, tmp_path):
    artifact = small.imported(base, tmp_path / "rest")
    module = torch_format.load(artifact.path)
    with torch.no_grad():
        module.stem[0].weight[::2] = 0
        module.head.weight[:, ::3] = 0
    folder = tmp_path / "sparse" / "files"
    folder.mkdir(parents=True)
    sparse = small.at_rest(torch_format.save(module, folder, artifact.path, sparse=["stem.0.weight"]))
    images = [Sample({"image": np.random.default_rng(index).random((1, 12, 12), dtype=np.float32)}, index % 10) for index in range(32)]
    data = {"train": Split("train", lambda: iter(images), artifact.signature)}
    tuned, _, _ = train(sparse, tmp_path / "tuned", base, data, batch=8)
    after = torch_format.load(tuned.path)
    assert torch.equal(after.stem[0].weight != 0, module.stem[0].weight != 0)
    assert not torch.equal(after.stem[0].weight, module.stem[0].weight)
    assert (after.head.weight != 0).all()  # zeros that nobody asked to keep are free
    assert torch_format.Record.read(tuned.path).sparse == ("stem.0.weight",)
