"""The content-addressed store: every finished step, survey and session, once, shared by all runs.

An entry is a folder that appears by one rename, so it is whole or absent, whoever is killed when.
A lock per key keeps two processes from doing the same work; locks vanish with their process.
The one exception: a step's `checkpoints` grow while it runs, file by file, under its key, and go when it is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import digest

KINDS = ("artifacts", "surveys", "sessions", "parities", "goldens", "checkpoints", "peaks", "timings")


def default_root() -> Path:
    """`$EDGEOPT_CACHE`, else the XDG cache folder."""
    if named := os.environ.get("EDGEOPT_CACHE"):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "edgeopt"


@dataclass(frozen=True)
class Entry:
    kind: str
    key: str
    path: Path
    size_bytes: int
    used_at: float


class Store:
    """Entries by kind and key below one root folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        digest.load_memo(self.root / "digests.json")

    def path(self, kind: str, key: str) -> Path:
        """Where the entry stands or would stand."""
        name = key.removeprefix("sha256:")
        return self.root / kind / name[:2] / name[2:]

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of an entry, or None; marks it as used now."""
        path = self.path(kind, key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def put(self, kind: str, key: str, folder: Path) -> Path:
        """Move a finished folder (from `scratch`) into the store; the first writer wins."""
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
        return path

    def drop(self, kind: str, key: str) -> None:
        """Remove an entry: renamed away first, so that no reader sees half of it."""
        path = self.path(kind, key)
        grave = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's disk; gone afterwards unless `put` took it."""
        self.sweep()
        folder = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of one key; waits for another process that has it."""
        path = self.root / "locks" / key.removeprefix("sha256:")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def sweep(self) -> None:
        """Remove scratch folders whose process is gone."""
        for folder in (self.root / "tmp").glob("*"):
            pid = folder.name.split("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """All entries, least recently used first."""
        found = []
        for kind in KINDS:
            for path in (self.root / kind).glob("*/*"):
                size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
                found.append(Entry(kind, path.parent.name + path.name, path, size, path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used_at)

    def prune(self, max_bytes: int | None = None, older_than_days: float | None = None, *, dry_run: bool = False) -> list[Entry]:
        """Drop what was not used for so many days, then the least recently used until the rest fits."""
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        dropped = []
        for entry in entries:
            stale = older_than_days is not None and time.time() - entry.used_at > older_than_days * 86400
            if stale or (max_bytes is not None and total > max_bytes):
                if not dry_run:
                    self.drop(entry.kind, entry.key)
                total -= entry.size_bytes
                dropped.append(entry)
        return dropped

    def remember_digests(self) -> None:
        """Keep the file digests of this process for the next one."""
        self.write_json(self.root / "digests.json", digest.memo())

    def write_json(self, path: Path, value: Any) -> None:
        """Write a JSON file all or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(value))
        part.replace(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
