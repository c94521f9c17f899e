"""Turns pydantic's complaints into errors with place, cause and remedy, in plain words."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeopt.core.errors import EdgeoptError, UsageError, did_you_mean
from edgeopt.core.places import Document

_Path = tuple[str | int, ...]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAPPING = "a mapping (key: value)"
NOTHING = "nothing"
VERSIONS = ("edgeopt", "edgeopt_target")
# What pydantic calls a wrong type → what it should have been. Literals bring their own list.
_TYPES = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type", "dataclass_type"), MAPPING),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "none_required": NOTHING,
}
# The type was right, the value was not.
_LIMITS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "finite",
}


def problems_of(
    error: ValidationError, document: Document, model: type[BaseModel], prefix: _Path = (), source: str = "source"
) -> list[EdgeoptError]:
    """One error per problem, in file order; `prefix` is where the model's value stands in the document.

    `source` is the key under which the file has the model's field `source`.
    """
    groups: dict[_Path, list[Any]] = {}
    for detail in error.errors(include_url=False):
        whole = (*prefix, *(source if part == "source" and at == 0 else part for at, part in enumerate(detail["loc"])))
        path = _in_document(whole, document)
        if detail["type"] == "missing":
            path = (*_in_document(whole[:-1], document), f"{whole[-1]} is missing")
        groups.setdefault(path, []).append(detail)
    meant = {_meant(path, details[0], model) for path, details in groups.items() if details[0]["type"] == "extra_forbidden"}
    problems: list[EdgeoptError] = []
    for path, details in groups.items():
        if details[0]["type"] == "missing" and (path[:-1], str(details[0]["loc"][-1])) in meant:
            continue  # it stands there, misspelt, and is told as that
        problems.append(_Complaint(details, document, model, path).problem())
    return in_order(problems)


def in_order(problems: Sequence[EdgeoptError]) -> list[EdgeoptError]:
    """Problems as they stand in the file, each once."""
    unique = {str(problem): problem for problem in problems}
    return sorted(unique.values(), key=lambda one: (one.place.line or 0, one.place.column or 0) if one.place else (0, 0))


def _in_document(path: Sequence[str | int], document: Document) -> _Path:
    """The part of pydantic's location that exists in the file (union branches do not)."""
    value, found = document.value, []
    for part in path:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside:
            value = value[part]
            found.append(part)
    return tuple(found)


def _meant(path: _Path, detail: Any, model: type[BaseModel]) -> tuple[_Path, str]:
    """Which key an unknown one was probably meant to be, with the path of its parent."""
    known = _names(owner_of(model, detail["loc"][:-1]))
    return path[:-1], next(iter(difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)), "")


