"""figures: what the charts of a report's page are drawn from, in the units that they are told in."""

from __future__ import annotations

from typing import Any

from edgeopt.core.profile import LayerTime
from edgeopt.core.report import Row, TargetInfo
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import breakdown
from edgeopt.stages.numbers import megabytes, number
from edgeopt.stages.profile import inference_ms
from edgeopt.stages.spread import Spread
from edgeopt.stages.words import Words

BARS = 24  # rows drawn as bars; the scatter and the tables hold all
LAYERED = 12  # rows whose layers are drawn
LAYERS = 24  # layers of a row drawn as bars
STRIPS = 80  # layers of a row's strip that are drawn one by one


def figures(words: Words, target: TargetInfo, spreads: dict[str, Spread], layers: dict[str, list[LayerTime]]) -> dict[str, Any]:
    """The figures of one target."""
    throughput = target.scenario in UNDER_LOAD
    rows = words.rows[target.name]
    first = [name for name in words.scores if any(name in row.scores for row in rows)]
    bars = {row.variant for row in words.foremost(target.name, BARS)}
    return {
        "name": target.name,
        "throughput": throughput,
        "cost": "throughput (per second)" if throughput else "p50 latency (ms)",
        "scores": [{"label": f"{name} ({unit})" if (unit := words.unit(name)) else name, "rises": words.rises(name)} for name in first],
        "rows": [_point(words, row, first, throughput, row.variant in bars) for row in rows if row.latency_ms or row.artifact],
        "spreads": [_ridge(row, spreads[row.variant]) for row in rows if row.variant in spreads],
        "peaks": _peaks(target, rows),
        "layers": [_strip(row, layers[row.variant], target) for row in rows if layers.get(row.variant)],
    }


def kind(words: Words, row: Row) -> str:
    """The mark that stands for a row."""
    return "picked" if row.picked else "reference" if row.variant == words.report.reference else "qualifies" if row.qualifies else "out"


def _point(words: Words, row: Row, scores: list[str], throughput: bool, bar: bool) -> dict[str, Any]:
    latency, cost = row.latency_ms, row.latency_ms and (row.latency_ms.p50, *row.latency_ms.p50_ci95)
    if throughput and row.throughput_per_s is not None:
        cost = (row.throughput_per_s, *(row.throughput_ci95 or (row.throughput_per_s, row.throughput_per_s)))
    told = [f"{row.variant}: {words.standing(row)}", words.cost(row), *(f"{name} {words.of(row, name, ci=True)}" for name in scores)]
    spans = [(score.value, *(score.ci95 or (score.value, score.value))) if (score := row.scores.get(name)) else None for name in scores]
    roofline = row.profile.roofline if row.profile else None
    return {
        "variant": row.variant,
        "kind": kind(words, row),
        "told": "\n".join(told),
        "x": cost and [short(value) for value in cost],
        "y": [span and [short(words.scaled(name, value)) for value in span] for name, span in zip(scores, spans, strict=True)],
        "front": row.pareto,
        "bar": bar,
        "p90": latency and latency.p90 and short(latency.p90),
        "cost": words.cost(row),
        "mb": row.artifact and short(row.artifact.size_bytes / 1e6),
        "size": megabytes(row.artifact.size_bytes if row.artifact else None),
        "rss": row.peak_rss_mb and short(row.peak_rss_mb),
        "memory": f"{number(row.peak_rss_mb)} MB",
        "roof": roofline and [short(roofline.intensity), short(roofline.gops), round(roofline.reached, 4)],
    }


def _ridge(row: Row, one: Spread) -> dict[str, Any]:
    quantiles = {name: short(value) for name, value in one.quantiles.items() if value is not None and name in ("p50", "p90", "p99")}
    return {"variant": row.variant, "low": short(one.low), "high": short(one.high), "counts": one.counts, **quantiles, "picked": row.picked}


def _peaks(target: TargetInfo, rows: list[Row]) -> dict[str, Any] | None:
    """The roofs that the variants of a target live under."""
    if target.peaks is None or not any(row.profile and row.profile.roofline for row in rows):
        return None
    rates = [one.gb_per_s for one in target.peaks.bandwidth]
    gops = [[one.precision, breakdown.TITLES.get(one.precision, one.precision), one.gops] for one in target.peaks.gops]
    return {"gops": gops, "fast": max(rates), "slow": rates[-1]}


def _strip(row: Row, layers: list[LayerTime], target: TargetInfo) -> dict[str, Any]:
    """A row's layers: in order as pieces of its measured time, and the slowest ones with what is possible."""
    total = sum(layer.us for layer in layers) or 1.0
    measured = inference_ms(row, target.scenario, target.batch) or total / 1000
    slowest = sorted(layers, key=lambda layer: -layer.us)[:LAYERS]
    return {
        "variant": row.variant,
        "picked": row.picked,
        "pieces": [[name, category, short(us / total * measured)] for name, category, us in _pieces(layers)],
        "slowest": [
            [
                breakdown.label(layer),
                breakdown.category(layer),
                short(layer.us),
                layer.attainable_us and short(layer.attainable_us),
                layer.type,
            ]
            for layer in slowest
        ],
        "total": short(total),
    }


def _pieces(layers: list[LayerTime]) -> list[tuple[str, str, float]]:
    """Name, category and µs in order of execution; of very many layers, small neighbours of one category are one piece."""
    large = {id(layer) for layer in sorted(layers, key=lambda layer: -layer.us)[:STRIPS]}
    pieces: list[tuple[list[str], str, float, bool]] = []
    for layer in layers:
        category, small = breakdown.category(layer), id(layer) not in large
        if pieces and small and pieces[-1][3] and pieces[-1][1] == category:
            names, _, us, _ = pieces[-1]
            pieces[-1] = ([*names, breakdown.label(layer)], category, us + layer.us, True)
        else:
            pieces.append(([breakdown.label(layer)], category, layer.us, small))
    return [(names[0] if len(names) == 1 else f"{len(names)} small layers", category, us) for names, category, us, _ in pieces]


def short(value: float) -> float | None:
    """Enough digits to draw; None for what JSON has no word for."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
