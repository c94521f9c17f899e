"""html: a report as one self-contained page: template, style, charts and figures in a single file, no request ever.

The charts are drawn in the browser by Observable Plot (page/plot.min.js): SVG, so that they follow
light and dark, print sharply and can be read out. Everything in the page is escaped by Jinja, the
figures by `_json`; a content security policy lets only our own two scripts run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from edgeopt.core.report import GateResult, Report, Row, TargetInfo
from edgeopt.stages import facts
from edgeopt.stages.decision import decide
from edgeopt.stages.numbers import NONE, factor, measured, megabytes, number, seconds
from edgeopt.stages.words import EXITS, VERDICTS, Words

PAGE = Path(__file__).parent / "page"
BARS = 24  # rows drawn as bars; the scatter and the tables hold all
Cell = tuple[str, float | None]  # text, and what to sort by


def html(report: Report) -> str:
    """A report as one HTML document."""
    import jinja2

    parts = {name: (PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "plot.min.js", "plot.LICENSE.txt")}
    words = Words(report)
    loader = jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2").render(
        report=report,
        outcome=EXITS.get(report.exit_code, "The run did not finish."),
        targets=[_target(words, target, index) for index, target in enumerate(report.targets)],
        scores=words.scores,
        facts=facts,
        style=parts["report.css"],
        plot=parts["plot.min.js"],
        script=parts["report.js"],
        licences=parts["plot.LICENSE.txt"],
        allowed=" ".join(_hash(parts[name]) for name in ("plot.min.js", "report.js")),
        figures=_json([_figures(words, target) for target in report.targets]),
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _target(words: Words, target: TargetInfo, index: int) -> dict[str, Any]:
    """One target's part of the page."""
    rows = words.rows[target.name]
    demands = list(dict.fromkeys(words.wants(gate.gate) for row in rows for gate in words.gates(row)))
    measured_rows = [row for row in rows if row.latency_ms]
    return {
        "id": f"target-{index}",
        "name": target.name,
        "title": words.title(target),
        "decision": decide(words, target.name),
        "throughput": target.scenario == "throughput",
        "rows": [_row(words, row, demands, target.scenario == "throughput") for row in rows],
        "demands": demands,
        "others": [(row.variant, words.why_not(row)) for row in rows if not row.picked],
        "remarks": [(row.variant, told) for row in rows if (told := words.flags(row) + words.warnings(row))],
        "tables": [
            (
                "scatter",
                "Latency and scores",
                ["variant", "p50", "on the front", *words.scores],
                [_scatter_cells(words, row) for row in measured_rows],
            ),
            ("latency", "Latency", _LATENCY, [_latency_cells(row) for row in measured_rows]),
            ("size", "Size", _SIZE, [_size_cells(row) for row in rows if row.artifact]),
            ("memory", "Peak memory", _MEMORY, [_memory_cells(row) for row in measured_rows]),
        ],
    }


def _row(words: Words, row: Row, demands: list[str], throughput: bool) -> dict[str, Any]:
    found = {words.wants(gate.gate): gate for gate in words.gates(row)}
    latency = row.latency_ms
    cells: list[Cell] = [(words.cost(row), row.throughput_per_s)] if throughput else []
    cells += [
        (measured(latency.p50, latency.p50_ci95, "ms"), latency.p50) if latency else (NONE, None),
        (factor(row.speedup.value, row.speedup.ci95), row.speedup.value) if row.speedup else (NONE, None),
        (megabytes(row.artifact.size_bytes), row.artifact.size_bytes) if row.artifact else (NONE, None),
        *((words.of(row, name), row.scores[name].value if name in row.scores else None) for name in words.scores),
        (words.passed(row), None),
    ]
    return {
        "row": row,
        "standing": words.standing(row),
        "cells": cells,
        "verdicts": [_verdict(words, found.get(wants)) for wants in demands],
        "seconds": seconds(sum(step.seconds for step in row.history)),
        "steps": [(step.step, seconds(step.seconds), facts.parity(step), facts.pairs(step.options), step.notes) for step in row.history],
    }


