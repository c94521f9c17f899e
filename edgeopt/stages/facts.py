"""facts: what stands beside a report's verdicts, as words: steps and their parity, the machine, how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from edgeopt.core.report import Report, StepInfo, TargetInfo
from edgeopt.stages.breakdown import peaks
from edgeopt.stages.numbers import NONE, count, number

LONGEST = 1500  # characters of one note; report.json holds all of it
MOST = 400  # rows of a note's table
_COLUMNS = {"noise_db": "noise (dB)", "us": "time (µs)", "saves_us": "saves (µs)"}
_MACHINE = {
    "cpu": "CPU",
    "cpu_family": "CPU family, model, stepping",
    "isa": "instruction sets",
    "arch": "architecture",
    "cores_visible": "cores visible",
    "cores_allowed": "cores allowed",
    "memory_mb": "memory allowed (MB)",
    "system": "system",
    "kernel": "kernel",
    "governor": "clock governor",
    "container": "container",
    "virtual": "virtual machine",
    "gpus": "GPUs",
    "gpu_driver": "GPU driver",
    "gpus_visible": "GPUs allowed",
    "gpu_order": "order of GPUs",
    "id": "fingerprint",
}
_CONDITIONS = {
    "seconds": "measured for (s)",
    "load_before": "load before",
    "load_after": "load after",
    "mhz": "clock: least, median, most (MHz)",
    "celsius_max": "warmest (°C)",
    "throttled": "throttle events",
    "steal_percent": "stolen by other machines (%)",
    "gpu": "GPU right after",
    "blocks": "blocks",
    "blocks_disturbed": "blocks disturbed by",
    "gpu_held_ms": "GPU's clock held down by (ms)",
    "blocks_at_power_limit": "blocks at the GPU's power limit",
    "rounds": "rounds, each in new processes",
    "one_at_a_time": "one variant open at a time, for want of memory",
    "idle_cpu_percent_max": "busiest idle process (% of a core)",
}
_DEVICE = {
    "gpu": "GPU",
    "cuda_graph": "CUDA graph",
    "spin_wait": "spin-wait",
    "tf32": "TF32",
    "runtime_cache": "cache of compiled kernels",
    "events_ms": "by the GPU's clock (ms)",
}


def value(given: Any) -> str:
    """Any JSON value as a few words; long ones are cut and say so."""
    if given is None:
        return "unknown"
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, int):
        return f"{given:,}"
    if isinstance(given, float):
        return number(given)
    if isinstance(given, str):
        text = given
    elif isinstance(given, (list, tuple)) and all(isinstance(one, (str, int, float, bool)) for one in given):
        text = ", ".join(value(one) for one in given) or "none"
    elif isinstance(given, dict) and given and all(isinstance(one, (str, int, float, bool)) for one in given.values()):
        text = pairs(given)
    else:
        text = json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (all of it in report.json)"


@dataclass(frozen=True)
class Note:
    """What a pass noted: a few words, and a table where it noted many things alike."""

    name: str
    text: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    warns: bool = False


def note(name: str, given: Any) -> Note:
    """A note for people: lists of mappings become tables, pairs of numbers before → after."""
    title = name.replace("_", " ")
    if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
        keys = list(dict.fromkeys(key for one in given for key in one))
        head = [_COLUMNS.get(key, str(key).replace("_", " ")) for key in keys]
        kinds = Counter(str(one["precision"]) for one in given if one.get("precision"))
        summed = f": {', '.join(f'{count} in {kind}' for kind, count in kinds.most_common())}" if kinds else ""
        return _table(title, given, head, [[value(one[key]) if key in one else NONE for key in keys] for one in given[:MOST]], summed)
    if isinstance(given, dict) and given and all(map(_is_pair, given.values())):
        rows = [[str(key), value(old), value(new), f"{number(100 * new / old, 0)} %" if old else NONE] for key, (old, new) in given.items()]
        return _table(title, list(given), ["", "before", "after", "kept"], rows[:MOST])
    if _is_pair(given):
        return Note(title, f"{value(given[0])} → {value(given[1])}")
    return Note(title, value(given), warns=name in ("warning", "warnings"))


def _table(title: str, given: list[Any], head: list[str], rows: list[list[str]], summed: str = "") -> Note:
    more = f"; the first {MOST} here, all in report.json" if len(given) > MOST else ""
    return Note(title, f"{len(given)}{summed}{more}", head, rows)


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, (list, tuple))
        and len(given) == 2
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in given)
    )


def pairs(given: dict[str, Any]) -> str:
    """ "per_channel: yes; calibrated_on: 256"."""
    return "; ".join(f"{name}: {value(one)}" for name, one in given.items())


def sqnr(step: StepInfo) -> str:
    """How well a step's outputs agree with those before it, in dB; empty where nobody looked."""
    found = (step.parity or {}).get("sqnr_db")
    return "" if found is None else "identical" if found >= 150 else f"{number(found, 1)} dB"


