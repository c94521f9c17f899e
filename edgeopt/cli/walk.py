"""The commands of the walk: run, plan, build, measure, bundle."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.answer import Answer, coloured, rendered, shown, styled, width
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.core.plan import Plan
    from edgeopt.core.report import Report
    from edgeopt.stages.build import Build

_PATH = click.Path(path_type=Path)
_output = click.option(
    "-o", "--output", type=_PATH, metavar="DIR", help="The run folder. Default: runs/NAME-TIME, with runs/NAME-latest pointing at it."
)
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, only warnings.")
_verbose = click.option("-v", "--verbose", is_flag=True, help="A line for reused steps too.")
_remeasure = click.option("--remeasure", is_flag=True, help="Measure again, also what was measured before.")
_recipe = click.argument("recipe", type=_PATH, metavar="RECIPE")
_folder = click.argument("folder", type=_PATH, metavar="RUN-FOLDER")
recipe_folder = click.option(
    "--recipe-folder", "base", type=_PATH, metavar="DIR", help="Where the recipe's folder lies now, with the data and code that it names."
)


@click.command()
@_recipe
@_output
@_remeasure
@_quiet
@_verbose
@json_option
def run(recipe: Path, output: Path | None, remeasure: bool, quiet: bool, verbose: bool) -> Answer:
    """Walk a recipe from the model to the judged report.

    What is in the store is reused, so a stopped run goes on where it was, and a second one takes a
    second. The exit code says how it ended: 0 fine, 3 a gate failed, 4 inconclusive (all codes: README).
    """
    from edgeopt.cli.progress import listen
    from edgeopt.core.recipe import load
    from edgeopt.stages.plan import plan
    from edgeopt.stages.run import choose_folder, walk

    loaded = load(recipe)
    planned = plan(loaded)  # a recipe that cannot be planned leaves no run folder behind
    folder = choose_folder(loaded.name, output)
    with listen(quiet, verbose) as progress:
        report = walk(planned, folder, Path(loaded.file), remeasure=remeasure, progress=progress)
    return judged_answer(report, folder)


@click.command()
@_recipe
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Write plan.json into this folder, for `edgeopt build DIR`.")
@json_option
def plan(recipe: Path, output: Path | None) -> Answer:
    """Show the steps of every variant on every target. Nothing runs and no framework is imported."""
    from edgeopt.stages.explain import explain

    planned = _planned(recipe)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        planned.write(output)
    stored = {step.key for step in explain(planned, causes=False) if step.stored}
    return Answer(planned, lambda: _steps(planned, stored, output))


@click.command()
@click.argument("given", type=_PATH, metavar="RECIPE|RUN-FOLDER")
@_output
@recipe_folder
@_quiet
@_verbose
@json_option
def build(given: Path, output: Path | None, base: Path | None, quiet: bool, verbose: bool) -> Answer:
    """Make every artifact of a recipe, or of the plan in a run folder."""
    from edgeopt.cli.progress import listen
    from edgeopt.core.errors import UsageError, combine
    from edgeopt.stages.build import build as stage

    if given.is_dir() or given.name == "plan.json":
        planned, folder = in_folder(given, base)
        if output:
            raise UsageError("--output and a run folder exclude each other", remedy=f"edgeopt build {given}")
    else:
        from edgeopt.stages.run import choose_folder

        if base:
            raise UsageError("--recipe-folder goes with a run folder", remedy=f"a recipe knows its own: edgeopt build {given}")
        planned = _planned(given)
        folder = choose_folder(planned.name, output)
    with listen(quiet, verbose) as progress:
        built = stage(planned, folder, progress=progress)
    code = combine(row.exit_code for row in built.rows)
    return Answer(built, lambda: _rows(built, folder), code)


@click.command()
@_folder
@recipe_folder
@_remeasure
@_quiet
@_verbose
@json_option
def measure(folder: Path, base: Path | None, remeasure: bool, quiet: bool, verbose: bool) -> Answer:
    """Score and time the artifacts of a run folder, all variants of a target together.

    The folder may come from another machine. The recipe's folder is looked for where it lay, as seen from the run
    folder; samples that the build did not see are refused.
    """
    from edgeopt.cli.progress import listen
    from edgeopt.core.errors import combine
    from edgeopt.stages.measure import measure as stage
    from edgeopt.stages.numbers import count

    planned, folder = in_folder(folder, base)
    with listen(quiet, verbose) as progress:
        sessions = stage(planned, folder, remeasure=remeasure, progress=progress)
    failed = [(session, one) for session in sessions for one in session.variants if one.error]
    lines = [f"{one.variant} on {session.target}: failed: {one.error['cause']}" for session, one in failed if one.error]
    for session in sessions:
        good = sum(not one.error for one in session.variants)
        lines.append(f"{session.target}: {count(good, 'variant')} measured")
    lines.append(
        f"next: edgeopt report {shown(folder)}" if sessions else "nothing to measure: no target has rows that were built for this machine"
    )
    code = combine(int(one.error["exit_code"]) for _, one in failed if one.error)
    return Answer([session.model_dump(mode="json") for session in sessions], "\n".join(lines), code)


@click.command()
@_folder
@json_option
def bundle(folder: Path) -> Answer:
    """Pack each target's pick: artifact, manifest, golden outputs, evidence."""
    from edgeopt.stages.bundle import bundle as stage

    planned, folder = in_folder(folder)
    paths = stage(planned, folder)
    return Answer([str(path) for path in paths], "\n".join(map(shown, paths)) or "nothing was picked, so there is nothing to bundle")


