"""Names to classes, room by room. A plug is one file and one line in its room's TABLE.

File `passes/quantize_int8.py` holds pass `quantize-int8` as class `QuantizeInt8`. A name that is not
in the table is looked up among installed entry points of the group `edgeopt.<room>` (`module:Class`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.core import digest
from edgeopt.core.errors import MissingError, UsageError, did_you_mean

ROOMS = ("passes", "backends", "datasets", "scores", "formats")
_IMPORT = re.compile(r"^\s*from edgeopt\.(\w+)((?:\.\w+)?) import (\([^)]*\)|[^\n#]+)", re.MULTILINE)
_NOUN = {"passes": "pass", "backends": "backend", "datasets": "dataset", "scores": "score", "formats": "format"}


def names(room: str) -> list[str]:
    """The names in a room's own table."""
    return list(importlib.import_module(f"edgeopt.{room}").TABLE)


def load(room: str, name: str) -> Any:
    """The class behind a name. Raises UsageError when nobody registered it."""
    if name in names(room):
        module = importlib.import_module(f"edgeopt.{room}.{name.replace('-', '_')}")
        return getattr(module, "".join(part.capitalize() for part in name.split("-")))
    found = [entry for entry in metadata.entry_points(group=f"edgeopt.{room}") if entry.name == name]
    if not found:
        raise UsageError(f"unknown {_NOUN[room]} '{name}'", remedy=did_you_mean(name, names(room)))
    try:
        return found[0].load()
    except ImportError as error:
        raise MissingError(
            f"the {_NOUN[room]} '{name}' of {found[0].value} cannot be imported: {error}", remedy="mend or remove that package"
        ) from None


def source_digest(cls: type) -> str:
    """A digest of the code behind a plug, part of every key it makes: its file, those beside it whose
    names begin with its name, and what these import out of edgeopt's plug rooms and runner."""
    spec = importlib.util.find_spec(cls.__module__)
    if not spec or not spec.origin:
        return cls.__module__
    path = Path(spec.origin)
    files = {path, *path.parent.glob(f"{path.stem}_*.py")}
    waiting = list(files)
    while waiting:
        found = _imported(waiting.pop()) - files
        files |= found
        waiting += found
    return digest.of_value({f"{file.parent.name}/{file.name}": digest.of_file(file) for file in sorted(files)})


@cache
def _imported(file: Path) -> frozenset[Path]:
    """The modules of edgeopt's plug rooms and runner that a file imports, read off its text."""
    home = Path(__file__).parent.parent
    found = set()
    for room, module, names in _IMPORT.findall(file.read_text(encoding="utf-8")):
        if room not in (*ROOMS, "runner"):
            continue
        folder = home / room
        wanted = [module.lstrip(".")] if module else [name.split()[0] for name in names.strip("() \n").split(",") if name.strip()]
        found |= {path for name in wanted if (path := folder / f"{name}.py").is_file()}
    return frozenset(found)


def need(module: str, extra: str) -> Any:
    """Import a heavy package, or say what to install. Nothing phones home.

    openvino and nncf know no switch for their telemetry; where `openvino_telemetry` cannot be imported they use a stub.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail, as Python documents
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(
            f"the package '{module.split('.', maxsplit=1)[0]}' is needed here and cannot be imported: {error}",
            remedy=f"pip install 'edgeopt[{extra}]'",
        ) from None


@cache
def version(package: str) -> str:
    """The installed version of a distribution, or `absent`."""
    try:
        text = metadata.distribution(package).read_text("METADATA") or ""
        line = next((line for line in text.splitlines() if line.startswith("Version: ")), "")
        return line.removeprefix("Version: ").strip() or metadata.version(package)  # which parses all of the text as an e-mail
    except metadata.PackageNotFoundError:
        return "absent"
