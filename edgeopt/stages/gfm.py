"""gfm: the pieces that GitHub-flavoured Markdown is made of: text left as it is, code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgeopt.stages.numbers import NONE

_ACTIVE = re.compile(r"[\\`*~|]|(?<!\w)_|_(?!\w)|(?<=\])\(")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def escaped(value: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    plain = _CONTROL.sub(" ", value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ACTIVE.sub(r"\\\g<0>", plain).strip()


def code(value: str) -> str:
    """A fenced block, with a fence longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", value)), 3)
    return f"{fence}text\n{_CONTROL.sub(' ', value.replace(chr(10), chr(0xE000))).replace(chr(0xE000), chr(10))}\n{fence}"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]], numeric: Iterable[str] = ()) -> str:
    heads, right = list(head), set(numeric)
    lines = [heads, ["---:" if name in right else "---" for name in heads], *([cell or NONE for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
