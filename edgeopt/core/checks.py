"""Turns pydantic's complaints into errors with place, cause and remedy."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeopt.core.errors import EdgeoptError, UsageError, did_you_mean
from edgeopt.core.places import Document


def problems_of(error: ValidationError, document: Document, model: type[BaseModel], prefix: Sequence[str | int] = ()) -> list[EdgeoptError]:
    """One error per problem, in file order; `prefix` is where the model's value stands in the document."""
    problems: dict[tuple[Any, ...], EdgeoptError] = {}
    for detail in error.errors(include_url=False):
        path = _in_document((*prefix, *detail["loc"]), document)
        problem = _problem(detail, document, model, path, prefix)
        problems.setdefault((*path, problem.cause), problem)
    return sorted(problems.values(), key=lambda one: (one.place.line or 0, one.place.column or 0) if one.place else (0, 0))


def _in_document(path: Sequence[str | int], document: Document) -> tuple[str | int, ...]:
    """The part of pydantic's location that exists in the file (union branches do not)."""
    value, found = document.value, []
    for part in path:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        else:
            continue
        found.append(part)
    return tuple(found)


def _problem(
    detail: Any, document: Document, model: type[BaseModel], path: tuple[str | int, ...], prefix: Sequence[str | int]
) -> EdgeoptError:
    name = ".".join(map(str, path)) or "the file"
    last = str(detail["loc"][-1]) if detail["loc"] else ""
    place = document.place(path)
    kind, context = detail["type"], detail.get("ctx") or {}
    inner = context.get("error")
    if isinstance(inner, EdgeoptError):
        return type(inner)(inner.cause, place=place, remedy=inner.remedy)
    if kind == "extra_forbidden":
        owner = owner_of(model, detail["loc"][:-1])
        known = _names(owner)
        return UsageError(f"unknown key '{last}'", place=place, remedy=did_you_mean(last, known))
    if kind == "missing":
        return UsageError(f"'{last}' is missing in {name}", place=place, remedy=f"add '{last}: …'")
    cause = str(context["error"]) if kind == "value_error" and "error" in context else str(detail["msg"])
    shown = repr(detail.get("input"))
    given = f", not {shown}" if len(shown) < 60 and kind != "value_error" else ""
    return UsageError(f"{name}: {cause[0].lower() + cause[1:]}{given}", place=place, remedy="see `edgeopt schema`, or the README")


def _names(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def owner_of(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model class whose fields stand at `path` below `model`."""
    current: type[BaseModel] | None = model
    candidates: list[Any] = []
    for part in path:
        if current is not None and part in _names(current):
            field = next(f for n, f in current.model_fields.items() if (f.alias or n) == part)
            candidates = list(_models(field.annotation))
            current = candidates[0] if candidates else None
        else:
            named = [one for one in candidates if one.__name__ == part]
            current = named[0] if named else current
    return current


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in typing.get_args(annotation):
        found += _models(inner)
    return found
