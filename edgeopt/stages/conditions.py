"""conditions: what the machine did while it measured: load, clock, temperature, throttling, time that others stole."""

from __future__ import annotations

import statistics
import time as clock
from typing import Any

from edgeopt.core import machine

CLOCK = 0.05  # a block's clock may differ from the session's median by this share
STEAL = 0.05  # of the processor's time that the hypervisor may give to others
WINDOW_S = 1.0  # over so long stolen time is looked at: the kernel counts in hundredths of a second
DISTURBED = 0.2  # share of blocks beyond which no figure of the session is trusted


class Conditions:
    """A session's conditions, looked at after each block."""

    def __init__(self) -> None:
        self._start = self._last = self._window = self._now()
        self._told = 0  # blocks whose stolen time is known
        self._blocks: list[dict[str, Any]] = []

    def _now(self) -> dict[str, Any]:
        return {"at": clock.monotonic(), "load": machine.load(), **machine.state()}

    def block(self) -> None:
        """Say that a block ended."""
        now = self._now()
        throttled = (now["throttled"] or 0) > (self._last["throttled"] or 0)
        self._blocks.append({"mhz": now["mhz"], "celsius": now["celsius"], "stolen": 0.0, "throttled": throttled})
        self._last = now
        if now["at"] - self._window["at"] >= WINDOW_S:
            stolen = (now["steal_s"] - self._window["steal_s"]) / max(now["total_s"] - self._window["total_s"], 1e-9)
            for one in self._blocks[self._told :]:
                one["stolen"] = stolen
            self._window, self._told = now, len(self._blocks)

    def disturbed(self) -> dict[str, int]:
        """How many blocks something disturbed, by what; `any` counts each block once."""
        usual = statistics.median([one["mhz"] for one in self._blocks if one["mhz"]] or [0.0])
        found = [
            {
                "clock": bool(one["mhz"]) and abs(one["mhz"] / usual - 1) > CLOCK,
                "throttling": one["throttled"],
                "steal": one["stolen"] > STEAL,
            }
            for one in self._blocks
        ]
        return {name: sum(one[name] for one in found) for name in ("clock", "throttling", "steal")} | {
            "any": sum(any(one.values()) for one in found)
        }

    def flags(self) -> list[str]:
        """`unstable` where too many blocks were disturbed."""
        return ["unstable"] if self.disturbed()["any"] > DISTURBED * max(len(self._blocks), 1) else []

    def read(self) -> dict[str, Any]:
        """All of it as plain JSON; what the machine does not tell is null."""
        end = self._now()
        clocks = [one["mhz"] for one in self._blocks if one["mhz"]]
        warmest = [one["celsius"] for one in self._blocks if one["celsius"] is not None]
        return {
            "seconds": round(end["at"] - self._start["at"], 1),
            "load_before": self._start["load"],
            "load_after": end["load"],
            "mhz": [min(clocks), statistics.median(clocks), max(clocks)] if clocks else None,
            "celsius_max": max(warmest, default=None),
            "throttled": None if end["throttled"] is None else end["throttled"] - self._start["throttled"],
            "steal_percent": round(100 * (end["steal_s"] - self._start["steal_s"]) / max(end["total_s"] - self._start["total_s"], 1e-9), 2),
            "blocks": len(self._blocks),
            "blocks_disturbed": self.disturbed(),
        }
