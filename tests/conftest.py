"""What all tests share: a store of the session, and small real models and data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whoever starts the suite behind `&` or nohup has it ignore Ctrl-C, and every process that a test starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the slow real-model tests, so that a model is built once in a session."""
    named = os.environ.get("EDGEOPT_CACHE")
    return Path(named) if named else tmp_path_factory.mktemp("store")


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_store: Path) -> Iterator[Path]:
    """A store for tests that look at what is stored: empty but for the machine's peaks, which take seconds to measure."""
    own, known = tmp_path / "store", shared_store / "peaks"
    if known.is_dir():
        shutil.copytree(known, own / "peaks")
    monkeypatch.setenv("EDGEOPT_CACHE", str(own))
    yield own
    if not known.is_dir() and (own / "peaks").is_dir():
        copy = shutil.copytree(own / "peaks", shared_store / f"peaks-{os.getpid()}")
        with contextlib.suppress(OSError):  # the other worker was faster
            copy.rename(known)


_SLOW_LAST = (
    "test_families.py",
    "test_families_trained.py",
    "test_readme.py",
    "test_page.py",
    "test_walk.py",
    "test_bad_input.py",
)  # the longest first, so that two ends meet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a broken rule is told in seconds, real models come last."""
    items.sort(key=lambda item: _SLOW_LAST.index(item.path.name) if item.path.name in _SLOW_LAST else -1)
