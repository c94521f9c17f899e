"""profile: layers as a runtime timed them → where the time goes, against what the machine can do.

Layers are found again in the model by the names that runtimes keep, those that lost theirs by their order;
what multiplies nothing has no place under the roofline, and a machine that could do all else in no time is the measure.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from edgeopt.core.profile import PRECISIONS, Island, Kind, LayerTime, Peaks, Profile, Roofline
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages.work import Work, bare, found

FILE = "profile.json"
TOP, ISLANDS, NAMED = 5, 5, 6  # how much the short form tells: layers, islands, layers of an island
WIDTHS = {"int8": 1, "bf16": 2, "fp16": 2, "fp32": 4}  # bytes of an element
_CONVERTS = re.compile(
    r"Reorder\w*|NhwcReorder|Reformat\w*|Convert\w*|Cast(Like)?|FakeQuantize|(Dynamic)?Quantize(Linear)?|Dequantize(Linear)?"
)
_MULTIPLIES = {
    "convolution": re.compile(r"conv", re.IGNORECASE),
    "matrix": re.compile(r"matmul|gemm|fullyconnected|attention|mha", re.IGNORECASE),
    "recurrent": re.compile(r"lstm|gru|rnn", re.IGNORECASE),
}


def profile(
    raw: list[dict[str, Any]], work: Work | None, peaks: Peaks | None, measured_ms: float | None
) -> tuple[Profile, list[LayerTime]]:
    """A variant's profile and its layers in order of execution.

    raw: what the runner's `profile` gives. measured_ms: time of one inference without the profiler.
    """
    kinds = [_kind(row) for row in raw]
    placed = _placed(raw, kinds, work) if work else [set[int]() for _ in raw]
    least = _Least(work, peaks, _executed(raw, placed, work)) if work and peaks else None
    layers = [
        LayerTime(
            name=row["name"],
            type=row["type"],
            kind=kind,
            precision=row["precision"],
            us=row["us"],
            of=" + ".join(bare(work.layers[index].name) for index in sorted(at)) if work and at else None,
            macs=sum(work.layers[index].macs for index in at) if work and at else None,
            attainable_us=least.us(at) if least and at else None,
        )
        for row, kind, at in zip(raw, kinds, placed, strict=True)
    ]
    return _short(layers, least.roofline(measured_ms) if least and measured_ms else None), layers


def inference_ms(row: Any, scenario: str, batch: int) -> float | None:
    """Milliseconds that one inference takes of a variant's time: its p50, or under load what each costs."""
    if scenario in UNDER_LOAD and row.throughput_per_s:
        return float(1000 * batch / row.throughput_per_s)
    return row.latency_ms.p50 if row.latency_ms else None


def _kind(row: dict[str, Any]) -> Kind:
    if row["precision"] in PRECISIONS:
        return "compute"
    return "conversion" if _CONVERTS.fullmatch(row["type"]) else "movement"


def _placed(raw: list[dict[str, Any]], kinds: list[Kind], work: Work) -> list[set[int]]:
    """Which layers of the model each executed layer holds."""
    placed = [set[int]() for _ in raw]
    free = set(range(len(work.layers)))

    def multiplies(index: int) -> bool:
        return any(pattern.search(raw[index]["type"]) for pattern in _MULTIPLIES.values())

    called = [[*re.split(r" \+ |,", row["name"]), *row.get("made_of", ())] for row in raw]
    for names, wanted in ((work.own, lambda index: kinds[index] != "conversion"), (work.names, multiplies)):
        for index in (index for index in range(len(raw)) if not placed[index] and wanted(index)):
            placed[index] = found(called[index], names) & free
            free -= placed[index]
    for kind, pattern in _MULTIPLIES.items():  # in order, where as many are left here as there
        left = [
            index for index, row in enumerate(raw) if not placed[index] and kinds[index] != "conversion" and pattern.search(row["type"])
        ]
        lost = sorted(index for index in free if work.layers[index].kind == kind)
        if len(left) == len(lost):
            for index, layer in zip(left, lost, strict=True):
                placed[index] = {layer}
    return placed


def _executed(raw: list[dict[str, Any]], placed: list[set[int]], work: Work | None) -> list[str]:
    """The precision of each of the model's layers; those that were not found again executed as most others did."""
    precisions = {layer: row["precision"] for row, at in zip(raw, placed, strict=True) for layer in at}
    usual = Counter(precisions.values()) or Counter(row["precision"] for row in raw if row["precision"] in PRECISIONS)
    most = usual.most_common(1)[0][0] if usual else "other"
    return [precisions.get(index, most) for index in range(len(work.layers))] if work else []


