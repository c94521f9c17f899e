"""Progress of long work on standard error: a live line on a terminal, one plain line per finished step elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeopt.core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# Drawing takes CPU time from what is being measured, so nothing draws but an event, and that this often at most.
REDRAW_S = 0.25
MARKS = {"": "done", "cached": "reused", "failed": "FAILED", "cancelled": "cancelled"}


@contextmanager
def listen(quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """The listener that fits standard error; `quiet` hears only what is worth a line of its own."""
    if quiet:
        yield Quiet()
        return
    lines = Lines(verbose)
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lines
        lines.rest()
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False, emoji=False)
    with Bars(*_columns(), console=console, auto_refresh=False, transient=True) as bars:
        live = Live(bars, verbose)
        yield live
        live.rest()


def _columns() -> list[Any]:
    """What is being done; how far, as soon as somebody knows of how much."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.text import Text

    class Bar(BarColumn):
        def render(self, task: Any) -> Any:
            return super().render(task) if task.total else Text("…")

    class Count(MofNCompleteColumn):
        def render(self, task: Any) -> Text:
            return super().render(task) if task.total else Text("")

    return [TextColumn("  {task.description}"), Bar(20), Count(), TextColumn("{task.fields[text]}")]


class Quiet(Progress):
    """Hears warnings only."""

    def say(self, text: str) -> None:
        sys.stderr.write(f"  {text}\n")
        sys.stderr.flush()


class Lines(Progress):
    """One line per finished step, no control codes. Reused steps are counted unless `verbose`."""

    def __init__(self, verbose: bool) -> None:
        self._verbose, self._reused = verbose, 0

    def stage(self, name: str) -> None:
        self.rest()
        self._line(name, "bold")

    def end(self, label: str, seconds: float, how: str = "") -> None:
        if how == "cached" and not self._verbose:
            self._reused += 1
            return
        self.rest()
        took = f"{seconds:.1f} s" if how == "" else MARKS.get(how, how)
        style = {"failed": "red", "cancelled": "yellow", "cached": "dim"}.get(how, "")
        self._line(f"  {label:<60} {took:>12}", style)

    def say(self, text: str) -> None:
        self.rest()
        self._line(f"  {text}", "yellow")

    def rest(self) -> None:
        """Tell how many steps were reused since the last line."""
        if self._reused:
            count, self._reused = self._reused, 0
            self._line(f"  {count} reused from the store", "dim")

    def _line(self, text: str, style: str) -> None:
        sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()


class Live(Lines):
    """The same lines, above a line that shows what is being done."""

    def __init__(self, bars: Bars, verbose: bool) -> None:
        super().__init__(verbose)
        self._bars, self._tasks, self._drawn_at = bars, dict[str, "TaskID"](), 0.0

    def start(self, label: str) -> None:
        self._tasks[label] = self._bars.add_task(label, total=None, text="")
        self._draw()

    def advance(self, label: str, done: int, total: int, text: str = "") -> None:
        if label not in self._tasks:
            self.start(label)
        self._bars.update(self._tasks[label], completed=done, total=total or None, text=text)
        if time.monotonic() - self._drawn_at > REDRAW_S:
            self._draw()

    def end(self, label: str, seconds: float, how: str = "") -> None:
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))
        super().end(label, seconds, how)
        if how != "cached":
            self._draw()

    def _line(self, text: str, style: str) -> None:
        self._bars.console.print(text.rstrip(), style=style or None, markup=False, soft_wrap=True)

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        self._bars.refresh()
