"""A run folder built here and measured elsewhere: other paths, an empty store, and samples that must be the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt.cli import call
from edgeopt.core.errors import UsageError
from edgeopt.core.plan import Plan
from tests import walks

RECIPE = (
    walks.RECIPE.replace("{npz: evaluate.npz}", "{python: data.py:evaluate, reads: [evaluate.npz]}")
    .replace("sqnr]", "{python: {source: judge.py:score, label: mine}}]")
    .replace('["null"]', '["null", {rtx-ada: {need: built}}]')
)
DATA = """
from pathlib import Path
import numpy as np
from limits import most
def evaluate():
    with np.load(Path(__file__).parent / "evaluate.npz") as file:
        for x, label in zip(file["x"][:most], file["labels"]):
            yield x, int(label)
"""
SCORE = "def score(outputs, label, reference):\n    return 1\n"


def written(folder: Path) -> Path:
    path = walks.write(folder, RECIPE)
    (folder / "data.py").write_text(DATA)
    (folder / "limits.py").write_text("most = 24\n")
    (folder / "judge.py").write_text(SCORE)
    return path


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `first` that holds the recipe's folder `r` and the run folder `runs/out`; what comes after has an empty store."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "store"))
    assert call(["build", str(written(tmp_path / "first/r")), "--output", str(tmp_path / "first/runs/out"), "--quiet"]) == 0
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "other store"))
    return tmp_path / "first"


def judged(folder: Path) -> None:
    assert call(["report", str(folder)]) == 0
    assert call(["bundle", str(folder)]) == 0
    assert (folder / "bundles/null/manifest.json").is_file()
    report = edgeopt.Report.read(folder)
    assert [(row.target, row.status, row.scores["mine"].samples) for row in report.rows] == [
        ("null", "measured", 24),
        ("rtx-ada", "built", 24),
    ]


def test_run_folder_and_recipe_moved_together_are_measured_there(built: Path) -> None:
    there = built.rename(built.with_name("there"))
    assert call(["measure", str(there / "runs/out"), "--quiet"]) == 0
    judged(there / "runs/out")


def test_a_run_folder_that_moved_alone_on_its_machine_is_measured(built: Path, tmp_path: Path) -> None:
    out = (built / "runs/out").rename(tmp_path / "out")
    assert call(["measure", str(out), "--quiet"]) == 0
    judged(out)


def test_moved_apart_the_recipe_folder_has_to_be_named(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = (built / "runs/out").rename(tmp_path / "out")
    recipe = (built / "r").rename(tmp_path / "elsewhere")
    assert call(["measure", str(out), "--quiet"]) == 2
    assert "--recipe-folder" in capsys.readouterr().err
    assert call(["measure", str(out), "--quiet", "--recipe-folder", str(recipe)]) == 0
    judged(out)  # the plan keeps what was said
    assert call(["measure", str(out), "--recipe-folder", str(tmp_path / "gone")]) == 2


def labels(folder: Path) -> None:
    with np.load(folder / "evaluate.npz") as file:
        held = {"x": file["x"], "labels": (file["labels"] + 1) % 4}
    np.savez(folder / "evaluate.npz", **held)


OTHER: dict[str, tuple[Callable[[Path], object], str]] = {
    "other samples": (lambda folder: walks.data(folder / "evaluate.npz", 40, 77), "sample 0 of 'evaluate' is not the one"),
    "other labels": (labels, "sample 0 of 'evaluate' is not the one"),
    "fewer samples": (lambda folder: (folder / "limits.py").write_text("most = 20\n"), "holds 20 samples, and the build saw 24"),
    "more samples": (lambda folder: (folder / "limits.py").write_text("most = 30\n"), "sample 24 of 'evaluate' is not the one"),
    "another score": (lambda folder: (folder / "judge.py").write_text(SCORE.replace("1", "2")), "code changed"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_data_or_scores_are_refused(built: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, told = OTHER[name]
    change(built / "r")
    assert call(["measure", str(built / "runs/out"), "--quiet"]) == 2
    assert told in capsys.readouterr().err
    assert not (built / "runs/out/sessions").exists()


def test_without_the_model_that_went_in_a_row_built_for_elsewhere_says_what_to_do(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(built / "runs/out/models")
    assert call(["measure", str(built / "runs/out"), "--quiet"]) == 2
    assert "edgeopt build" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "told"), [("model.onnx", "import-onnx: its files changed"), ("calibrate.npz", "'calibrate' changed")])
def test_a_plan_is_not_built_from_files_that_changed_since(tmp_path: Path, own_store: Path, file: str, told: str) -> None:
    plan = edgeopt.plan(edgeopt.load_recipe(walks.write(tmp_path / "r")))
    if file == "model.onnx":
        walks.model(tmp_path / "r" / file, seed=5)
    else:
        walks.data(tmp_path / "r" / file, 64, 99)
    with pytest.raises(UsageError, match=told):
        edgeopt.build(plan, tmp_path / "out")


def test_threads_follow_the_machine_that_measures(tmp_path: Path, own_store: Path) -> None:
    from edgeopt.core import machine

    plan = edgeopt.plan(
        edgeopt.load_recipe(walks.write(tmp_path / "r", walks.RECIPE.replace('"null"', "{extends: 'null', threads: auto}")))
    )
    other = plan.model_copy(update={"targets": [one.model_copy(update={"threads": 99}) for one in plan.targets]})
    edgeopt.build(other, tmp_path / "out")
    [session] = edgeopt.measure(other, tmp_path / "out")
    assert session.threads == machine.threads() == Plan.read(tmp_path / "out").targets[0].threads
