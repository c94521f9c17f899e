"""github: findings as annotations of GitHub Actions, and a Markdown page that fits its step summary.

GitHub shows ten annotations of a step and drops a summary above 1 MiB (workflow commands, GitHub documentation).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeopt.stages.findings import Finding
from edgeopt.stages.numbers import count

ANNOTATIONS = 10
SUMMARY_BYTES = 1 << 20
_ENDING = "\n\n*{} left out: a summary holds 1 MiB. All of it is in report.md.*\n"


def annotated(findings: Sequence[Finding]) -> str:
    """At most ten lines that GitHub turns into annotations; the last one tells how many more there are."""
    shown = list(findings) if len(findings) <= ANNOTATIONS else list(findings[: ANNOTATIONS - 1])
    lines = [_command(one.level, one.message, file=one.file, line=one.line, title=f"edgeopt: {one.check}") for one in shown]
    if more := findings[len(shown) :]:
        lines.append(_command(more[0].level, f"{len(more)} more: see the step summary or report.md", title="edgeopt"))
    return "\n".join(lines)


def summary(pages: Iterable[str]) -> str:
    """Markdown pages as one step summary: whole lines, 1 MiB at most, and told where it was cut."""
    text = "\n".join(pages)
    if len(text.encode()) <= SUMMARY_BYTES:
        return text
    lines = text.splitlines()
    room, kept = SUMMARY_BYTES - len(_ENDING.encode()) - 40, 0
    while kept < len(lines) and (room := room - len(lines[kept].encode()) - 1) >= 0:
        kept += 1
    return "\n".join(lines[:kept]) + _ENDING.format(count(len(lines) - kept, "line"))


def _command(level: str, message: str, **properties: str | int | None) -> str:
    told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None)
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
