"""`BUNDLE/engines`: the engines of a bundle, which of them is in use, and the log of how they came about.

An engine lies in a folder named by its key; `current.json` names the one to use and is replaced in one step.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENGINE, RECORD, CURRENT, LOG = "engine.plan", "build.json", "current.json", "log.jsonl"
PART, FAILED, LOCK = ".part", ".failed", ".lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Change a folder of engines alone; waits, and says so, while another build does."""
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another build is at work in {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        shutil.rmtree(folder / PART, ignore_errors=True)  # of a build that was killed
        yield


def current(folder: Path) -> str | None:
    """The key of the engine in use."""
    try:
        return str(json.loads((folder / CURRENT).read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sound(place: Path) -> bool:
    """Whether an engine lies there and is the one that its record describes."""
    try:
        return bool(sha256(place / ENGINE) == json.loads((place / RECORD).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def use(place: Path) -> None:
    """Make an engine the one in use, in one step."""
    part = place.with_name(f"{PART}.json")
    part.write_text(json.dumps({"key": place.name, "engine": f"{place.name}/{ENGINE}"}) + "\n")
    part.replace(place.with_name(CURRENT))


def put_aside(place: Path) -> Path:
    """Keep an engine that failed its test for a person to look at, under a name that no key has; it replaces an earlier one."""
    aside = place.with_name(place.name + FAILED)
    shutil.rmtree(aside, ignore_errors=True)
    return place.rename(aside)


def note(folder: Path, **what: Any) -> None:
    """One line for what was done, kept for ever."""
    with (folder / LOG).open("a") as file:
        file.write(json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **what}) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
