"""plan: recipe → Plan. Milliseconds; no framework is imported, nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.core import digest, machine, registry
from edgeopt.core.errors import EdgeoptError, MissingError, Place, RecipeErrors, UsageError
from edgeopt.core.plan import DataRef, Plan, PlanRow, PlanTarget, Step
from edgeopt.core.protocols import Backend, Dataset, Pass, Score
from edgeopt.core.recipe import PlugUse, Recipe
from edgeopt.core.store import Store
from edgeopt.core.target import Target

# How a model gets from one format to another: the pass that does it.
CONVERSIONS = {("torch", "onnx"): "export-onnx", ("onnx", "openvino"): "convert-openvino"}


def plan(recipe: Recipe, store: Store | None = None) -> Plan:
    """The steps of every variant on every target, with keys. Raises RecipeErrors."""
    store = store or Store()
    planner = _Planner(recipe)
    result = planner.plan()
    store.remember_digests()
    return result


class _Planner:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.steps: dict[str, Step] = {}
        self.passes: dict[str, dict[str, Any]] = {}
        self.problems: list[EdgeoptError] = []
        self.data = {name: self._data(name, use) for name, use in recipe.data.splits().items()}
        self.reference_key: dict[str, str] = {}
        self.scores = [self._score(index, use) for index, use in enumerate(recipe.scores)]
        self.scores_digest = digest.of_value(self.scores)

    def plan(self) -> Plan:
        rows = []
        for use in self.recipe.uses:
            for variant, passes in self.recipe.all_variants.items():
                row = self._row(variant, passes, use.target)
                if row:
                    rows.append(row)
        if self.recipe.baseline and not (self.recipe.base / self.recipe.baseline.report).is_file():
            missing = f"no such file: {self.recipe.base / self.recipe.baseline.report}"
            remedy = "leave `baseline` out once, and commit the report.json of that run"
            self.problems.append(UsageError(missing, place=self.recipe.place("baseline"), remedy=remedy))
        if self.problems:
            unique = {str(problem): problem for problem in self.problems}
            raise RecipeErrors(list(unique.values()))
        return Plan(
            edgeopt=__version__,
            name=self.recipe.name,
            recipe_digest=self.recipe.digest,
            recipe_file=self.recipe.file,
            base=str(self.recipe.base),
            reference=self.recipe.reference_name,
            reference_added=self.recipe.reference_name not in self.recipe.variants,
            steps=self.steps,
            rows=rows,
            targets=[PlanTarget(target=use.target, need=use.need, threads=use.target.thread_count) for use in self.recipe.uses],
            data=self.data,
            scores=self.recipe.scores,
            scores_digest=self.scores_digest,
            scores_files=digest.of_value([parts.get("files") for parts in self.scores]),
            gates=self.recipe.gates,
            pick=self.recipe.pick,
            measure=self.recipe.measure,
            baseline=self.recipe.baseline,
            seed=self.recipe.seed,
        )

    def _data(self, name: str, use: PlugUse) -> DataRef:
        try:
            return data_ref(use, self.recipe.base)
        except EdgeoptError as error:
            error.place = error.place or self.recipe.place("data", name, use.name)
            self.problems.append(error)
            return DataRef(use=use, digest="")

    def _score(self, index: int, use: PlugUse) -> dict[str, Any]:
        try:
            return score_parts(use, self.recipe.base)
        except EdgeoptError as error:
            error.place = error.place or self.recipe.place("scores", index, use.name)
            self.problems.append(error)
            return {}

    def _row(self, variant: str, passes: list[PlugUse], target: Target) -> PlanRow | None:
        backend: Backend = registry.load("backends", target.backend)()
        kind = self.recipe.model.kind
        model = getattr(self.recipe.model, kind).model_dump(mode="json")
        execution = {"float": "f32"}
        try:
            keys = [self._pass(f"import-{kind}", model, None, target, ("model", kind))]
            reference = keys[0]
            for index, use in enumerate(passes):
                where = ("variants", variant, index, use.name)
                cls: type[Pass] = registry.load("passes", use.name)
                if cls.accepts == ():
                    raise UsageError(
                        f"'{use.name}' is an import and stands under `model`", place=self.recipe.place(*where), remedy="remove it here"
                    )
                keys += self._convert(keys[-1], self._wanted(keys[-1], use.name, cls, backend, where, passes[index + 1 :]), target)
                keys.append(self._pass(use.name, use.options, keys[-1], target, where))
                reference = keys[-1]
                if cls.sets_execution:
                    execution["float"] = cls.sets_execution
            if variant == self.recipe.reference_name:
                self.reference_key[target.name] = reference
            wanted = next((name for name in backend.formats if _route(self.steps[keys[-1]].makes, name) is not None), None)
            if wanted is None:
                reason = (
                    f"the backend '{target.backend}' takes {' or '.join(backend.formats)}, the model is {self.steps[keys[-1]].makes} here"
                )
                return PlanRow(variant=variant, target=target.name, steps=keys, execution=execution, unavailable=reason)
            keys += self._convert(keys[-1], wanted, target)
        except RecipeErrors as error:
            self.problems += error.problems
            return None
        except EdgeoptError as error:
            self.problems.append(error)
            return None
        keys.append(self._compile(backend, keys[-1], target))
        return PlanRow(variant=variant, target=target.name, steps=keys, execution=execution, unavailable=backend.refuses(execution))

    def _wanted(self, before: str, name: str, cls: type[Pass], backend: Backend, where: tuple[str | int, ...], after: list[PlugUse]) -> str:
        """The format a pass gets: what the backend likes best among those that the pass accepts and that lead on to the later ones."""
        have = self.steps[before].makes
        liked = [one for one in backend.formats if one in cls.accepts] + list(cls.accepts)
        ways = [wanted for wanted in liked if _route(have, wanted) is not None]
        for wanted in ways:
            if all(any(_route(cls.produces or wanted, one) is not None for one in _accepted(use)) for use in after):
                return wanted
        if ways:  # a later pass fits none of them, which is said there
            return ways[0]
        raise UsageError(
            f"'{name}' works on {' or '.join(cls.accepts)} models, and after '{self.steps[before].plug}' the model is {have}",
            place=self.recipe.place(*where),
            remedy="put it earlier in the variant"
            if self.recipe.model.kind == cls.accepts[0]
            else f"give the model as `model: {{{cls.accepts[0]}: …}}`",
        )

    def _own(self, name: str, made: Pass, place: Place | None) -> dict[str, Any]:
        """The key parts of a pass that are the same in every row: looked up once."""
        options = made.model_dump(mode="json")
        known = digest.of_value([name, options])
        if known not in self.passes:
            self.passes[known] = {
                "pass": name,
                "options": options,
                "code": registry.source_digest(type(made)),
                "edgeopt": __version__,
                "needs": {package: registry.version(package) for package in (*made.needs, *made.packages(self.recipe.base))},
                "files": self._pass_files(made, place),
            }
        return self.passes[known]

    def _pass_files(self, made: Pass, place: Place | None) -> list[list[str]]:
        """Names and digests of the user's files; a plan can be made where a package that holds one is not installed."""
        try:
            paths = made.user_files(self.recipe.base)
        except MissingError as error:
            return [["absent", error.cause]]
        return _files(paths, self.recipe.base, place)

    def _convert(self, before: str, wanted: str, target: Target) -> list[str]:
        keys: list[str] = []
        for name in _route(self.steps[before].makes, wanted) or []:
            before = self._pass(name, {}, before, target, ("model",))
            keys.append(before)
        return keys

    def _pass(self, name: str, options: dict[str, Any], before: str | None, target: Target, where: tuple[str | int, ...]) -> str:
        cls: type[Pass] = registry.load("passes", name)
        made = cls.model_validate(options)
        place = self.recipe.place(*where)
        data = {}
        for split in made.splits():
            wanted = split.removesuffix("?")
            if wanted in self.data:
                data[wanted] = self.data[wanted].digest
            elif not split.endswith("?"):
                raise UsageError(
                    f"'{name}' needs data, and the recipe has no `data: {wanted}`",
                    place=place,
                    remedy=f"add the split '{wanted}' under `data`",
                )
        parts: dict[str, Any] = {
            **self._own(name, made, place),
            "data": data,
            "target": {field: getattr(target, field) for field in cls.target_fields},
            "seed": self.recipe.seed if made.splits() else 0,
            "before": before,
            "reference": self.reference_key.get(target.name) if "reference" in made.doors() else None,
        }
        if "score" in made.doors():
            parts["scores"] = self.scores_digest
        if {"measure", "machine"} & set(made.doors()):
            parts["machine"] = machine_of(target)["id"]
        elif found := made.here(parts["target"]):
            parts["machine"] = found
        makes = cls.produces or (self.steps[before].makes if before else "")
        return self._add("pass", name, parts["options"], before, parts, makes, target)

    def _compile(self, backend: Backend, before: str, target: Target) -> str:
        parts: dict[str, Any] = {
            "compile": target.backend,
            "options": backend.Options.model_validate(target.options).model_dump(mode="json"),
            "code": registry.source_digest(type(backend)),
            "edgeopt": __version__,
            "needs": {package: registry.version(package) for package in backend.needs},
            "target": {field: getattr(target, field) for field in backend.target_fields},
            "before": before,
        }
        if found := backend.here({**parts["target"], "options": parts["options"]}):
            parts["machine"] = found
        return self._add("compile", target.backend, parts["options"], before, parts, target.backend, target)

    def _add(
        self, kind: Any, plug: str, options: dict[str, Any], before: str | None, parts: dict[str, Any], makes: str, target: Target
    ) -> str:
        key = digest.of_value(parts)
        self.steps[key] = Step(
            key=key,
            kind=kind,
            plug=plug,
            options=options,
            before=before,
            reference=parts.get("reference"),
            data=parts.get("data", {}),
            target=parts["target"],
            target_name=target.name,
            makes=makes,
            parts=parts,
        )
        return key


