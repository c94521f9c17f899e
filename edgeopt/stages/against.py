"""against: where one model lost the function of another: its noise, layer by layer. Both are run, in the worker."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from edgeopt.core.errors import UsageError
from edgeopt.core.progress import Progress
from edgeopt.core.protocols import Options
from edgeopt.stages import dissect
from edgeopt.stages.children import Worker
from edgeopt.stages.numbers import NONE, number

SAMPLES = 16
MAX_DB = 150.0
KEPT_DB = 10.0  # noise of a tenth of the signal's power: below it a network's answers change in earnest


class LayerNoise(Options):
    """One layer of the model, and how well the other one's counterpart of its result agrees with it."""

    name: str
    type: str = Field(description="the operator; `rounding` for a quantizer of the other model")
    tensor: str = Field(description="in the other model")
    output: str | None = Field(description="the model's output that this is")
    sqnr_db: float | None = Field(description="signal over noise of the result, at most 150; null for integers")
    before_db: float | None = Field(description="the same of the worst of what it reads, 150 where that is exact")
    drop_db: float | None = Field(description="what it lost against that")
    equal: float | None = Field(description="share of integers that agree")
    place: bool = Field(default=False, description="most of what the outputs lack was lost here")


class Against(Options):
    """How far two models agree, and where they part."""

    model: str
    against: str
    fed: str
    samples: int
    summary: str
    layers: list[LayerNoise] = Field(description="in order of execution")
    unmatched: int = Field(description="tensors of the model with no counterpart")


def against(
    model: Path,
    other: Path,
    *,
    recipe: Path | None = None,
    data: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> Against:
    """Run both on the samples of a recipe's split (tune, else calibrate, else train) or an .npz file, else on random numbers.

    Raises UsageError for what cannot be compared, StepError when a model does not run.
    """
    found = [dissect.given(path)[0] for path in (model, other)]
    files = [path if path.is_file() else one.path for path, one in zip((model, other), found, strict=True)]
    for path, file, one in zip((model, other), files, found, strict=True):
        if file.suffix.lower() not in (".onnx", ".xml"):
            raise UsageError(f"{path} is compiled for {one.format}, whose layers cannot be had", remedy="name the artifact before it")
    for given in (recipe, data):
        if given is not None and not given.is_file():
            raise UsageError(f"no such file: {given}", remedy="check the path")
    job = {
        "do": "noise",
        "label": f"{model.name} against {other.name}",
        "models": [str(file.absolute()) for file in files],
        "execution": [str(one.execution.get("float", "f32")) for one in found],
        "recipe": str(recipe.absolute()) if recipe else None,
        "data": str(data.absolute()) if data else None,
        "sizes": dict(sizes or {}),
        "samples": samples,
    }
    told = _asked(job, progress or Progress())
    layers = _layers(told["layers"])
    return Against(
        model=str(model),
        against=str(other),
        fed=told["fed"],
        samples=told["samples"],
        summary=_summary(layers),
        layers=layers,
        unmatched=told["unmatched"],
    )


def _asked(job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    label = str(job["label"])
    event: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-against-") as scratch,
        progress.piece(label),
        Worker(Path(scratch), Path(scratch), Path(scratch) / "log.txt") as worker,
    ):
        for event in worker.ask(job):
            if event["event"] == "progress":
                progress.advance(label, event["done"], event["total"], event["text"])
    return event


def _layers(rows: list[dict[str, Any]]) -> list[LayerNoise]:
    levels = [MAX_DB if row["sqnr_db"] is None else row["sqnr_db"] for row in rows]

    def level(index: int) -> float:
        return MAX_DB if index < 0 else levels[index]

    place = _place(rows, levels)
    layers = []
    for index, row in enumerate(rows):
        before = min(map(level, row["reads"]), default=None) if row["sqnr_db"] is not None else None
        drop = None if before is None else round(before - levels[index], 2)
        fields = {key: row[key] for key in ("name", "type", "tensor", "output", "sqnr_db", "equal")}
        layers.append(LayerNoise(**fields, before_db=before, drop_db=drop, place=index == place))
    return layers


def _place(rows: list[dict[str, Any]], levels: list[float]) -> int | None:
    """Where most is lost on the way to the worst output, followed back through the worst input of each layer.

    What a later layer makes good again is not lost: each counts with the best that is reached from it on. Lost is
    measured as a share of power, S / (S + N): 90 dB more or less of an imperceptible noise is nothing.
    """
    ends = [index for index, row in enumerate(rows) if row["output"] and row["sqnr_db"] is not None]
    if not ends:
        return None
    way = [min(ends, key=lambda index: levels[index])]
    while before := [index for index in rows[way[-1]]["reads"] if 0 <= index < way[-1]]:
        way.append(min(before, key=lambda index: levels[index]))
    best, lost, place = -MAX_DB, -1.0, None
    reached = []
    for index in way:  # from the end
        best = max(best, levels[index])
        reached.append(best)
    for index, here, earlier in zip(way, reached, [*reached[1:], MAX_DB], strict=True):
        share = kept(earlier) - kept(here)
        if share > 0 and share >= lost:
            lost, place = share, index
    return place


def kept(level_db: float) -> float:
    """The signal's share of the power, 0 … 1."""
    return float(1 / (1 + 10 ** (-level_db / 10)))


def _summary(layers: list[LayerNoise]) -> str:
    outputs = [layer for layer in layers if layer.output and layer.sqnr_db is not None]
    place = next((layer for layer in layers if layer.place), None)
    if not outputs:
        return "the outputs are integers or have no counterpart: look at the layers"
    worst = min(outputs, key=lambda layer: layer.sqnr_db or 0.0)
    level = worst.sqnr_db or 0.0
    if level >= MAX_DB or place is None:
        return "the outputs are identical"
    where = f"{place.name} ({place.type}): {decibel(place.before_db)} → {decibel(place.sqnr_db)} dB"
    if level >= KEPT_DB:
        return f"the function is kept, to {decibel(level)} dB at output {worst.output}; most noise comes in at {where}"
    return f"the function is lost first at {where}"


def decibel(level: float | None) -> str:
    """A level in dB, `exact` where nothing differs."""
    return NONE if level is None else "exact" if level >= MAX_DB else number(level, 1)
