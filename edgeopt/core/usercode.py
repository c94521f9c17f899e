"""The user's own Python: `file.py:function` beside the recipe, or `package.module:function` installed.

What it is made of is read off its source (`files`, `packages`); it runs only through `load` and `call`,
and whatever it raises becomes an error that names the user's file and line, never a traceback of ours.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from edgeopt.core import digest, imports
from edgeopt.core.errors import EdgeoptError, MissingError, Place, ResourceError, UsageError, did_you_mean, from_exception

_T = TypeVar("_T")
_DEMO = ("mlxtend", "foolbox", "efficientnet", "PIL")  # what the extra `demo` brings, by the start of the import name
_END: Any = object()
_ENVIRONMENT = re.compile(r"python3\.\d+t?").fullmatch  # the folder of installed code in a virtual environment

_loaded: dict[tuple[str, str], ModuleType] = {}
_siblings: dict[str, str] = {}  # import name → digest of the project module that stands in sys.modules
_folders: set[Path] = set()  # where the user's code lies


def load(reference: str, base: Path) -> Callable[..., Any]:
    """The function behind a reference; a file is looked up from `base`. Imports the user's module.

    Raises UsageError (no such file or function, its import failed) or MissingError (a package is not installed).
    """
    target, name = _parts(reference)
    module = _load_file(_existing(target, base), base.resolve()) if target.endswith(".py") else _load_package(target)
    function = getattr(module, name, None)
    if function is None:
        raise _no_function(name, target, [one for one in vars(module) if not one.startswith("_")])
    if not callable(function):
        raise UsageError(f"'{name}' in {target} is {type(function).__name__}, not a function", remedy="name a function")
    return function  # type: ignore[no-any-return]  # callable, which is all that can be known


def files(reference: str, base: Path) -> list[Path]:
    """The file and every project module that it imports, near or far. Nothing is imported to find out.

    Empty for an installed package; for one installed in place (`pip install -e`) its own modules.
    """
    found = _closure(reference, base)
    return found.files if found else []


def packages(reference: str, base: Path) -> list[str]:
    """The installed distributions that the code imports; for an installed package, its own."""
    found = _closure(reference, base)
    names: Iterable[str] = found.foreign if found else [_parts(reference)[0].partition(".")[0]]
    return sorted({name for one in names if (name := imports.distribution(one))})


def read_files(names: Iterable[str], base: Path) -> list[Path]:
    """The files that the user says the code reads; a folder stands for all files below it."""
    found: list[Path] = []
    for path in ((base / name).expanduser() for name in names):
        found += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return found


def call(function: Callable[[], _T], doing: str) -> _T:
    """What the user's code returns; what it raises becomes an EdgeoptError. `doing` opens the message.

    UsageError with file:line of the innermost frame in the user's code, MissingError for a package
    that is not installed, ResourceError for lack of memory or disk.
    """
    try:
        return function()
    except Exception as error:  # the user's code may raise anything
        raise _explained(error, doing) from error
    except SystemExit as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if _below(last, Path(__file__).parents[1]):  # raised by a signal handler of edgeopt, not by the user's code
            raise
        raise UsageError(
            f"{doing}: the code calls sys.exit", place=_place(error), remedy="return, or raise an error that says why"
        ) from None


def each(items: Iterable[_T], doing: str) -> Iterator[_T]:
    """Items of a user's iterable, each step guarded as `call` guards a function."""
    iterator = call(lambda: iter(items), doing)
    while (item := call(lambda: next(iterator, _END), doing)) is not _END:
        yield item


def _parts(reference: str) -> tuple[str, str]:
    target, _, name = reference.rpartition(":")
    if not target or not name.isidentifier():
        raise UsageError(f"'{reference}' is not a reference to a function", remedy="write file.py:function or package.module:function")
    if not target.endswith(".py") and not all(part.isidentifier() for part in target.split(".")):
        raise UsageError(f"'{target}' is neither a .py file nor a module name", remedy=f"write file.py:{name} or package.module:{name}")
    return target, name


def _existing(target: str, base: Path) -> Path:
    path = (base / target).expanduser().resolve()
    if not path.is_file():
        beside = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) if beside else "paths are relative to the recipe's folder"
        raise UsageError(f"no such file: {target}", remedy=hint)
    return path


def _no_function(name: str, target: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"no function '{name}' in {target}", remedy=did_you_mean(name, known))


def _closure(reference: str, base: Path) -> imports.Imports | None:
    """The closure of the referenced file, or None for a package that is installed for good, or missing."""
    target, name = _parts(reference)
    if target.endswith(".py"):
        path, known_as = _existing(target, base), ""
    else:
        found = imports.package_file(target)
        if found is None:
            return None
        known_as, path = found
    if path.suffix == ".py" and (names := imports.defined(path)) is not None and name not in names:
        raise _no_function(name, target, (one for one in names if not one.startswith("_")))
    return imports.closure(path, base, known_as)


