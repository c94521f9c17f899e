"""inner: a model as its layers, the result of each of which can be had. Formats give it, comparisons walk it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.core.artifact import Signature

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Node:
    """One layer: the tensors that it makes, and those it reads that depend on the model's inputs."""

    name: str
    kind: str
    makes: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass
class Graph:
    """The layers in an order of execution; what is made of weights alone is no layer.

    names: tensor → every name by which it may be known in another file of the same model, the best first.
    inputs, outputs: name in the signature → tensor.
    rounded: what a quantizer makes → the tensor that it rounds.
    """

    nodes: list[Node] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    rounded: dict[str, str] = field(default_factory=dict)


class Inner(Protocol):
    """A model file opened to be looked into."""

    signature: Signature
    graph: Graph

    def runner(self, tensors: Sequence[str], folder: Path) -> Callable[[Feeds], Feeds]:
        """Plain execution that gives these tensors; `folder` is scratch. Raises StepError, as does what it returns."""
