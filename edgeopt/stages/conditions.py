"""conditions: what the machine did while it measured: load, clock, temperature, throttling, time that others stole.

On a GPU clock, temperature and throttling are that GPU's, read after each variant's turn by the process that computed there.
Heat, and hardware that slows itself down, disturb a block. The limit of its power does not: it sets the clock of many
data-centre and embedded boards whenever they work, and the heavier a variant is, the lower. It is told; a variant's clock is
held against the same variant's others, and not at all where that limit set it.
"""

from __future__ import annotations

import statistics
import time as clock
from collections.abc import Mapping
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
        self._turns: list[dict[str, Any]] = []  # of the block under way, where a GPU computes
        self._gpu: list[Mapping[str, Any]] = []  # all readings of it

    def _now(self) -> dict[str, Any]:
        return {"at": clock.monotonic(), "load": machine.load(), **machine.state()}

    def turn(self, variant: str, gpu: Mapping[str, Any] | None) -> None:
        """Say that a variant had its turn, and what its process then read of its GPU (the runner's `nvml.reading`); None on a CPU."""
        if gpu is None:
            return
        self._gpu.append(gpu)
        held = _held_ms(self._gpu[-2:])
        self._turns.append(
            {
                "variant": variant,
                "mhz": gpu["mhz"],
                "celsius": gpu["celsius"],
                "throttled": bool(gpu["slowed"] or held["heat"]),
                "at_power_limit": bool(gpu["at_power_limit"] or held["power"]),
            }
        )

    def block(self) -> None:
        """Say that a block ended."""
        now = self._now()
        throttled = (now["throttled"] or 0) > (self._last["throttled"] or 0)
        own = {"variant": "", "mhz": now["mhz"], "celsius": now["celsius"], "throttled": throttled, "at_power_limit": False}
        self._blocks.append({"stolen": 0.0, "turns": self._turns or [own]})
        self._last, self._turns = now, []
        if now["at"] - self._window["at"] >= WINDOW_S:
            stolen = (now["steal_s"] - self._window["steal_s"]) / max(now["total_s"] - self._window["total_s"], 1e-9)
            for one in self._blocks[self._told :]:
                one["stolen"] = stolen
            self._window, self._told = now, len(self._blocks)

    def disturbed(self) -> dict[str, int]:
        """How many blocks something disturbed, by what; `any` counts each block once."""
        clocks: dict[str, list[float]] = {}
        for turn in self._all_turns():
            if turn["mhz"] and not turn["at_power_limit"]:
                clocks.setdefault(turn["variant"], []).append(turn["mhz"])
        usual = {variant: statistics.median(told) for variant, told in clocks.items()}

        def moved(turn: dict[str, Any]) -> bool:
            return bool(turn["mhz"]) and not turn["at_power_limit"] and abs(turn["mhz"] / usual[turn["variant"]] - 1) > CLOCK

        found = [
            {
                "clock": any(map(moved, one["turns"])),
                "throttling": any(turn["throttled"] for turn in one["turns"]),
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
        clocks = [turn["mhz"] for turn in self._all_turns() if turn["mhz"]]
        warmest = [turn["celsius"] for turn in self._all_turns() if turn["celsius"] is not None]
        counted = end["throttled"] is not None and not self._gpu
        return {
            "seconds": round(end["at"] - self._start["at"], 1),
            "load_before": self._start["load"],
            "load_after": end["load"],
            "mhz": [min(clocks), statistics.median(clocks), max(clocks)] if clocks else None,
            "celsius_max": max(warmest, default=None),
            "throttled": end["throttled"] - self._start["throttled"] if counted else None,
            "steal_percent": round(100 * (end["steal_s"] - self._start["steal_s"]) / max(end["total_s"] - self._start["total_s"], 1e-9), 2),
            "blocks": len(self._blocks),
            "blocks_disturbed": self.disturbed(),
            **self._held(),
        }

    def _held(self) -> dict[str, Any]:
        """What held a GPU's clock down during the session, as far as it counts that; nothing of a CPU."""
        if not self._gpu:
            return {}
        held = {name: ms for name, ms in _held_ms([self._gpu[0], self._gpu[-1]]).items() if ms is not None}
        limited = sum(any(turn["at_power_limit"] for turn in one["turns"]) for one in self._blocks)
        return {"gpu_held_ms": held or None, "blocks_at_power_limit": limited}

    def _all_turns(self) -> list[dict[str, Any]]:
        """Every turn; a block on a CPU is one."""
        return [turn for one in self._blocks for turn in one["turns"]]


def _held_ms(readings: list[Mapping[str, Any]]) -> dict[str, float | None]:
    """For how long each cause held a GPU's clock down between the first and the last reading, in ms; null where it is not counted."""
    first, last = readings[0]["held_ns"], readings[-1]["held_ns"]
    return {name: None if None in (ns, first[name]) else (ns - first[name]) / 1e6 for name, ns in last.items()}
