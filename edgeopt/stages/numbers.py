"""numbers: how a number is written for people.

A number carries three significant digits, its interval as many decimals as the number itself; MB are
10⁶ bytes; minus is a minus sign.
"""

from __future__ import annotations

import math

from edgeopt.core.session import Interval

NONE = "–"


def decimals(value: float, significant: int = 3) -> int:
    """How many decimals show so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, significant - 1 - math.floor(math.log10(abs(float(f"{value:.{significant - 1}e}")))))


def number(value: float | None, places: int | None = None, *, signed: bool = False) -> str:
    """A number with three significant digits, or with so many decimals; a real minus sign."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞" if signed else "∞"
    if places is None and 0 < abs(value) < 1e-4:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:{'+' if signed else ''},.{decimals(value) if places is None else places}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(ci: Interval | None, places: int, *, signed: bool = False) -> str:
    """ "[2.69, 2.74]", or nothing when there is none."""
    return f"[{number(ci[0], places, signed=signed)}, {number(ci[1], places, signed=signed)}]" if ci else ""


def threads(number_of: int, on_gpu: bool) -> str:
    """ "2 threads, ", or nothing where the CPU's threads compute nothing."""
    return "" if on_gpu else f"{count(number_of, 'thread')}, "


def measured(value: float | None, ci: Interval | None = None, unit: str = "") -> str:
    """ "2.71 ms [2.69, 2.74]"."""
    if value is None:
        return NONE
    return " ".join(filter(None, (f"{number(value)} {unit}".strip(), interval(ci, decimals(value)))))


def factor(value: float, ci: Interval | None = None, what: str = "") -> str:
    """ "2.10× faster [2.05, 2.16]": two decimals, none from a hundred on."""
    places = 2 if value < 100 else 0
    return " ".join(filter(None, (f"{number(value, places)}×", what, interval(ci, places))))


def megabytes(size_bytes: float | None) -> str:
    """ "5.05 MB"; below a kilobyte plain bytes."""
    if size_bytes is None:
        return NONE
    return f"{size_bytes:.0f} bytes" if size_bytes < 1000 else f"{number(size_bytes / 1e6)} MB"


def seconds(value: float) -> str:
    """ "0.42 s", "3 min 5 s"."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def count(value: int, noun: str) -> str:
    """ "1 gate", "1,500 samples"."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def plain(value: float) -> int:
    """Decimals that a number written by a person needs: 5, 1.5, 0.01."""
    text = f"{value:.6f}".rstrip("0")
    return len(text.partition(".")[2])
