"""Child processes of the runner: the look at TensorRT, a build, the test of an engine. Each in a session of its own, so that
Ctrl-C reaches only the parent, which then ends them; each dies with its parent whatever kills it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def python(module: str, *arguments: str) -> list[str]:
    """The command of a child. With -P no folder is searched for modules because someone stands in it: a bundle may hold a `numpy.py`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment of a child: it finds the modules that this process finds, edgeopt among them wherever that lies."""
    path = [os.environ.get("PYTHONPATH", ""), *sys.path, str(Path(__file__).parents[2])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, path)))}


def die_with_parent(parent: int | None = None) -> None:
    """Have the system kill this process when its parent ends; it ends at once where that one is gone already."""
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
