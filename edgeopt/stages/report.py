"""report: sessions → Report. A pure function of the run folder's files: judge the gates, pick, write the pages."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.core import machine
from edgeopt.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_MISSING, IncomparableError, combine, from_json
from edgeopt.core.gate import Gate
from edgeopt.core.plan import Plan, PlanTarget
from edgeopt.core.report import ArtifactInfo, GateResult, RecipeInfo, Report, Row, TargetInfo
from edgeopt.core.session import Measured, Session
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import compare, gates, html, junit, markdown
from edgeopt.stages.build import Build, BuildRow, artifact_of
from edgeopt.stages.measure import sessions_of

_RANK = {"bundled": 0, "built": 1, "measured": 2}
_NEVER_PICKED = {"slower-than-reference", "larger-than-reference"}


def report(plan: Plan, folder: Path) -> Report:
    """Judge what the run folder holds; writes report.json, report.md, report.html and junit.xml there."""
    build, sessions = Build.read(folder), sessions_of(folder)
    judged = _against(plan, folder, _judge(plan, folder, build, sessions))
    judged.write(folder)
    (folder / "report.md").write_text(markdown.markdown(judged), encoding="utf-8")
    (folder / "report.html").write_text(html.html(judged, folder), encoding="utf-8")
    (folder / "junit.xml").write_text(junit.junit(judged), encoding="utf-8")
    return judged


def _against(plan: Plan, folder: Path, judged: Report) -> Report:
    """The report with what its baseline says to it; a baseline that was measured differently says nothing, which is inconclusive."""
    if plan.baseline is None:
        return judged
    held = None
    try:
        held = compare.against(plan.baseline, Path(plan.base), judged, folder)
        code, reasons = held.exit_code, held.exit_reasons
    except IncomparableError as error:
        code, reasons = error.exit_code, [error.cause]
    told = [*judged.exit_reasons, *(f"against the baseline: {reason}" for reason in reasons)]
    return judged.model_copy(update={"baseline": held, "exit_code": combine([judged.exit_code, code]), "exit_reasons": told})


def _judge(plan: Plan, folder: Path, build: Build, sessions: dict[str, Session]) -> Report:
    rows: list[Row] = []
    results: list[GateResult] = []
    codes: list[int] = []
    reasons: list[str] = []
    for used in plan.targets:
        session = sessions.get(used.target.name)
        mine = [_row(folder, build.of(planned.variant, used.target.name), session, used) for planned in plan.rows_of(used.target.name)]
        found = [gates.judge(gate, row, plan.reference) for gate in plan.gates for row in mine if gates.concerns(gate, row)]
        mine = [_qualified(row, found, plan.gates) for row in mine]
        mine = _pick(plan, used, mine)
        for code, reason in _outcome(plan, used, mine, found):
            codes.append(code)
            reasons.append(reason)
        rows += mine
        results += found
    return Report(
        edgeopt=__version__,
        recipe=RecipeInfo(name=plan.name, digest=plan.recipe_digest, file=plan.recipe_file),
        machine=max((session.machine for session in sessions.values()), key=len, default=machine.fingerprint()),  # with GPUs, if one has
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reference=plan.reference,
        pick=plan.pick,
        exit_code=combine(codes),
        exit_reasons=reasons,
        targets=[_target(used, sessions.get(used.target.name)) for used in plan.targets],
        rows=rows,
        gates=results,
        versions=_versions(plan),
    )


def _versions(plan: Plan) -> dict[str, str]:
    """The packages behind the plan's steps, as their keys hold them, and the Python that runs here."""
    found = {name: version for step in plan.steps.values() for name, version in step.parts.get("needs", {}).items()}
    return {"python": platform.python_version()} | dict(sorted(found.items()))


def _target(used: PlanTarget, session: Session | None) -> TargetInfo:
    return TargetInfo(
        name=used.target.name,
        backend=used.target.backend,
        scenario=used.target.scenario,
        threads=session.threads if session else used.threads,
        on_gpu=used.target.on_gpu,
        batch=session.batch if session else used.target.batch,
        need=used.need,
        noise_percent=session.noise_percent if session else None,
        session=f"sessions/{used.target.name}" if session else None,
        data_digest=session.data_digest if session else None,
        conditions=session.conditions if session else {},
        peaks=session.peaks if session else None,
    )


def _row(folder: Path, built: BuildRow, session: Session | None, used: PlanTarget) -> Row:
    measured = session.of(built.variant) if session else None
    status, reason, code = built.status, built.reason, built.exit_code
    flags: list[str] = []
    info = None
    if built.artifact:
        artifact = artifact_of(folder, built)
        info = ArtifactInfo(
            format=artifact.format, path=f"{built.artifact}/files/{artifact.main}", digest=artifact.digest, size_bytes=artifact.size_bytes
        )
    if measured and measured.error:
        status, reason, code = "failed", str(from_json(measured.error)), int(measured.error["exit_code"])
        measured = None
    timed = measured is not None and measured.latency_ms is not None
    if timed:
        reason = None
    elif status == "built" and reason is None and used.need == "measured":
        reason = "not measured yet"
    if session and session.synthetic and measured and measured.scores:
        flags.append("synthetic-data")
    quantized = any(step.notes.get("quantized_layers") for step in built.history)
    if quantized and measured and measured.precision and not measured.precision.get("int8"):
        flags.append("none-in-int8")
    found: dict[str, Any] = (measured or Measured(variant=built.variant)).model_dump(exclude={"variant", "error", "layers"})
    found["flags"] = flags + found["flags"]
    return Row(
        variant=built.variant,
        target=built.target,
        status="measured" if timed else status,
        reason=reason,
        artifact=info,
        pareto=False,
        qualifies=None,
        picked=False,
        pick_basis=None,
        exit_code=code,
        history=built.history,
        **found,
    )


