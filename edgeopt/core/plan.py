"""A plan: the flat list of steps of every variant × target, with keys. Nothing has run yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgeopt.core.comparison import Baseline
from edgeopt.core.gate import Gate
from edgeopt.core.protocols import Options
from edgeopt.core.recipe import Measuring, PlugUse
from edgeopt.core.target import Need, Target


class Step(Options):
    """One pass or one compile with its options filled in. `key` names its result in the store."""

    key: str
    kind: Literal["pass", "compile"]
    plug: str
    options: dict[str, Any] = Field(default_factory=dict)
    before: str | None = Field(description="key of the step whose result it takes; None for an import")
    reference: str | None = Field(default=None, description="key of the reference's last pass, where the step looks at it")
    data: dict[str, str] = Field(default_factory=dict, description="split → digest")
    target: dict[str, Any] = Field(default_factory=dict, description="the target fields it may see")
    target_name: str | None = Field(default=None, description="for messages only; not part of the key")
    makes: str = Field(description="format of the result")
    parts: dict[str, Any] = Field(default_factory=dict, description="what the key was made of, for `edgeopt cache why`")


class PlanRow(Options):
    """One variant on one target: the keys of its steps in order; the last one is the compile."""

    variant: str
    target: str
    steps: list[str]
    execution: dict[str, str]
    unavailable: str = ""

    @property
    def artifact(self) -> str:
        return self.steps[-1]


class PlanTarget(Options):
    target: Target
    need: Need
    threads: int


class DataRef(Options):
    """One split: its source and the digest of everything it is read from."""

    use: PlugUse
    digest: str
    synthetic: str = ""


class Plan(Options):
    """What will run, in order. Paths are relative to `base`, the recipe's folder.

    Run folder and recipe may move: where the recipe's folder lies as seen from the run folder is kept too.
    """

    edgeopt_plan: Literal[1] = 1
    edgeopt: str
    name: str
    recipe_digest: str
    recipe_file: str
    base: str
    base_from_here: str = Field(default="", description="the same as seen from the folder that plan.json lies in")
    reference: str
    reference_added: bool = Field(default=False, description="the recipe has no variant without passes; never picked")
    steps: dict[str, Step]
    rows: list[PlanRow]
    targets: list[PlanTarget]
    data: dict[str, DataRef]
    scores: list[PlugUse]
    scores_digest: str = Field(description="the scores with their code, and the user's files they run")
    scores_files: str = Field(default="", description="digest of those files alone")
    gates: list[Gate]
    pick: Literal["latency", "throughput", "size"]
    measure: Measuring
    baseline: Baseline | None = None
    seed: int

    def rows_of(self, target: str) -> list[PlanRow]:
        return [row for row in self.rows if row.target == target]

    def target_of(self, name: str) -> PlanTarget:
        return next(one for one in self.targets if one.target.name == name)

    def here(self) -> Plan:
        """The same plan with the thread counts of this machine, which may not be the one that it was made on."""
        targets = [one.model_copy(update={"threads": one.target.thread_count}) for one in self.targets]
        return self.model_copy(update={"targets": targets})

    def write(self, folder: Path) -> Path:
        path = folder / "plan.json"
        seen = Path(os.path.relpath(self.base, folder.resolve())).as_posix()
        path.write_text(self.model_copy(update={"base_from_here": seen}).model_dump_json(indent=1) + "\n")
        return path

    @staticmethod
    def read(folder: Path, base: Path | None = None) -> Plan:
        """The plan in a run folder. `base` says where the recipe's folder lies now; else it is where the recipe is found."""
        plan = Plan.model_validate_json((folder / "plan.json").read_text())
        near = Path(os.path.normpath(folder.resolve() / plan.base_from_here))
        moved = plan.base_from_here and (near / Path(plan.recipe_file).name).is_file()
        return plan.model_copy(update={"base": str(base.absolute() if base else near if moved else plan.base)})
