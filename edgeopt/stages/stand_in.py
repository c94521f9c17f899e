"""The model that scores stand in for: what went into a compile whose result cannot run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.plan import PlanRow
from edgeopt.core.store import Store


def place(folder: Path, row: PlanRow) -> Path:
    """Where a run folder holds the model that a row stands for: beside the artifacts, for measuring on another machine."""
    return folder / "models" / row.target / row.variant


def source(folder: Path, row: PlanRow, store: Store) -> Artifact:
    """The artifact before a row's compile. Raises UsageError when neither the run folder nor the store holds it."""
    for root in (place(folder, row), store.path("artifacts", row.steps[-2])):
        try:
            return Artifact.read(root)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise UsageError(
        f"{row.target} cannot be measured here, and the model that {row.variant} was compiled from is not at hand to be scored",
        remedy=f"run `edgeopt build {folder}` on this machine",
    )


class Plain:
    """A model run by its format's plain runner, asked like a child process."""

    def __init__(self, artifact: Artifact) -> None:
        self._run = registry.load("formats", artifact.format)().runner(artifact.path)

    def ask(self, do: str, arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        assert do == "infer"
        return {}, self._run(arrays)

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...