def _qualified(row: Row, results: list[GateResult], demands: list[Gate]) -> Row:
    """Whether every gate on the row passes; an inconclusive one only where the gate says so."""
    if row.status in ("failed", "unavailable"):
        return row.model_copy(update={"qualifies": False})
    mine = [one for one in results if one.variant == row.variant]
    lenient = [gate.model_dump(exclude_none=True, exclude_defaults=True) for gate in demands if gate.inconclusive == "pass"]
    good = all(one.verdict == "pass" or (one.verdict == "inconclusive" and one.gate in lenient) for one in mine)
    if row.status == "measured":
        return row.model_copy(update={"qualifies": good})
    accurate = all(one.verdict == "pass" for one in mine if "score" in one.gate and one.verdict != "not_measured")
    return row.model_copy(update={"qualifies": accurate})


def _pick(plan: Plan, used: PlanTarget, rows: list[Row]) -> list[Row]:
    """Mark the Pareto front, rows larger than the reference, and the one to take."""
    reference = next((row for row in rows if row.variant == plan.reference), None)
    marked = [row.model_copy(update={"flags": _flags(row, reference), "pareto": _on_front(row, rows, used)}) for row in rows]
    able = [
        row
        for row in marked
        if row.qualifies and not _NEVER_PICKED & set(row.flags) and not (row.variant == plan.reference and plan.reference_added)
    ]
    measured = [row for row in able if row.latency_ms]
    if plan.pick != "size" and any(row.variant == plan.reference for row in measured):
        # A gain that is not proved is no reason to leave the reference.
        measured = [row for row in measured if row.variant == plan.reference or (row.speedup and row.speedup.verdict == "faster")]
    steady = [row for row in measured if "unstable" not in row.flags]
    best: Row | None = None
    basis: str | None = None
    if measured:
        best, basis = min(steady or measured, key=lambda row: _order(row, plan.pick)), plan.pick
        basis += "" if steady else ", measured while the machine was unstable"
    elif able and not any(row.latency_ms for row in marked):
        best, basis = able[-1], "accuracy gates; no latency was measured"
    return [row.model_copy(update={"picked": True, "pick_basis": basis}) if row is best else row for row in marked]


def _order(row: Row, pick: str) -> float:
    assert row.latency_ms and row.artifact
    if pick == "size":
        return float(row.artifact.size_bytes)
    return -(row.throughput_per_s or 0.0) if pick == "throughput" else row.latency_ms.p50


def _flags(row: Row, reference: Row | None) -> list[str]:
    if (
        reference
        and row is not reference
        and row.artifact
        and reference.artifact
        and row.artifact.size_bytes > reference.artifact.size_bytes * 1.01
    ):
        return [*row.flags, "larger-than-reference"]
    return row.flags


def _on_front(row: Row, rows: list[Row], used: PlanTarget) -> bool:
    """No other row is at least as fast and as accurate (by the first score) and better in one of the two."""
    if not row.latency_ms:
        return False
    mine = _point(row, used)
    others = [_point(one, used) for one in rows if one is not row and one.latency_ms]
    return not any(other[0] <= mine[0] and other[1] <= mine[1] and other != mine for other in others)


def _point(row: Row, used: PlanTarget) -> tuple[float, float]:
    assert row.latency_ms
    first = next(iter(row.scores.values()), None)
    loss = 0.0 if first is None else (-first.value if first.higher_is_better else first.value)
    cost = 1 / row.throughput_per_s if used.target.scenario in UNDER_LOAD and row.throughput_per_s else row.latency_ms.p50
    return cost, loss


def _outcome(plan: Plan, used: PlanTarget, rows: list[Row], results: list[GateResult]) -> list[tuple[int, str]]:
    """Exit codes of one target with their reasons."""
    name = used.target.name
    found = [(row.exit_code, f"{row.variant} on {name}: {row.reason}") for row in rows if row.status == "failed"]
    reached = [row for row in rows if row.status in _RANK and _RANK[row.status] >= _RANK[used.need]]
    if not reached and not found:
        why = next((row.reason for row in rows if row.reason), "nothing was built")
        found.append((EXIT_MISSING, f"{name} was to be {used.need}: {why}"))
    demanded = [one for one in results if one.gate.get("variants") and one.verdict in ("fail", "inconclusive", "not_measured")]
    for one in demanded:
        if one.verdict == "inconclusive" and one.gate.get("inconclusive") == "pass":
            continue
        code = EXIT_INCONCLUSIVE if one.verdict == "inconclusive" else EXIT_GATE
        found.append(
            (code, f"{one.variant} on {name}: the gate on {gates.name(one.gate)} is demanded of it: {one.verdict.replace('_', ' ')}")
        )
    judged = [row for row in rows if row.status == "measured"]
    if judged and not any(row.qualifies for row in judged):
        open_only = any(_only_open(row, results) for row in judged)
        code = EXIT_INCONCLUSIVE if open_only else EXIT_GATE
        found.append((code, f"{name}: no variant passes every gate" + (", some only for want of evidence" if open_only else "")))
    return found


def _only_open(row: Row, results: list[GateResult]) -> bool:
    return all(one.verdict in ("pass", "inconclusive") for one in results if one.variant == row.variant)
