"""compare: one run held against another, on the console or for a pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.answer import Answer, complain, rendered, shown
from edgeopt.cli.commands import json_option

if TYPE_CHECKING:
    from edgeopt.core.comparison import Comparison

FORMATS = ("text", "json", "md", "html", "github", "gitlab")
STYLES = {"worse": "red", "better": "green", "not comparable": "yellow", "same": "dim"}
_PATH = click.Path(path_type=Path)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@click.command()
@click.argument("old", type=_PATH, metavar="OLD")
@click.argument("new", type=_PATH, metavar="NEW")
@click.option("--fail-on", metavar="NAMES", default="", help="Exit 3 when one is worse: score,latency,throughput,speedup,size,memory.")
@click.option("--force", is_flag=True, help="Compare also what was measured differently; the differences come first.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", help="How to print it.")
@json_option
def compare(old: Path, new: Path, fail_on: str, force: bool, form: str) -> Answer:
    """Hold the run NEW against OLD: run folders or report.json files.

    Every row in both is better, worse or the same by intervals, for scores, times, size and memory. Runs on
    another machine, with other evaluation data, scenario, batch or threads are refused (exit 4). With
    --format html it prints one page that opens off-line.
    """
    from edgeopt.stages.compare import compare as stage

    found = stage(old, new, fail_on=[name.strip() for name in fail_on.split(",") if name.strip()], force=force)
    if form == "json":
        return Answer(found, Answer(found, "").json, found.exit_code)
    if form != "text":
        for one in found.differences:
            complain(str(one), prefix="measured differently")
    if form == "html":
        return Answer(found, lambda: _page(found, old, new), found.exit_code)
    return Answer(found, lambda: _text(found) if form == "text" else _told(found, form), found.exit_code)


def _page(found: Comparison, old: Path, new: Path) -> str:
    from edgeopt.core.report import Report
    from edgeopt.stages.side_by_side import side_by_side

    return side_by_side(found, Report.read(old), Report.read(new))


def _told(found: Comparison, form: str) -> str:
    from edgeopt.cli.report import summarized
    from edgeopt.stages import changes, findings, github, gitlab

    if form == "md":
        return changes.markdown(found)
    pointed = findings.of_comparison(found)
    if form == "gitlab":
        return gitlab.gitlab(pointed)
    return summarized(github.summary([changes.markdown(found)]), github.annotated(pointed))


def _text(found: Comparison) -> str:
    """What differs, then target by target what became worse or better; what stayed the same in one line for each row."""
    from rich.table import Table
    from rich.text import Text

    from edgeopt.stages import changes

    def plain(text: str, style: str = "") -> Text:
        return Text(_CONTROL.sub(" ", text), style=style)

    parts: list[Any] = [plain(f"measured differently: {one}", "yellow") for one in found.differences]
    for name, side in (("old", found.old), ("new", found.new)):
        parts.append(plain(f"{name}: {side.name}, {shown(Path(side.path))}, written {side.created_at} by edgeopt {side.edgeopt}"))
    for target in dict.fromkeys(row.target for row in found.rows):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        same: list[Text] = []
        for row in (row for row in found.rows if row.target == target):
            if row.found != "both":
                same.append(plain(f"{row.variant}: only in the {row.found} report", "yellow"))
            for change in sorted(row.changes, key=lambda one: changes.ORDER.index(one.verdict)):
                if change.verdict != "same":
                    told = (row.variant, change.figure, changes.values(change), changes.moved(change) or change.reason or "")
                    table.add_row(plain(change.verdict, STYLES[change.verdict]), *map(plain, told))
            if alike := [f"{one.figure} {changes.moved(one)}".strip() for one in row.changes if one.verdict == "same"]:
                same.append(plain(f"same: {row.variant}: {'; '.join(alike)}", "dim"))
        parts += ["", plain(target, "bold"), *([table] if table.row_count else []), *same]
    parts += ["", *map(plain, found.notes), plain(changes.tally(found), "bold")]
    return rendered(*parts, *(plain(f"exit {found.exit_code}: {reason}") for reason in found.exit_reasons))
