"""Training samples in a new order at each walk, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeopt.core.protocols import Sample, Split

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]

# Sets up to this size stay in memory and are shuffled whole; larger ones pass through a buffer of this size.
IN_MEMORY = 512_000_000


class Shuffled:
    """A split in another order at each walk. `count`: its samples."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.held: list[Sample] = []
        self.count, self.room, size = 0, 0, 0
        for sample in split:
            self.count += 1
            size += sum(array.nbytes for array in sample.inputs.values()) + getattr(sample.label, "nbytes", 8)
            if size <= IN_MEMORY or not self.held:
                self.held.append(sample)
                self.room += 1
        self.first = self.held[0]
        if self.room < self.count:
            self.held = []

    def batches(self, size: int, numbers: Any) -> Iterator[tuple[Feeds, list[Any]]]:
        return Split(self.split.name, lambda: self.samples(numbers), self.split.signature).batches(size)

    def samples(self, numbers: Any) -> Iterator[Sample]:
        """Every sample once; `numbers` is the numpy Generator that decides the order."""
        held = list(self.held)
        if not held:
            for sample in self.split:
                if len(held) < self.room:
                    held.append(sample)
                    continue
                place = int(numbers.integers(self.room))
                yield held[place]
                held[place] = sample
        for place in numbers.permutation(len(held)):
            yield held[place]