def _verdict(words: Words, gate: GateResult | None) -> dict[str, str]:
    if gate is None:
        return {"kind": "none", "verdict": NONE, "got": "", "reason": ""}
    got = words.got(gate) if gate.got is not None else ""
    return {
        "kind": gate.verdict,
        "verdict": VERDICTS[gate.verdict],
        "got": got,
        "reason": (gate.reason or "") if gate.verdict != "pass" else "",
    }


_LATENCY = ["variant", "p50", "p90", "p95", "p99", "p99.9", "mean", "copy in", "copy out", "load", "first run", "timings"]
_SIZE = ["variant", "size", "format", "file", "digest"]
_MEMORY = ["variant", "peak memory", "executed layers"]


def _scatter_cells(words: Words, row: Row) -> list[str]:
    return [row.variant, words.cost(row), "yes" if row.pareto else "no", *(words.of(row, name, ci=True) for name in words.scores)]


def _latency_cells(row: Row) -> list[str]:
    latency = row.latency_ms
    assert latency is not None
    rest = (latency.p95, latency.p99, latency.p99_9, latency.mean, latency.copy_in_p50, latency.copy_out_p50, row.load_ms, row.first_ms)
    intervals = (measured(latency.p50, latency.p50_ci95, "ms"), measured(latency.p90, latency.p90_ci95, "ms"))
    return [row.variant, *intervals, *(measured(value, None, "ms") for value in rest), f"{latency.samples:,}"]


def _size_cells(row: Row) -> list[str]:
    assert row.artifact is not None
    return [row.variant, megabytes(row.artifact.size_bytes), row.artifact.format, row.artifact.path, row.artifact.digest]


def _memory_cells(row: Row) -> list[str]:
    layers = ", ".join(f"{count} {name}" for name, count in (row.precision or {}).items() if count) or NONE
    return [row.variant, measured(row.peak_rss_mb, None, "MB"), layers]


def _figures(words: Words, target: TargetInfo) -> dict[str, Any]:
    """What the charts of one target are drawn from, in the units that they are told in."""
    throughput = target.scenario == "throughput"
    first = [name for name in words.scores if any(name in row.scores for row in words.rows[target.name])]
    bars = {row.variant for row in words.foremost(target.name, BARS)}
    return {
        "name": target.name,
        "throughput": throughput,
        "cost": "throughput (per second)" if throughput else "p50 latency (ms)",
        "scores": [{"label": f"{name} ({unit})" if (unit := words.unit(name)) else name, "rises": words.rises(name)} for name in first],
        "rows": [
            _point(words, row, first, throughput, row.variant in bars) for row in words.rows[target.name] if row.latency_ms or row.artifact
        ],
    }


def _point(words: Words, row: Row, scores: list[str], throughput: bool, bar: bool) -> dict[str, Any]:
    latency, cost = row.latency_ms, row.latency_ms and (row.latency_ms.p50, *row.latency_ms.p50_ci95)
    if throughput and row.throughput_per_s is not None:
        cost = (row.throughput_per_s, *(row.throughput_ci95 or (row.throughput_per_s, row.throughput_per_s)))
    kind = "picked" if row.picked else "reference" if row.variant == words.report.reference else "qualifies" if row.qualifies else "out"
    told = [f"{row.variant}: {words.standing(row)}", words.cost(row), *(f"{name} {words.of(row, name, ci=True)}" for name in scores)]
    spans = [(score.value, *(score.ci95 or (score.value, score.value))) if (score := row.scores.get(name)) else None for name in scores]
    return {
        "variant": row.variant,
        "kind": kind,
        "told": "\n".join(told),
        "x": cost and [_short(value) for value in cost],
        "y": [span and [_short(words.scaled(name, value)) for value in span] for name, span in zip(scores, spans, strict=True)],
        "front": row.pareto,
        "bar": bar,
        "p90": latency and latency.p90 and _short(latency.p90),
        "cost": words.cost(row),
        "mb": row.artifact and _short(row.artifact.size_bytes / 1e6),
        "size": megabytes(row.artifact.size_bytes if row.artifact else None),
        "rss": row.peak_rss_mb and _short(row.peak_rss_mb),
        "memory": f"{number(row.peak_rss_mb)} MB",
    }


def _short(value: float) -> float | None:
    """Enough digits to draw; None for what JSON has no word for."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