def data_ref(use: PlugUse, base: Path) -> DataRef:
    """One split with the digest of all that decides its samples, as it is now."""
    source: Dataset = registry.load("datasets", use.name).model_validate(use.options)
    parts: dict[str, Any] = {
        "plug": use.name,
        "options": source.model_dump(mode="json"),
        "code": [registry.source_digest(type(source)), _core("samples.py")],
        "packages": {package: registry.version(package) for package in source.packages(base)},
        "files": _files(source.user_files(base), base),
    }
    return DataRef(use=use, digest=digest.of_value(parts), synthetic=source.synthetic)


def machine_of(target: Target) -> dict[str, Any]:
    """This machine, as far as timings of a target depend on it: with its GPUs where it executes on one."""
    return machine.with_gpus() if target.on_gpu else machine.fingerprint()


def score_parts(use: PlugUse, base: Path) -> dict[str, Any]:
    """All that decides what a score says, as it is now."""
    score: Score = registry.load("scores", use.name).model_validate(use.options)
    return {
        "plug": use.name,
        "options": score.model_dump(mode="json"),
        "code": [registry.source_digest(type(score)), _core("outputs.py")],
        "packages": {package: registry.version(package) for package in score.packages(base)},
        "files": _files(score.user_files(base), base),
    }


def _files(paths: list[Path], base: Path, place: Place | None = None) -> list[list[str]]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"no such file: {missing[0]}", place=place, remedy="paths are relative to the recipe's folder")
    return digest.of_files(paths, base)


def _core(name: str) -> str:
    """The digest of a file of `core/` whose code shapes the result of several plugs."""
    return digest.of_file(Path(digest.__file__).parent / name)


def _accepted(use: PlugUse) -> tuple[str, ...]:
    cls: type[Pass] = registry.load("passes", use.name)
    return cls.accepts


def _route(have: str, wanted: str) -> list[str] | None:
    """The conversions from one format to another, or None when there is no way."""
    if have == wanted:
        return []
    for (source, made), name in CONVERSIONS.items():
        if source == have:
            rest = _route(made, wanted)
            if rest is not None:
                return [name, *rest]
    return None