class _Complaint:
    """All that pydantic says of one place: the branches of a union complain one by one."""

    def __init__(self, details: list[Any], document: Document, model: type[BaseModel], path: _Path) -> None:
        self.details, self.document, self.model, self.path = details, document, model, path
        self.place = document.place(path)

    def problem(self) -> UsageError:
        first = self.details[0]
        last = str(first["loc"][-1]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = _names(owner_of(self.model, first["loc"][:-1]))
            return self._error(f"unknown key '{last}'", did_you_mean(last, known) if known else "nothing can be set here: remove it")
        if first["type"] == "missing":
            wanted, about = _about(owner_of(self.model, first["loc"][:-1]), last)
            return self._error(f"'{last}' is missing in {name_of(self.path[:-1])}", f"add `{last}: {wanted}`{about}")
        if first["type"] == "literal_error" and last in VERSIONS and not isinstance(self._look_up(), str):
            cause = f"the file is written in format {self._given()}, this edgeopt reads {first['ctx']['expected']}"
            return self._error(cause, f"write `{last}: {first['ctx']['expected']}`, or install an edgeopt that reads it")
        return self._value()

    def _value(self) -> UsageError:
        name, value = name_of(self.path), self._look_up()
        own = [str(detail["ctx"]["error"]) for detail in self.details if detail["type"] in ("value_error", "assertion_error")]
        if own:
            cause, _, remedy = own[0].partition(" → ")
            return self._error(f"{name}: {cause}", remedy or "see `edgeopt schema`, or the README")
        for detail in self.details:
            limit = _limit(detail)
            if limit:
                told = "" if value in ([], {}) or detail["loc"][-1] == "[key]" else f", not {self._told()}"
                return self._error(f"{name} should {limit}{told}", _repair(detail))
        wanted = list(dict.fromkeys(_wanted(detail) for detail in self.details))
        if None in wanted:
            text = str(self.details[wanted.index(None)]["msg"])
            return self._error(f"{name}: {text[:1].lower() + text[1:]}", "see `edgeopt schema`, or the README")
        should = f"should be {' or '.join(map(str, wanted))}"
        if self._told() == NOTHING:
            return self._error(f"{name} has no value, and {should}", self._for_nothing(wanted))
        return self._error(f"{name} {should}, not {self._told()}", self._remedy(value, wanted))

    def _remedy(self, value: Any, wanted: list[str | None]) -> str:
        if value is None:
            return f'remove it, or write "{self._given()}" with quotes if you mean the word'
        scalar = not isinstance(value, (dict, list))
        allowed = [text for detail in self.details if detail["type"] == "literal_error" for text in _listed(detail["ctx"]["expected"])]
        if allowed and scalar:
            close = difflib.get_close_matches(self._given(), allowed, n=1)
            if self._given() in allowed:
                return "write it without quotes"
            return (
                f"did you mean '{close[0]}'?"
                if close
                else "choose one of these"
                if len(allowed) > 1
                else f"write {' or '.join(map(str, wanted))}"
            )
        if "text" in wanted and scalar and "a whole number" not in wanted:
            return f'put quotes around it: "{self._given()}"'
        if "a list" in wanted:
            return f"write [{self._given()}]" if scalar else "begin each entry with '- '"
        if MAPPING in wanted:
            known = _names(owner_of(self.model, self.details[0]["loc"])) if self.details[0]["type"] != "dict_type" else []
            if len(known) == 1 and scalar:
                return f"write {{{known[0]}: {self._given()}}}"
            return f"its keys: {', '.join(known)}" if known else "write {name: value}"
        return "write it plainly, without quotes or a unit" if scalar else "write one value"

    def _for_nothing(self, wanted: list[str | None]) -> str:
        return "give it a value, or remove the key" + (": [] is an empty list" if "a list" in wanted else "")

    def _look_up(self) -> Any:
        value = self.document.value
        for part in self.path:
            value = value[part]
        return value

    def _given(self) -> str:
        return shown(self._look_up(), self.document.written.get(self.path))

    def _told(self) -> str:
        """The value for the error's first line: text in quotes."""
        return f"'{self._given()}'" if isinstance(self._look_up(), str) else self._given()

    def _error(self, cause: str, remedy: str) -> UsageError:
        return UsageError(cause, place=self.place, remedy=remedy)


def shown(value: Any, written: str | None = None) -> str:
    """A value of a file in a few words, as it was written."""
    if isinstance(value, (dict, list)) and value:
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if value is None and written in (None, "", "~"):
        return NOTHING
    text = written if written is not None else value if isinstance(value, str) and value else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def name_of(path: Sequence[str | int]) -> str:
    """`gates[0].speedup`, or words for the whole file."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the file"


def _wanted(detail: Any) -> str | None:
    if detail["type"] in ("literal_error", "enum"):
        return str(detail["ctx"]["expected"]).replace("'", "")
    return _TYPES.get(detail["type"])


def _limit(detail: Any) -> str:
    """What the value should do although its type is right; empty when the type is wrong."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind in _LIMITS:
        return "be " + _LIMITS[kind].format(**{name: _plain(value) for name, value in context.items()})
    if kind in ("too_short", "too_long"):
        most, least = context.get("max_length"), context.get("min_length")
        count = least if kind == "too_short" else most
        return f"have at {'least' if kind == 'too_short' else 'most'} {count} {'entry' if count == 1 else 'entries'}"
    if kind == "string_pattern_mismatch":
        if context.get("pattern") == NAME_PATTERN:
            return "be a name of letters, digits, '.', '_' and '-' that begins with a letter or digit"
        return f"look like {context.get('pattern')}"
    return ""


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _repair(detail: Any) -> str:
    if detail["type"] == "string_pattern_mismatch":
        return "rename it"
    return "add one" if detail["type"] == "too_short" else "choose a value in that range"


def _listed(expected: str) -> list[str]:
    """The words of pydantic's "'a', 'b' or 'c'"."""
    return [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(", ")]


def _names(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _about(model: type[BaseModel] | None, name: str) -> tuple[str, str]:
    """What to write for a missing field, and what it is, in brackets."""
    field = next((field for own, field in (model.model_fields if model else {}).items() if (field.alias or own) == name), None)
    choices = typing.get_args(field.annotation) if field and typing.get_origin(field.annotation) is typing.Literal else ()
    return str(choices[0]) if len(choices) == 1 else "…", f" ({field.description})" if field and field.description else ""


def owner_of(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model class whose fields stand at `path` below `model`."""
    current: type[BaseModel] | None = model
    candidates: list[type[BaseModel]] = []
    for part in path:
        if current is not None and part in _names(current):
            field = next(f for n, f in current.model_fields.items() if (f.alias or n) == part)
            candidates = list(_models(field.annotation))
            current = candidates[0] if candidates else None
        else:
            named = [one for one in candidates if one.__name__ == part]
            current = named[0] if named else current
    return current


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _models(inner)
