"""The null runtime: answers zeros of the right names, dtypes and shapes, and computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runner import Port

if TYPE_CHECKING:
    from edgeopt.runner import Feeds


def library() -> None:
    """There is none to import."""


def open(path: Path, *, threads: int, requests: int | str, options: dict[str, Any], execution: dict[str, str]) -> NullSession:
    """Open a `null.json`: {"inputs": [[name, dtype, shape], …], "outputs": […]}."""
    return NullSession(json.loads(path.read_text()), 1 if requests == "auto" else int(requests))


class NullSession:
    """Zeros for every output; an axis named like an input's takes its size from the feed, others are 1."""

    def __init__(self, record: dict[str, Any], slots: int) -> None:
        self.inputs = [Port(name, dtype, tuple(shape)) for name, dtype, shape in record["inputs"]]
        self.outputs = [Port(name, dtype, tuple(shape)) for name, dtype, shape in record["outputs"]]
        self.slots = slots
        self._sizes: list[dict[str | int, int]] = [{} for _ in range(slots)]

    def load(self, feeds: Feeds, slot: int = 0) -> None:
        sizes = self._sizes[slot]
        for port in self.inputs:
            for axis, size in zip(port.shape, feeds[port.name].shape, strict=False):
                sizes[axis] = size

    def start(self, slot: int = 0) -> None:
        pass

    def wait(self, slot: int = 0) -> None:
        pass

    def read(self, slot: int = 0) -> Feeds:
        sizes = self._sizes[slot]
        return {
            name: np.zeros([axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in shape], dtype)
            for name, dtype, shape in self.outputs
        }

    def facts(self, feeds: Feeds) -> dict[str, Any]:
        return {"runtime": "null", "precision": {"int8": 0, "bf16": 0, "fp16": 0, "fp32": 0}, "layers": 0}

    def profile(self, feeds: Feeds) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        pass
