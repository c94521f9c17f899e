"""Two layers of LSTM on spoken vowels (recurrent.py)."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import recurrent

PACKAGES = ("aeon",)
READS = (Path(recurrent.__file__), recurrent.NETWORK)
SCORES = ["top1", "agreement", "sqnr"]
LABELLED = True  # 300 samples: too few to prove a drop of one point


def make(folder: Path) -> None:
    recurrent.make("LSTM", folder)
