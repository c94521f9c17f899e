"""The model that scores stand in for: what went into a compile whose result cannot run on this machine."""

from __future__ import annotations

from typing import Any

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.plan import PlanRow
from edgeopt.core.store import Store


def source(row: PlanRow, store: Store) -> Artifact:
    """The artifact before a row's compile."""
    return Artifact.read(store.path("artifacts", row.steps[-2]))


class Plain:
    """A model run by its format's plain runner, asked like a child process."""

    def __init__(self, artifact: Artifact) -> None:
        self._run = registry.load("formats", artifact.format)().runner(artifact.path)

    def ask(self, do: str, arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        assert do == "infer"
        return {}, self._run(arrays)

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...
