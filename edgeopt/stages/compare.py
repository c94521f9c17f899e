"""compare: two reports → Comparison. Better, worse or the same, by intervals; a pure function of files.

Two sessions are not paired: their blocks were measured at different times. So a change in time must
exceed both intervals, what two copies of the same artifact read apart in either session, and what
artifacts that did not change read apart between the two. Scores on the same samples are paired.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import registry
from edgeopt.core.comparison import FIGURES, Baseline, Change, Comparison, Difference, RowChange, Side
from edgeopt.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EdgeoptError, IncomparableError, UsageError, combine, did_you_mean
from edgeopt.core.plan import Plan
from edgeopt.core.protocols import Score
from edgeopt.core.recipe import PlugUse
from edgeopt.core.report import Report, Row
from edgeopt.core.session import ScoreValue
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages.compare_figures import Found, absent, apart, apart_by, change_of, gain, latency, memory, rate, size, times
from edgeopt.stages.numbers import number

_PER_TARGET = ("backend", "scenario", "threads", "batch", "data_digest")
_CALLED = {"data_digest": "evaluation data"}


def compare(old: Path, new: Path, *, fail_on: Sequence[str] = (), force: bool = False) -> Comparison:
    """Hold the report at `new` against that at `old`; each is a run folder or a report.json.

    Raises UsageError when one is no report, IncomparableError when they were measured differently and not `force`.
    """
    wrong = [name for name in fail_on if name not in FIGURES]
    if wrong:
        raise UsageError(f"nothing is called '{wrong[0]}' to fail on", remedy=did_you_mean(wrong[0], FIGURES))
    return _compared(_Run(old, Report.read(old)), _Run(new, Report.read(new)), fail_on, force)


def against(baseline: Baseline, base: Path, report: Report, folder: Path) -> Comparison:
    """Hold a report that is in the making in `folder` against the baseline of its recipe, which lies in `base`. Raises as `compare`."""
    path = base / baseline.report
    found = _compared(_Run(path, Report.read(path)), _Run(folder, report), baseline.fail_on, False)
    sides = {"old": found.old.model_copy(update={"path": baseline.report}), "new": found.new.model_copy(update={"path": "."})}
    return found.model_copy(update=sides)  # a report holds no path of the machine that wrote it


def _compared(before: _Run, after: _Run, fail_on: Sequence[str], force: bool) -> Comparison:
    differences = differences_of(before.report, after.report)
    if differences and not force:
        told = "; ".join(str(one) for one in differences)
        remedy = "measure both on one machine with the same data, scenario, batch and threads; or compare all the same with --force"
        raise IncomparableError(f"these runs were measured differently: {told}", remedy=remedy)
    return _Comparing(before, after, differences, fail_on).result()


def differences_of(old: Report, new: Report) -> list[Difference]:
    """What differs between two reports in how they were measured, on the targets that both measured."""
    found = []
    before = {target.name: target for target in old.targets if target.session}
    shared = [(before[target.name], target) for target in new.targets if target.session and target.name in before]
    if shared and old.machine.get("id") != new.machine.get("id"):
        names = dict.fromkeys((*old.machine, *new.machine))
        facts = [name for name in names if name != "id" and old.machine.get(name) != new.machine.get(name)] or ["id"]
        found += [Difference(what=f"machine: {name}", old=_told(old.machine.get(name)), new=_told(new.machine.get(name))) for name in facts]
    for one, other in shared:
        for name in _PER_TARGET:
            mine, yours = getattr(one, name), getattr(other, name)
            if mine != yours:
                what = _CALLED.get(name, name)
                found.append(Difference(what=what, target=one.name, old=_told(mine), new=_told(yours)))
    return found


def _told(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)
    return text[:18] + "…" if text.startswith("sha256:") else text


class _Run:
    """One side: its report, and the per-sample scores where its run folder is there."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path, self.report = path, report
        self.folder = path if path.is_dir() else path.parent
        self.rows = {(row.variant, row.target): row for row in report.rows}
        self.targets = {target.name: target for target in report.targets}
        self.scores = {str(use.options.get("label") or use.name): use for use in _plan_scores(self.folder)}
        self._samples: dict[str, dict[str, Any]] = {}

    @property
    def side(self) -> Side:
        recipe = self.report.recipe
        where = {"path": str(self.path), "name": recipe.name, "recipe_digest": recipe.digest}
        return Side(**where, edgeopt=self.report.edgeopt, created_at=self.report.created_at)

    def samples(self, row: Row, label: str) -> Any | None:
        """The values of a score sample by sample, or None where they are not here."""
        session = self.targets[row.target].session if row.target in self.targets else None
        if session is None:
            return None
        if session not in self._samples:
            self._samples[session] = _arrays(self.folder, session)
        return self._samples[session].get(f"{row.variant}/{label}")