def parity(step: StepInfo) -> str:
    """The same with the least that was asked for, the largest difference and the number of samples."""
    found, agreed = step.parity or {}, sqnr(step)
    if not agreed:
        varying = ", ".join(found.get("uncompared") or [])
        reason = found.get("not_compared") or (f"{varying} came out in another number" if varying else "")
        return f"not compared: {reason}" if reason else ""
    wanted, largest = found.get("tolerance_db"), found.get("max_abs")
    agreed += f", at least {number(wanted, 0)} dB asked" if wanted is not None else ""
    if found.get("float_db"):
        had, has = (number(one, 1) for one in found["float_db"])
        agreed += f", and against the float model {has} dB where it was {had} dB"
    agreed += f"; largest difference {number(largest)}" if largest else ""
    return agreed + (f" over {count(found['samples'], 'sample')}" if found.get("samples") else "")


def machine(report: Report) -> list[tuple[str, str]]:
    """The machine that measured."""
    return [(_MACHINE.get(name, name), value(one)) for name, one in report.machine.items()]


def conditions(target: TargetInfo) -> list[tuple[str, str]]:
    """How a target was measured."""
    found = [("backend", target.backend), ("scenario", target.scenario), ("threads", str(target.threads)), ("batch", str(target.batch))]
    found.append(("must reach", target.need))
    if target.noise_percent is not None:
        found.append(("two copies of the reference apart", f"{number(target.noise_percent, 2)} %"))
    found += [(_CONDITIONS.get(name, name), value(one)) for name, one in target.conditions.items()]
    found += [("measured peaks", peaks(target.peaks))] if target.peaks else []
    return found + [(name, one) for name, one in (("session", target.session), ("evaluation data", target.data_digest)) if one]


def sessions(report: Report) -> tuple[list[str], list[list[str]]]:
    """How all targets were measured, side by side: the head and the rows of a table."""
    told = {target.name: dict(conditions(target)) for target in report.targets}
    names = dict.fromkeys(name for one in told.values() for name in one)
    return ["measured", *told], [[name, *(one.get(name, NONE) for one in told.values())] for name in names]


def devices(report: Report) -> tuple[list[str], list[list[str]]]:
    """How accelerators were driven, and what they told of each row: the head and the rows of a table, which are none on CPUs."""
    told = [(f"{row.variant} on {row.target}", row.device) for row in report.rows if row.device]
    names = dict.fromkeys(name for _, one in told for name in one)
    rows = [[title, *(value(one[name]) if name in one else NONE for name in names)] for title, one in told]
    return ["measured", *(_DEVICE.get(name, name.replace("_", " ")) for name in names)], rows


def origin(report: Report) -> list[tuple[str, str]]:
    """What the report was made from and when."""
    recipe = report.recipe
    return [
        ("recipe", f"{recipe.name} ({recipe.file})"),
        ("recipe digest", recipe.digest),
        ("edgeopt", report.edgeopt),
        ("written", report.created_at),
    ]


def picks(report: Report) -> list[list[str]]:
    """What was taken: target, variant, artifact and its digest."""
    return [[row.target, row.variant, row.artifact.path, row.artifact.digest] for row in report.rows if row.picked and row.artifact]


def commands(report: Report) -> list[tuple[str, str]]:
    """Commands that repeat the run, each with what it does."""
    recipe = shlex.quote(report.recipe.file)
    return [
        (f"edgeopt run {recipe}", "reuses what is in the store"),
        (f"edgeopt run {recipe} --remeasure", "the same artifacts, measured anew"),
        ("edgeopt report .", "in this folder: judges the same measurements again"),
    ]
