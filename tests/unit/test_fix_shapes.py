"""fix-shapes: open axes get sizes, what values decide stays open, and a batch that is fixed stands beside one that is open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import edgeopt
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Sample, Split
from edgeopt.formats.onnx import Onnx, examples, load, nodes
from edgeopt.passes.fix_shapes import FixShapes
from tests import walks
from tests.unit import small_onnx as small


def artifact(folder: Path, proto: onnx.ModelProto) -> Artifact:
    (folder / "files").mkdir()
    return Artifact(folder, "onnx", "model.onnx", "", "", 0, Onnx().signature(small.write(proto, folder / "files")))


def fixed(made: Artifact, folder: Path, samples: list[Sample] | None = None, batch: int = 1, **options: object) -> Path:
    (folder / "result").mkdir()
    data = {"calibrate": Split("calibrate", lambda: iter(samples), made.signature)} if samples else {}
    return FixShapes(**options).run(made, Context(folder / "result", data=data, target={"batch": batch}))


def shapes(path: Path) -> dict[str, tuple[int | str, ...]]:
    signature = Onnx().signature(path)
    return {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}


def same(made: Artifact, path: Path) -> bool:
    feeds = examples(Onnx().signature(path))
    before, after = Onnx().runner(made.path)(feeds), Onnx().runner(path)(feeds)
    return all(np.allclose(array, after[name], atol=1e-5) for name, array in before.items())


def image(size: tuple[int, int]) -> Sample:
    return Sample({"x": np.zeros((3, *size), np.float32)})


def flattened() -> onnx.ModelProto:
    """Reads its own shape, as exporters write `x.view(x.shape[0], -1)`; a size of an example is left in value_info."""
    made = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="product"),
    ]
    weights = [small.ints("zero", 0), small.ints("rest", -1), small.weight("w", 12, 4)]
    proto = small.model(made, [small.value("x", ["N", 3, 4])], [small.value("y", ["N", 4])], weights)
    proto.graph.value_info.append(small.value("f", [7, 12]))
    return proto


def detector() -> onnx.ModelProto:
    """Boxes and scores through a suppression: how many are left is for the values to say."""
    made = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["kept"]),
        helper.make_node("Relu", ["scores"], ["strong"]),
    ]
    inputs = [small.value("boxes", ["N", "B", 4]), small.value("scores", ["N", 2, "B"])]
    outputs = [small.value("kept", ["K", 3], small.INT64), small.value("strong", ["N", 2, "B"])]
    return small.model(made, inputs, outputs, [small.ints("most", 5)])


def recurrent() -> onnx.ModelProto:
    """Batch first, open in time, with every step's output."""
    made = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["all", "last"], name="rnn", hidden_size=6),
        helper.make_node("Squeeze", ["all", "axis"], ["s"]),
        helper.make_node("Transpose", ["s"], ["y"], perm=[1, 0, 2]),
    ]
    weights = [small.weight("w", 1, 24, 3), small.weight("r", 1, 24, 6, seed=1), small.ints("axis", 1)]
    return small.model(made, [small.value("x", ["N", "T", 3])], [small.value("y", ["N", "T", 6])], weights)


def test_sizes_come_from_the_target_and_the_samples(tmp_path: Path) -> None:
    made = artifact(tmp_path, small.cnn())
    path = fixed(made, tmp_path, [image((8, 6))] * 3, batch=2)
    assert shapes(path) == {"x": (2, 3, 8, 6), "y": (2, 5)} and same(made, path)


def test_shapes_that_were_computed_are_folded(tmp_path: Path) -> None:
    made = artifact(tmp_path, flattened())
    path = fixed(made, tmp_path, batch=4)
    assert shapes(path) == {"x": (4, 3, 4), "y": (4, 4)} and same(made, path)
    assert [node.op_type for node in nodes(load(path))] == ["Reshape", "MatMul"]


