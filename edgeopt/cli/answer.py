"""What a command has to say, and the two doors it leaves by: standard output for results, standard error for the rest."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

# What a terminal takes for a command. Names in a model may bring such; of our own output only colours are.
_COLOUR = r"(?!\[[\d;]*m)"
_COMMAND = r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]|\x1b"


@dataclass(frozen=True)
class Answer:
    """`value` is for machines (plain JSON or a pydantic model), `text` for people; commands return one of these."""

    value: Any
    text: str | Callable[[], str]
    exit_code: int = 0

    def json(self) -> str:
        if hasattr(self.value, "model_dump_json"):
            return str(self.value.model_dump_json(indent=1))
        return json.dumps(self.value, indent=1, default=str)

    def words(self) -> str:
        return self.text if isinstance(self.text, str) else self.text()


def say(text: str) -> None:
    """Print a result. A reader that closed the pipe has seen enough: the exit code stays what it is."""
    if not text:
        return
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str, prefix: str = "error") -> None:
    """Print an error on standard error."""
    text = re.sub(_COMMAND, "", text)
    head = click.style(f"{prefix}:", fg="red", bold=True) if coloured(sys.stderr) else f"{prefix}:"
    sys.stderr.write(f"{head} {text}\n" if prefix else f"{text}\n")
    sys.stderr.flush()


def coloured(stream: IO[str] | None = None) -> bool:
    """Whether a stream (standard output by default) wants colours: a terminal, and nobody said NO_COLOR."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, **style: Any) -> str:
    """Text in click's styles, where standard output wants colours."""
    return click.style(text, **style) if coloured() else text


def width() -> int:
    """Columns to lay tables out for: the terminal's, or 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def rendered(*parts: Any) -> str:
    """Rich renderables and strings (with markup) as text for standard output, without anything that commands a terminal but colours."""
    from rich.console import Console

    console = Console(
        width=width(),
        force_terminal=coloured(),
        no_color=not coloured(),
        color_system="standard" if coloured() else None,
        highlight=False,
        emoji=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    text = re.sub(_COMMAND + _COLOUR if coloured() else _COMMAND, "", capture.get())
    return "\n".join(line.rstrip() for line in text.splitlines())


def shown(path: Path) -> str:
    """A path as the user would type it: relative where it lies below the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
