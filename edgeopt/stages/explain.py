"""explain: which steps of a plan are in the store, and for those that are not, what part of the key is new."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.core.artifact import RECORD
from edgeopt.core.plan import Plan, Step
from edgeopt.core.store import Store

PARTS = "parts.json"
# Said for a part that is a dict of its own: what one entry of it is called.
NOUNS = {"options": "option", "needs": "package", "data": "data", "target": "target field"}
WORDS = {"code": "the code of the plug", "files": "a file of yours", "before": "the step before it", "reference": "the reference"}


@dataclass(frozen=True)
class Explained:
    """One step: whether its result is stored, else how its key differs from the nearest stored one's."""

    key: str
    plug: str
    kind: str
    rows: tuple[str, ...]
    stored: bool
    differs: tuple[str, ...] = field(default=())


def explain(plan: Plan, store: Store | None = None, *, causes: bool = True) -> list[Explained]:
    """Every step in the plan's order; `causes=False` leaves out why (it reads every stored record)."""
    store = store or Store()
    missing = [step for step in plan.steps.values() if not (store.path("artifacts", step.key) / RECORD).is_file()]
    known = _known(store) if causes and missing else []
    found = []
    for step in plan.steps.values():
        rows = tuple(f"{row.variant} on {row.target}" for row in plan.rows if step.key in row.steps)
        stored = step not in missing
        found.append(Explained(step.key, step.plug, step.kind, rows, stored, () if stored or not causes else _causes(step, plan, known)))
    return found


def _known(store: Store) -> list[dict[str, Any]]:
    """The key parts of every stored artifact, the most recently used first."""
    parts = []
    for path in sorted((store.root / "artifacts").glob(f"*/*/{PARTS}"), key=_age, reverse=True):
        try:
            parts.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return parts


def _age(path: Path) -> float:
    try:
        return path.parent.stat().st_mtime
    except OSError:
        return 0.0


def _causes(step: Step, plan: Plan, known: list[dict[str, Any]]) -> tuple[str, ...]:
    wanted = json.loads(json.dumps(step.parts))
    same = [parts for parts in known if parts.get(step.kind) == step.plug]
    if not same:
        return ("never made here",)
    nearest = min((_differences(parts, wanted, plan) for parts in same), key=len)
    return tuple(nearest) or ("it was made and pruned, or is damaged",)


def _differences(old: dict[str, Any], new: dict[str, Any], plan: Plan) -> list[str]:
    found = []
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            changed = (key for key in {**before, **after} if before.get(key) != after.get(key))
            found += [f"{NOUNS.get(name, name)} {key}: {_short(before.get(key))} → {_short(after.get(key))}" for key in changed]
        elif name == "before" and after in plan.steps:
            found.append(f"{WORDS[name]} ({plan.steps[after].plug}) is another")
        elif name in WORDS:
            found.append(f"{WORDS[name]} changed")
        else:
            found.append(f"{name}: {_short(before)} → {_short(after)}")
    return found


def _short(value: Any) -> str:
    """A value in a few characters; digests by their first digits."""
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = text.removeprefix("sha256:")[:8] if text.startswith("sha256:") else text
    return text if len(text) <= 40 else text[:37] + "…"
