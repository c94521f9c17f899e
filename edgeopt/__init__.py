"""edgeopt: from a trained model to a verified, device-ready artifact.

    import edgeopt

    report = edgeopt.run("recipe.yaml")           # plan → build → measure → report → bundle
    for row in report.rows:
        print(row.variant, row.target, row.latency_ms.p50 if row.latency_ms else row.reason)

Each stage is also a function: `plan`, `build`, `measure`, `report`, `bundle`. They return the same
objects that the commands write as files. Importing this package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FACES = {
    "load_recipe": "edgeopt.core.recipe:load",
    "load_target": "edgeopt.core.target:load",
    "plan": "edgeopt.stages.plan:plan",
    "build": "edgeopt.stages.build:build",
    "measure": "edgeopt.stages.measure:measure",
    "report": "edgeopt.stages.report:report",
    "bundle": "edgeopt.stages.bundle:bundle",
    "run": "edgeopt.stages.run:run",
    "EdgeoptError": "edgeopt.core.errors:EdgeoptError",
    "Recipe": "edgeopt.core.recipe:Recipe",
    "Plan": "edgeopt.core.plan:Plan",
    "Artifact": "edgeopt.core.artifact:Artifact",
    "Report": "edgeopt.core.report:Report",
    "Store": "edgeopt.core.store:Store",
}
__all__ = ["__version__", *_FACES]

if TYPE_CHECKING:
    from edgeopt.core import recipe, target
    from edgeopt.core.artifact import Artifact as Artifact
    from edgeopt.core.errors import EdgeoptError as EdgeoptError
    from edgeopt.core.plan import Plan as Plan
    from edgeopt.core.recipe import Recipe as Recipe
    from edgeopt.core.report import Report as Report
    from edgeopt.core.store import Store as Store
    from edgeopt.stages.build import build as build
    from edgeopt.stages.bundle import bundle as bundle
    from edgeopt.stages.measure import measure as measure
    from edgeopt.stages.plan import plan as plan
    from edgeopt.stages.report import report as report
    from edgeopt.stages.run import run as run

    load_recipe, load_target = recipe.load, target.load


def __getattr__(name: str) -> Any:
    if name not in _FACES:
        raise AttributeError(f"module 'edgeopt' has no attribute '{name}'")
    module, _, attribute = _FACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
