"""Progress of long work: what the stages tell, whoever listens. The silent one is the default."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Listens to the stages. Subclasses show it; all methods may be called from one thread only."""

    def stage(self, name: str) -> None:
        """A stage begins: build, measure, report, bundle."""

    def start(self, label: str) -> None:
        """A piece of work begins (a step, a target)."""

    def advance(self, label: str, done: int, total: int, text: str = "") -> None:
        """It is at `done` of `total` (0: unknown)."""

    def end(self, label: str, seconds: float, how: str = "") -> None:
        """It ended; `how` is empty, `cached`, `failed` or `cancelled`."""

    def say(self, text: str) -> None:
        """Something worth a line of its own (a warning, a note of a library)."""

    @contextmanager
    def piece(self, label: str) -> Iterator[None]:
        """A piece of work from start to end, however it ends."""
        self.start(label)
        began = time.monotonic()
        try:
            yield
        except KeyboardInterrupt:
            self.end(label, time.monotonic() - began, "cancelled")
            raise
        except BaseException:
            self.end(label, time.monotonic() - began, "failed")
            raise
        self.end(label, time.monotonic() - began)
