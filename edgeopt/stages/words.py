"""words: how verdicts and decisions are said, once for console, Markdown, HTML and JUnit.

Changes are told in the direction that the sentence names: "2.10× faster [2.05, 2.16]", "0.2 points
lower [−0.3, +0.7]", where a negative end means that it may as well be higher.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from edgeopt.core.report import FLAGS, GateResult, Report, Row, TargetInfo
from edgeopt.core.session import Interval, ScoreValue
from edgeopt.core.target import UNDER_LOAD
from edgeopt.stages import gates
from edgeopt.stages.numbers import NONE, decimals, factor, interval, measured, number, plain, threads

# Scores that compare with the reference by themselves: their value is the loss, a drop says nothing new.
AGAINST_REFERENCE = ("agreement", "sqnr")
VERDICTS = {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive", "not_measured": "not measured"}
EXITS = {
    0: "Every target has what it needs.",
    2: "The recipe or its data are wrong.",
    3: "A gate failed: at least one target has nothing to take.",
    4: "Inconclusive: the evidence does not carry a decision.",
    5: "Something that is needed is missing here.",
    6: "Something that was read is not to be trusted.",
    7: "Disk or memory ran out.",
    8: "A step failed.",
}
# Kind of gate, key of its limit, sign, unit.
_LIMITS = (
    ("latency", "max_ms", "≤", " ms"),
    ("speedup", "min", "≥", "×"),
    ("throughput", "min_per_s", "≥", " per s"),
    ("size", "max_mb", "≤", " MB"),
    ("memory", "max_mb", "≤", " MB"),
)


@dataclass(frozen=True)
class Part:
    """One thing that a choice changes against the reference; `good` is None when nothing is proved."""

    text: str
    good: bool | None


def loadgen(row: Row) -> str:
    """LoadGen's verdict in a clause; empty where it has none."""
    one = row.mlperf
    if one is None:
        return ""
    verdict = "valid" if one.valid else "INVALID" + (f", not met: {', '.join(one.missed)}" if one.missed else "")
    figure = f"p90 {number(one.p90_ms)} ms" if one.p90_ms is not None else f"{number(one.samples_per_s)} samples per s"
    queries = f"{one.queries:,} {'query' if one.queries == 1 else 'queries'}"
    length = f"at least {number(one.min_duration_s)} s, where an official run takes 600"
    return f"LoadGen {one.scenario.removeprefix('mlperf-')} {verdict}: {figure}, {queries} in {length}"


