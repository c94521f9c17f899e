"""doctor: what of edgeopt is usable on this machine, and how to get the rest."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from typing import Any

from edgeopt import __version__
from edgeopt.core import machine, registry
from edgeopt.core.errors import EXIT_MISSING, EXIT_OK, EdgeoptError
from edgeopt.core.protocols import Options
from edgeopt.core.store import Store

# `name>=1.2; extra == "onnxruntime"` of the installed metadata; an extra of ours is `edgeopt[a,b]`.
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[(?P<extras>[^]]*)\])?[^;]*?(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"].*)?$")
# Whoever installs edgeopt to use it needs neither.
_NOT_FOR_USERS = ("dev", "all")


class Extra(Options):
    """One optional part: its packages with their versions (None: not installed), and how to get it."""

    name: str
    usable: bool
    packages: dict[str, str | None]
    remedy: str | None


class BackendHealth(Options):
    """One runtime; `reason` says why it is not usable here."""

    name: str
    usable: bool
    versions: dict[str, str]
    reason: str | None


class Health(Options):
    """What `edgeopt doctor` tells."""

    edgeopt: str
    python: str
    machine: dict[str, Any]
    store: dict[str, Any]
    packages: dict[str, str | None]
    backends: list[BackendHealth]
    extras: list[Extra]
    exit_code: int


def doctor(store: Store | None = None) -> Health:
    """Look at packages, runtimes, processor and store. Exit code 5 when no runtime works here."""
    base, extras = requirements()
    backends = [_backend(name) for name in registry.names("backends")]
    works = any(one.usable for one in backends if one.name != "null")
    return Health(
        edgeopt=__version__,
        python=platform.python_version(),
        machine=machine.fingerprint(),
        store=_store(store or Store()),
        packages={name: _version(name) for name in base},
        backends=backends,
        extras=[_extra(name, packages) for name, packages in extras.items() if name not in _NOT_FOR_USERS],
        exit_code=EXIT_OK if works else EXIT_MISSING,
    )


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that edgeopt stands on, and those of each extra, extras of ours resolved."""
    try:
        lines = metadata.requires("edgeopt") or []
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return [], {}
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        found = _REQUIREMENT.match(line)
        if not found:
            continue
        into = extras.setdefault(found["extra"], []) if found["extra"] else base
        into += [f"edgeopt[{name.strip()}]" for name in found["extras"].split(",")] if found["name"] == "edgeopt" else [found["name"]]
    return base, {name: _resolved(packages, extras) for name, packages in extras.items()}


def _resolved(packages: list[str], extras: dict[str, list[str]]) -> list[str]:
    found: list[str] = []
    for package in packages:
        inner = package.removeprefix("edgeopt[").removesuffix("]")
        found += [package] if inner == package else _resolved(extras.get(inner, []), extras)
    return list(dict.fromkeys(found))


def _version(package: str) -> str | None:
    version = registry.version(package)
    return None if version == "absent" else version


def _extra(name: str, packages: list[str]) -> Extra:
    versions = {package: _version(package) for package in packages}
    usable = all(versions.values())
    return Extra(name=name, usable=usable, packages=versions, remedy=None if usable else f"pip install 'edgeopt[{name}]'")


def _backend(name: str) -> BackendHealth:
    try:
        backend = registry.load("backends", name)()
        reason = backend.probe()
    except EdgeoptError as error:
        return BackendHealth(name=name, usable=False, versions={}, reason=str(error))
    except Exception as error:  # noqa: BLE001 (a broken package must not stop the doctor from telling about the others)
        return BackendHealth(name=name, usable=False, versions={}, reason=f"{type(error).__name__}: {error}")
    versions = {package: version for package in backend.needs if (version := _version(package))}
    return BackendHealth(name=name, usable=not reason, versions=versions, reason=reason or None)


def _store(store: Store) -> dict[str, Any]:
    entries = store.entries()
    existing = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    return {
        "path": str(store.root),
        "entries": len(entries),
        "size_bytes": sum(entry.size_bytes for entry in entries),
        "free_bytes": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
    }
