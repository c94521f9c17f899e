"""The user's own code: what it is made of, how it is loaded, and what its failures look like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgeopt.core import imports, usercode
from edgeopt.core.errors import EdgeoptError, MissingError, ResourceError, UsageError


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".py" if not name.endswith("init") else name[:-4].replace("__", "/") + "__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(paths: list[Path], base: Path) -> list[str]:
    return sorted(path.relative_to(base.resolve()).as_posix() for path in paths)


def fails(kind: type[EdgeoptError], act: Callable[[], object], *words: str) -> EdgeoptError:
    with pytest.raises(EdgeoptError) as caught:
        act()
    assert type(caught.value) is kind, caught.value
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return caught.value


# ---- loading


def test_a_function_of_a_file_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, data="def train():\n    return 7\n")
    assert usercode.load("data.py:train", tmp_path)() == 7
    assert usercode.load(f"{tmp_path}/data.py:train", Path("/"))() == 7


def test_a_function_of_an_installed_package_is_loaded(tmp_path: Path) -> None:
    assert usercode.load("yaml.loader:SafeLoader", tmp_path) is yaml.SafeLoader


def test_modules_beside_the_file_and_below_the_base_are_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        shared_by_all="SIZE = 3\n",
        net__model="import layers_here\nfrom shared_by_all import SIZE\ndef build():\n    return layers_here.n, SIZE\n",
    )
    write(tmp_path, net__layers_here="n = 2\n")
    assert usercode.load("net/model.py:build", tmp_path)() == (2, 3)


def test_a_file_is_loaded_once_and_anew_when_it_changes(tmp_path: Path) -> None:
    write(tmp_path, data="def f():\n    return 1\n")
    first = usercode.load("data.py:f", tmp_path)
    assert usercode.load("data.py:f", tmp_path) is first
    write(tmp_path, data="def f():\n    return 2\n")  # same second, same size: byte code could not tell
    assert usercode.load("data.py:f", tmp_path)() == 2


def test_a_changed_neighbour_is_loaded_anew(tmp_path: Path) -> None:
    write(tmp_path, data="import near_one\ndef f():\n    return near_one.n\n", near_one="n = 1\n")
    assert usercode.load("data.py:f", tmp_path)() == 1
    write(tmp_path, near_one="n = 1 + 1\n")
    assert usercode.load("data.py:f", tmp_path)() == 2


def test_neighbours_of_the_same_name_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        write(tmp_path / name, data="import twin\ndef f():\n    return twin.n\n", twin=f"n = {value}\n")
    both = [usercode.load(f"{name}/data.py:f", tmp_path) for name in "ab"]
    assert [function() for function in both] == [1, 2]


def test_no_byte_code_is_left_beside_the_users_files(tmp_path: Path) -> None:
    write(tmp_path, data="import near_two\ndef f(): ...\n", near_two="")
    usercode.load("data.py:f", tmp_path)
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_dataclass_in_a_users_file_works(tmp_path: Path) -> None:
    write(tmp_path, data="from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    n: int = 4\n")
    assert usercode.load("data.py:A", tmp_path)().n == 4


@pytest.mark.parametrize("reference", ["data.py", "data.py:", ":f", "data.py:f()", "data.py:a.b", ""])
def test_what_is_no_reference_is_refused(reference: str, tmp_path: Path) -> None:
    fails(UsageError, lambda: usercode.load(reference, tmp_path), "not a reference to a function", "file.py:function")


def test_a_path_without_py_is_refused(tmp_path: Path) -> None:
    fails(UsageError, lambda: usercode.files("mnist/data:f", tmp_path), "neither a .py file nor a module name")


def test_a_missing_file_is_told_with_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, data="")
    fails(UsageError, lambda: usercode.files("dat.py:f", tmp_path), "no such file: dat.py", "did you mean 'data.py'?")
    fails(UsageError, lambda: usercode.load("other/data.py:f", tmp_path), "no such file", "relative to the recipe's folder")


def test_a_missing_function_is_told_before_anything_runs(tmp_path: Path) -> None:
    write(tmp_path, data="raise SystemError\ndef train(): ...\n")
    fails(UsageError, lambda: usercode.files("data.py:trian", tmp_path), "no function 'trian' in data.py", "did you mean 'train'?")


@pytest.mark.parametrize(
    "text",
    [
        "if True:\n    def f(): ...\nelse:\n    g = 1\n",
        "try:\n    from json import loads as f\nexcept ImportError:\n    f = None\n",
        "from json import *\nf = loads\n",
        "f = g = print\n",
        "globals()['f'] = print\n",
        "def make():\n    global f\n    f = print\nmake()\n",
        "match 1:\n    case _:\n        def f(): ...\n",
    ],
)
def test_functions_defined_in_odd_ways_are_found(text: str, tmp_path: Path) -> None:
    write(tmp_path, data=text)
    assert usercode.files("data.py:f", tmp_path)
    assert callable(usercode.load("data.py:f", tmp_path))


def test_a_missing_function_is_told_on_loading(tmp_path: Path) -> None:
    write(tmp_path, data="def train(): ...\n")
    fails(UsageError, lambda: usercode.load("data.py:trainn", tmp_path), "did you mean 'train'?")
    fails(UsageError, lambda: usercode.load("yaml:safe_lod", tmp_path), "did you mean 'safe_load'?", "in yaml")


def test_what_is_no_function_is_refused(tmp_path: Path) -> None:
    write(tmp_path, data="train = 3\n")
    fails(UsageError, lambda: usercode.load("data.py:train", tmp_path), "'train' in data.py is int, not a function")


# ---- failing imports


def test_an_import_that_raises_names_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, data="import near_three\ndef f(): ...\n", near_three="\n\nraise KeyError('weights')\n")
    error = fails(UsageError, lambda: usercode.load("data.py:f", tmp_path), "importing data.py: KeyError: 'weights'")
    assert error.place and (Path(error.place.file).name, error.place.line) == ("near_three.py", 3)
    assert not [
        name for name in sys.modules if name.startswith("edgeopt_user_data") and sys.modules[name].__file__ == str(tmp_path / "data.py")
    ]


def test_bad_syntax_is_told_with_its_line_without_running(tmp_path: Path) -> None:
    write(tmp_path, data="import near_four\ndef f(): ...\n", near_four="x = 1\ny = (\n")
    for act in (usercode.files, usercode.packages, usercode.load):
        error = fails(UsageError, lambda act=act: act("data.py:f", tmp_path), "not valid Python")  # type: ignore[misc]
        assert error.place and error.place.file.endswith("near_four.py") and error.place.line == 2


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_bytes(b"x = 1\0\xff")
    fails(UsageError, lambda: usercode.files("data.py:f", tmp_path), "data.py", "not valid Python")


def test_a_missing_package_exits_5_with_the_command_to_type(tmp_path: Path) -> None:
    write(tmp_path, data="\nimport no_such_package_of_anyone.part\ndef f(): ...\n")
    error = fails(MissingError, lambda: usercode.load("data.py:f", tmp_path), "'no_such_package_of_anyone' is not installed")
    assert error.remedy == "pip install no_such_package_of_anyone" and error.exit_code == 5
    assert error.place and error.place.line == 2


def test_a_missing_package_of_the_demo_names_the_extra(tmp_path: Path) -> None:
    write(tmp_path, data="import efficientnet_lite9_pytorch_model\ndef f(): ...\n")
    fails(MissingError, lambda: usercode.load("data.py:f", tmp_path), "edgeopt[demo]")


def test_a_missing_package_in_a_reference_exits_5(tmp_path: Path) -> None:
    fails(MissingError, lambda: usercode.load("no_such_package_of_anyone.data:f", tmp_path), "pip install no_such_package_of_anyone")


def test_a_misspelt_neighbour_is_not_to_be_installed(tmp_path: Path) -> None:
    write(tmp_path, data="import layerz\ndef f(): ...\n", layers="")
    fails(UsageError, lambda: usercode.load("data.py:f", tmp_path), "no module named 'layerz'", "did you mean 'layers'?")


def test_a_missing_part_of_an_installed_package_is_not_to_be_installed(tmp_path: Path) -> None:
    write(tmp_path, data="import numpy.no_such_part\ndef f(): ...\n")
    fails(UsageError, lambda: usercode.load("data.py:f", tmp_path), "'numpy' is there and has no such part")


def test_a_relative_import_says_what_to_write(tmp_path: Path) -> None:
    write(tmp_path, data="from . import near_five\ndef f(): ...\n", near_five="")
    fails(UsageError, lambda: usercode.load("data.py:f", tmp_path), "relative import", "write `import name`")


# ---- files


def test_the_closure_of_imports_is_found_without_running_any(tmp_path: Path) -> None:
    write(
        tmp_path,
        data="raise SystemError\nimport numpy, json\nfrom net import layers\ndef f():\n    import lazy_one\n",
        net__init="",
        net__layers="from .deep import block\nfrom . import more\n",
        net__deep__init="from ..other import x\n",
        net__deep__block="",
        net__other="x = 1\n",
        net__more="",
        net__unused="",
        lazy_one="import importlib\nimportlib.import_module('by_name')\n",
        by_name="import data\n",
        unused="",
    )
    found = usercode.files("data.py:f", tmp_path)
    assert found[0] == (tmp_path / "data.py").resolve()
    assert names(found, tmp_path) == [
        "by_name.py",
        "data.py",
        "lazy_one.py",
        "net/__init__.py",
        "net/deep/__init__.py",
        "net/deep/block.py",
        "net/layers.py",
        "net/more.py",
        "net/other.py",
    ]


def test_the_closure_goes_on_from_the_recipes_folder(tmp_path: Path) -> None:
    write(tmp_path, net__model="import tools.blocks\ndef build(): ...\n", tools__blocks="", net__tools_not="")
    assert names(usercode.files("net/model.py:build", tmp_path), tmp_path) == ["net/model.py", "tools/blocks.py"]


def test_circular_imports_end(tmp_path: Path) -> None:
    write(tmp_path, data="import ring\ndef f(): ...\n", ring="import data, ring\n")
    assert names(usercode.files("data.py:f", tmp_path), tmp_path) == ["data.py", "ring.py"]


def test_a_file_named_like_a_package_is_not_its_own_import(tmp_path: Path) -> None:
    write(tmp_path, numpy="import numpy\ndef f(): ...\n")
    assert names(usercode.files("numpy.py:f", tmp_path), tmp_path) == ["numpy.py"]


def test_an_installed_package_has_no_files_and_its_own_version(tmp_path: Path) -> None:
    assert usercode.files("yaml.loader:SafeLoader", tmp_path) == []
    assert [one.lower() for one in usercode.packages("yaml.loader:SafeLoader", tmp_path)] == ["pyyaml"]


def test_a_package_installed_in_place_counts_as_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "src", lab7__init="", lab7__data="from lab7.augment import x\nimport numpy\ndef f(): ...\n", lab7__augment="x = 1\n")
    write(tmp_path, entry="import lab7.augment\ndef f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path / "src")
    src = ["src/lab7/__init__.py", "src/lab7/augment.py"]
    assert names(usercode.files("lab7.data:f", tmp_path), tmp_path) == [*src, "src/lab7/data.py"]
    assert usercode.packages("lab7.data:f", tmp_path) == ["numpy"]
    assert names(usercode.files("entry.py:f", tmp_path), tmp_path) == ["entry.py", *src]


# ---- packages


def test_installed_packages_of_the_closure_are_named(tmp_path: Path) -> None:
    write(tmp_path, data="import os, numpy.linalg, near_six, not_installed_at_all\ndef f(): ...\n", near_six="import yaml\n")
    assert [one.lower() for one in usercode.packages("data.py:f", tmp_path)] == ["numpy", "pyyaml"]


def test_a_distribution_named_unlike_its_import_is_found() -> None:
    assert (imports.distribution("yaml") or "").lower() == "pyyaml"
    assert imports.distribution("no_such_package_of_anyone") is None


def test_looking_at_code_imports_no_framework(tmp_path: Path) -> None:
    write(tmp_path, data="import numpy, torch\ndef f(): ...\n")
    code = (
        "import sys, pathlib; from edgeopt.core import usercode\n"
        f"b = pathlib.Path({str(tmp_path)!r}); usercode.files('data.py:f', b); usercode.packages('data.py:f', b)\n"
        "print([name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- running


def loaded(folder: Path, text: str, name: str = "f") -> Callable[[], object]:
    write(folder, data=text)
    return usercode.load(f"data.py:{name}", folder)


def test_an_exception_becomes_a_usage_error_at_the_users_own_line(tmp_path: Path) -> None:
    function = loaded(tmp_path, "import json\ndef f():\n    return inner()\ndef inner():\n    return json.loads('{')\n")
    error = fails(UsageError, lambda: usercode.call(function, "data: data.py:f"), "data: data.py:f: JSONDecodeError: Expecting property")
    assert error.place and error.place.file == str(tmp_path.resolve() / "data.py") and error.place.line == 5


def test_an_exception_in_a_generator_names_the_line(tmp_path: Path) -> None:
    function = loaded(tmp_path, "def f():\n    yield 1\n    raise ValueError('second line is\\nnot shown')\n")
    walk = usercode.each(usercode.call(function, "data"), "data")  # type: ignore[arg-type]
    assert next(walk) == 1
    error = fails(UsageError, lambda: next(walk), "data: ValueError: second line is")
    assert error.place and error.place.line == 3 and "not shown" not in str(error)


def test_a_neighbours_frame_counts_as_the_users(tmp_path: Path) -> None:
    write(tmp_path, near_seven="def g():\n    1 / 0\n")
    error = fails(
        UsageError, lambda: usercode.call(loaded(tmp_path, "import near_seven\ndef f():\n    near_seven.g()\n"), "x"), "ZeroDivisionError"
    )
    assert error.place and error.place.file.endswith("near_seven.py") and error.place.line == 2


def test_the_frame_of_an_environment_inside_the_users_folder_is_not_the_users(tmp_path: Path) -> None:
    installed = tmp_path / ".venv/lib/python3.11/site-packages"
    write(installed, foreign_lib="def g():\n    1 / 0\n")
    text = f"import sys\nsys.path.insert(0, {str(installed)!r})\nimport foreign_lib\ndef f():\n    foreign_lib.g()\n"
    error = fails(UsageError, lambda: usercode.call(loaded(tmp_path, text), "x"), "ZeroDivisionError")
    assert error.place and error.place.file.endswith("data.py") and error.place.line == 5


@pytest.mark.parametrize("text", ["import sys\ndef f():\n    sys.exit(0)\n", "def f():\n    raise SystemExit\n"])
def test_a_function_cannot_end_the_process(text: str, tmp_path: Path) -> None:
    error = fails(UsageError, lambda: usercode.call(loaded(tmp_path, text), "x"), "calls sys.exit")
    assert error.place and error.place.file.endswith("data.py")


def test_lack_of_memory_and_disk_exits_7(tmp_path: Path) -> None:
    fails(ResourceError, lambda: usercode.call(loaded(tmp_path, "def f():\n    raise MemoryError\n"), "x"), "out of memory")
    full = "import errno\ndef f():\n    raise OSError(errno.ENOSPC, 'no space')\n"
    fails(ResourceError, lambda: usercode.call(loaded(tmp_path, full), "x"), "disk is full")


def test_a_package_missed_while_running_exits_5(tmp_path: Path) -> None:
    function = loaded(tmp_path, "def f():\n    import no_such_package_of_anyone\n")
    fails(MissingError, lambda: usercode.call(function, "x"), "pip install no_such_package_of_anyone")


def test_wrong_arguments_are_the_users_to_mend(tmp_path: Path) -> None:
    function = loaded(tmp_path, "def f(a):\n    ...\n")
    fails(UsageError, lambda: usercode.call(function, "data: f"), "missing 1 required positional argument: 'a'")


def test_keyboard_interrupt_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        usercode.call(loaded(tmp_path, "def f():\n    raise KeyboardInterrupt\n"), "x")
