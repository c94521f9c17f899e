"""keys: what surveys and parity records are called in the store; light, for looking before working."""

from __future__ import annotations

from edgeopt.core import digest, registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.plan import Plan, Step
from edgeopt.core.protocols import Backend, Pass
from edgeopt.core.store import Store


def survey(plan: Plan, split: str, model: str) -> str:
    """A split's survey: its data, and the import whose inputs it must fit."""
    return digest.of_value({"survey": 4, "data": plan.data[split].digest, "model": model})


def disjoint(plan: Plan, model: str) -> str:
    """The proof that no sample stands in two splits."""
    return digest.of_value({"disjoint": 1, "surveys": [survey(plan, split, model) for split in plan.data]})


def parity(plan: Plan, step: Step) -> str:
    """A step's parity record: the step, and the samples its model is compared on."""
    return digest.of_value({"parity": 3, "step": step.key, "data": plan.data["evaluate"].digest})


def wants_parity(step: Step) -> bool:
    """Whether a step's result can be run here and held against its predecessor's, an import's against the user's own model."""
    if step.before is None:
        made: type[Pass] = registry.load("passes", step.plug)
        return made.original is not Pass.original
    if step.kind == "compile":
        backend: Backend = registry.load("backends", step.plug)()
        return step.makes != "null" and not backend.can_measure({**step.target, "options": step.options})
    return True


def whole(store: Store, key: str) -> bool:
    """Whether a step's result is in the store, undamaged; damaged ones are dropped."""
    folder = store.get("artifacts", key)
    if folder is None:
        return False
    try:
        Artifact.read(folder)
    except (OSError, ValueError, KeyError, TypeError):
        store.drop("artifacts", key)
        return False
    return True
