"""markdown: a report as GitHub-flavoured Markdown, the decision first."""

from __future__ import annotations

from edgeopt.core.report import Report, Row, TargetInfo
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import breakdown, changes, facts
from edgeopt.stages.decision import decide
from edgeopt.stages.gfm import code, escaped, grid
from edgeopt.stages.numbers import NONE, factor, measured, megabytes, number, seconds
from edgeopt.stages.words import EXITS, VERDICTS, Words


def markdown(report: Report) -> str:
    """A report as one Markdown document."""
    words = Words(report)
    parts = [f"# {escaped(report.recipe.name)}", _outcome(report), *_decisions(words)]
    for target in report.targets:
        parts += _target(words, target)
    if report.baseline:
        parts += ["## Against the baseline", *changes.sections(report.baseline, "###")]
    parts += _failures(report) + _histories(report) + _environment(report) + _repeat(report)
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(report: Report) -> str:
    lines = [f"**{EXITS.get(report.exit_code, 'The run did not finish.')}** (exit code {report.exit_code})"]
    return "\n".join([*lines, *([""] if report.exit_reasons else []), *(f"- {escaped(reason)}" for reason in report.exit_reasons)])


def _decisions(words: Words) -> list[str]:
    lines = []
    for target in words.report.targets:
        decision = decide(words, target.name)
        rest = ", ".join(part.text for part in decision.parts) or "; ".join(decision.reasons)
        lines.append(f"- **{escaped(target.name)}: {escaped(decision.answer)}**" + (f": {escaped(rest)}" if rest else ""))
        lines += [f"  - Evidence: {escaped('; '.join(decision.evidence))}"] if decision.evidence else []
        lines += [f"  - Doubt: {escaped(doubt)}" for doubt in decision.doubts]
    return ["## What to take", "\n".join(lines)]


def _target(words: Words, target: TargetInfo) -> list[str]:
    rows = words.rows[target.name]
    parts = [f"## {escaped(target.name)}", escaped(words.title(target)) + "."]
    head = ["variant", "", "p50", "p90", "speed-up", "size", "peak memory", *map(escaped, words.scores)]
    if target.scenario in UNDER_LOAD:
        head.insert(4, "throughput")
    parts.append(grid(head, (_cells(words, row, target) for row in rows), head[2:]))
    gates = list(dict.fromkeys(words.wants(gate.gate) for row in rows for gate in words.gates(row)))
    if gates:
        parts += [
            "### Gates",
            grid(["variant", *map(escaped, gates)], ([escaped(row.variant), *_verdicts(words, row, gates)] for row in rows)),
        ]
    others = [row for row in rows if not row.picked]
    if others:
        parts += [
            "### Why not the others",
            "\n".join(f"- **{escaped(row.variant)}**: {escaped('; '.join(words.why_not(row)))}" for row in others),
        ]
    remarks = ((row.variant, words.flags(row) + words.warnings(row)) for row in rows)
    told = [f"- {escaped(variant)}: {escaped('; '.join(found))}" for variant, found in remarks if found]
    return parts + (["### Remarks", "\n".join(told)] if told else []) + _where(target, rows)


def _where(target: TargetInfo, rows: list[Row]) -> list[str]:
    """Where the time goes, a line for each variant that was profiled."""
    profiled = [(row, row.profile) for row in rows if row.profile and row.profile.total_us]
    if not profiled:
        return []
    cells = [
        [
            escaped(row.variant),
            escaped(breakdown.split(profile)),
            escaped("; ".join(breakdown.costs(profile)) or NONE),
            escaped(breakdown.percent(profile.roofline.reached) if profile.roofline else NONE),
        ]
        for row, profile in profiled
    ]
    head = ["variant", "time", "lost between layers", "of what this machine can do"]
    peaks = [f"Measured peaks: {escaped(breakdown.peaks(target.peaks))}."] if target.peaks else []
    return ["### Where the time goes", grid(head, cells, head[3:]), *peaks]


def _cells(words: Words, row: Row, target: TargetInfo) -> list[str]:
    latency = row.latency_ms
    standing = words.standing(row)
    cells = [
        f"**{escaped(row.variant)}**" if row.picked else escaped(row.variant),
        f"**{standing}**" if row.picked else standing,
        measured(latency.p50, latency.p50_ci95, "ms") if latency else NONE,
        measured(latency.p90, latency.p90_ci95, "ms") if latency else NONE,
        factor(row.speedup.value, row.speedup.ci95) if row.speedup else NONE,
        megabytes(row.artifact.size_bytes if row.artifact else None),
        f"{number(row.peak_rss_mb)} MB" if row.peak_rss_mb is not None else NONE,
        *(words.of(row, name, ci=True) for name in words.scores),
    ]
    if target.scenario in UNDER_LOAD:
        cells.insert(4, measured(row.throughput_per_s, row.throughput_ci95, "per s"))
    return cells


def _verdicts(words: Words, row: Row, gates: list[str]) -> list[str]:
    found = {words.wants(gate.gate): gate for gate in words.gates(row)}
    cells = []
    for wants in gates:
        gate = found.get(wants)
        got = f", {words.got(gate)}" if gate and gate.got is not None else ""
        verdict = VERDICTS[gate.verdict] if gate else NONE
        cells.append(escaped(f"{verdict}{got}") if not gate or gate.verdict == "pass" else f"**{verdict}**{escaped(got)}")
    return cells


def _failures(report: Report) -> list[str]:
    failed = [row for row in report.rows if row.status == "failed"]
    parts = ["## What failed"] if failed else []
    for row in failed:
        parts += [
            f"**{escaped(row.variant)} on {escaped(row.target)}** (exit code {row.exit_code})",
            code(row.reason or "no reason was given"),
        ]
    return parts


def _histories(report: Report) -> list[str]:
    lines = []
    for row in report.rows:
        told = (f"{escaped(step.step)} ({', '.join(filter(None, (seconds(step.seconds), facts.sqnr(step))))})" for step in row.history)
        if steps := " → ".join(told):
            lines.append(f"- **{escaped(row.variant)} on {escaped(row.target)}**: {steps}")
    return ["## What each artifact went through", _STEPS, "\n".join(lines)] if lines else []


def _environment(report: Report) -> list[str]:
    parts = ["## Environment", grid(["machine", ""], ((escaped(name), escaped(one)) for name, one in facts.machine(report)))]
    for head, rows in (facts.sessions(report), facts.devices(report)):
        parts += [grid(map(escaped, head), (map(escaped, row) for row in rows))] if rows else []
    return parts


def _repeat(report: Report) -> list[str]:
    told = facts.commands(report)
    wide = max(len(command) for command, _ in told)
    block = "\n".join(f"{command:<{wide}}   # {what}" for command, what in told)
    origin = "\n".join(f"- {escaped(name)}: {escaped(one)}" for name, one in facts.origin(report))
    made = ", ".join(f"{name} {version}" for name, version in (report.versions or {}).items())
    found = ["## How to repeat it", code(block).replace("text\n", "sh\n", 1), origin, f"Made with {escaped(made)}." if made else "", _NOTES]
    return [part for part in found if part]


_STEPS = "Seconds of each step, and how well its outputs agree with those before it (SQNR; report.json holds options and notes)."
_NOTES = """Intervals are at 95 %. Speed-ups are paired block by block with the reference in the same session. MB are 10⁶ bytes.
A change "[−0.3, +0.7]" points the way its sentence says; a negative end means that it may as well be the other way."""
