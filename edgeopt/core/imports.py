"""What a Python file imports, read off its source: project files, and installed packages. Nothing is run.

A *project module* lies beside the file, below the recipe's folder, or in a package that is installed
in place (`pip install -e`): its text may change under the same version, so its digest has to be known.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from edgeopt.core.errors import Place, UsageError

_INSTALLED = {"site-packages", "dist-packages"}
_LARGEST_RECORD = 300_000  # bytes that are looked at; a package with a longer list of files is named like its import


@dataclass(frozen=True)
class Imports:
    """The closure of one file's imports: the file first, then project modules by import name, then foreign top-level names."""

    file: Path
    modules: dict[str, Path]
    foreign: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys([self.file, *self.modules.values()]))


@dataclass(frozen=True)
class _Source:
    """One parsed file: (level, module, names) of each import, and the names it defines; None when only running it can tell."""

    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    defines: frozenset[str] | None


def closure(file: Path, base: Path, name: str = "") -> Imports:
    """Follow the imports of `file`, which is known as module `name` (empty: it stands alone).

    Names are looked up beside the file, then below `base`, then in packages installed in place.
    Raises UsageError with file:line when a file among them is not valid Python.
    """
    roots = tuple(dict.fromkeys((_root(file, name), base.resolve())))
    modules: dict[str, Path] = {}
    foreign: set[str] = set()
    waiting = [(name, file)]
    for parent, at in _find(name, roots).items() if name else ():
        if at != file:  # importing a.b runs a/__init__.py too
            modules[parent] = at
            waiting.append((parent, at))
    while waiting:
        name, path = waiting.pop()
        if path.suffix != ".py":
            continue
        for dotted in _wanted(name, path):
            found = _find(dotted, roots)
            if not found and dotted:
                foreign.add(dotted.partition(".")[0])
            for module, at in found.items():
                if module not in modules and at != file:
                    modules[module] = at
                    waiting.append((module, at))
    known = {module.partition(".")[0] for module in modules}
    return Imports(file, dict(sorted(modules.items())), tuple(sorted(foreign - known - sys.stdlib_module_names)))


def defined(file: Path) -> frozenset[str] | None:
    """The names at the top of a file, or None when only running it can tell."""
    return _source(file).defines


def package_file(dotted: str) -> tuple[str, Path] | None:
    """The deepest (module, file) of a package installed in place; None for one that lies in site-packages, or nowhere."""
    found = _find(dotted, ())
    return (dotted, found[dotted]) if dotted in found else None


@functools.cache
def distribution(name: str) -> str | None:
    """The installed distribution that brings a top-level import name; None when there is none."""
    try:
        metadata.distribution(name)
        return name
    except metadata.PackageNotFoundError:
        marks = (f"\n{name}/__init__.py,".encode(), f"\n{name}.py,".encode())
        return next((found for found, record in _records() if any(mark in record for mark in marks)), None)


@functools.cache
def _records() -> list[tuple[str, bytes]]:
    """Each installed distribution with the list of its files, or, where it has that, of its import names as such a list."""
    found = []
    for folder in (entry for entry in sys.path if Path(entry).name in _INSTALLED):
        for info in sorted(Path(folder).glob("*.dist-info")):
            record = b""
            try:
                names = (info / "top_level.txt").read_bytes().split()
                record = b"".join(b"%s/__init__.py,\n" % name for name in names)
            except OSError:
                with contextlib.suppress(OSError), (info / "RECORD").open("rb") as file:
                    record = file.read(_LARGEST_RECORD)
            found.append((info.name.partition("-")[0], b"\n" + record))
    return found


def _root(file: Path, name: str) -> Path:
    """The folder from which `file` is imported as `name`."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth] if name else file.parent


def _wanted(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a module may import; `from a import b` gives both a and a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for level, module, names in _source(path).imports:
        parts = package.split(".") if package else []
        above = parts[: len(parts) - level + 1] if level else []
        start = ".".join([*above, *([module] if module else [])])
        yield start
        yield from (f"{start}.{one}" if start else one for one in names)


def _find(dotted: str, roots: tuple[Path, ...]) -> dict[str, Path]:
    """The project files that importing `dotted` runs, by module name; empty when it is foreign."""
    for root in roots:
        found = _below(root, dotted)
        if found:
            return found
    top = dotted.partition(".")[0]
    root_in_place = _in_place(top) if top else None
    return _below(root_in_place, dotted) if root_in_place else {}


def _below(root: Path, dotted: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    parts = dotted.split(".")
    for index, part in enumerate(parts):
        module = ".".join(parts[: index + 1])
        if (root / part / "__init__.py").is_file():
            found[module] = root / part / "__init__.py"
        elif file := next((one for suffix in (*EXTENSION_SUFFIXES, ".py") if (one := root / f"{part}{suffix}").is_file()), None):
            return found | {module: file}
        elif not (root / part).is_dir():
            return found
        root = root / part
    return found


@functools.cache
def _in_place(top: str) -> Path | None:
    """The folder that holds a package which is importable, yet neither installed into site-packages nor Python's own."""
    if top in sys.stdlib_module_names or top == "edgeopt":  # edgeopt's version is in every key
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.origin or not spec.has_location:
        return None
    origin = Path(spec.origin).resolve()
    if _INSTALLED & set(origin.parts):
        return None
    return origin.parents[1] if origin.name == "__init__.py" else origin.parent


def _source(path: Path) -> _Source:
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1000)
def _parsed(path: Path, _mtime: int, _size: int) -> _Source:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        place = Place(str(path), error.lineno, error.offset)
        raise UsageError(f"not valid Python: {error.msg}", place=place, remedy="mend the syntax here") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid Python: {error}", place=Place(str(path)), remedy="save it as UTF-8 text") from None
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", tuple(alias.name for alias in node.names if alias.name != "*")))
        elif isinstance(node, ast.Call) and node.args and "import_module" in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                found.append((0, first.value, ()))
    names = frozenset(_names(tree.body))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"globals", "exec", "setattr"}
    dynamic = names & {"*", "__getattr__"} or used or any(isinstance(node, ast.Global) for node in ast.walk(tree))
    return _Source(tuple(found), None if dynamic else names)


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Names bound by statements, seen through if, try, with and loops; `*` for a star import."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        else:
            yield from (one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
            for field in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, field, []))
            for inner in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from _names(inner.body)
