"""Digests of files, folders and values; file digests are remembered by size, mtime_ns and inode."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_INSTALLED = ("site-packages", "dist-packages")
_CHUNK = 1 << 20
_known: dict[tuple[str, int, int, int], str] = {}


def of_value(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def of_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    stat = path.stat()
    memo = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if memo not in _known:
        sha = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
        _known[memo] = "sha256:" + sha.hexdigest()
    return _known[memo]


def of_folder(folder: Path) -> str:
    """sha256 over the relative names and digests of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return of_value({path.relative_to(folder).as_posix(): of_file(path) for path in files})


def of_files(paths: Iterable[Path], base: Path) -> list[list[str]]:
    """Names and digests of files, sorted. Names count: a moved image has another label.

    They are relative to `base`; those of installed files begin at site-packages, wherever an environment lies.
    """
    return sorted([_name(path, base), of_file(path)] for path in paths)


def _name(path: Path, base: Path) -> str:
    at = next((index for index, part in enumerate(path.parts) if part in _INSTALLED), None)
    return "/".join(path.parts[at:]) if at is not None else Path(os.path.relpath(path, base)).as_posix()


def load_memo(path: Path) -> None:
    """Take over file digests that an earlier process remembered; a damaged memo is ignored."""
    try:
        for name, size, mtime, inode, digest in json.loads(path.read_text()):
            _known.setdefault((name, size, mtime, inode), digest)
    except (OSError, ValueError, TypeError):
        return


def memo() -> list[list[Any]]:
    """The remembered digests as a plain value, newest last, at most 5,000."""
    return [[*key, value] for key, value in list(_known.items())[-5000:]]
