"""What a pass's key covers: its own files, those of passes whose code it runs, and what its options make it see."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_torch as small

from edgeopt.core import digest, machine, recipe, registry
from edgeopt.core.store import Store
from edgeopt.stages.plan import plan


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("train-int8", {"train_int8.py", "train_int8_graph.py", "fine_tune_loop.py", "fine_tune_losses.py", "export_onnx.py"}),
        ("prune-channels", {"prune_channels_rounds.py", "fine_tune_loop.py", "fine_tune_checkpoint.py"}),
        ("prune-2-4", {"prune_2_4.py", "prune_magnitude_weights.py"}),
    ],
)
def test_a_key_covers_the_code_that_a_pass_borrows(monkeypatch, name, files):
    seen = set()
    monkeypatch.setattr(digest, "of_file", lambda path: seen.add(Path(path).name) or "sha256:0")
    registry.source_digest(registry.load("passes", name))
    assert files <= seen
    assert "simplify.py" not in seen


RECIPE = """
edgeopt: 1
name: keys
model: {torch: {factory: "net/model.py:build", inputs: {image: {shape: [N, 1, 12, 12], dtype: float32}}}}
data: {train: {npz: train.npz}, calibrate: {npz: calibrate.npz}, evaluate: {npz: evaluate.npz}}
scores: [top1]
variants: {fp32: [], it: [PASSES]}
targets: ["null"]
"""


@pytest.fixture
def base(tmp_path):
    for split in ("train", "calibrate", "evaluate"):
        (tmp_path / f"{split}.npz").write_text(split)  # a plan looks at no sample
    return small.project(tmp_path)


def key(base, passes):
    """The key of the variant's last pass."""
    (base / "recipe.yaml").write_text(RECIPE.replace("PASSES", passes))
    made = plan(recipe.load(base / "recipe.yaml"), Store(base / "store"))
    return next(row for row in made.rows if row.variant == "it").steps[1]


@pytest.mark.parametrize(
    ("passes", "seen"),
    [
        ("prune-channels", set()),
        ("{prune-channels: {steps: 2}}", {"train"}),
        ("{prune-channels: {importance: taylor}}", {"train", "calibrate"}),
        ("{train-int8: {epochs: 0}}", {"calibrate"}),
        ("{prune-2-4: {method: sparsegpt}}", {"calibrate"}),
        ("prune-2-4", set()),
    ],
)
def test_only_data_that_the_options_use_are_in_the_key(base, passes, seen):
    before, found = key(base, passes), set()
    for split in ("train", "calibrate", "evaluate"):
        (base / f"{split}.npz").write_text(f"other {split}")
        if key(base, passes) != before:
            found.add(split)
        (base / f"{split}.npz").write_text(split)
        assert key(base, passes) == before
    assert found == seen


def test_what_is_timed_belongs_to_this_machine(base, monkeypatch):
    here = machine.fingerprint()
    plain, timed = key(base, "prune-channels"), key(base, "{prune-channels: {latency: 0.5}}")
    monkeypatch.setattr(machine, "fingerprint", lambda: {**here, "id": "another"})
    assert key(base, "prune-channels") == plain
    assert key(base, "{prune-channels: {latency: 0.5}}") != timed


@pytest.mark.parametrize(
    ("passes", "target", "parted"),
    [
        ("quantize-int8", "x86-onnxruntime", True),
        ("quantize-int8", "x86-openvino", True),
        ("{quantize-int8: {reduce_range: false}}", "x86-onnxruntime", False),
        ("quantize-int8", "rtx-ada", False),
        ("quantize-int8", "cuda-onnxruntime", False),
    ],
)
def test_keys_part_machines_with_vnni_from_those_without_where_it_decides(base, monkeypatch, passes, target, parted):
    def key_on(number, *isa):
        facts = {**here, "id": str(number), "arch": "x86_64", "isa": ["avx2", *isa]}
        monkeypatch.setattr(machine, "fingerprint", lambda: facts)
        (base / "recipe.yaml").write_text(RECIPE.replace("PASSES", passes).replace('"null"', target))
        made = plan(recipe.load(base / "recipe.yaml"), Store(base / "store"))
        row = next(row for row in made.rows if row.variant == "it")
        return next(key for key in row.steps if made.steps[key].plug == "quantize-int8")

    here = machine.fingerprint()
    assert key_on(1, "avx512_vnni") == key_on(2, "avx_vnni", "amx_int8")
    assert key_on(3) == key_on(4, "avx512f")
    assert (key_on(1, "avx512_vnni") != key_on(3)) == parted


def test_where_the_recipe_and_the_environment_lie_is_in_no_key(tmp_path):
    named = []
    for place in ("here/recipes", "there/deep/recipes"):
        base = tmp_path / place
        installed = base.parent / ".venv/lib/python3.11/site-packages/weights/net.pth"
        for path in (installed, base / "model.py"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("same")
        named.append(digest.of_files([installed, base / "model.py"], base))
    assert (
        named[0]
        == named[1]
        == [["model.py", digest.of_file(base / "model.py")], ["site-packages/weights/net.pth", digest.of_file(installed)]]
    )


def test_a_recipe_is_loaded_from_a_path_or_its_text(base):
    (base / "recipe.yaml").write_text(RECIPE.replace("PASSES", "prune-2-4"))
    assert recipe.load(str(base / "recipe.yaml")) == recipe.load(base / "recipe.yaml")