class Words:
    """The sentences of one report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.rows: dict[str, list[Row]] = {target.name: [] for target in report.targets}
        self._gates: dict[tuple[str, str], list[GateResult]] = defaultdict(list)
        self._styles: dict[str, ScoreValue] = {}
        spans: dict[str, list[float]] = defaultdict(list)
        for row in report.rows:
            self.rows.setdefault(row.target, []).append(row)
            for name, score in row.scores.items():
                self._styles.setdefault(name, score)
                spans[name].append(score.value)
        for gate in report.gates:
            self._gates[gate.variant, gate.target].append(gate)
        self.scores = list(self._styles)
        self._percent = {
            name
            for name, one in self._styles.items()
            if not one.unit and one.higher_is_better and all(0 <= value <= 1 for value in spans[name])
        }
        self._reference = {row.target: row for row in report.rows if row.variant == report.reference}
        self._picked = {row.target: row for row in report.rows if row.picked}
        self._by_rate = {target.name for target in report.targets if target.scenario in UNDER_LOAD}

    def gates(self, row: Row) -> list[GateResult]:
        """The gates judged on a row."""
        return self._gates.get((row.variant, row.target), [])

    def reference(self, target: str) -> Row | None:
        return self._reference.get(target)

    def picked(self, target: str) -> Row | None:
        return self._picked.get(target)

    def foremost(self, target: str, most: int) -> list[Row]:
        """So many rows of a target at most, those that matter, in the recipe's order."""

        def weight(row: Row) -> tuple[bool, bool, bool, bool, float]:
            speed = row.latency_ms.p50 if row.latency_ms else float("inf")
            return not row.picked, row.variant != self.report.reference, not row.qualifies, not row.pareto, speed

        rows = self.rows[target]
        kept = {id(row) for row in sorted(rows, key=weight)[:most]}
        return [row for row in rows if id(row) in kept]

    def title(self, target: TargetInfo) -> str:
        """ "openvino, latency, 2 threads, batch 1"."""
        return f"{target.backend}, {target.scenario}, {threads(target.threads, target.on_gpu)}batch {target.batch}"

    # scores

    def percent(self, name: str) -> bool:
        """Whether a score is told in percent, and its changes in points."""
        return name in self._percent

    def unit(self, name: str) -> str:
        return "%" if name in self._percent else self._styles[name].unit if name in self._styles else ""

    def rises(self, name: str) -> bool:
        """Whether a higher value is better."""
        return name not in self._styles or self._styles[name].higher_is_better

    def scaled(self, name: str, value: float) -> float:
        """A score's value in the unit it is told in."""
        return value * 100 if name in self._percent else value

    def score(self, name: str, value: float | None, ci: Interval | None = None, samples: int | None = None) -> str:
        """ "98.10 % [97.3, 98.7]", "38.2 dB", "0.0123"."""
        if value is None:
            return NONE
        unit = self.unit(name)
        shown = self.scaled(name, value)
        places = (2 if (samples or 0) >= 1000 else 1) if unit == "%" else 1 if unit == "dB" else decimals(shown)
        scaled = (self.scaled(name, ci[0]), self.scaled(name, ci[1])) if ci else None
        return " ".join(filter(None, (f"{number(shown, places)} {unit}".strip(), interval(scaled, places))))

    def of(self, row: Row, name: str, *, ci: bool = False) -> str:
        """A row's score."""
        score = row.scores.get(name)
        return self.score(name, score.value, score.ci95 if ci else None, score.samples) if score else NONE

    def drop(self, name: str, drop: float, ci: Interval | None) -> str:
        """ "0.2 points lower [−0.3, +0.7]": positive means worse, the interval in the same direction."""
        sign = -1.0 if drop < 0 else 1.0
        value = sign * self.scaled(name, drop)
        places = self._places(name, value, ci)
        ends = sorted(sign * self.scaled(name, end) for end in ci) if ci else None
        if ends:
            places = min(places, 2) if name in self._percent else places
        bounds = interval((ends[0], ends[1]), places, signed=True) if ends else ""
        if value == 0:
            return f"unchanged {bounds}".strip()
        way = "lower" if self.rises(name) == (drop > 0) else "higher"
        return f"{number(value, places)}{self._points(name, value, places)} {way} {bounds}".strip()

    def _places(self, name: str, value: float, ci: Interval | None) -> int:
        if name in self._percent:
            return 2 if 0 < abs(value) < 0.095 else 1
        if self.unit(name) == "dB":
            return 1
        return decimals(value or (max(abs(end) for end in ci) if ci else 0))

    def _points(self, name: str, value: float, places: int) -> str:
        if name in self._percent:
            return " point" if round(value, places) == 1 else " points"
        return f" {self.unit(name)}".rstrip()

    # rows

    def cost(self, row: Row) -> str:
        """What a row is timed by: its p50, or its throughput."""
        if row.latency_ms and not self._by_throughput(row):
            return measured(row.latency_ms.p50, row.latency_ms.p50_ci95, "ms")
        return measured(row.throughput_per_s, row.throughput_ci95, "per s")

    def _by_throughput(self, row: Row) -> bool:
        return row.target in self._by_rate and row.throughput_per_s is not None

    def speed(self, row: Row) -> Part | None:
        """Speed against the reference in words."""
        if row.speedup is None or row.variant == self.report.reference:
            return None
        value, ci, base = row.speedup.value, row.speedup.ci95, self.report.reference
        noun = "the throughput" if self._by_throughput(row) else "the speed"
        if row.speedup.verdict == "faster":
            return Part(factor(value, ci, f"faster than {base}"), True)
        if row.speedup.verdict == "slower" and min(value, *ci) > 0:
            value, ci = 1 / value, (1 / ci[1], 1 / ci[0])
            return Part(factor(value, ci, f"slower than {base}"), False)
        if row.speedup.verdict == "indistinguishable":
            return Part(f"{noun} of {base} within noise ({factor(value, ci)})", None)
        return Part(f"{noun} is not comparable with {base}", None)

    def size(self, row: Row) -> Part | None:
        """Size against the reference in words."""
        base = self._reference.get(row.target)
        if row is base or not (row.artifact and base and base.artifact and row.artifact.size_bytes and base.artifact.size_bytes):
            return None
        ratio = base.artifact.size_bytes / row.artifact.size_bytes
        if abs(ratio - 1) < 0.005:
            return Part("the same size", None)
        smaller, times = ratio > 1, max(ratio, 1 / ratio)
        return Part(f"{number(times, 2 if times < 1.1 else 1 if times < 100 else 0)}× {'smaller' if smaller else 'larger'}", smaller)

    def losses(self, row: Row) -> list[Part]:
        """Each score against the reference in words; those that compare by themselves show their value."""
        if row.variant == self.report.reference:
            return []
        parts = []
        for name, score in row.scores.items():
            if score.drop is None or name in AGAINST_REFERENCE or score.unit == "dB":
                parts.append(Part(f"{name} {self.of(row, name)}", None))
                continue
            low, high = score.drop_ci95 or (score.drop, score.drop)
            good = True if high < 0 else False if low > 0 else None
            parts.append(Part(f"{name} {self.drop(name, score.drop, score.drop_ci95)}", good))
        return parts

    def standing(self, row: Row) -> str:
        """A row's place in two words at most: take, qualifies, reference, gate failed, slower, …"""
        if row.status in {"failed", "unavailable"}:
            return row.status
        if row.picked:
            return "take"
        verdicts = {gate.verdict for gate in self.gates(row)}
        if "fail" in verdicts:
            return "gate failed"
        if "slower-than-reference" in row.flags:
            return "slower"
        if "larger-than-reference" in row.flags:
            return "larger"
        if "unstable" in row.flags:
            return "unstable"
        if row.qualifies:
            return "qualifies"
        if row.status in ("built", "bundled"):
            return row.status
        if verdicts - {"pass"}:
            return "inconclusive"
        return "reference" if row.variant == self.report.reference else "not picked"

    def why_not(self, row: Row) -> list[str]:
        """Why a row is not the one to take, most telling first; empty for the pick."""
        if row.picked:
            return []
        if row.status in ("failed", "unavailable"):
            return [f"{'failed' if row.status == 'failed' else 'not available here'}: {row.reason or 'no reason was given'}"]
        reasons = [self.judged(gate) for gate in self.shortfalls(row)]
        reasons += [FLAGS[flag] for flag in ("slower-than-reference", "larger-than-reference", "unstable") if flag in row.flags]
        if row.status in ("built", "bundled"):
            reasons.append(f"{row.status}, not measured here" + (f": {row.reason}" if row.reason else ""))
        if not reasons:
            best = self._picked.get(row.target)
            if row.qualifies and best:
                reasons.append(f"qualifies, but {best.variant} has the better {self.report.pick}")
            elif row.variant == self.report.reference:
                reasons.append("the reference: it is here to be compared with")
            else:
                reasons.append(row.reason or "does not qualify")
        return reasons + ([loadgen(row)] if row.mlperf else [])

    def shortfalls(self, row: Row) -> list[GateResult]:
        """The gates that a row does not pass, failures first, but for those open because it never ran."""
        told = ("fail", "inconclusive", "not_measured") if row.status == "measured" else ("fail", "inconclusive")
        return sorted((gate for gate in self.gates(row) if gate.verdict in told), key=lambda gate: told.index(gate.verdict))

    def flags(self, row: Row) -> list[str]:
        """A row's flags in words."""
        return [FLAGS.get(flag, flag) for flag in row.flags]

    def warnings(self, row: Row) -> list[str]:
        """What the steps that made a row warned of, and what its figures do: "prune-2-4: 2:4 zeros give speed in …"."""
        steps = [f"{step.step}: {step.notes['warning']}" for step in row.history if step.notes.get("warning")]
        return steps + [f"on the GPU: {one}" for one in (row.device or {}).get("warnings", [])]

    # gates

    def wants(self, gate: dict[str, Any]) -> str:
        """What a gate demands: "top1 loses at most 1 point", "p90 at most 5 ms"."""
        if name := gate.get("score"):
            if gate.get("max_drop") is not None:
                value = self.scaled(name, gate["max_drop"])
                return f"{name} loses at most {number(value, plain(value))}{self._points(name, value, plain(value))}"
            low = gate.get("min") is not None
            value = self.scaled(name, gate["min"] if low else gate["max"])
            return f"{name} at {'least' if low else 'most'} {number(value, plain(value))} {self.unit(name)}".rstrip()
        if gate.get("latency"):
            return f"{gate['latency']} at most {number(gate['max_ms'], plain(gate['max_ms']))} ms"
        if limit := gate.get("speedup"):
            return f"at least {number(limit['min'], plain(limit['min']))}× the reference's speed"
        if limit := gate.get("throughput"):
            return f"at least {number(limit['min_per_s'], plain(limit['min_per_s']))} per second"
        kind = "size" if gate.get("size") else "memory"
        value = gate[kind]["max_mb"]
        return f"{kind} at most {number(value, plain(value))} MB"

    def short(self, gate: dict[str, Any]) -> str:
        """A gate's name in one word: the score, the percentile, speedup, size, memory or throughput."""
        return gates.name(gate)

    def limit(self, gate: dict[str, Any]) -> str:
        """What a gate demands, in signs: "top1 drop ≤ 1 point", "p90 ≤ 5 ms", "speed-up ≥ 1.5×"."""
        if name := gate.get("score"):
            low, drop = gate.get("min") is not None, gate.get("max_drop")
            value = self.scaled(name, drop if drop is not None else gate["min"] if low else gate["max"])
            unit = self._points(name, value, plain(value)) if drop is not None else f" {self.unit(name)}".rstrip()
            return f"{name}{' drop' if drop is not None else ''} {'≥' if low and drop is None else '≤'} {number(value, plain(value))}{unit}"
        for kind, key, sign, unit in _LIMITS:
            if gate.get(kind):
                value = gate[key] if key in gate else gate[kind][key]
                named = {"latency": gate.get("latency"), "speedup": "speed-up"}.get(kind, kind)
                return f"{named} {sign} {number(value, plain(value))}{unit}"
        return gates.name(gate)

    def limits(self) -> list[str]:
        """All gates of the report, each told once, with the targets and variants that it is limited to."""
        told: dict[str, None] = {}
        for result in self.report.gates:
            only = [*(result.gate.get("targets") or []), *(result.gate.get("variants") or [])]
            told[self.limit(result.gate) + (f" ({', '.join(only)})" if only else "")] = None
        return list(told)

    def got(self, result: GateResult) -> str:
        """What a gate found, in its own unit."""
        gate, value, ci = result.gate, result.got, result.ci95
        if value is None:
            return NONE
        if name := gate.get("score"):
            if gate.get("max_drop") is not None:
                return self.drop(name, value, ci)
            return self.score(name, value, ci)
        if gate.get("speedup") and result.variant == self.report.reference:
            return "exempt"
        if gate.get("speedup"):
            return factor(value, ci)
        unit = "ms" if gate.get("latency") else "per s" if gate.get("throughput") else "MB"
        return measured(value, ci, unit)

    def judged(self, result: GateResult) -> str:
        """A gate's verdict in one clause: "p90 at most 5 ms: fail, 6.10 ms [6.02, 6.21]"."""
        found = f", {self.got(result)}" if result.got is not None else ""
        return f"{self.wants(result.gate)}: {VERDICTS[result.verdict]}{found}" + (f" ({result.reason})" if result.reason else "")

    def passed(self, row: Row) -> str:
        """ "3/4": gates passed of gates judged."""
        gates = self.gates(row)
        return f"{sum(gate.verdict == 'pass' for gate in gates)}/{len(gates)}" if gates else NONE
