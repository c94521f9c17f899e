"""run: the whole walk, plan → build → measure → report → bundle, in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from edgeopt.core.errors import UsageError
from edgeopt.core.plan import Plan
from edgeopt.core.progress import Progress
from edgeopt.core.recipe import Recipe, load
from edgeopt.core.report import Report
from edgeopt.core.store import Store
from edgeopt.stages.build import build
from edgeopt.stages.bundle import bundle
from edgeopt.stages.measure import measure
from edgeopt.stages.plan import plan
from edgeopt.stages.report import report


def choose_folder(name: str, output: Path | None = None) -> Path:
    """The run folder: `output`, else `runs/NAME-TIME`; `runs/NAME-latest` then points at it."""
    if output is not None:
        if output.exists() and not output.is_dir():
            raise UsageError(f"{output} is a file", remedy="give --output the name of a folder")
        output.mkdir(parents=True, exist_ok=True)
        return output.absolute()
    runs = Path("runs").absolute()
    runs.mkdir(exist_ok=True)
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while True:
        folder = runs / f"{name}-{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir()
            break
        except FileExistsError:  # another run of the same second
            number += 1
    part = runs / f".{name}-latest.{os.getpid()}"
    with contextlib.suppress(OSError):  # a file system without links has no `latest`
        part.symlink_to(folder.name)
        part.replace(runs / f"{name}-latest")
    return folder


def run(
    recipe: Recipe | Path | str,
    output: Path | None = None,
    *,
    store: Store | None = None,
    remeasure: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Walk a recipe from trained model to bundles. Returns the report; `exit_code` says how it ended.

    Raises EdgeoptError when the recipe or its data are wrong. A failed or unavailable variant does not
    raise: its row says why.
    """
    store = store or Store()
    loaded = recipe if isinstance(recipe, Recipe) else load(Path(recipe))
    planned = plan(loaded, store)
    return walk(planned, choose_folder(loaded.name, output), Path(loaded.file), store=store, remeasure=remeasure, progress=progress)


def walk(
    planned: Plan,
    folder: Path,
    source: Path,
    *,
    store: Store | None = None,
    remeasure: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Walk a plan of the recipe file `source` into a run folder; otherwise as `run`."""
    store, progress = store or Store(), progress or Progress()
    if source.is_file():
        shutil.copyfile(source, folder / "recipe.yaml")
    build(planned, folder, store=store, progress=progress)
    measure(planned, folder, store=store, remeasure=remeasure, progress=progress)
    progress.stage("report")
    judged = report(planned, folder)
    bundle(planned, folder, store=store, progress=progress)
    return judged
