"""Scores against values worked out by hand, and on labels and outputs that do not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.core import registry
from edgeopt.core.errors import EdgeoptError, MissingError, UsageError
from edgeopt.core.protocols import Score

SCORES = registry.names("scores")


def make(name: str, **options: Any) -> Score:
    made: Score = registry.load("scores", name).model_validate(options)
    return made


def out(*values: Any, **more: Any) -> dict[str, Any]:
    return {"y": np.array(values, np.float32), **{name: np.asarray(value) for name, value in more.items()}}


def refused(score: Score, outputs: Any, label: Any, *words: str, reference: Any = None) -> EdgeoptError:
    with pytest.raises(UsageError) as caught:
        score.sample(outputs, label, reference)
    assert caught.value.remedy and caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return caught.value


@pytest.mark.parametrize("name", [name for name in SCORES if name != "python"])
def test_scores_say_what_they_are(name: str) -> None:
    score = make(name, label="mine")
    assert score.label == "mine" and make(name).label is None
    assert score.user_files(Path()) == [] and score.packages(Path()) == (["pycocotools"] if name == "map" else [])
    assert score.higher_is_better is (name not in ("mse", "rmse", "mae", "perplexity"))
    assert score.needs_labels is (name not in ("agreement", "sqnr"))
    assert score.needs_reference is (name in ("agreement", "sqnr"))
    assert score.binary is (name in ("top1", "topk", "agreement"))
    assert score.unit == ("dB" if name == "sqnr" else "")


@pytest.mark.parametrize("name", SCORES)
def test_scores_refuse_unknown_options(name: str) -> None:
    with pytest.raises(ValidationError):
        make(name, source="s.py:f", outputt="y") if name == "python" else make(name, outputt="y")


# ---- classes


@pytest.mark.parametrize("label", [2, np.int64(2), np.array([2]), 2.0, np.uint8(2)])
def test_top1_takes_the_index_of_a_class(label: Any) -> None:
    assert make("top1").sample(out(0, 1, 5, 2), label, None) == 1.0
    assert make("top1").sample(out(9, 1, 5, 2), label, None) == 0.0


def test_top1_judges_the_named_output() -> None:
    assert make("top1", output="z").sample(out(5, 0, z=[0, 5]), 1, None) == 1.0
    refused(make("top1", output="zz"), out(5, 0, zzz=[0, 5]), 1, "no output 'zz'", "did you mean 'zzz'?")


def test_top1_sees_through_axes_of_size_one_and_counts_the_first_of_equals() -> None:
    assert make("top1").sample(out([[0, 3, 3]]), 1, None) == 1.0
    assert make("top1").finish(np.array([1.0, 0, 1, 0])) == 0.5


@pytest.mark.parametrize("name", ["top1", "topk"])
@pytest.mark.parametrize(
    ("label", "words"),
    [
        (4, ("label 4 is out of range", "4 classes", "from 0 to 3")),
        (-1, ("label -1 is out of range",)),
        (1.5, ("1.5 is not a whole number",)),
        (float("nan"), ("not a whole number",)),
        (float("inf"), ("not a whole number",)),
        ("cat", ("'cat'", "0 … 3")),
        (None, ("has no label", "agreement or sqnr")),
        (np.array([0, 0, 1, 0]), ("array of shape [4]", "index of a class")),
        ({"box": 1}, ("not the index of a class",)),
    ],
)
def test_labels_that_are_no_class_are_refused(name: str, label: Any, words: tuple[str, ...]) -> None:
    refused(make(name, **({"k": 2} if name == "topk" else {})), out(0, 1, 5, 2), label, *words)


@pytest.mark.parametrize("name", ["top1", "topk", "agreement"])
@pytest.mark.parametrize("values", [[0.7], 0.7])
def test_an_output_without_classes_is_refused(name: str, values: Any) -> None:
    outputs = {"y": np.array(values, np.float32)}
    refused(make(name), outputs, 0, "no values per class", "`output`", reference=outputs)


@pytest.mark.parametrize("name", ["top1", "topk"])
def test_rows_of_classes_have_no_single_label(name: str) -> None:
    refused(make(name), out([0, 1], [1, 0]), 0, "2 rows of values")


def test_topk_counts_the_k_largest() -> None:
    values = out(1, 6, 5, 4, 3, 2, 0)
    assert [make("topk").sample(values, label, None) for label in range(7)] == [0, 1, 1, 1, 1, 1, 0]
    assert make("topk", k=1).sample(values, 1, None) == 1.0
    assert make("topk", k=2).sample(out(3, 3, 3), 2, None) == 0.0
    assert make("topk", k=1).sample({"y": np.array([0, 255], np.uint8)}, 1, None) == 1.0


def test_topk_of_all_classes_is_refused() -> None:
    refused(make("topk"), out(1, 2, 3, 4, 5), 1, "k is 5 and there are 5 classes")
    with pytest.raises(ValidationError):
        make("topk", k=0)


def test_agreement_compares_the_best_class_with_the_reference() -> None:
    assert make("agreement").sample(out(0, 3, 1), None, out(0.1, 0.3, 0.2)) == 1.0
    assert make("agreement").sample(out(0, 3, 1), None, out(0.4, 0.3, 0.2)) == 0.0
    rows = out([0, 1], [1, 0])
    assert make("agreement").sample(rows, None, out([2, 3], [3, 2])) == 1.0
    assert make("agreement").sample(rows, None, out([2, 3], [2, 3])) == 0.0
    refused(make("agreement"), out(0, 1), None, "shape [2]", "[3]", reference=out(0, 1, 2))


# ---- noise


def decibels(pairs: list[tuple[Any, Any]], **options: Any) -> float:
    score = make("sqnr", **options)
    return score.finish(np.array([score.sample(own, None, reference) for own, reference in pairs]))


def test_sqnr_is_the_ratio_of_summed_powers() -> None:
    assert decibels([(out(11.0, 0), out(10.0, 0))]) == pytest.approx(20)
    assert decibels([(out(11.0), out(10.0)), (out(0.0), out(0.0))]) == pytest.approx(20)
    assert decibels([(out(11.0), out(10.0)), (out(1.0), out(0.0))]) == pytest.approx(10 * math.log10(100 / 2))


def test_sqnr_is_that_of_the_worst_output_or_of_the_named_one() -> None:
    own, reference = out(1100.0, z=[0.0, 0.2]), out(1000.0, z=[0.0, 0.1])
    assert decibels([(own, reference)]) == pytest.approx(0)
    assert decibels([(own, reference)], output="y") == pytest.approx(20)
    assert decibels([(out(1001.0, z=[0.0, 1e-6]), out(1000.0, z=[0.0, 0.0]))]) == pytest.approx(60)
    assert decibels([(own, reference), (out(1000.0, z=[0.0, 0.3]), out(1000.0, z=[0.0, 0.3]))]) == pytest.approx(10)


def test_sqnr_stays_within_150_db() -> None:
    assert decibels([(out(1.0), out(1.0))]) == 150
    assert decibels([(out(0.0), out(0.0))]) == 150
    assert decibels([(out(1.0), out(0.0))]) == -150
    assert decibels([({"y": np.array([1 + 1e-15])}, {"y": np.array([1.0])})]) == 150
    huge = {"y": np.full(4, 3e38, np.float32)}
    assert decibels([({"y": np.full(4, -3e38, np.float32)}, huge)]) == pytest.approx(-10 * math.log10(4))


def test_sqnr_takes_integers_and_truths() -> None:
    assert decibels([({"y": np.array([0, 255], np.uint8)}, {"y": np.array([1, 255], np.uint8)})]) == pytest.approx(48.13, abs=0.01)
    assert decibels([({"y": np.array([True])}, {"y": np.array([True])})]) == 150


def test_sqnr_of_unlike_shapes_is_refused() -> None:
    refused(make("sqnr"), out(1.0, 2), None, "output 'y'", "[2]", "[3]", reference=out(1.0, 2, 3))


# ---- differences


def test_differences_are_means_and_the_root_is_taken_once() -> None:
    samples = [(out(1, 2), [1, 4]), (out(0, 0), [6, 0])]  # squares: 0 4, 36 0
    values = {name: [make(name).sample(outputs, label, None) for outputs, label in samples] for name in ("mse", "rmse", "mae")}
    assert values["mse"] == values["rmse"] == [2, 18] and values["mae"] == [1, 3]
    assert make("mse").finish(np.array([2.0, 18])) == 10
    assert make("rmse").finish(np.array([2.0, 18])) == pytest.approx(math.sqrt(10))
    assert make("mae").finish(np.array([1.0, 3])) == 2


@pytest.mark.parametrize("name", ["mse", "rmse", "mae"])
def test_differences_see_through_axes_of_size_one(name: str) -> None:
    assert make(name).sample(out(3.0), 3, None) == 0
    assert make(name).sample(out([1.0], [2.0]), np.array([1, 2]), None) == 0
    assert make(name).sample({"y": np.array([0], np.uint8)}, 1, None) == 1


@pytest.mark.parametrize("name", ["mse", "rmse", "mae"])
def test_labels_that_are_no_truth_are_refused(name: str) -> None:
    refused(make(name), out(1, 2), [1, 2, 3], "label has the shape [3], and the output [2]")
    refused(make(name), out(1, 2), 1, "shape []")
    refused(make(name), out(1, 2), None, "has no label")
    refused(make(name), out(1.0), "cat", "'cat' is not a number")
    refused(make(name, output="z"), out(1.0), 1, "no output 'z'")


# ---- python


def written(folder: Path, text: str, **options: Any) -> Score:
    (folder / "score.py").write_text("import numpy as np\n" + text)
    score = make("python", source="score.py:f", **options)
    score.ready(folder)
    return score


def test_a_python_score_gets_outputs_label_and_reference(tmp_path: Path) -> None:
    score = written(tmp_path, "def f(outputs, label, reference):\n    return outputs['y'].sum() + label + reference['y'].sum()\n")
    assert score.sample(out(1, 2), 10, out(100)) == 113
    assert score.finish(np.array([1.0, 3])) == 2


def test_a_python_score_says_in_the_recipe_what_it_is(tmp_path: Path) -> None:
    plain = written(tmp_path, "def f(o, l, r): return 1\n")
    assert (plain.higher_is_better, plain.unit, plain.needs_labels, plain.needs_reference, plain.binary) == (True, "", False, False, False)
    facts = {"higher_is_better": False, "unit": "m", "needs_labels": True, "needs_reference": True}
    told = make("python", source="score.py:f", **facts)
    assert {name: getattr(told, name) for name in facts} == facts
    again = type(told).model_validate(told.model_dump(mode="json", by_alias=True))
    assert again == told
    assert set(facts) <= set(type(told).model_json_schema()["properties"])


def test_a_python_score_may_keep_statistics_for_a_finish(tmp_path: Path) -> None:
    text = "def f(o, l, r): return [o['y'][0], 2]\ndef g(a): return a[:, 0].sum() / a[:, 1].sum()\n"
    score = written(tmp_path, text, finish="score.py:g")
    values = np.array([score.sample(out(value), None, None) for value in (3, 5)])
    assert values.shape == (2, 2) and score.finish(values) == 2
    single = written(tmp_path, "def f(o, l, r): return [4]\ndef g(a): return a.max()\n", finish="score.py:g")
    assert single.sample(out(1), None, None) == 4 and single.finish(np.array([1.0, 7])) == 7


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("def f(o, l, r): return None\n", None, ("score.py:f returned NoneType, not a number",)),
        ("def f(o, l, r): return 'good'\n", None, ("returned str, not a number",)),
        ("def f(o, l, r): return []\n", None, ("returned list, not a number",)),
        ("def f(o, l, r): return float('nan')\n", None, ("returned nan", "finite")),
        ("def f(o, l, r): return np.inf\n", None, ("returned inf",)),
        ("def f(o, l, r): return [1, 2]\n", None, ("returned 2 values", "`finish`")),
        ("def f(o, l, r):\n    return o['z']\n", 3, ("the score score.py:f: KeyError: 'z'",)),
        ("def f(o): return 1\n", None, ("takes 1 positional argument",)),
    ],
)
def test_a_python_score_that_is_wrong_is_the_users_to_mend(text: str, line: int | None, words: tuple[str, ...], tmp_path: Path) -> None:
    error = refused(written(tmp_path, text), out(1, 2), None, *words)
    assert (error.place.line if error.place else None) == line


def test_a_python_score_returns_as_many_statistics_each_time(tmp_path: Path) -> None:
    score = written(tmp_path, "def f(o, l, r): return list(o['y'])\ndef g(a): return [1, 2]\n", finish="score.py:g")
    score.sample(out(1, 2), None, None)
    refused(score, out(1, 2, 3), None, "returned 3 values, and 2 before")
    with pytest.raises(UsageError, match="g returned 2 values"):
        score.finish(np.ones((2, 2)))


def test_a_python_score_is_loaded_before_it_scores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        make("python", source="none.py:f").ready(tmp_path)
    with pytest.raises(MissingError):
        written(tmp_path, "import no_such_package_of_anyone\ndef f(): ...\n")


def test_a_python_score_lists_all_that_decides_its_value(tmp_path: Path) -> None:
    (tmp_path / "near_score.py").write_text("import yaml\n")
    (tmp_path / "ends.py").write_text("def g(a): ...\n")
    score = written(tmp_path, "import near_score\ndef f(o, l, r): ...\n", finish="ends.py:g", reads=["anchors.bin"])
    assert [path.name for path in score.user_files(tmp_path)] == ["score.py", "near_score.py", "ends.py", "anchors.bin"]
    assert [one.lower() for one in score.packages(tmp_path)] == ["numpy", "pyyaml"]


def test_an_output_that_is_an_index_is_the_class_itself() -> None:
    given = {"label": np.array(3, np.int64)}
    assert make("top1").sample(given, 3, None) == 1.0 and make("top1").sample(given, 2, None) == 0.0
    assert make("agreement").sample(given, None, {"label": np.array(3, np.int32)}) == 1.0
    map_of_classes = np.array([[1, 2], [0, 1]], np.int64)
    assert make("agreement").sample({"y": map_of_classes}, None, {"y": map_of_classes.copy()}) == 1.0
    assert make("agreement").sample({"y": map_of_classes}, None, {"y": map_of_classes[::-1]}) == 0.0
    refused(make("agreement"), out(0.3), None, "no values per class", reference=out(0.3))


def test_sqnr_leaves_indices_beside_real_values_out() -> None:
    given, reference = out(1.0, 2, label=np.array(9)), out(1.0, 2, label=np.array(1))
    assert make("sqnr").sample(given, None, reference) == [5.0, 0.0]
    assert make("sqnr", output="label").sample(given, None, reference) == [1.0, 64.0]
