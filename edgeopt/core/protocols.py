"""What a plug is: a frozen options class whose fields are its YAML options and whose docstring is its help.

Why pydantic classes instead of protocols: a recipe's options are checked, completed and put into the
JSON Schema from the fields alone, without importing any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.core.artifact import Artifact, Signature

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray[Any, Any]]

SPLITS = ("train", "tune", "calibrate", "evaluate")


class Options(BaseModel):
    """Typed options: unknown names are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


@dataclass(frozen=True)
class Sample:
    """One sample: each input's array without its batch axis, and the label where there is one."""

    inputs: Feeds
    label: Any = None


class Split:
    """One data split bound to a model's inputs: may be walked through many times, never held whole."""

    def __init__(self, name: str, samples: Callable[[], Iterator[Sample]], signature: Signature) -> None:
        self.name, self._samples, self.signature = name, samples, signature

    def __iter__(self) -> Iterator[Sample]:
        return self._samples()

    def batches(self, size: int) -> Iterator[tuple[Feeds, list[Any]]]:
        """Feeds of up to `size` samples stacked on the batch axis, with their labels.

        A model whose batch axis is fixed gets full batches of that size (the last one padded with its
        last sample; the labels tell how many count). Samples of unlike shapes are never stacked.
        """
        held: list[Sample] = []
        size = fixed_batch(self.signature) or size
        for sample in self:
            if held and (len(held) == size or _shapes(held[0]) != _shapes(sample)):
                yield stack(held, self.signature), [one.label for one in held]
                held = []
            held.append(sample)
        if held:
            yield stack(held, self.signature), [one.label for one in held]


def fixed_batch(signature: Signature) -> int | None:
    """The batch size that the model insists on, or None when its batch axis may vary."""
    return signature.fixed_batch


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.inputs.values()]


def stack(samples: list[Sample], signature: Signature) -> Feeds:
    """Samples stacked on each input's batch axis; inputs without one are taken from the first sample."""
    import numpy as np

    fixed = fixed_batch(signature)
    padded = samples + [samples[-1]] * ((fixed or 0) - len(samples))
    feeds: Feeds = {}
    for spec in signature.inputs:
        arrays = [sample.inputs[spec.name] for sample in padded]
        axis = signature.batch_axis(spec)
        if axis is None:
            feeds[spec.name] = arrays[0]
        elif arrays[0].ndim == len(spec.shape):  # the sample brings its own batch axis of 1
            feeds[spec.name] = np.ascontiguousarray(np.concatenate(arrays, axis=axis))
        else:
            feeds[spec.name] = np.ascontiguousarray(np.stack(arrays, axis=axis))
    return feeds


class Candidate(NamedTuple):
    """A model that a search wants timed: its main file, in a folder `files` with nothing else but what belongs to it."""

    path: Path
    execution: str = "f32"


@dataclass(frozen=True)
class Context:
    """All that a pass may see: what it declared, and nothing else.

    `folder` is empty and takes the result; names of user files are relative to `base`, the recipe's
    folder; `data` maps split names to Splits; `target` holds the declared target fields; `note` adds to the
    artifact's history; `execute` says how the float rest of the result executes (`f32`, `bf16`);
    `progress(done, total, text)` reports. `checkpoints` is a folder of this step's key that may not be there
    yet, or None where nothing is stored: what a pass leaves in it outlives the process, however it ends, and is
    gone once the step's result is stored. What is read from it must have been written whole (rename).

    Doors that a pass opens by naming them under `uses`:
    reference   the reference variant before its compile
    score       `scores`, the recipe's by label, ready to judge, and `sqnr` in any case
    measure     `measure(candidates, seconds)` times models on the target side by side in at most so many seconds and
                returns milliseconds per inference by name; None where this machine cannot run the target
    """

    folder: Path
    base: Path = Path()
    data: Mapping[str, Split] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    reference: Artifact | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    measure: Callable[[Mapping[str, Candidate], float], dict[str, float]] | None = None
    execute: Callable[[str], None] = lambda precision: None
    checkpoints: Path | None = None
    note: Callable[[str, Any], None] = lambda name, value: None
    progress: Callable[[int, int, str], None] = lambda done, total, text: None