def _planned(recipe: Path) -> Plan:
    from edgeopt.core.recipe import load
    from edgeopt.stages.plan import plan as stage

    return stage(load(recipe))


def in_folder(given: Path, base: Path | None = None) -> tuple[Plan, Path]:
    """The plan in a run folder; naming a file inside it is as good. `base` is where the recipe's folder lies now, which the plan keeps."""
    from pydantic import ValidationError

    from edgeopt.core.errors import UsageError
    from edgeopt.core.plan import Plan

    if given.suffix in (".yaml", ".yml") and given.is_file() and given.name != "recipe.yaml":
        raise UsageError(
            f"{given} is a recipe, and this command works on a run folder", remedy=f"edgeopt run {given}, or edgeopt build {given} first"
        )
    folder = given if given.is_dir() else given.parent
    if not given.exists():
        raise UsageError(f"no such folder: {given}", remedy="name a run folder: runs/NAME-latest is the newest one of a recipe")
    if not (folder / "plan.json").is_file():
        raise UsageError(f"{folder} is no run folder: it holds no plan.json", remedy=f"edgeopt plan RECIPE --output {folder} writes one")
    if base and not base.is_dir():
        raise UsageError(f"no such folder: {base}", remedy="name the folder that the recipe lies in")
    try:
        plan = Plan.read(folder, base)
        if base:
            plan.write(folder)
        return plan, folder
    except ValidationError:
        remedy = f"edgeopt plan RECIPE --output {folder} writes it anew"
        raise UsageError(f"{folder / 'plan.json'} is damaged, or of another version of edgeopt", remedy=remedy) from None


def judged_answer(report: Report, folder: Path) -> Answer:
    def words() -> str:
        from edgeopt.cli.table import table
        from edgeopt.stages.changes import tally

        lines = [table(report, width(), coloured())]
        lines += [f"against the baseline: {tally(report.baseline)}"] if report.baseline else []
        lines += [f"exit {report.exit_code}: {reason}" for reason in report.exit_reasons]
        return "\n".join([*lines, f"report: {shown(folder / 'report.html')}"])

    return Answer(report, words, report.exit_code)


def _steps(plan: Plan, stored: set[str], output: Path | None) -> str:
    """Each row's steps in order; what is in the store is said to be so. Written without rich: planning takes no time."""
    from edgeopt.stages.numbers import threads

    rows, steps = f"{len(plan.rows)} rows", f"{len(plan.steps)} steps"
    lines = [f"{styled(plan.name, bold=True)}: {rows}, {steps}, {len(stored)} of them in the store (marked ·)"]
    name_width = max((len(row.variant) for row in plan.rows), default=0)
    for one in plan.targets:
        target, need = one.target, "" if one.need == "measured" else f", need: {one.need}"
        title = styled(target.name, bold=True)
        lines += ["", f"{title} ({target.backend}, {threads(one.threads, target.on_gpu)}batch {target.batch}, {target.scenario}{need})"]
        for row in plan.rows_of(target.name):
            made = [plan.steps[key] for key in row.steps]
            names = [f"{'· ' if step.key in stored else ''}{step.plug if step.kind == 'pass' else 'compile'}" for step in made]
            lines += _folded(f"  {row.variant:<{name_width}}  ", names)
            if row.unavailable:
                told = textwrap.wrap(f"unavailable: {row.unavailable}", max(width() - name_width - 4, 40), break_on_hyphens=False)
                lines += [f"  {'':<{name_width}}  {styled(line, fg='yellow')}" for line in told]
    for text in dict.fromkeys(ref.synthetic for ref in plan.data.values()):
        lines += ["", styled(text, fg="yellow")] if text else []
    lines += ["", f"plan: {shown(output / 'plan.json')}"] if output else []
    return "\n".join(lines)


def _folded(head: str, names: list[str]) -> list[str]:
    """`a → b → c` after a head, broken before an arrow where the line ends."""
    lines, line = [], head + names[0]
    for name in names[1:]:
        if len(line) + len(name) + 3 > width():
            lines.append(line)
            line = " " * len(head) + "→ " + name
        else:
            line += f" → {name}"
    return [*lines, line]


def _rows(built: Build, folder: Path) -> str:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("variant", "target", "status", "artifact or reason"):
        table.add_column(name, overflow="fold")
    styles = {"built": "green", "bundled": "green", "failed": "red", "unavailable": "yellow"}
    for row in built.rows:
        table.add_row(
            row.variant, row.target, f"[{styles[row.status]}]{row.status}[/]", shown(folder / row.artifact) if row.artifact else row.reason
        )
    return rendered(table, f"\nnext: edgeopt measure {shown(folder)}")
