"""YAML with places: the value of a file, and where each key and item of it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgeopt.core.errors import EdgeoptError, Place, RecipeErrors, UntrustedError, UsageError

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 60

_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """One YAML file as a plain value; `place(path)` says where a key or item stands."""

    file: str
    value: Any
    marks: dict[_Path, tuple[int, int]]

    def place(self, path: Sequence[str | int] = ()) -> Place:
        """The place of `path`, or of its nearest parent that stands in the file."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(tuple(path[:length]))
            if mark:
                return Place(self.file, *mark)
        return Place(self.file, 1, 1)


def read_yaml(path: Path, shown: str | None = None) -> Document:
    """Read one YAML file: no tags, no duplicate keys, bounded size, depth and aliases."""
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
        raise UsageError(f"no such file: {name}", remedy="check the path, or `edgeopt init MODEL` writes a recipe") from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a folder, not a YAML file", remedy="name the .yaml file inside it") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}", remedy="check its permissions") from None
    try:
        return parse_yaml(raw.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start})", place=Place(name), remedy="save it as UTF-8") from None


def parse_yaml(text: str, name: str) -> Document:
    """As `read_yaml`, from text; `name` stands in the errors."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise UsageError("the file is empty", place=Place(name, 1, 1), remedy="`edgeopt init MODEL` writes a recipe")
        marks: dict[_Path, tuple[int, int]] = {}
        problems: list[EdgeoptError] = []
        value = _Reader(loader, name, marks, problems).read(root, ())
        if problems:
            raise RecipeErrors(problems)
        return Document(name, value, marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
        raise UsageError(f"not valid YAML: {error.problem or error.context}", place=place, remedy="mend the syntax here") from None
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", place=Place(name), remedy="save it as plain UTF-8 YAML") from None
    except RecursionError:
        raise UntrustedError("nested too deeply", place=Place(name), remedy="flatten it") from None
    finally:
        loader.dispose()


class _Reader:
    """Turns YAML nodes into plain values, remembering marks and counting expanded nodes."""

    def __init__(self, loader: yaml.SafeLoader, name: str, marks: dict[_Path, tuple[int, int]], problems: list[EdgeoptError]) -> None:
        self.loader, self.name, self.marks, self.problems, self.count = loader, name, marks, problems, 0

    def read(self, node: yaml.Node, path: _Path) -> Any:
        here = Place(self.name, node.start_mark.line + 1, node.start_mark.column + 1)
        self.count += 1
        if self.count > MAX_NODES or len(path) > MAX_DEPTH:
            raise UntrustedError(
                f"expands to more than {MAX_NODES:,} values or {MAX_DEPTH} levels", place=here, remedy="remove the aliases that multiply it"
            )
        self.marks.setdefault(path, (here.line or 1, here.column or 1))
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            raise UntrustedError(f"the YAML tag {node.tag} is not allowed", place=here, remedy="write plain values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        # PyYAML ships no types for construct_object
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            place = Place(self.name, *mark)
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
