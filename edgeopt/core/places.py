"""YAML with places: the value of a file, and where each key and item of it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgeopt.core.errors import EdgeoptError, Place, RecipeErrors, UntrustedError, UsageError

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 60
MAX_DIGITS = 30
_OCTAL = re.compile(r"[-+]?0[0-9_]+$")

_Path = tuple[str | int, ...]
_PREFIX = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")
# What PyYAML says of a syntax error, and what usually was meant.
_REMEDIES = {
    "'\\t'": "indent with spaces: YAML allows no tabs there",
    "mapping values are not allowed": "check the indentation; a value that holds ': ' needs quotes",
    "another document": "keep one document: remove what follows '---'",
    "undefined alias": "a value that begins with * needs quotes",
    "expected ',' or": "close it, or check the commas and quotes inside",
    "found unexpected end of stream": "close the quotes",
    "cannot start any token": "a value that begins with this character needs quotes",
}


@dataclass(frozen=True)
class Document:
    """One YAML file as a plain value; `place(path)` says where a key or item stands.

    `written` holds how a value was written where that is not how it is read: `no` for False.
    """

    file: str
    value: Any
    marks: dict[_Path, tuple[int, int]]
    written: dict[_Path, str] = field(default_factory=dict)

    def place(self, path: Sequence[str | int] = ()) -> Place:
        """The place of `path`, or of its nearest parent that stands in the file."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(tuple(path[:length]))
            if mark:
                return Place(self.file, *mark)
        return Place(self.file, 1, 1)

    def below(self, path: _Path, value: Any) -> Document:
        """The part of the document at `path` as a document of its own, with the value that stands for it."""
        size = len(path)
        marks = {inner[size:]: mark for inner, mark in self.marks.items() if inner[:size] == path}
        return Document(self.file, value, marks, {inner[size:]: text for inner, text in self.written.items() if inner[:size] == path})


def read_yaml(path: Path, shown: str | None = None, missing: str = "check the path") -> Document:
    """Read one YAML file: no tags, no duplicate keys, bounded size, depth and aliases.

    `shown` names the file in errors, `missing` is the remedy when there is none.
    """
    name = shown or str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UntrustedError(
                f"the file has {size:,} bytes, more than {MAX_BYTES:,}",
                place=Place(name),
                remedy="a recipe or target is a short text: keep data in files of its own",
            )
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"no such file: {name}", remedy=missing) from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a folder, not a YAML file", remedy="name the .yaml file inside it") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or "refused"
        raise UsageError(f"{name} cannot be read: {reason.lower()}", remedy="check its name and permissions") from None
    try:
        return parse_yaml(raw.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError("not UTF-8 text", place=Place(name, line), remedy="save it as UTF-8") from None


def parse_yaml(text: str, name: str) -> Document:
    """As `read_yaml`, from text; `name` stands in the errors."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        place = Place(name, text.count("\n", 0, error.position) + 1)
        raise UsageError(f"the character U+{ord(text[error.position]):04X} is not allowed", place=place, remedy="remove it") from None
    try:
        root = loader.get_single_node()
        if root is None or root.tag == _PREFIX + "null":
            raise UsageError("the file is empty", place=Place(name, 1, 1), remedy="`edgeopt init MODEL` writes a recipe")
        reader = _Reader(loader, name)
        value = reader.read(root, ())
        if reader.problems:
            raise RecipeErrors(reader.problems)
        return Document(name, value, reader.marks, reader.written)
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, name) from None
    except RecursionError:
        raise UntrustedError("nested too deeply", place=Place(name), remedy="flatten it") from None
    finally:
        loader.dispose()


def _syntax(error: yaml.MarkedYAMLError, name: str) -> UsageError:
    """What PyYAML complains about, with the place that a person would look at."""
    problem = str(error.problem or error.context)
    mark = error.problem_mark
    if problem.startswith(("expected ',' or", "found unexpected end of stream")) and error.context_mark:
        mark, problem = error.context_mark, f"what begins here is not closed, or holds something odd ({problem})"
    place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in str(error.problem)), "mend the syntax here")
    return UsageError(f"not valid YAML: {problem}", place=place, remedy=remedy)


class _Reader:
    """Turns YAML nodes into plain values, remembering marks and counting expanded nodes."""

    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self.loader, self.name, self.count = loader, name, 0
        self.marks: dict[_Path, tuple[int, int]] = {}
        self.written: dict[_Path, str] = {}
        self.problems: list[EdgeoptError] = []

    def read(self, node: yaml.Node, path: _Path) -> Any:
        here = Place(self.name, node.start_mark.line + 1, node.start_mark.column + 1)
        self.count += 1
        if self.count > MAX_NODES:
            raise UntrustedError(f"expands to more than {MAX_NODES:,} values", place=here, remedy="remove the aliases that multiply it")
        if len(path) > MAX_DEPTH:
            raise UntrustedError(f"nested more than {MAX_DEPTH} levels deep", place=here, remedy="flatten it, and let no alias hold itself")
        self.marks.setdefault(path, (here.line or 1, here.column or 1))
        if node.tag.removeprefix(_PREFIX) not in _PLAIN:
            tag = node.tag.replace(_PREFIX, "!!")
            raise UntrustedError(f"the YAML tag {tag} is not allowed", place=here, remedy="write plain values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path, here)

    def _scalar(self, node: yaml.Node, path: _Path, here: Place) -> Any:
        kind, text = node.tag.removeprefix(_PREFIX), str(node.value)
        # Dates, 1:30 (a sexagesimal number) and 010 (an octal one) are surprises of YAML 1.1: they stay text.
        surprising = kind == "int" and (
            ":" in text or (len(text.lstrip("+-")) > 1 and text.lstrip("+-").startswith("0") and text[-1].isdigit())
        )
        if kind in ("str", "timestamp") or surprising or (kind == "float" and ":" in text):
            return text
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            self.problems.append(UsageError("a number of so many digits", place=here, remedy="quote it if it is text"))
            return 0
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError):
            self.problems.append(UsageError(f"'{text}' is no {kind}", place=here, remedy="remove the tag, or quote the value"))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append(UsageError(f"'{text}' is not a finite number", place=here, remedy="write a number, or leave the key out"))
            return 0.0
        self.written[path] = text
        return value

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            place = Place(self.name, *mark)
            if key_node.tag.removeprefix(_PREFIX) not in (*_PLAIN, "merge", "value"):
                raise UntrustedError(
                    f"the YAML tag {key_node.tag.replace(_PREFIX, '!!')} is not allowed", place=place, remedy="write plain keys"
                )
            if key is None:
                self.problems.append(UsageError("a key must be a plain word", place=place, remedy="quote or rename it"))
                continue
            if key == "<<":
                self.problems.append(UsageError("merge keys (<<) are not supported", place=place, remedy="write the keys out"))
                continue
            if key in result:
                self.problems.append(UsageError(f"'{key}' is given twice", place=place, remedy="keep one of the two"))
                continue
            self.marks[(*path, key)] = mark
            result[key] = self.read(value_node, (*path, key))
        return result