class _Loader(SourceFileLoader):
    """Compiles from the text each time: cached byte code is told apart by whole seconds and size only."""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)


def _load_file(path: Path, base: Path) -> ModuleType:
    """Import a file under a name of its own. Its folder leads sys.path, so that what stands beside it is found."""
    found = imports.closure(path, base)
    state = digest.of_value([digest.of_file(file) for file in found.files])
    folder = path.parent
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    if (path.as_posix(), state) in _loaded:
        return _loaded[path.as_posix(), state]
    if str(base) not in sys.path:
        sys.path.append(str(base))  # last: a folder of recipes must not hide an installed package
    sys.dont_write_bytecode = True  # nothing may appear beside the user's code, nor beside its copy in an artifact
    _folders.update((folder, base))
    _forget(found.modules)
    importlib.invalidate_caches()
    name = f"edgeopt_user_{path.stem}_{hashlib.sha256(f'{path} {state}'.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported", remedy="name a .py file")
    module, run = importlib.util.module_from_spec(spec), spec.loader.exec_module
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        call(lambda: run(module), f"importing {path.name}")
    except BaseException:
        del sys.modules[name]
        raise
    _siblings.update({one: digest.of_file(file) for one, file in found.modules.items()})
    _loaded[path.as_posix(), state] = module
    return module


def _forget(modules: dict[str, Path]) -> None:
    """Drop project modules from sys.modules that are another file's of the same name, or an older text."""
    for name, file in modules.items():
        module = sys.modules.get(name)
        at = getattr(module, "__file__", None)
        if module is None or at is None or not _is_users(at):
            continue
        if Path(at).resolve() != file or _siblings.get(name) != digest.of_file(file):
            for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[one]


def _load_package(target: str) -> ModuleType:
    module = call(lambda: importlib.import_module(target), f"importing {target}")
    if module.__file__:
        _folders.add(Path(module.__file__).resolve().parent)
    return module


def _explained(error: Exception, doing: str) -> EdgeoptError:
    if isinstance(error, EdgeoptError):
        return error
    place = _place(error)
    if isinstance(error, SyntaxError) and error.filename:
        return UsageError(
            f"{doing}: not valid Python: {error.msg}", place=Place(error.filename, error.lineno), remedy="mend the syntax here"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing(error.name, doing, place)
    known = from_exception(error, doing)
    if isinstance(known, ResourceError):
        known.place = place
        return known
    text = (str(error).strip().splitlines() or [""])[0][:300]
    cause = f"{doing}: {type(error).__name__}: {text}" if text else f"{doing}: {type(error).__name__}"
    if isinstance(error, ImportError) and "relative import" in text:
        return UsageError(cause, place=place, remedy="the file stands alone: write `import name` for the file name.py beside it")
    return UsageError(cause, place=place, remedy="mend the code there; the full traceback is in the run's log")


def _missing(module: str, doing: str, place: Place | None) -> EdgeoptError:
    """A module that is not there: a misspelt neighbour, a part that an installed package lacks, or a package to install."""
    top = module.partition(".")[0]
    beside = [one.stem for one in Path(place.file).parent.glob("*.py")] if place else []
    meant = difflib.get_close_matches(top, beside, n=1, cutoff=0.8)
    if meant and top not in beside:
        return UsageError(f"{doing}: no module named '{module}'", place=place, remedy=f"did you mean '{meant[0]}'?")
    if imports.distribution(top) or top in sys.modules or top in beside or top in sys.stdlib_module_names:
        return UsageError(f"{doing}: no module named '{module}'", place=place, remedy=f"'{top}' is there and has no such part")
    extra = " or the extra: pip install 'edgeopt[demo]'" if top.startswith(_DEMO) else ""
    return MissingError(f"{doing}: the package '{top}' is not installed", place=place, remedy=f"pip install {top}{extra}")


def _place(error: BaseException) -> Place | None:
    """File and line of the innermost frame that lies in the user's code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return Place(frame.filename, frame.lineno)
    return None


def _is_users(file: str) -> bool:
    """Whether a file belongs to the user's code: below one of its folders, and not in an environment that lies there."""
    path = Path(file).resolve()
    inner = [path.relative_to(folder).parts for folder in _folders if path.is_relative_to(folder)]
    return not _below(file, Path(__file__).parents[1]) and any(not any(map(_ENVIRONMENT, parts)) for parts in inner)


def _below(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)
