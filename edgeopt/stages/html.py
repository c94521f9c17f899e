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

from edgeopt.core.profile import LayerTime
from edgeopt.core.report import GateResult, Report, Row, TargetInfo
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import breakdown, facts, profile
from edgeopt.stages.decision import decide
from edgeopt.stages.figures import LAYERED, LAYERS, figures
from edgeopt.stages.moves import moves
from edgeopt.stages.numbers import NONE, factor, measured, megabytes, seconds
from edgeopt.stages.spread import HEAD, spread
from edgeopt.stages.words import EXITS, VERDICTS, Words

PAGE = Path(__file__).parent / "page"
SPREADS = 16  # rows whose distribution is drawn
Cell = tuple[str, float | None]  # text, and what to sort by


def html(report: Report, folder: Path | None = None) -> str:
    """A report as one HTML document; with the run's folder also how timings are spread and how long each layer takes."""
    words = Words(report)
    told = [_target(words, target, index, folder) for index, target in enumerate(report.targets)]
    drawn = [target.pop("figures") for target in told]
    moved, marks = moves(report.baseline, len(drawn)) if report.baseline else (None, [])
    return page(
        "report.html.j2",
        ("frame.js", "report.js", "where.js", "compare.js"),
        drawn + marks,
        report=report,
        outcome=EXITS.get(report.exit_code, "The run did not finish."),
        targets=told,
        scores=words.scores,
        facts=facts,
        moved=moved,
        about=breakdown.ABOUT,
        about_peaks=breakdown.ABOUT_PEAKS,
    )


def page(template: str, scripts: tuple[str, ...], figures: list[Any], **context: Any) -> str:
    """One self-contained document out of a template and our scripts; the scripts share one scope that nothing else sees."""
    import jinja2

    def part(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    script = '"use strict";\n(() => {\n' + "\n".join(part(name) for name in scripts) + "\nstart();\n})();"
    plot, loader = part("plot.min.js"), jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(
        **context,
        style=part("report.css"),
        plot=plot,
        script=script,
        licences=part("plot.LICENSE.txt"),
        allowed=f"{_hash(plot)} {_hash(script)}",
        figures=_json(figures),
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


def _target(words: Words, target: TargetInfo, index: int, folder: Path | None) -> dict[str, Any]:
    """One target's part of the page."""
    rows = words.rows[target.name]
    demands = list(dict.fromkeys(words.wants(gate.gate) for row in rows for gate in words.gates(row)))
    measured_rows = [row for row in rows if row.latency_ms]
    throughput = target.scenario in UNDER_LOAD
    spreads = spread(folder, target.session, [row.variant for row in words.foremost(target.name, SPREADS)]) if folder else {}
    layers = _layers(words, target, folder)
    return {
        "id": f"target-{index}",
        "name": target.name,
        "title": words.title(target),
        "decision": decide(words, target.name),
        "throughput": throughput,
        "rows": [_row(words, row, demands, throughput) for row in rows],
        "demands": demands,
        "others": [(row.variant, words.why_not(row)) for row in rows if not row.picked],
        "remarks": [(row.variant, told) for row in rows if (told := words.flags(row) + words.warnings(row))],
        "tables": {
            "scatter": (
                "Latency and scores",
                (["variant", "p50", "on the front", *words.scores], [_scatter_cells(words, row) for row in measured_rows]),
            ),
            "latency": ("Latency", (_LATENCY, [_latency_cells(row) for row in measured_rows])),
            "size": ("Size", (_SIZE, [_size_cells(row) for row in rows if row.artifact])),
            "memory": ("Peak memory", (_MEMORY, [_memory_cells(row) for row in measured_rows])),
            "spread": ("Timings", (HEAD, [spreads[row.variant].cells(row.variant) for row in rows if row.variant in spreads])),
            "split": ("Time by precision", breakdown.split_table(rows)),
            "roofline": ("Roofline", breakdown.roofline_table(rows)),
        },
        "kinds": [(kind, breakdown.TITLES[kind]) for kind in breakdown.occurring(rows)],
        "costs": [(row.variant, told) for row in measured_rows if row.profile and (told := breakdown.costs(row.profile))],
        "peaks": breakdown.peaks(target.peaks) if target.peaks else "",
        "layers": [(name, breakdown.layer_table(layers[name], LAYERS)) for name in layers],
        "figures": figures(words, target, spreads, layers),
    }


def _layers(words: Words, target: TargetInfo, folder: Path | None) -> dict[str, list[LayerTime]]:
    """The layers of the foremost variants of a target, where the run's folder is here."""
    if folder is None or target.session is None or not (folder / target.session).resolve().is_relative_to(folder.resolve()):
        return {}
    held = profile.read(folder / target.session)
    return {row.variant: held[row.variant] for row in words.foremost(target.name, LAYERED) if held.get(row.variant)}


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
        "steps": [
            (
                step.step,
                seconds(step.seconds),
                facts.parity(step),
                facts.pairs(step.options),
                [facts.note(*note) for note in step.notes.items()],
            )
            for step in row.history
        ],
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