class _Least:
    """The least time of each of a model's layers at the machine's peaks."""

    def __init__(self, work: Work, peaks: Peaks, precisions: list[str]) -> None:
        self.work = work
        widths = [WIDTHS.get(precision, 4) for precision in precisions]
        self.bytes = [layer.bytes(width) for layer, width in zip(work.layers, widths, strict=True)]
        weights = sum(layer.weights * width for layer, width in zip(work.layers, widths, strict=True))
        flowing = max((layer.moved * width for layer, width in zip(work.layers, widths, strict=True)), default=0)
        per_us = peaks.bandwidth_at(weights + flowing) * 1e3  # bytes
        tops = [peaks.peak(precision) for precision in precisions]
        self.computing = [2 * layer.macs / (top.gops * 1e3) if top else None for layer, top in zip(work.layers, tops, strict=True)]
        self.moving = [size / per_us for size in self.bytes]

    def us(self, layers: set[int]) -> float | None:
        times = [None if (busy := self.computing[index]) is None else max(busy, self.moving[index]) for index in layers]
        return None if None in times else round(sum(time for time in times if time), 3)

    def roofline(self, measured_ms: float) -> Roofline | None:
        """None where a layer executed in a precision without a peak, or nothing multiplies."""
        every = set(range(len(self.work.layers)))
        attainable = self.us(every)
        if not attainable:
            return None
        waiting = sum(max(self.moving[i], busy) for i in every if (busy := self.computing[i] or 0.0) < self.moving[i])
        size, operations = sum(self.bytes), 2 * self.work.macs
        return Roofline(
            macs=self.work.macs,
            bytes=size,
            intensity=round(operations / size, 3),
            gops=round(operations / measured_ms / 1e6, 3),
            attainable_ms=round(attainable / 1e3, 6),
            reached=round(attainable / 1e3 / measured_ms, 4),
            memory_bound=round(waiting / attainable, 4),
        )


def _short(layers: list[LayerTime], roofline: Roofline | None) -> Profile:
    by_precision, by_type = defaultdict[str, float](float), defaultdict[str, float](float)
    for layer in layers:
        by_type[layer.type or "unnamed"] += layer.us
        if layer.kind == "compute":
            by_precision[layer.precision] += layer.us
    islands = _islands(layers)
    return Profile(
        layers=len(layers),
        total_us=_sum(layers),
        by_precision={name: round(by_precision[name], 2) for name in PRECISIONS if name in by_precision},
        by_type={name: round(us, 2) for name, us in sorted(by_type.items(), key=lambda item: -item[1])},
        conversions=sum(layer.kind == "conversion" for layer in layers),
        conversions_us=_sum([layer for layer in layers if layer.kind == "conversion"]),
        movement_us=_sum([layer for layer in layers if layer.kind == "movement"]),
        island_count=len(islands),
        islands=sorted(islands, key=lambda one: -(one.us + one.conversions_us))[:ISLANDS],
        top=sorted(layers, key=lambda layer: -layer.us)[:TOP],
        roofline=roofline,
    )


def _sum(layers: list[LayerTime]) -> float:
    return round(sum(layer.us for layer in layers), 2)


def _islands(layers: list[LayerTime]) -> list[Island]:
    """Runs of layers in another precision than most, with layers in that of most on both sides."""
    computing = [index for index, layer in enumerate(layers) if layer.kind == "compute"]
    usual = Counter(layers[index].precision for index in computing).most_common(1)
    islands = []
    last: int | None = None  # the last layer in the usual precision, counted among those that compute
    for at, index in enumerate(computing):
        if layers[index].precision != usual[0][0]:
            continue
        if last is not None and at - last > 1:
            inside = [layers[one] for one in computing[last + 1 : at]]
            between = layers[computing[last] : index]
            slowest = max(inside, key=lambda layer: layer.us)
            islands.append(
                Island(
                    precision=slowest.precision,
                    layers=[layer.of or bare(layer.name) for layer in inside[:NAMED]] + (["…"] if len(inside) > NAMED else []),
                    us=_sum(inside),
                    conversions_us=_sum([layer for layer in between if layer.kind == "conversion"]),
                )
            )
        last = at
    return islands


def write(folder: Path, target: str, peaks: Peaks | None, layers: dict[str, list[LayerTime]]) -> None:
    """Every layer of every variant of a target, one on a line."""
    variants = {name: ",\n  ".join(layer.model_dump_json() for layer in rows) for name, rows in layers.items()}
    told = ",\n ".join(f"{json.dumps(name)}: [\n  {rows}]" for name, rows in variants.items())
    head = json.dumps({"edgeopt_profile": 1, "target": target, "peaks": peaks and peaks.model_dump()})[:-1]
    (folder / FILE).write_text(f'{head},\n"variants": {{\n {told}}}}}\n', encoding="utf-8")


def read(folder: Path) -> dict[str, list[LayerTime]]:
    """The layers of a session's variants; empty where none were profiled."""
    try:
        held = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {name: [LayerTime.model_validate(row) for row in rows] for name, rows in held["variants"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
