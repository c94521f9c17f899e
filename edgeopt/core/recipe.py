"""A recipe: what the user wants. Strict at every depth; every problem is told with its place."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from edgeopt.core import digest, registry, target
from edgeopt.core.checks import NAME_PATTERN, in_order, problems_of, shown
from edgeopt.core.comparison import Baseline
from edgeopt.core.errors import EdgeoptError, Place, RecipeErrors, UsageError, did_you_mean
from edgeopt.core.gate import Gate
from edgeopt.core.model import Model
from edgeopt.core.places import Document, read_yaml
from edgeopt.core.protocols import SPLITS, Options
from edgeopt.core.target import Need, Target

_Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class PlugUse(Options):
    """A plug by name with its options: `simplify`, `{quantize-int8: {calibration: entropy}}`, `{python: f.py:fn}`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _plug(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        [(name, options)] = value.items()
        if options is None:
            options = {}
        return {"name": name, "options": options if isinstance(options, dict) else {"source": options}}
    if isinstance(value, dict) and value:
        raise ValueError(f"{', '.join(value)} stand in one entry → begin an entry of its own for each, with '- ' or a comma")
    raise ValueError(f"{shown(value)} is no name → write a name, or {{name: {{option: value}}}}")


def _data(value: Any) -> Any:
    kinds = registry.names("datasets")
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{shown(value)} is no data source → write {{KIND: SOURCE}} with one of the kinds {', '.join(kinds)}")
    named = [key for key in value if key in kinds] or [next(iter(value))]
    rest = {key: item for key, item in value.items() if key != named[0]}
    if "source" in rest:
        raise ValueError(f"'source' stands beside {named[0]}, which is the source → remove it")
    return {"name": named[0], "options": {"source": value[named[0]], **rest}}


Plug = Annotated[PlugUse, BeforeValidator(_plug)]
DataUse = Annotated[PlugUse, BeforeValidator(_data)]


class Data(Options):
    """The four splits; only `evaluate` is needed by every recipe."""

    train: DataUse | None = Field(default=None, description="fine-tuning")
    tune: DataUse | None = Field(default=None, description="what searches and early stopping may look at")
    calibrate: DataUse | None = Field(default=None, description="ranges for quantization")
    evaluate: DataUse = Field(description="scored once, at the end; shares no sample with the others")

    def splits(self) -> dict[str, PlugUse]:
        return {name: use for name in SPLITS if (use := getattr(self, name)) is not None}


def _baseline(value: Any) -> Any:
    return {"report": value} if isinstance(value, str) else value


class Measuring(Options):
    """How long and how exactly to measure."""

    precision_percent: float = Field(default=1.0, gt=0, le=50, description="half-width of the p50 interval to reach")
    budget_s: float = Field(default=20.0, gt=0, description="longest time per target, scoring apart")


class TargetUse(Options):
    """A target in a recipe, and what it must reach."""

    target: Target
    need: Need = "measured"


class Recipe(Options):
    """A model, its data and scores, the variants to try, the targets and the gates."""

    edgeopt: Literal[1] = Field(description="version of this file format")
    name: _Name
    model: Model
    data: Data
    scores: list[Plug] = Field(default_factory=list)
    reference: str | None = Field(default=None, description="the variant others are compared with")
    variants: dict[_Name, list[Plug] | None] = Field(min_length=1)
    targets: list[Any] = Field(
        min_length=1, description="names, files, {name: {need: built}} or {extends: name, …}, batch: [1, 8] for a sweep"
    )
    gates: list[Gate] = Field(default_factory=list)
    pick: Literal["latency", "throughput", "size"] = "latency"
    measure: Measuring = Field(default_factory=Measuring)
    baseline: Annotated[Baseline | None, BeforeValidator(_baseline)] = Field(
        default=None, description="a committed report.json, which the run must not be worse than"
    )
    seed: int = 0

    _base: Path = PrivateAttr(default=Path())
    _file: str = PrivateAttr(default="recipe.yaml")
    _document: Document | None = PrivateAttr(default=None)
    _targets: tuple[TargetUse, ...] = PrivateAttr(default=())

    @property
    def base(self) -> Path:
        """The recipe's folder, absolute."""
        return self._base

    @property
    def file(self) -> str:
        return self._file

    @property
    def digest(self) -> str:
        return digest.of_value(self.model_dump(mode="json"))

    @property
    def uses(self) -> tuple[TargetUse, ...]:
        """The targets, resolved."""
        return self._targets

    @property
    def reference_name(self) -> str:
        """The reference variant; `reference` is added when every variant has passes."""
        plain = [name for name, passes in self.variants.items() if not passes]
        return self.reference or (plain[0] if plain else "reference")

    @property
    def all_variants(self) -> dict[str, list[PlugUse]]:
        """Every variant in order, the reference first."""
        reference = self.reference_name
        ordered = {reference: self.variants.get(reference) or []}
        return ordered | {name: passes or [] for name, passes in self.variants.items()}

    def score_label(self, use: PlugUse) -> str:
        return str(use.options.get("label") or use.name)

    def place(self, *path: str | int) -> Place | None:
        return self._document.place(path) if self._document else None


def load(path: Path | str) -> Recipe:
    """Read and check a recipe file. Raises RecipeErrors with everything that is wrong in it."""
    path = Path(path)
    return check(read_yaml(path, missing="check the path; `edgeopt init MODEL` writes a recipe"), path.resolve().parent)


def check(document: Document, base: Path) -> Recipe:
    """Check a recipe's document; relative paths are below `base`."""
    problems: list[EdgeoptError] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        problems += problems_of(error, document, Recipe)
    # What names plugs and targets is looked at even then: a user wants to hear of everything at once.
    for path, room, use in _plugs(document.value):
        _options(document, path, room, use, problems)
    uses = _targets(document, base.absolute(), problems)
    if recipe is None:
        raise RecipeErrors(in_order(problems))
    recipe._base, recipe._file, recipe._document, recipe._targets = base.absolute(), document.file, document, tuple(uses)
    problems += _references(recipe, document)
    if problems:
        raise RecipeErrors(in_order(problems))
    return recipe


def _plugs(value: Any) -> Iterator[tuple[tuple[str | int, ...], str, PlugUse]]:
    """Every plug that a recipe names as far as it can be read: its place, room and use."""
    value = value if isinstance(value, dict) else {}
    variants = value.get("variants") if isinstance(value.get("variants"), dict) else {}
    lists: dict[tuple[str | int, ...], tuple[str, Any]] = {("scores",): ("scores", value.get("scores"))}
    lists |= {("variants", name): ("passes", passes) for name, passes in variants.items()}
    found: list[tuple[tuple[str | int, ...], str, Any, Any]] = [
        ((*path, index), room, _plug, item)
        for path, (room, items) in lists.items()
        if isinstance(items, list)
        for index, item in enumerate(items)
    ]
    data = value.get("data")
    found += [(("data", split), "datasets", _data, data[split]) for split in SPLITS if isinstance(data, dict) and split in data]
    for path, room, read, item in found:
        with contextlib.suppress(ValueError, ValidationError):  # told by the recipe's own check
            yield path, room, PlugUse(**read(item))


def _options(document: Document, path: tuple[str | int, ...], room: str, use: PlugUse, problems: list[EdgeoptError]) -> None:
    """Check a plug's name and options."""
    inner = () if room == "datasets" else (use.name,)
    try:
        cls = registry.load(room, use.name)
        given = document.below((*path, *inner), None)
        if room != "datasets" and "source" in use.options and "source" not in cls.model_fields and ("source",) not in given.marks:
            names = ", ".join(cls.model_fields)
            raise UsageError(
                f"{shown(use.options['source'])} is no mapping of options",
                remedy=f"write {{{use.name}: {{option: value}}}}; its options: {names}"
                if names
                else f"it has no options: write {use.name}",
            )
        cls.model_validate(use.options)
    except ValidationError as error:
        problems += problems_of(error, document, cls, (*path, *inner), use.name if room == "datasets" else "source")
    except EdgeoptError as error:
        error.place = error.place or document.place((*path, use.name))
        problems.append(error)


def _targets(document: Document, base: Path, problems: list[EdgeoptError]) -> list[TargetUse]:
    """The targets of a recipe's document, resolved; those that are wrong become problems."""
    found: list[TargetUse] = []
    values = document.value.get("targets") if isinstance(document.value, dict) else None
    for index, value in enumerate(values if isinstance(values, list) else []):
        inner = document.below(("targets", index), value)
        try:
            for swept in _swept(inner):
                use = _target(inner.below((), swept), base)
                if any(one.target.name == use.target.name for one in found):
                    raise UsageError(
                        f"the target '{use.target.name}' stands here twice", remedy="remove one, or give it a name: {extends: …, name: …}"
                    )
                found.append(use)
        except RecipeErrors as error:
            problems += error.problems
        except EdgeoptError as error:
            error.place = error.place or inner.place()
            problems.append(error)
    return found


def _swept(document: Document) -> list[Any]:
    """A target with a list of batches is one target for each, named by it; any other stands for itself."""
    value = document.value
    if not (isinstance(value, dict) and isinstance(value.get("batch"), list)):
        return [value]
    if not value["batch"] or "extends" not in value:
        raise UsageError("batch: a sweep needs a target and batches", remedy="{extends: x86-openvino, batch: [1, 4, 16]}")
    named = isinstance(value.get("name"), str)
    return [{**value, "batch": batch} | ({"name": f"{value['name']}-batch{batch}"} if named else {}) for batch in value["batch"]]


def _target(document: Document, base: Path) -> TargetUse:
    """One entry of `targets`: a name, a file, {NAME: {need: built}} or {extends: NAME, field: value}."""
    value, need = document.value, None
    if isinstance(value, str):
        resolved = target.load(value, base, document.place())
    elif isinstance(value, dict) and "extends" in value:
        need = _need(value, document, ("need",))
        resolved = target.extend(document.below((), {key: item for key, item in value.items() if key != "need"}), base)
    elif isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        [(name, fields)] = value.items()
        for wrong in (key for key in fields if key != "need"):
            remedy = "known here: need; to change a field write {extends: NAME, field: value}"
            raise UsageError(f"unknown key '{wrong}'", place=document.place((name, wrong)), remedy=remedy)
        need = _need(fields, document, (name, "need"))
        resolved = target.load(name, base, document.place((name,)))
    else:
        written = document.written.get((), "")
        remedy = "write a name, a file, {NAME: {need: built}} or {extends: NAME, threads: 1}"
        quoted = f'the name needs quotes: "{written}"' if written else remedy
        raise UsageError(f"{shown(value, written or None)} is no target", remedy=quoted)
    return TargetUse(target=resolved, need=need or ("bundled" if resolved.compile_on == "device" else "measured"))


def _need(fields: dict[str, Any], document: Document, path: tuple[str, ...]) -> Need | None:
    known = get_args(Need)
    if "need" in fields and fields["need"] not in known:
        given = shown(fields["need"], document.written.get(path))
        raise UsageError(f"need should be {' or '.join(known)}, not {given}", place=document.place(path), remedy=did_you_mean(given, known))
    return fields.get("need")


def _references(recipe: Recipe, document: Document) -> list[EdgeoptError]:
    """Names that point inside the recipe: gates to scores, variants and targets, the reference."""
    problems: list[EdgeoptError] = []
    labels = [recipe.score_label(use) for use in recipe.scores]
    known = {"variants": list(recipe.all_variants), "targets": [use.target.name for use in recipe.uses]}
    if len(recipe.uses) < len(recipe.targets):
        del known["targets"]  # one of them is wrong: what points at it is not

    def wrong(word: str, kind: str, names: list[str], *path: str | int) -> None:
        problems.append(
            UsageError(f"no {kind} is named '{word}' in this recipe", place=document.place(path), remedy=did_you_mean(word, names))
        )

    for index, label in enumerate(labels):
        if label in labels[:index]:
            remedy = "remove one, or give it a label: {name: {label: …}}"
            problems.append(UsageError(f"two scores are named '{label}'", place=document.place(("scores", index)), remedy=remedy))
    if recipe.reference and recipe.reference not in recipe.variants:
        wrong(recipe.reference, "variant", list(recipe.variants), "reference")
    misspelt = [label for label in labels if label not in registry.names("scores")]
    for index, gate in enumerate(recipe.gates):
        if gate.score is not None and gate.score not in labels and not difflib.get_close_matches(gate.score, misspelt, n=1):
            wrong(gate.score, "score", labels, "gates", index, "score")
        for field, names in known.items():
            for position, word in enumerate(getattr(gate, field) or []):
                if word not in names:
                    wrong(word, field[:-1], names, "gates", index, field, position)
    return problems
