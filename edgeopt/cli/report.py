"""report: judge what was measured, and tell it to people and pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.answer import Answer
from edgeopt.cli.commands import json_option
from edgeopt.cli.walk import in_folder, judged_answer, recipe_folder

if TYPE_CHECKING:
    from edgeopt.core.report import Report

FORMATS = ("md", "html", "json", "junit", "github", "gitlab")


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), metavar="RUN...", nargs=-1, required=True)
@recipe_folder
@click.option("--format", "form", type=click.Choice(FORMATS), help="Print it in this form instead of tables.")
@json_option
def report(runs: tuple[Path, ...], base: Path | None, form: str | None) -> Answer:
    """Judge the gates on what was measured; writes report.json, .md, .html and junit.xml into each run folder.

    A report.json is told as it is. With --format github the page goes to the step summary where there is
    one, and what falls short becomes annotations; gitlab prints a code quality report.
    """
    from edgeopt.core.errors import UsageError, combine

    found = [_read(run, base) for run in runs]
    reports = [one for one, _ in found]
    code = combine(one.exit_code for one in reports)
    value = reports[0] if len(reports) == 1 else [one.model_dump(mode="json") for one in reports]
    if form == "json":
        return Answer(value, Answer(value, "").json, code)
    if form == "html" and len(found) > 1:
        raise UsageError("a page holds one report", remedy="name one run folder; `edgeopt compare OLD NEW --format html` shows two")
    if form:
        return Answer(value, lambda: _told(found, form), code)
    answers = [judged_answer(one, folder) for one, folder in found]
    return Answer(value, lambda: "\n\n".join(answer.words() for answer in answers), code)


def _read(run: Path, base: Path | None) -> tuple[Report, Path]:
    """A report and its folder: of a run folder judged anew, else as it was written."""
    from edgeopt.core.report import Report
    from edgeopt.stages.report import report as stage

    if run.name == "report.json" or (not (run / "plan.json").exists() and (run / "report.json").exists()):
        return Report.read(run), run if run.is_dir() else run.parent
    planned, folder = in_folder(run, base)
    return stage(planned, folder), folder


def _told(found: list[tuple[Report, Path]], form: str) -> str:
    from edgeopt.stages import findings, github, gitlab, html, junit, markdown

    if form == "html":
        return html.html(*found[0])
    reports = [one for one, _ in found]
    if form == "junit":
        return junit.junit(*reports)
    if form == "md":
        return "\n".join(markdown.markdown(one) for one in reports)
    pointed = findings.ordered([one for report, folder in found for one in findings.of_report(report, folder)])
    if form == "gitlab":
        return gitlab.gitlab(pointed)
    return summarized(github.summary([markdown.markdown(one) for one in reports]), github.annotated(pointed))


def summarized(page: str, annotations: str) -> str:
    """What to print for GitHub: the page goes to the step summary where there is one."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return f"{page}\n{annotations}"
    with Path(place).open("a", encoding="utf-8") as file:
        file.write(page)
    return annotations
