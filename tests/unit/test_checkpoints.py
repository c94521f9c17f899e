"""Checkpoints: a run that is killed goes on, to the same weights; nothing is left behind."""

from __future__ import annotations

import small_torch as small

import edgeopt

DATA = """
import os, signal
from pathlib import Path
import numpy as np

def images(seed):
    numbers = np.random.default_rng(seed)
    for _ in range(60):
        image = numbers.random(64, dtype=np.float32)
        yield image, int(image.reshape(4, 16).mean(axis=1).argmax())

def train():
    return images(0)

def tune():
    return images(1)

def evaluate():
    return images(2)

def augment(batch, numbers):
    augment.calls += 1
    flag = Path(os.environ["KILLED"])
    if augment.calls > 10 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": batch["image"] + numbers.normal(0, 0.1, batch["image"].shape).astype(np.float32)}

augment.calls = 0
"""

RECIPE = """
edgeopt: 1
name: killed
model: {torch: {factory: "net/model.py:dropping", inputs: {image: {shape: [N, 64], dtype: float32}}}}
data: {train: {python: data.py:train}, tune: {python: data.py:tune}, evaluate: {python: data.py:evaluate}}
scores: [top1]
variants:
  fp32: []
  tuned: [{fine-tune: {epochs: 6, batch: 20, lr: 0.02, augment: data.py:augment}}]
targets: ["null"]
"""


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    """Ten batches of three per epoch, then SIGKILL: three whole epochs are behind it."""
    base = small.project(tmp_path / "user")
    (base / "data.py").write_text(DATA)
    (base / "recipe.yaml").write_text(RECIPE)

    def build(name, killed):
        monkeypatch.setenv("KILLED", str(killed))
        store = edgeopt.Store(tmp_path / name)
        made = edgeopt.build(edgeopt.plan(edgeopt.load_recipe(base / "recipe.yaml"), store), tmp_path / f"{name}-run", store=store)
        return made.of("tuned", "null"), store

    row, store = build("broken", tmp_path / "killed")
    assert (row.status, "killed by the system" in (row.reason or "")) == ("failed", True)
    assert [entry.kind for entry in store.entries() if entry.kind == "checkpoints"] == ["checkpoints"]
    row, store = build("broken", tmp_path / "killed")
    assert row.status == "built", row.reason
    assert "checkpoints" not in {entry.kind for entry in store.entries()}
    [notes] = [step.notes for step in row.history if step.step == "fine-tune"]
    assert notes["resumed_after_epoch"] == 3
    (tmp_path / "never").touch()
    unbroken, _ = build("whole", tmp_path / "never")
    [wanted] = [step.notes for step in unbroken.history if step.step == "fine-tune"]
    assert notes == {**wanted, "resumed_after_epoch": 3}
    found = [
        {path.read_bytes() for path in (tmp_path / name).glob("artifacts/*/*/files/weights.safetensors")} for name in ("broken", "whole")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 2  # as imported, and trained
