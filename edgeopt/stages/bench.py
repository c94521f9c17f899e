"""bench: one model timed on targets, with no recipe: it is written in memory and walked as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.core.errors import RecipeErrors, UsageError
from edgeopt.core.places import Document
from edgeopt.core.progress import Progress
from edgeopt.core.recipe import check
from edgeopt.core.report import Report
from edgeopt.core.store import Store
from edgeopt.stages.init import slug
from edgeopt.stages.run import run

SAMPLES = 16


def bench(
    model: Path,
    targets: Sequence[str],
    folder: Path,
    *,
    data: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    batch: int | None = None,
    seconds: float | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Report:
    """Time a model in full precision on each target, anew each time; the run lies in `folder`.

    Inputs are random unless `data` names an .npz file; `sizes` fixes axes that may vary, by name.
    Raises EdgeoptError as `run` does.
    """
    kind = {".onnx": "onnx", ".pt2": "pt2"}.get(model.suffix.lower())
    if kind is None:
        raise UsageError(
            f"{model.name}: bench takes an .onnx or a .pt2 file", remedy="for a torch factory write a recipe: `edgeopt init MODEL`"
        )
    if not model.is_file():
        raise UsageError(f"no such file: {model}", remedy="check the path")
    if data and sizes:
        raise UsageError("--data and --size exclude each other", remedy="the data have sizes of their own")
    source: dict[str, Any] = {"npz": str(data.absolute())} if data else {"random": "normal", "samples": SAMPLES, "sizes": dict(sizes or {})}
    value = {
        "edgeopt": 1,
        "name": slug(model.stem),
        "model": {kind: model.name},
        "data": {"evaluate": source},
        "variants": {"fp32": []},
        "targets": [_target(name, batch) for name in dict.fromkeys(targets)],
        "measure": {"budget_s": seconds} if seconds else {},
    }
    try:
        recipe = check(Document("bench", value, {}), model.absolute().parent)
    except RecipeErrors as error:
        for problem in error.problems:
            problem.place = None  # there is no file to look into
        raise RecipeErrors(error.problems) from None
    return run(recipe, folder, store=store, remeasure=True, progress=progress)


def _target(name: str, batch: int | None) -> Any:
    """A target of the recipe in memory; files are named from where the user stands."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        name = str(Path(name).absolute())
    return name if batch is None else {"extends": name, "batch": batch}
