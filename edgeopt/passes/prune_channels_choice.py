"""How much each part loses, for a goal: a share of the multiply-accumulates, or shares of channels by layer."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.passes.prune_channels_parts import Part, macs_left

# To come close to the goal, groups may shrink by this factor more than the rest.
_EVENLY = 1.4

Chosen = list[tuple[Part, int]]


class Unreachable(StepError):
    """A goal that the model cannot be pruned to; `nearest` is the share of the MACs that can be, 1 where nothing can go."""

    def __init__(self, cause: str, remedy: str, nearest: float) -> None:
        super().__init__(cause, remedy=remedy)
        self.nearest = nearest


def by_macs(
    goal: float, parts: list[Part], macs: Mapping[str, int], sizes: Mapping[str, tuple[int, int]], why: Mapping[str, str]
) -> Chosen:
    """Units that go, so that all parts shrink evenly and the MACs come close below the share `goal`.

    Raises Unreachable, which tells with `why` what had to stay.
    """
    total = sum(macs.values())

    def share(lost: dict[int, int]) -> float:
        return macs_left(macs, sizes, [(parts[index], count) for index, count in lost.items()]) / total

    steps = sorted((at, cost, index, count) for index, part in enumerate(parts) for at, cost, count in part.steps())
    short: dict[int, int] = {}
    while steps and share(short | {steps[0][2]: steps[0][3]}) > goal:
        _, _, index, count = steps.pop(0)
        short[index] = count
    if not steps:
        raise _unreachable(goal, share(short), bool(short), why)
    # The next step suffices and may go far below the goal: look whether steps soon after it come closer.
    best = short | {steps[0][2]: steps[0][3]}
    for at, _, index, count in steps:
        trial = short | {index: count}
        if at > _EVENLY * steps[0][0]:
            break
        if share(trial) > goal:
            short = trial
        elif share(trial) > share(best):
            best = trial
    return [(parts[index], count) for index, count in best.items()]


def _unreachable(goal: float, nearest: float, some: bool, why: Mapping[str, str]) -> Unreachable:
    told = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(why.items())[:5])
    if not some:
        return Unreachable(
            f"no channels can be removed ({told or 'the model has no convolution or linear layer'})",
            "leave prune-channels out, or choose a smaller round_to",
            1.0,
        )
    return Unreachable(
        f"{goal:.0%} of the MACs cannot be reached, {nearest:.1%} is the nearest" + (f" ({told})" if told else ""),
        f"ask for macs: {math.ceil(100 * nearest) / 100:.2f}, keep fewer layers, or choose a smaller round_to",
        nearest,
    )


def by_ratios(
    ratios: Mapping[str, float],
    parts: list[Part],
    first: Mapping[str, tuple[int, int]],
    sizes: Mapping[str, tuple[int, int]],
    done: float,
    why: Mapping[str, str],
) -> Chosen:
    """Units that go, so that each part lost the share `done` of what the first pattern that names a layer of it says.

    `first` has the sizes of layers before any cut, `sizes` those of now; counts come as close to the ratio as steps
    of `round_to` allow. Raises StepError when nothing that a pattern names can be cut, with the reasons in `why`.
    """
    chosen: Chosen = []
    used: set[str] = set()
    for part in parts:
        pattern = next((one for one in ratios if any(_named(one, layer) for layer in part.outward)), None)
        if pattern is None:
            continue
        units = len(part.order)
        whole = units * first[part.name][1] / sizes[part.name][1]  # units before any cut
        wanted = whole * (1 - ratios[pattern] * done)
        kept = min(units, max(part.step, round(wanted / part.step) * part.step))
        if kept < units:
            chosen.append((part, units - kept))
        if kept < whole:
            used.add(pattern)
    for pattern in ratios if done == 1 else ():
        if pattern not in used:
            stays = {name: reason for name, reason in why.items() if _named(pattern, name)}
            told = (
                "; ".join(f"{name}: {reason}" for name, reason in list(stays.items())[:3]) or "round_to leaves them all of their channels"
            )
            raise Unreachable(
                f"ratios: no layer that '{pattern}' names can lose that share of its channels ({told})",
                "choose a smaller round_to, a larger ratio, or leave these layers out",
                1.0,
            )
    return chosen


def _named(pattern: str, layer: str) -> bool:
    return fnmatch.fnmatchcase(layer, pattern) or layer.startswith(pattern + ".")


def matching(option: str, patterns: Sequence[str], layers: Sequence[str]) -> list[str]:
    """The layers that the patterns of an option name. Raises UsageError when one names none."""
    found = []
    for pattern in patterns:
        matched = [name for name in layers if _named(pattern, name)]
        if not matched:
            raise UsageError(f"{option}: no convolution or linear layer is named '{pattern}'", remedy=did_you_mean(pattern, layers))
        found += matched
    return found