def test_it_comes_without_torch(tmp_path: Path) -> None:
    """Tools of onnxruntime import it where they can: 5 s and hundreds of MB for nothing."""
    artifact(tmp_path, small.mlp())
    (tmp_path / "out").mkdir()
    code = f"""
import sys
from pathlib import Path
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.passes.fix_shapes import FixShapes
folder = Path({str(tmp_path)!r})
made = Artifact(folder, "onnx", "model.onnx", "", "", 0, Onnx().signature(folder / "files/model.onnx"))
FixShapes().run(made, Context(folder / "out", target={{"batch": 3}}))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" and shapes(tmp_path / "out/model.onnx")["x"] == (3, 8)


def test_only_what_is_named_is_fixed(tmp_path: Path) -> None:
    made = artifact(tmp_path, recurrent())
    path = fixed(made, tmp_path, axes={"T": 9})
    assert shapes(path) == {"x": ("N", 9, 3), "y": ("N", 9, 6)} and same(made, path)


@pytest.mark.parametrize(
    "options", [{"inputs": {"ids": [1, 12]}}, {"axes": {"N": 1, "T": 12}}, {"axes": {"N": 1}, "inputs": {"mask": [1, 12]}}]
)
def test_inputs_share_their_axes(tmp_path: Path, options: dict[str, object]) -> None:
    made = artifact(tmp_path, small.embedding())
    path = fixed(made, tmp_path, **options)
    assert shapes(path) == {"ids": (1, 12), "mask": (1, 12), "factor": (), "y": (1, 4), "tokens": (1, 12, 4)} and same(made, path)


def test_what_values_decide_stays_open(tmp_path: Path) -> None:
    made = artifact(tmp_path, detector())
    path = fixed(made, tmp_path, axes={"N": 1, "B": 20})
    assert shapes(path) == {"boxes": (1, 20, 4), "scores": (1, 2, 20), "kept": ("K", 3), "strong": (1, 2, 20)} and same(made, path)


@pytest.mark.parametrize(
    "samples, options, cause, remedy",
    [
        (None, {"axes": {"Hight": 8}}, "no open axis 'Hight'", "known here: H, N, W"),
        (None, {"inputs": {"X": [1, 3, 8, 8]}}, "no input 'X'", "known here: x"),
        (None, {"inputs": {"x": [1, 4, 8, 8]}}, "does not fit the input", "a size for each"),
        (None, {"axes": {"H": 8}, "inputs": {"x": [1, 3, 9, 8]}}, "'H' is given as 8 and as 9", "one size"),
        (None, {"axes": {"N": 4}}, "'N' counts samples and would be 4", "batch: 4"),
        (None, {}, "tell the size of 'H', 'W'", "fix-shapes: {axes: {H: …, W: …}}"),
        ([image((8, 8)), image((8, 9))], {}, "differ along 'W' (8 … 9)", "fix-shapes: {axes: {H: 8, W: 9}}"),
    ],
)  # fmt: skip
def test_errors_name_the_axes_and_the_option(
    tmp_path: Path, samples: list[Sample] | None, options: dict[str, object], cause: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        fixed(artifact(tmp_path, small.cnn()), tmp_path, samples, **options)
    assert cause in caught.value.cause and remedy in (caught.value.remedy or "")


def test_sizes_that_the_model_cannot_take_are_said(tmp_path: Path) -> None:
    made = [helper.make_node("Add", ["x", "places"], ["y"])]
    proto = small.model(made, [small.value("x", ["N", "T", 8])], [small.value("y", ["N", "T", 8])], [small.weight("places", 10, 8)])
    with pytest.raises(StepError):
        fixed(artifact(tmp_path, proto), tmp_path, axes={"N": 1, "T": 12})


def tokens() -> onnx.ModelProto:
    """Token ids that begin at 100, through an operator whose shapes only its runtime can tell."""
    made = [
        helper.make_node("Sub", ["ids", "first"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["e"]),
        helper.make_node("FusedMatMul", ["e", "w"], ["y"], domain="com.microsoft"),
    ]
    weights = [small.scalar_int("first", 100), small.weight("table", 10, 8), small.weight("w", 8, 4, seed=1)]
    return small.model(
        made, [small.value("ids", ["N", "T"], small.INT64)], [small.value("y", ["A", "B", 4])], weights, domains=["com.microsoft"]
    )


def test_a_model_that_knows_no_made_up_numbers_is_run_on_samples(tmp_path: Path) -> None:
    made = artifact(tmp_path, tokens())
    ids = [Sample({"ids": np.arange(100, 106) + index}) for index in range(3)]
    for name, options in (("all", {}), ("named", {"axes": {"N": 2, "T": 6}})):
        (tmp_path / name).mkdir()
        assert shapes(fixed(made, tmp_path / name, ids, batch=2, **options)) == {"ids": (2, 6), "y": (2, 6, 4)}
    (tmp_path / "without").mkdir()
    path = fixed(made, tmp_path / "without", axes={"N": 1, "T": 6})
    assert shapes(path) == {"ids": (1, 6), "y": ("A", "B", 4)}, "what nothing tells stays open"
    (tmp_path / "other").mkdir()
    assert shapes(fixed(made, tmp_path / "other", ids, axes={"N": 1, "T": 5}))["ids"] == (1, 5), "no sample has that size"
    (tmp_path / "unknown").mkdir()
    with pytest.raises(StepError, match="does not run at these sizes"):
        fixed(made, tmp_path / "unknown", [Sample({"ids": np.arange(6)})])


TARGETS = {"ort": "{extends: x86-onnxruntime, name: ort, batch: 4}", "ov": "{extends: x86-openvino, name: ov, batch: 4}"}
RECIPE = (
    walks.RECIPE.replace("fp32: []", "open: []\n  fixed: [fix-shapes]")
    .replace('["null"]', "[TARGETS]")
    .replace("0.5}", "0.2, precision_percent: 50}")
)


@pytest.mark.parametrize(
    "make, shape, reference, targets",
    [
        (small.cnn, (3, 8, 8), "open", ("ort", "ov")),
        (small.cnn, (3, 8, 8), "fixed", ("ov",)),
        (recurrent, (9, 3), "open", ("ov",)),
        (small.decides, (8,), "open", ("ort",)),
    ],
)
def test_a_fixed_batch_beside_an_open_one(
    tmp_path: Path, own_store: Path, make, shape: tuple[int, ...], reference: str, targets: tuple[str, ...]
) -> None:
    """Ten samples in batches of four: each counts once."""
    proto = make()
    if make is small.decides:  # the label only, a rank-1 output
        del proto.graph.output[1:]
    onnx.save(proto, tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("calibrate", 6), ("evaluate", 10)):
        x = rng.standard_normal((count, *shape)).astype(np.float32)
        labels = rng.integers(0, 4, (count, 6) if make is recurrent else count)
        np.savez(tmp_path / f"{name}.npz", x=x, labels=labels)
    recipe = RECIPE.replace("top1, ", "").replace("agreement, ", "") if make is recurrent else RECIPE
    recipe = recipe.replace("measure:", f"reference: {reference}\nmeasure:") if reference != "open" else recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("TARGETS", ", ".join(TARGETS[name] for name in targets)))
    report = edgeopt.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    assert {row.status for row in report.rows} == {"measured"}
    rows = {(row.variant, row.target): row for row in report.rows}
    for target in targets:
        one, other = rows["open", target], rows["fixed", target]
        assert {found.samples for row in (one, other) for found in row.scores.values()} == {10}
        if make is not recurrent:
            assert one.scores["top1"].value == other.scores["top1"].value
            assert other.scores["agreement"].value == 1.0
        if make is not small.decides:
            assert other.scores["sqnr"].value > 60


def test_a_sample_of_another_size_is_refused_before_anything_is_compiled(tmp_path: Path, own_store: Path) -> None:
    """Calibration is of one size, and so are the first samples of the evaluation; the last one is not."""
    onnx.save(small.cnn(), tmp_path / "model.onnx")
    (tmp_path / "data.py").write_text(
        "import numpy as np\n\n\ndef read(seed, widths):\n    rng = np.random.default_rng(seed)\n    for width in widths:\n"
        "        yield {'x': rng.standard_normal((3, 8, width)).astype(np.float32)}, width % 5\n\n\n"
        "def calibrate():\n    return read(0, [6] * 8)\n\n\ndef evaluate():\n    return read(1, [6] * 12 + [9])\n"
    )
    recipe = RECIPE.replace("TARGETS", TARGETS["ov"]).replace("npz: evaluate.npz", "python: data.py:evaluate")
    recipe = recipe.replace("npz: calibrate.npz", "python: data.py:calibrate")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("[fix-shapes]", "[fix-shapes, quantize-int8]"))
    plan = edgeopt.plan(edgeopt.load_recipe(tmp_path / "recipe.yaml"))
    built = edgeopt.build(plan, tmp_path / "out")
    for row in (row for row in built.rows if row.variant == "fixed"):
        assert row.status == "failed" and row.exit_code == 2
        assert "fix-shapes: sample 12 of 'evaluate' has 9 along 'W' of input 'x', and the model takes 6 now" in (row.reason or "")
        assert "axes: {W: 9}" in (row.reason or "")
