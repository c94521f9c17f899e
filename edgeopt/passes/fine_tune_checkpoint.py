"""Checkpoints: the state of a training after its last whole epoch, so that a killed run goes on there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

FILE = "epoch.pt"


def write(folder: Path | None, state: dict[str, Any]) -> None:
    """Replace the checkpoint, all or nothing, on disk before the old one goes."""
    import torch

    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / FILE)


def read(folder: Path | None) -> dict[str, Any] | None:
    """The state last written (tensors and plain values only), or None. A damaged one counts as none."""
    import torch

    with contextlib.suppress(Exception):  # torch raises whatever it meets in a damaged file
        if folder is not None and (folder / FILE).is_file():
            state: dict[str, Any] = torch.load(folder / FILE, weights_only=True)
            return state
    return None
