"""breakdown: where the time goes, in words and table cells, once for page, Markdown and console."""

from __future__ import annotations

from edgeopt.core.profile import PRECISIONS, Island, LayerTime, Peaks, Profile, Roofline
from edgeopt.core.report import Row
from edgeopt.stages.numbers import NONE, count, number
from edgeopt.stages.work import bare

CATEGORIES = (*PRECISIONS, "conversion", "movement")
TITLES = {
    "int8": "INT8",
    "fp8": "FP8",
    "bf16": "BF16",
    "fp16": "FP16",
    "fp32": "FP32",
    "conversion": "conversions",
    "movement": "moving data",
}
WORTH = 0.02  # a share of the time that a reader is told of
ABOUT = (
    "Times of layers are the runtime's own, taken under its profiler after all timing, in one run after another; the profiler slows small "
    "layers down, so the measured time is split by their shares. Conversions change precision or layout; moving data is all else that "
    "computes nothing."
)
ABOUT_PEAKS = (
    "Peaks are measured here, not read off a data sheet: the fastest run of a convolution and of a matrix product by any runtime that is "
    "here, with the same threads, and the fastest copy. What a model multiplies is counted from its shapes."
)
Table = tuple[list[str], list[list[str]]]


def category(layer: LayerTime) -> str:
    """A layer's precision where it computes, else what it does."""
    return layer.precision if layer.kind == "compute" else layer.kind


def label(layer: LayerTime) -> str:
    """What to call a layer: as the model does, else as the runtime does without what it hangs on."""
    return layer.of or bare(layer.name)


def spent(profile: Profile) -> dict[str, float]:
    """µs by category, those that occur."""
    every = {**profile.by_precision, "conversion": profile.conversions_us, "movement": profile.movement_us}
    return {name: every[name] for name in CATEGORIES if every.get(name)}


def occurring(rows: list[Row]) -> list[str]:
    """The categories that any of these rows spends time in."""
    every = [spent(row.profile) for row in rows if row.profile]
    return [name for name in CATEGORIES if any(name in us for us in every)]


def micro(us: float) -> str:
    """ "26.3 µs", "1.21 ms"."""
    return f"{number(us / 1000)} ms" if us >= 1000 else f"{number(us)} µs"


