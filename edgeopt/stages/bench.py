"""bench: one model timed on targets, with no recipe: it is written in memory and walked as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.core.artifact import Signature
from edgeopt.core.errors import EdgeoptError, RecipeErrors, UsageError
from edgeopt.core.model import KINDS
from edgeopt.core.places import Document
from edgeopt.core.progress import Progress
from edgeopt.core.recipe import check
from edgeopt.core.report import Report
from edgeopt.core.store import Store
from edgeopt.stages.anatomy import UNNAMED
from edgeopt.stages.init import slug
from edgeopt.stages.inspect import inspect
from edgeopt.stages.run import run

SAMPLES = 16
IN_MEMORY = "bench"


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
    kind = KINDS.get(model.suffix.lower())
    if kind is None:
        raise UsageError(
            f"{model.name}: bench takes an .onnx, .pt2, .keras or .h5 file",
            remedy="for a torch factory write a recipe: `edgeopt init MODEL`",
        )
    if not model.is_file():
        raise UsageError(f"no such file: {model}", remedy="check the path")
    if data and sizes:
        raise UsageError("--data and --size exclude each other", remedy="the data have sizes of their own")
    if not data:
        _check_sizes(model, sizes or {})
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
        recipe = check(Document(IN_MEMORY, value, {}), model.absolute().parent)
        return run(recipe, folder, store=store, remeasure=True, progress=progress)
    except EdgeoptError as error:
        raise _unplaced(error) from None


def _check_sizes(model: Path, sizes: Mapping[str, int]) -> None:
    """Random samples need a size for every axis that may vary, but for the batch."""
    signature = Signature.from_json(inspect(model).signature or {"inputs": [], "outputs": []})
    for spec in signature.inputs:
        for axis in spec.shape:
            if isinstance(axis, str) and axis not in (signature.batch_symbol, UNNAMED, *sizes):
                cause = f"the axis '{axis}' of input '{spec.name}' may vary, and bench has to know its size"
                raise UsageError(cause, remedy=f"--size {axis}=20")


def _unplaced(error: EdgeoptError) -> EdgeoptError:
    """An error that does not point into the recipe in memory: there is no file to look into."""
    problems = error.problems if isinstance(error, RecipeErrors) else [error]
    for problem in problems:
        if problem.place and problem.place.file == IN_MEMORY:
            problem.place = None
    return RecipeErrors(problems) if isinstance(error, RecipeErrors) else error


def _target(name: str, batch: int | None) -> Any:
    """A target of the recipe in memory; files are named from where the user stands."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        name = str(Path(name).absolute())
    return name if batch is None else {"extends": name, "batch": batch}
