"""A mix of precisions, what it is made of, and what is told of the chosen one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeopt.passes.mixed_precision_judge import Verdict
from edgeopt.passes.mixed_precision_rules import Layer, groups

if TYPE_CHECKING:
    from edgeopt.passes.mixed_precision_search import Engine


@dataclass(frozen=True)
class Unit:
    """Layers that can only be switched together, with their types."""

    name: str
    layers: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Mix:
    """How the float rest executes, the units that compute in INT8, and whether sums read what those units read, in INT8 too."""

    execution: str
    units: frozenset[str] = frozenset()
    sums: bool = False

    def told(self, total: int) -> str:
        """Of so many units."""
        return f"{len(self.units)} of {total}{' and their sums' if self.sums else ''} in INT8, the rest in {self.execution}"

    def layers(self, units: list[Unit]) -> set[str]:
        """The layers that compute in INT8."""
        return {layer for unit in units if unit.name in self.units for layer in unit.layers}


def units_of(layers: Mapping[str, Layer]) -> list[Unit]:
    """Layers as units, those that share a quantizer of what they read in one."""
    return [Unit(group[0].name, tuple(one.name for one in group), tuple(one.kind for one in group)) for group in groups(layers)]


@dataclass
class Found:
    """The chosen mix, what it reached, and what was looked at on the way."""

    mix: Mix
    verdict: Verdict
    noise: dict[str, float]
    gains: dict[str, float]
    times_ms: dict[str, float]
    over: frozenset[str]  # units that were given up for the budget
    trials: list[str] = field(default_factory=list)
    nearest: str = ""  # where no mix with INT8 layers keeps to the budget

    def notes(self, engine: Engine, budget: str) -> dict[str, Any]:
        """What the history keeps: the decision layer by layer, what was tried, and what was timed."""
        total = sum(len(unit.layers) for unit in engine.units)
        quantized = sum(len(unit.layers) for unit in engine.units if unit.name in self.mix.units)
        layers = []
        for unit in engine.units:
            inside = unit.name in self.mix.units
            saved, noise = self.gains.get(unit.name, 0.0), self.noise.get(unit.name, 0.0)
            for layer, kind in zip(unit.layers, unit.kinds, strict=True):
                precision = "int8" if inside else self.mix.execution
                layers.append(
                    {
                        "layer": layer,
                        "type": kind,
                        "precision": precision,
                        "why": "" if inside else self._why(unit.name),
                        "noise_db": _decibels(noise),
                        "saves_us": round(saved, 1),
                    }
                )
        told = {"nearest": self.nearest} if self.nearest else {}
        return told | {
            "budget": budget,
            "reached": f"{self.verdict.got:.4g}, {self.verdict.bound:.4g} with its margin",
            "int8_layers": f"{quantized} of {total}",
            "rest": self.mix.execution,
            "mix": {"rest": self.mix.execution, "int8": sorted(self.mix.layers(engine.units))} | ({"sums": True} if self.mix.sums else {}),
            "timed_ms": {name: round(spent, 4) for name, spent in self.times_ms.items()},
            "trials": self.trials,
            "layers": layers,
        }

    def _why(self, unit: str) -> str:
        """Why a unit stays float."""
        if not self.gains:
            return "as asked"
        if self.gains[unit] <= 0:
            return "INT8 saves nothing here"
        return "too noisy for what it saves" if unit in self.over else "faster without it, as timed"


def _decibels(noise: float) -> float | None:
    return round(-10 * math.log10(noise), 1) if noise > 0 else None