def macs(number_of: int) -> str:
    """ "640", "226 K", "7.23 M", "4.1 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number_of >= size:
            return f"{number(number_of / size)} {unit}"
    return str(number_of)


def percent(share: float) -> str:
    """ "36 %", "0.4 %", "< 0.1 %"."""
    value = 100 * share
    return f"{number(value, 0)} %" if value >= 9.95 else f"{number(value, 1)} %" if value >= 0.05 else "< 0.1 %" if value > 0 else "0 %"


def split(profile: Profile) -> str:
    """ "INT8 91 %, FP32 1.7 %, conversions 4.6 %, moving data 4.0 %"."""
    return (
        ", ".join(f"{TITLES[name]} {percent(us / profile.total_us)}" for name, us in spent(profile).items()) if profile.total_us else NONE
    )


def island(one: Island, usual: str) -> str:
    """ "FP32 between INT8 layers: node_mean, 6.0 µs and 10.1 µs of conversions around it"."""
    told = f"{TITLES.get(one.precision, one.precision)} between {usual} layers: {', '.join(one.layers)}, {micro(one.us)}"
    return told + (f" and {micro(one.conversions_us)} of conversions around it" if one.conversions_us else "")


def islands(profile: Profile) -> list[str]:
    """Each island in a line, those that cost most."""
    usual = max(profile.by_precision, key=lambda name: profile.by_precision[name], default="other")
    told = [island(one, TITLES.get(usual, usual)) for one in profile.islands]
    more = profile.island_count - len(profile.islands)
    return told + ([f"and {count(more, 'smaller island')}"] if more > 0 else [])


def costs(profile: Profile) -> list[str]:
    """What is lost between the layers, where it is worth a word: conversions, and islands."""
    share = profile.conversions_us / profile.total_us if profile.total_us else 0.0
    lost = (
        f"{count(profile.conversions, 'conversion')} of precision or layout: {micro(profile.conversions_us)}, {percent(share)} of the time"
    )
    return ([lost] if share >= WORTH else []) + islands(profile)


def reached(roofline: Roofline) -> str:
    """ "reaches 57 % of what this machine can do: 0.143 ms at its peaks"."""
    if roofline.reached > 1:
        return "is faster than the peaks measured here allow: it multiplies less than is counted, or they were measured on a busier machine"
    return f"reaches {percent(roofline.reached)} of what this machine can do: {number(roofline.attainable_ms)} ms at its peaks"


def peaks(told: Peaks) -> str:
    """ "232 FP32, 448 BF16 and 761 INT8 GOP/s, 180 GB/s from the caches, 54 GB/s from memory, with 2 threads"."""
    order = sorted(told.gops, key=lambda one: -PRECISIONS.index(one.precision) if one.precision in PRECISIONS else 0)
    rates = [f"{number(one.gops)} {TITLES.get(one.precision, one.precision)}" for one in order]
    operations = f"{' and '.join([', '.join(rates[:-1]), rates[-1]] if len(rates) > 1 else rates)} GOP/s, " if rates else ""
    fast, slow = max(one.gb_per_s for one in told.bandwidth), told.bandwidth[-1].gb_per_s
    return f"{operations}{number(fast)} GB/s from the caches and {number(slow)} GB/s from memory, with {count(told.threads, 'thread')}"


def split_table(rows: list[Row]) -> Table:
    """The sums of each variant's profile."""
    profiled = [(row, row.profile) for row in rows if row.profile]
    shown = occurring(rows)
    head = ["variant", "layers", *(TITLES[name] for name in shown), "islands", "all, under the profiler"]
    cells = []
    for row, profile in profiled:
        us = spent(profile)
        shares = [f"{micro(us[name])} ({percent(us[name] / profile.total_us)})" if name in us else NONE for name in shown]
        cells.append([row.variant, str(profile.layers), *shares, str(profile.island_count or NONE), micro(profile.total_us)])
    return head, cells


def roofline_table(rows: list[Row]) -> Table:
    """Each variant under the roofline."""
    head = ["variant", "of what is possible", "possible", "reached", "MACs", "bytes moved", "operations per byte", "waits for memory"]
    cells = [
        [
            row.variant,
            percent(found.reached),
            f"{number(found.attainable_ms)} ms",
            f"{number(found.gops)} GOP/s",
            macs(found.macs),
            f"{number(found.bytes / 1e6)} MB",
            number(found.intensity),
            percent(found.memory_bound),
        ]
        for row in rows
        if row.profile and (found := row.profile.roofline)
    ]
    return head, cells


def layer_table(layers: list[LayerTime], most: int | None = None) -> Table:
    """The layers that take most, and all others in one line."""
    head = ["layer", "executed as", "type", "precision", "time", "share", "MACs", "possible", "of what is possible"]
    total = sum(layer.us for layer in layers) or 1.0
    ordered = sorted(layers, key=lambda layer: -layer.us)
    kept, rest = (ordered, []) if most is None or len(ordered) <= most + 1 else (ordered[:most], ordered[most:])
    cells = [
        [
            label(layer),
            layer.name,
            layer.type or NONE,
            TITLES.get(category(layer), category(layer)),
            micro(layer.us),
            percent(layer.us / total),
            macs(layer.macs) if layer.macs else NONE,
            micro(layer.attainable_us) if layer.attainable_us else NONE,
            percent(layer.attainable_us / layer.us) if layer.attainable_us and layer.us else NONE,
        ]
        for layer in kept
    ]
    if rest:
        us = sum(layer.us for layer in rest)
        cells.append([f"and {len(rest)} more", "", "", "", micro(us), percent(us / total), "", "", ""])
    return head, cells
