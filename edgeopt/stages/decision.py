"""decision: what to take for each target, said with its gains, its costs and what that rests on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from edgeopt.core.report import Row
from edgeopt.stages import breakdown
from edgeopt.stages.numbers import count, number
from edgeopt.stages.words import Part, Words, loadgen

NOISY_PERCENT = 5.0  # an A/A difference that a reader must be told of


@dataclass(frozen=True)
class Decision:
    """What to take for one target: the answer, what it gains and costs, and what that rests on."""

    target: str
    row: Row | None
    answer: str
    parts: list[Part]
    reasons: list[str]
    evidence: list[str]
    doubts: list[str]

    @property
    def reached(self) -> str:
        """What the answer makes of the machine; empty where nobody could tell."""
        found = self.row.profile.roofline if self.row and self.row.profile else None
        return f"It {breakdown.reached(found)}." if found else ""

    @property
    def sentence(self) -> str:
        """The decision in one line: "x86-openvino: take int8: 2.10× faster than fp32 [2.05, 2.16], 3.9× smaller"."""
        return ": ".join(filter(None, (self.target, self.answer, ", ".join(part.text for part in self.parts) or "; ".join(self.reasons))))


def decide(words: Words, target: str) -> Decision:
    """What to take for a target."""
    row = words.picked(target)
    if row is None:
        return Decision(target, None, "nothing to take", [], _reasons(words, target), [], [])
    answer = f"take {row.variant}"
    if row.variant == words.report.reference:
        answer += ", the reference: nothing that qualifies beats it"
    parts = [part for part in (words.speed(row), words.size(row), *words.losses(row)) if part]
    return Decision(target, row, answer, parts, [], _evidence(words, row), _doubts(words, row))


def _reasons(words: Words, target: str) -> list[str]:
    """Why no row of a target is taken: its reasons, the one that stops most variants first."""
    told: dict[str, list[str]] = defaultdict(list)
    for row in words.rows.get(target, []):
        if row.variant == words.report.reference and row.status == "measured":
            continue
        missed = words.shortfalls(row)
        if missed and row.status == "measured":
            verb = "fails" if missed[0].verdict == "fail" else "leaves open"
            found = "" if missed[0].got is None else f" ({words.got(missed[0])})"
            told[f"{verb} “{words.wants(missed[0].gate)}”"].append(f"{row.variant}{found}")
        else:
            told[words.why_not(row)[0].splitlines()[0]].append(row.variant)
    ordered = sorted(told.items(), key=lambda item: -len(item[1]))
    clauses = [f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}" for why, names in ordered]
    return clauses[:3] + ([f"and {count(len(clauses) - 3, 'other reason')}"] if len(clauses) > 3 else [])


def _evidence(words: Words, row: Row) -> list[str]:
    target = next((one for one in words.report.targets if one.name == row.target), None)
    found = []
    if row.latency_ms:
        found.append(
            f"{count(row.latency_ms.samples, 'timing')} in {count(row.latency_ms.blocks, 'block')}"
            + (f" of {count(row.latency_ms.rounds, 'round')}" if row.latency_ms.rounds else "")
        )
    if row.mlperf and row.mlperf.valid:
        found.append(loadgen(row))
    if target and target.noise_percent is not None:
        found.append(f"two copies of {words.report.reference} read {number(target.noise_percent, 1)} % apart")
    if row.scores:
        found.append(f"{count(max(score.samples for score in row.scores.values()), 'sample')} scored")
    if words.gates(row):
        found.append(f"{words.passed(row)} gates passed")
    return found


def _doubts(words: Words, row: Row) -> list[str]:
    doubts = [words.judged(gate) for gate in words.shortfalls(row)]
    doubts += [text for flag, text in zip(row.flags, words.flags(row), strict=True) if not flag.endswith("-than-reference")]
    if row.mlperf and not row.mlperf.valid:
        doubts.append(loadgen(row))
    base = words.report.reference
    if row.variant != base and row.speedup and row.speedup.verdict not in ("faster", "slower"):
        doubts.append(f"no gain in speed over {base} is proved")
    noise = next((one.noise_percent for one in words.report.targets if one.name == row.target), None)
    if noise is not None and noise >= NOISY_PERCENT:
        doubts.append(f"two copies of {base} read {number(noise, 1)} % apart: the machine was too restless for fine differences")
    if any(one.name == row.target and one.conditions.get("one_at_a_time") for one in words.report.targets):
        doubts.append("the variants together do not fit into the memory: they were measured one at a time, not side by side")
    if row.latency_ms is None and row.throughput_per_s is None:
        doubts.append("not measured here: chosen as the last variant listed whose accuracy gates pass")
    return doubts + words.warnings(row)