class Pass(Options):
    """Makes one artifact out of another. Subclasses say what they take, make and may see.

    accepts, produces   formats (`torch`, `onnx`, `openvino`); an importer accepts nothing. A pass that
                        accepts several produces the one it was given.
    needs               distributions whose versions are part of the key
    extra               the extra of edgeopt that installs them
    data                splits it sees; "name?" where it can do without
    target_fields       fields of the target it sees; none: one result serves all targets
    uses                doors of the context: reference, score, measure; `machine` puts this machine into the key, as `measure` does
    changes_function    its result is not expected to reproduce the outputs (pruning, training)
    tolerance_db        a step that must keep the function fails when outputs agree worse than this SQNR
    sets_execution      how the float rest of the model executes afterwards (`f32`, `bf16`)
    """

    accepts: ClassVar[tuple[str, ...]] = ()
    produces: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "all"
    data: ClassVar[tuple[str, ...]] = ()
    target_fields: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    changes_function: ClassVar[bool] = False
    tolerance_db: ClassVar[float] = 60.0
    sets_execution: ClassVar[str] = ""

    def __init_subclass__(cls, **facts: Any) -> None:
        cls._take(facts)
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **facts: Any) -> None:
        pass

    @classmethod
    def _take(cls, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            if not hasattr(Pass, name):
                raise TypeError(f"{cls.__name__}: a pass has no fact '{name}'")
            setattr(cls, name, (value,) if name == "accepts" and isinstance(value, str) else value)

    def run(self, model: Artifact, ctx: Context) -> Path:
        """Write the result below `ctx.folder` and return its main file."""
        raise NotImplementedError

    def splits(self) -> tuple[str, ...]:
        """The splits that it sees with these options: `data`, or fewer."""
        return self.data

    def doors(self) -> tuple[str, ...]:
        """The doors that it uses with these options: `uses`, or fewer."""
        return self.uses

    def here(self, target: Mapping[str, Any]) -> str:
        """What of this machine decides the result for such a target, in words that are part of the key; empty where nothing does."""
        return ""

    def gives(self, before: Signature) -> Signature | None:
        """The signature that the result must have, or None where it may be any other."""
        return before

    def original(self, base: Path) -> Callable[[Feeds], Feeds]:
        """An import's model as the user gave it, run plainly: what its result is held against. Outputs stand in its result's order.

        Whatever this raises, or running it, stands in the parity record; it does not fail the import.
        """
        raise NotImplementedError

    def user_files(self, base: Path) -> list[Path]:
        """Files of the user that the pass reads or runs, besides data; they are part of the key."""
        return []

    def packages(self, base: Path) -> list[str]:
        """Distributions that the user's files import; their versions are part of the key, like those of `needs`."""
        return []


class Dataset(Options):
    """A source of samples. `source` is what stands behind the name in the recipe."""

    source: str = Field(description="file, folder or function")
    samples: int | None = Field(default=None, gt=0, description="take only the first so many samples")

    def user_files(self, base: Path) -> list[Path]:
        """Every file whose change must make edgeopt run again; relative names are below `base`."""
        raise NotImplementedError

    def packages(self, base: Path) -> list[str]:
        """Distributions whose version changes the data."""
        return []

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        """Yield samples in a fixed order; called anew for each walk."""
        raise NotImplementedError

    @property
    def synthetic(self) -> str:
        """Why figures on this data say nothing about accuracy, or an empty string."""
        return ""


class Score(Options):
    """Judges outputs. Stateless: `sample` values are kept and compared pairwise between variants.

    `higher_is_better` decides what a drop is; `unit` stands in the report. `needs_labels` and
    `needs_reference` say what `sample` is given. `binary`: each value is 0 or 1. All five are read
    from instances: a score may let the recipe decide them.
    """

    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    binary: ClassVar[bool] = False

    label: str | None = Field(default=None, description="its name in the report and in gates; default: the name of the score")

    def user_files(self, base: Path) -> list[Path]:
        """Files of the user that decide the value; they are part of the session's key."""
        return []

    def packages(self, base: Path) -> list[str]:
        """Distributions whose version changes the value."""
        return []

    def ready(self, base: Path) -> None:
        """Called once in the process that scores, before the first `sample` or `finish`: load the user's code here."""

    def sample(self, outputs: Feeds, label: Any, reference: Feeds | None) -> float | list[float]:
        """The value of one sample (outputs without the batch axis), or statistics for `finish`."""
        raise NotImplementedError

    def finish(self, samples: np.ndarray[Any, Any]) -> float:
        """The score over all samples: the mean of the values unless a score knows better.

        `samples` is float64 [samples] or [samples, statistics]. Not a number where these samples cannot
        tell it, whatever the outputs: all labels of one class, nothing to find.
        """
        return float(samples.mean())


Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Why a model would not build for a target, or would run wrongly: at which node, and what mends it.

    Layer A was read off the model, B was said by a parser, C by a build. `unfit`: the target's hardware lacks
    what the node needs; the model is sound and may run elsewhere.
    """

    layer: Literal["A", "B", "C"]
    level: Level
    node: str
    cause: str
    remedy: str
    unfit: bool = False


class Backend:
    """Compiles for one runtime and says how the runner opens the result.

    `formats` lists the formats it compiles, the liked one first; `extra` installs it. `executions`
    lists how the float rest may execute here. `Options` are the target's `options`.

    A `target` below is a target's fields as plain values: with one backend, one target may be built
    where another cannot, and built where it cannot run.
    """

    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    extra: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    target_fields: ClassVar[tuple[str, ...]] = ()
    executions: ClassVar[tuple[str, ...]] = ("f32",)
    Options: ClassVar[type[Options]] = Options

    def probe(self) -> str:
        """An empty string when this machine can compile and run, else why not and what to do."""
        raise NotImplementedError

    def can_build(self, target: Mapping[str, Any]) -> str:
        """An empty string when this machine can compile for the target, else why not and what to do."""
        return self.probe()

    def can_measure(self, target: Mapping[str, Any]) -> str:
        """An empty string when what is compiled for the target runs on this machine, else why not."""
        return self.probe()

    def on_gpu(self, target: Mapping[str, Any]) -> bool:
        """Whether what is compiled for the target executes on a GPU: its timings are that GPU's, and no CPU's peaks limit its layers."""
        return False

    def here(self, target: Mapping[str, Any]) -> str:
        """What of this machine decides what is compiled for such a target, in words that are part of the key; empty where nothing does.

        Of the target it sees `target_fields` and the options.
        """
        return ""

    def check(self, path: Path, target: Mapping[str, Any]) -> list[Finding]:
        """What keeps a model file from compiling for the target or from running right there, without compiling it.

        `edgeopt inspect --target` refuses a backend that leaves this as it is: nothing found would be no verdict.
        """
        return []

    def contradiction(self, target: Mapping[str, Any]) -> str:
        """Why fields of a target do not go together here, as `cause → what to do`, or an empty string. A target with one is not read."""
        return ""

    def compile(self, model: Artifact, ctx: Context) -> Path:
        """Write the deployable files below `ctx.folder` and return the main one."""
        raise NotImplementedError

    def refuses(self, execution: Mapping[str, str]) -> str:
        """Why this backend cannot honour the execution asked for, or an empty string."""
        asked = execution.get("float", "f32")
        if asked in self.executions:
            return ""
        return f"this runtime executes {' or '.join(self.executions)} here, not {asked}"
