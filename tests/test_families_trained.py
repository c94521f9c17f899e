"""Passes that train, family by family: pruned and fine-tuned, trained in INT8, mixed; each a trained model on real data (tests/zoo)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.protocols import Context, Split
from edgeopt.datasets.npz import Npz
from edgeopt.stages.children import Child
from tests import zoo

TARGETS = {name: {"backend": name, "arch": "x86_64", "int8": "any", "options": {}} for name in ("onnxruntime", "openvino")}
NOTHING = Artifact(Path(), "", "", "", "", 0, None)  # type: ignore[arg-type]  # what an import starts from
EVALUATED, BUDGET_DB = 200, 25.0


class Case(NamedTuple):
    """How a family is pruned and trained, and what its score keeps; perplexity is bounded from above, the others from below."""

    score: str
    macs: float  # the share that pruning leaves, at most
    pruned: float  # after pruning and training
    int8: float  # after training in INT8, on each runtime
    layers: int  # of those executed in INT8, at least
    loss: str = "distill"
    samples: int = 400
    epochs: tuple[int, int] = (3, 1)  # after pruning, in INT8


CASES = {
    "mlp": Case("top1", 0.5, 0.85, 0.97, 2),
    "mnist_cnn": Case("top1", 0.6, 0.85, 0.96, 9, samples=240),
    "detector": Case("sqnr", 0.6, 6.5, 20, 13, "distill-mse", samples=64, epochs=(2, 1)),
    "lstm": Case("top1", 0.5, 0.82, 0.85, 1, samples=160),
    "gru": Case("top1", 0.5, 0.9, 0.9, 1, samples=160),
    "gpt": Case("perplexity", 0.7, 8, 8, 8, samples=48, epochs=(2, 1)),
}


@dataclass
class Family:
    """A model of the zoo as a torch artifact, with its samples; each pass on it once."""

    model: zoo.Model
    case: Case
    folder: Path
    artifact: Artifact = NOTHING

    def apply(self, name: str, options: dict[str, Any], before: Artifact, **fields: Any) -> tuple[Artifact, dict[str, Any]]:
        """A pass's result and its notes."""
        notes: dict[str, Any] = {}
        cls = registry.load("passes", name)
        files = self.folder / f"{name}-{len(list(self.folder.iterdir()))}" / "files"
        files.mkdir(parents=True)
        counts = {"train": self.case.samples, "tune": 64, "calibrate": 64}
        data = {split: self.split(split, count) for split, count in counts.items()} if before.signature else {}
        ctx = Context(files, zoo.writing.ROOT, data, reference=self.artifact, note=notes.__setitem__, **fields)
        path = cls.model_validate(options).run(before, ctx)
        made = cls.produces or before.format
        return Artifact(
            files.parent, made, path.relative_to(files).as_posix(), "", "", 0, registry.load("formats", made)().signature(path)
        ), notes

    def split(self, name: str, count: int) -> Split:
        read, signature = Npz(source=str(self.model.folder / f"{name}.npz")).read, self.artifact.signature
        return Split(name, lambda: islice(read(Path(), signature), count), signature)

    def score(self, name: str, run: Callable[[Any], Any], exact: Callable[[Any], Any]) -> float:
        """What a score says of the outputs of `run` on unseen samples; `exact` is the trained model."""
        judge, values = registry.load("scores", name)(), []
        for feeds, labels in self.split("evaluate", EVALUATED).batches(50):
            found, wanted = run(feeds), exact(feeds)
            for index, label in enumerate(labels):
                one, other = ({name: array[index] for name, array in outputs.items()} for outputs in (found, wanted))
                values.append(judge.sample(one, label, other))
        return float(judge.finish(np.asarray(values, np.float64)))

    def keeps(self, value: float, bound: float) -> bool:
        return value <= bound if self.case.score == "perplexity" else value >= bound


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    found: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in found:
            made = Family(zoo.get(name), CASES[name], tmp_path_factory.mktemp(name))
            made.artifact, _ = made.apply("import-torch", made.model.torch["torch"], NOTHING)
            found[name] = made
        return found[name]

    return get


def runner(artifact: Artifact) -> Callable[[Any], Any]:
    return registry.load("formats", artifact.format)().runner(artifact.path)


@pytest.mark.parametrize("name", CASES)
def test_pruned_to_its_macs_a_model_comes_back_by_training(family: Any, name: str) -> None:
    one, case = family(name), CASES[name]
    cut, pruning = one.apply("prune-channels", {"macs": case.macs}, one.artifact)
    tuned, training = one.apply("fine-tune", {"epochs": case.epochs[0], "loss": case.loss, "batch": 32}, cut)
    assert 0.75 * case.macs < pruning["macs_kept"] <= case.macs
    assert pruning["channels"]
    assert tuned.signature == one.artifact.signature
    assert min(training["tune_losses"]) < training["tune_losses"][0]
    before, after = (one.score(case.score, runner(made), runner(one.artifact)) for made in (cut, tuned))
    assert after != before and one.keeps(after, before)
    assert one.keeps(after, case.pruned)


@pytest.mark.parametrize("name", CASES)
def test_what_was_trained_in_int8_executes_in_int8_on_both_runtimes(family: Any, name: str) -> None:
    pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed")
    one, case = family(name), CASES[name]
    made, _ = one.apply("train-int8", {"epochs": case.epochs[1], "loss": case.loss, "batch": 32}, one.artifact)
    for runtime, target in TARGETS.items():
        if reason := registry.load("backends", runtime)().probe():
            pytest.skip(reason)
        model = made if runtime == "onnxruntime" else one.apply("convert-openvino", {}, made, target=target)[0]
        folder = one.folder / f"int8-{runtime}"
        folder.mkdir()
        main = registry.load("backends", runtime)().compile(model, Context(folder, target=target))
        with Child(runtime) as child:
            child.ask("open", path=str(main), backend=runtime, threads=2, requests=1, options={}, execution={"float": "f32"})
            value = one.score(case.score, lambda feeds, ask=child.ask: ask("infer", feeds)[1], runner(one.artifact))
            feeds, _ = next(one.split("evaluate", 1).batches(1))
            child.ask("feeds", {f"0/{key}": array for key, array in feeds.items()})
            precision = child.ask("facts")[0]["precision"]
            assert precision["int8"] >= case.layers
        assert one.keeps(value, case.int8)


@pytest.mark.parametrize("runtime", TARGETS)
@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_a_mix_keeps_its_budget_on_unseen_samples(family: Any, name: str, runtime: str) -> None:
    one, target = family(name), TARGETS[runtime]
    model, _ = one.apply("import-onnx", {"file": str(one.model.path)}, NOTHING)
    exact = runner(model)
    if runtime == "openvino":
        model, _ = one.apply("convert-openvino", {}, model, target=target)
    options = {"budget": {"score": "sqnr", "min": BUDGET_DB}, "seconds": 5, "samples": 16, "calibration": "minmax"}
    scores = {"sqnr": registry.load("scores", "sqnr")()}
    made, _ = one.apply("mixed-precision", options, model, target=target, scores=scores)
    value = one.score("sqnr", runner(made), exact)
    assert value >= BUDGET_DB - 1.5
