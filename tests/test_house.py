"""The rules of the house, read off the source: who may import whom, and what must not be there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgeopt"
PLUGS = ("passes", "backends", "datasets", "scores", "formats")
MAY_IMPORT = {
    "core": {"core"},
    "passes": {"core", "formats", "passes"},
    "datasets": {"core"},
    "scores": {"core"},
    "formats": {"core", "formats"},
    "backends": {"core", "runner", "formats", "backends"},
    "runner": {"runner"},
    "stages": {"core", "stages", "runner"},  # of runner only the frames of its wire
    "cli": {"core", "stages", "cli"},
}
BASE = {"click", "rich", "pydantic", "yaml", "numpy", "onnx", "scipy", "jinja2"}
AT_MODULE_LEVEL = {
    "core": {"pydantic", "yaml"},
    "runner": {"numpy"},
    "stages": {"pydantic", "numpy", "scipy", "jinja2"},
    "cli": {"click"},
    **{room: {"pydantic"} for room in PLUGS},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, *, top_only: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = _module_level(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", [one for one in SOURCES if one.parent != PACKAGE], ids=lambda one: str(one.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = room_of(path)
    for name in imports(path, top_only=False):
        if name.startswith("edgeopt."):
            other = name.split(".")[1]
            if other != "__version__":
                assert other in MAY_IMPORT[room], f"{path}: {room} may not import {name}"


@pytest.mark.parametrize("path", [one for one in SOURCES if one.parent != PACKAGE], ids=lambda one: str(one.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    allowed = AT_MODULE_LEVEL[room_of(path)]
    for name in imports(path, top_only=True):
        top = name.split(".")[0]
        own_runtime = room_of(path) == "runner" and top == path.stem  # serve imports that file by name, when asked
        assert own_runtime or top == "edgeopt" or top in sys.stdlib_module_names or top in allowed, f"{path}: imports {name} at its top"


@pytest.mark.parametrize("path", SOURCES, ids=lambda one: str(one.relative_to(PACKAGE)))
def test_every_file_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or path.read_text().strip() == "", f"{path} has no docstring"


def test_no_room_for_odds_and_ends() -> None:
    banned = {"util", "utils", "helper", "helpers", "common", "manager", "base", "misc"}
    assert not [path for path in SOURCES if path.stem in banned]


@pytest.mark.parametrize("room", PLUGS)
def test_every_plug_is_one_file_and_one_line(room: str) -> None:
    from edgeopt.core import registry

    for name in registry.names(room):
        cls = registry.load(room, name)
        assert cls.__doc__, f"{room}/{name} has no docstring"
        assert cls.__module__ == f"edgeopt.{room}.{name.replace('-', '_')}"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def loaded_by(code: str) -> set[str]:
    shown = run_python(f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))")
    return set(shown.splitlines()[-1].split()) - set(sys.stdlib_module_names)


def test_importing_edgeopt_imports_nothing_else() -> None:
    assert not loaded_by("import edgeopt") & (BASE | {"torch", "onnxruntime", "openvino"})


def test_the_help_imports_click_and_nothing_else() -> None:
    found = loaded_by("from edgeopt.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass")
    assert not found & ((BASE - {"click"}) | {"torch", "onnxruntime", "openvino"}), found


def test_planning_imports_no_framework() -> None:
    code = "import edgeopt, pathlib\nedgeopt.plan(edgeopt.load_recipe(pathlib.Path('recipes/mnist-cnn.yaml')))"
    found = loaded_by(f"import os; os.chdir({str(ROOT)!r})\n{code}")
    assert not found & {"torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "scipy"}, found


def test_the_runner_imports_numpy_and_nothing_else() -> None:
    found = loaded_by("import edgeopt.runner.serve")
    assert not found & ((BASE - {"numpy"}) | {"torch", "onnxruntime", "openvino"}), found
