"""Where the time goes: layers as the runtime executed them, and what this machine could do at best.

Times are the runtime's own, taken under its profiler after all timing: their shares tell more than their
sums, because the profiler slows small layers down.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeopt.core.protocols import Options

PRECISIONS = ("int8", "fp8", "bf16", "fp16", "fp32")
Kind = Literal["compute", "conversion", "movement"]
Bound = Literal["compute", "memory"]


class LayerTime(Options):
    """One executed layer. `kind`: a conversion changes precision or layout, a movement only moves or reshapes data."""

    name: str
    type: str = Field(description="the runtime's own word for it")
    kind: Kind
    precision: str = Field(description="int8, fp8, bf16, fp16, fp32; other where it does not compute")
    us: float
    of: str | None = Field(default=None, description="the model's own layers that it holds, where they were found again")
    macs: int | None = Field(default=None, description="multiply-accumulates of those")
    attainable_us: float | None = Field(default=None, description="what the roofline allows")


class Island(Options):
    """Layers in another precision than most, between layers in that of most: an FP32 layer between INT8 layers, or the reverse."""

    precision: str = Field(description="that of its slowest layer")
    layers: list[str]
    us: float
    conversions_us: float = Field(description="conversions between it and its neighbours")


class Roofline(Options):
    """An artifact against the machine's measured peaks (Williams, Waterman and Patterson: Roofline, 2009)."""

    macs: int
    bytes: int = Field(description="weights, inputs and outputs of the layers that multiply, in the precision that executed")
    intensity: float = Field(description="operations per byte; a multiply-accumulate is two")
    gops: float = Field(description="10⁹ operations per second that the measured time comes to")
    attainable_ms: float = Field(description="the sum of what each layer needs at least at the peaks")
    reached: float = Field(description="share of what the machine can do: attainable over measured")
    memory_bound: float = Field(description="share of the attainable time in layers that wait for memory")


class Profile(Options):
    """A profile in short; the session's profile.json holds every layer."""

    layers: int
    total_us: float = Field(description="sum over all layers, under the profiler")
    by_precision: dict[str, float] = Field(description="µs of the layers that compute")
    by_type: dict[str, float] = Field(description="µs by the runtime's word for the layer, most first")
    conversions: int
    conversions_us: float
    movement_us: float
    island_count: int
    islands: list[Island] = Field(description="those that cost most")
    top: list[LayerTime] = Field(description="the layers that take most")
    roofline: Roofline | None


class Bandwidth(Options):
    """Bytes copied per second, read and written, while so many bytes are in use."""

    bytes: int
    gb_per_s: float


class Peak(Options):
    """10⁹ operations per second in one precision, and the runtime that reached them."""

    precision: str
    gops: float
    by: str


class Peaks(Options):
    """What this machine can do at best with so many threads: measured, not a data sheet."""

    threads: int
    gops: list[Peak] = Field(description="one for each precision that some runtime executes here")
    bandwidth: list[Bandwidth] = Field(description="from what fits the caches to what does not")
    measured_at: str
    seconds: float

    def peak(self, precision: str) -> Peak | None:
        return next((one for one in self.gops if one.precision == precision), None)

    def bandwidth_at(self, size_bytes: int) -> float:
        """GB/s for a working set: that of the least measured one that is no smaller."""
        return next((one.gb_per_s for one in self.bandwidth if one.bytes >= size_bytes), self.bandwidth[-1].gb_per_s)