def _plan_scores(folder: Path) -> list[PlugUse]:
    try:
        return Plan.read(folder).scores
    except (OSError, ValueError):
        return []


def _arrays(folder: Path, session: str) -> dict[str, Any]:
    path = (folder / session / "scores.npz").resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return {}
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


class _Comparing:
    """One comparison in the making."""

    def __init__(self, old: _Run, new: _Run, differences: list[Difference], fail_on: Sequence[str]) -> None:
        self.old, self.new, self.differences, self.fail_on = old, new, differences, fail_on
        self.both = [key for key in old.rows if key in new.rows]
        self.drift = {name: self._drift(name) for name in new.targets}

    def result(self) -> Comparison:
        found: dict[tuple[str, str], list[Change | Found]] = {key: list(self._row(*key)) for key in self.both}
        together = Counter(one.change.figure for changes in found.values() for one in changes if isinstance(one, Found))
        rows = []
        for variant, target in dict.fromkeys((*self.new.rows, *self.old.rows)):
            changes = found.get((variant, target), [])
            side = "both" if (variant, target) in found else "new" if (variant, target) in self.new.rows else "old"
            settled = [one.judged(together[one.change.figure]) if isinstance(one, Found) else one for one in changes]
            rows.append(RowChange(variant=variant, target=target, found=side, changes=settled))
        outcome = self._outcome(rows)
        return Comparison(
            old=self.old.side,
            new=self.new.side,
            differences=self.differences,
            notes=self._notes(),
            rows=rows,
            fail_on=list(self.fail_on),
            exit_code=combine(code for code, _ in outcome),
            exit_reasons=[reason for _, reason in outcome],
        )

    def _outcome(self, rows: list[RowChange]) -> list[tuple[int, str]]:
        found = []
        for row in rows:
            for change in row.changes:
                where = f"{change.figure} of {row.variant} on {row.target}"
                if change.kind in self.fail_on and change.verdict == "worse":
                    found.append((EXIT_GATE, f"{where} is worse"))
                elif change.kind in self.fail_on and change.verdict == "not comparable":
                    found.append((EXIT_INCONCLUSIVE, f"{where} is not comparable: {change.reason}"))
        if not self.both:
            found.append((EXIT_INCONCLUSIVE, "no variant and target are in both reports"))
        return found

    def _drift(self, target: str) -> float:
        """How far artifacts that did not change read apart between the two sessions, as a log ratio: the machine's doing."""
        if self.old.report.edgeopt != self.new.report.edgeopt:
            return 0.0
        return max((abs(math.log(_p50(new) / _p50(old))) for old, new in self._pairs(target) if _unchanged(old, new)), default=0.0)

    def _pairs(self, target: str) -> list[tuple[Row, Row]]:
        return [(self.old.rows[key], self.new.rows[key]) for key in self.both if key[1] == target]

    def _noise(self, target: str) -> float:
        """What two copies of one artifact read apart, both sessions together, as a log ratio."""
        sides = (self.old.targets.get(target), self.new.targets.get(target))
        return math.hypot(*(math.log1p((side.noise_percent or 0.0) / 100) if side else 0.0 for side in sides))

    def _notes(self) -> list[str]:
        notes = []
        for name, drift in self.drift.items():
            if drift > self._noise(name):
                moved = number(100 * math.expm1(drift), 1)
                notes.append(f"{name}: artifacts that did not change read up to {moved} % apart: speed-ups say more than times here")
        quiet = [name for name, target in self.new.targets.items() if target.session and name in self.old.targets and not self._noise(name)]
        if quiet:
            notes.append(f"{', '.join(quiet)}: neither session knows its noise: small changes in time may be nothing")
        runtimes = {(self.old.rows[key].runtime, self.new.rows[key].runtime) for key in self.both}
        return notes + sorted(f"another runtime: {old} → {new}" for old, new in runtimes if old and new and old != new)

    def _row(self, variant: str, target: str) -> list[Change | Found]:
        old, new = self.old.rows[variant, target], self.new.rows[variant, target]
        found: list[Change | Found | None] = [self._speed(old, new), self._speedup(old, new)]
        found += [self._score(old, new, label) for label in dict.fromkeys((*old.scores, *new.scores))]
        found += [size(old, new), memory(old, new)]
        return [one for one in found if one is not None]

    def _speed(self, old: Row, new: Row) -> Change | Found | None:
        """Latency; in the throughput scenario the rate."""
        target = self.new.targets.get(new.target)
        margin = max(self._noise(new.target), self.drift.get(new.target, 0.0))
        if target is not None and target.scenario in UNDER_LOAD:
            return times("throughput", "per s", old, new, rate, margin)
        return times("latency", "ms", old, new, latency, margin)

    def _speedup(self, old: Row, new: Row) -> Change | Found | None:
        """Speed against the reference of the same session: what the whole machine did is in both and cancels."""
        change = times("speedup", "×", old, new, gain, self._noise(new.target))
        references = self.old.report.reference, self.new.report.reference
        if isinstance(change, Found) and references[0] != references[1]:
            return apart(change.change, f"against {references[0]} there, against {references[1]} here")
        return change

    def _score(self, old: Row, new: Row, label: str) -> Change | Found | None:
        before, after = old.scores.get(label), new.scores.get(label)
        one = after or before
        assert one is not None
        values = (side.value if side else None for side in (before, after))
        change = change_of(label, "score", one.unit, one.higher_is_better, *values)
        if before is None or after is None:
            return apart(change, absent(old, new))
        if (before.unit, before.higher_is_better) != (after.unit, after.higher_is_better) or self._set_differently(label):
            return apart(change, "the score is set differently")
        if paired := self._paired(old, new, label, before, after):
            return Found(change.model_copy(update={"paired": True}), *paired, is_ratio=False)
        if not before.ci95 or not after.ci95:
            return apart(change, "there is no interval to judge it by")
        return Found(change, *apart_by((before.value, *before.ci95), (after.value, *after.ci95)), is_ratio=False)

    def _set_differently(self, label: str) -> bool:
        mine, yours = self.old.scores.get(label), self.new.scores.get(label)
        return mine is not None and yours is not None and mine != yours

    def _paired(self, old: Row, new: Row, label: str, before: ScoreValue, after: ScoreValue) -> tuple[float, float, float] | None:
        """Change and interval from the values of the same samples on both sides, or None where they are not here."""
        digests = [run.targets[new.target].data_digest for run in (self.old, self.new) if new.target in run.targets]
        one, other = self.old.samples(old, label), self.new.samples(new, label)
        if one is None or other is None or one.shape != other.shape or len(digests) != 2 or digests[0] != digests[1]:
            return None
        made = _own_score(self.new.scores.get(label))
        if made is None or not len(one):
            return None
        from edgeopt.stages import statistics

        try:
            figures = statistics.score(other, one, made.finish, True, made.binary, 0)
            told = math.isclose(made.finish(one), before.value, rel_tol=1e-9) and math.isclose(figures["value"], after.value, rel_tol=1e-9)
        except (ValueError, IndexError, TypeError):
            return None
        if not told or figures["drop_ci95"] is None:  # arrays of something else than what was reported
            return None
        return -figures["drop"], -figures["drop_ci95"][1], -figures["drop_ci95"][0]


def _unchanged(old: Row, new: Row) -> bool:
    """Whether the same artifact was executed by the same runtime on both sides."""
    same = old.artifact and new.artifact and old.artifact.digest == new.artifact.digest
    return bool(same and old.runtime and old.runtime == new.runtime and old.latency_ms and new.latency_ms)


def _p50(row: Row) -> float:
    assert row.latency_ms
    return row.latency_ms.p50


def _own_score(use: PlugUse | None) -> Score | None:
    """A score by its entry in a recipe; None where it ends in the user's code, which a report must not make us run."""
    if use is None or (use.name == "python" and use.options.get("finish")):
        return None
    try:
        made: Score = registry.load("scores", use.name).model_validate(use.options)
        return made
    except (EdgeoptError, ValueError):
        return None
