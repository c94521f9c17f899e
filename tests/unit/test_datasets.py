"""Data sources on real files, good and hostile: what enters is right, and what cannot enter says why."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sources import PAIR, VECTOR, make, refused, signature, take

from edgeopt.core import registry, samples
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import MissingError, UntrustedError, UsageError
from edgeopt.core.protocols import Dataset

# ---- npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_one_sample_per_row(save: Any, tmp_path: Path) -> None:
    ids, mask = np.arange(8).reshape(4, 2), np.ones((4, 2), np.int32)
    save(tmp_path / "d.npz", ids=ids, mask=mask, labels=np.array([3, 1, 2, 0]))
    found = take(make("npz", "d.npz"), tmp_path, PAIR)
    assert [sample.label for sample in found] == [3, 1, 2, 0]
    assert np.array_equal(np.stack([sample.inputs["ids"] for sample in found]), ids)
    assert make("npz", "d.npz").user_files(tmp_path) == [tmp_path / "d.npz"]


def test_npz_takes_one_array_of_any_name_for_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", anything=np.ones((2, 3)))
    assert len(take(make("npz", "d.npz"), tmp_path, VECTOR)) == 2


def test_npz_may_feed_an_input_named_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=np.ones((2, 3)))
    found = take(make("npz", "d.npz"), tmp_path, signature(labels=("float32", ("N", 3))))
    assert found[0].inputs["labels"].shape == (3,) and found[0].label is None


def test_npz_in_fortran_order_is_read_right(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(array))
    assert np.array_equal(np.stack([one.inputs["x"] for one in take(make("npz", "d.npz"), tmp_path, VECTOR)]), array)


def test_npz_shares_an_input_that_has_no_batch_axis(tmp_path: Path) -> None:
    wanted = signature(x=("float32", ("N", 3)), table=("float32", (2, 2)))
    np.savez(tmp_path / "d.npz", x=np.ones((5, 3)), table=np.eye(2))
    found = take(make("npz", "d.npz"), tmp_path, wanted)
    assert len(found) == 5 and all(one.inputs["table"].shape == (2, 2) for one in found)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_streamed(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "d.npz", x=np.zeros((50_000, 3)))
    read: list[int] = []
    original = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: read.append(n) or original(self, n))
    found = samples.walk(make("npz", "d.npz", samples=3), tmp_path, VECTOR)
    assert sum(1 for _ in found) == 3
    assert sum(read) < 2000 and min(read) >= 0


def test_npz_walks_are_independent(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(6.0).reshape(2, 3))
    source = make("npz", "d.npz")
    first, second = samples.walk(source, tmp_path, VECTOR), samples.walk(source, tmp_path, VECTOR)
    assert next(first).inputs["x"][0] == next(second).inputs["x"][0] == 0
    assert len(list(first)) == len(list(second)) == 1


def test_npz_with_pickled_objects_is_not_trusted(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None], dtype=object))
    error = refused(UntrustedError, make("npz", "d.npz"), tmp_path, VECTOR, "'x' holds pickled objects")
    assert error.exit_code == 6


def test_npz_that_is_a_pickle_is_not_trusted(tmp_path: Path) -> None:
    import pickle

    import torch

    (tmp_path / "d.npz").write_bytes(pickle.dumps([1, 2]))
    refused(UntrustedError, make("npz", "d.npz"), tmp_path, VECTOR, "is a pickle")
    torch.save({"x": torch.ones(2, 3)}, tmp_path / "d.npz")
    refused(UntrustedError, make("npz", "d.npz"), tmp_path, VECTOR, "holds a pickle")


def test_npz_with_bad_arrays_is_refused(tmp_path: Path) -> None:
    def bad(wanted: Signature, *words: str, **arrays: Any) -> None:
        np.savez(tmp_path / "d.npz", **arrays)
        refused(UsageError, make("npz", "d.npz"), tmp_path, wanted, *words)

    bad(PAIR, "no input 'idz'", "did you mean 'ids'?", idz=np.ones((2, 2)), mask=np.ones((2, 2)))
    bad(PAIR, "no array for the input 'mask'", ids=np.ones((2, 2), int))
    bad(PAIR, "ids: 2", "mask: 3", "unlike numbers", ids=np.ones((2, 2), int), mask=np.ones((3, 2), int))
    bad(VECTOR, "labels: 3", "unlike numbers", x=np.ones((2, 3)), labels=np.zeros(3, int))
    bad(VECTOR, "is a single number", x=np.float32(3))
    bad(VECTOR, "holds no samples", x=np.ones((0, 3)))
    bad(VECTOR, "sample 1", "NaN", x=np.array([[1, 2, 3], [1, np.nan, 3]]))
    bad(VECTOR, "[4]", "wants [3]", x=np.ones((2, 4)))
    bad(VECTOR, "no array for the input 'x'", labels=np.ones(3))
    bad(VECTOR, "not numbers", x=np.array([["a", "b", "c"]]))


def test_npz_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"

    def bad(data: bytes, *words: str) -> None:
        path.write_bytes(data)
        refused(UsageError, make("npz", "d.npz"), tmp_path, VECTOR, *words)

    np.savez(path, x=np.ones((100, 3)))
    whole = path.read_bytes()
    bad(b"", "not an .npz file")
    bad(b"PK nothing", "damaged")
    bad(whole[: len(whole) // 2], "damaged")
    middle = len(whole) // 2
    bad(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :], "damaged")
    bad(b"\x93NUMPY\x01\x00", "not an .npz file", "numpy.savez")
    bad(archive({"x.npy": b"not an array"}), "'x' is damaged")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 3), }"
    bad(archive({"x.npy": b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n" + b"\0" * 12}), "truncated")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3), }"
    bad(archive({"x.npy": b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n" + b"\0" * 12}), "truncated")
    bad(archive({"readme.txt": b"hello"}), "no array for the input 'x'")


def archive(members: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return held.getvalue()


def test_npz_that_is_missing_is_refused(tmp_path: Path) -> None:
    refused(UsageError, make("npz", "d.npz"), tmp_path, VECTOR, "d.npz cannot be read")


# ---- csv


def table(folder: Path, text: str | bytes, **options: Any) -> Dataset:
    (folder / "d.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return make("csv", "d.csv", **options)


def test_csv_feeds_all_columns_but_the_label(tmp_path: Path) -> None:
    found = take(table(tmp_path, "a,y,b,c\n1,7,2,3.5\n\n4,8,5,-6e1\n", label="y"), tmp_path, VECTOR)
    assert [(one.inputs["x"].tolist(), one.label) for one in found] == [([1, 2, 3.5], 7), ([4, 5, -60], 8)]
    assert found[0].inputs["x"].dtype == np.float32 and isinstance(found[0].label, int)


def test_csv_feeds_named_columns_to_several_inputs(tmp_path: Path) -> None:
    options = {"inputs": {"mask": ["m1", "m2"], "ids": ["b", "a"]}, "delimiter": ";", "label": "y"}
    found = take(table(tmp_path, b"\xef\xbb\xbfa;b;m1;m2;y\n1;2;0;1.0;0.5\n", **options), tmp_path, PAIR)
    assert found[0].inputs["ids"].tolist() == [2, 1] and found[0].inputs["mask"].tolist() == [0, 1] and found[0].label == 0.5


def test_csv_fills_an_input_of_fixed_shape_row_by_row(tmp_path: Path) -> None:
    wanted = signature(image=("float32", ("N", 1, 2, 2)), flag=("bool", ("N",)))
    options = {"inputs": {"image": list("abcd"), "flag": ["f"]}}
    found = take(table(tmp_path, "a,b,c,d,f\n1,2,3,4,true\n", **options), tmp_path, wanted)
    assert found[0].inputs["image"].tolist() == [[[1, 2], [3, 4]]] and found[0].inputs["flag"].tolist() is True


@pytest.mark.parametrize(
    ("text", "options", "place", "words"),
    [
        ("a,b,c\n1,2,3\n1,two,3\n", {}, "d.csv:3", ("'two' in column 'b' is not a finite number",)),
        ("a,b,c\n1,,3\n", {}, "d.csv:2", ("'' in column 'b'",)),
        ("a,b,c\n1,nan,3\n", {}, "d.csv:2", ("'nan' in column 'b' is not a finite number",)),
        ("a,b,c\n1,1e999,3\n", {}, "d.csv:2", ("'1e999'",)),
        ("a,b,c\n1,1_000,3\n", {}, "d.csv:2", ("'1_000'",)),
        ("a,b,c\n1,2\n", {}, "d.csv:2", ("2 cells, and the header has 3", "delimiter")),
        ("a,b,b\n1,2,3\n", {}, "d.csv:1", ("two columns are named 'b'",)),
        ("a,b,c,lable\n1,2,3,4\n", {"label": "label"}, "d.csv:1", ("no column 'label'", "did you mean 'lable'?")),
        ("a,b,c,y\n1,2,3,cat\n", {"label": "y"}, "d.csv:2", ("'cat' in column 'y'",)),
        ("a,b,c\n1,2,3\n", {"inputs": {"y": ["a"]}}, None, ("no input 'y'",)),
        ("a,b,c\n1,2,3\n", {"inputs": {"x": ["a", "b", "d"]}}, "d.csv:1", ("no column 'd'",)),
        ("a,b\n1,2\n", {}, None, ("sample 0", "[2]", "wants [3]")),
        ("a,b,c\n", {}, None, ("holds no samples",)),
        ("", {}, None, ("holds no samples",)),
        ('a,b,c\n1,"2,3\n', {}, "d.csv:2", ("not a CSV file",)),
        (b"a,b,c\n1,2,\xff\n", {}, None, ("not UTF-8",)),
    ],
)
def test_csv_that_is_wrong_names_the_line(
    text: str | bytes, options: dict[str, Any], place: str | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    error = refused(UsageError, table(tmp_path, text, **options), tmp_path, VECTOR, *words)
    assert (str(error.place) if error.place else None) == place


def test_csv_of_whole_numbers_refuses_fractions(tmp_path: Path) -> None:
    options = {"inputs": {"ids": ["a"], "mask": ["b"]}}
    refused(UsageError, table(tmp_path, "a,b\n1.5,1\n", **options), tmp_path, PAIR, "'1.5' in column 'a' is not a whole number")
    refused(UsageError, table(tmp_path, "a,b\n1,99999999999\n", **options), tmp_path, PAIR, "99999999999, which does not fit int32")
    refused(UsageError, table(tmp_path, "a,b\n1,1e400\n", **options), tmp_path, PAIR, "'1e400'")
    refused(UsageError, table(tmp_path, "a,b\n1,1\n"), tmp_path, PAIR, "nothing says which columns feed which", "ids: [COLUMN")


def test_csv_that_is_missing_is_refused(tmp_path: Path) -> None:
    refused(UsageError, make("csv", "d.csv"), tmp_path, VECTOR, "cannot be read")


def test_csv_is_read_row_by_row(tmp_path: Path) -> None:
    walk = samples.walk(table(tmp_path, "a,b,c\n1,2,3\nbroken\n"), tmp_path, VECTOR)
    assert next(walk).inputs["x"].tolist() == [1, 2, 3]
    with pytest.raises(UsageError):
        next(walk)


# ---- python


def code(folder: Path, text: str, **options: Any) -> Dataset:
    (folder / "data.py").write_text("import numpy as np\n" + text)
    return make("python", "data.py:f", **options)


def test_python_yields_samples_with_and_without_labels(tmp_path: Path) -> None:
    source = code(tmp_path, "def f():\n    yield np.ones(3), 4\n    yield {'x': np.zeros(3)}, None\n    yield [1.0, 2.0, 3.0]\n")
    found = take(source, tmp_path, VECTOR)
    assert [one.label for one in found] == [4, None, None] and found[2].inputs["x"].tolist() == [1, 2, 3]


def test_python_takes_arguments_and_the_limit_stops_the_generator(tmp_path: Path) -> None:
    source = code(
        tmp_path,
        "def f(n):\n    for i in range(n):\n        assert i < 2\n        yield np.full(3, float(i))\n",
        arguments={"n": 9},
        samples=2,
    )
    assert [one.inputs["x"][0] for one in take(source, tmp_path, VECTOR)] == [0, 1]


def test_python_may_fill_one_buffer_again_and_again(tmp_path: Path) -> None:
    source = code(tmp_path, "def f():\n    b = np.zeros(3)\n    for i in range(3):\n        b[:] = i\n        yield b\n")
    assert [one.inputs["x"][0] for one in take(source, tmp_path, VECTOR)] == [0, 1, 2]


def test_python_may_return_what_can_be_walked(tmp_path: Path) -> None:
    assert len(take(code(tmp_path, "def f():\n    return np.ones((4, 3))\n"), tmp_path, VECTOR)) == 4
    assert len(take(code(tmp_path, "def f():\n    return [(np.ones(3), 1)] * 5\n"), tmp_path, VECTOR)) == 5


def test_python_is_walked_anew_each_time(tmp_path: Path) -> None:
    source = code(tmp_path, "def f():\n    yield np.ones(3)\n")
    assert len(take(source, tmp_path, VECTOR)) == len(take(source, tmp_path, VECTOR)) == 1


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("def f():\n    return 3\n", None, ("returned a int, not samples", "yield inputs, label")),
        ("def f():\n    np.ones(3)\n", None, ("returned nothing, not samples",)),
        ("def f():\n    return np.ones((4, 3)), np.ones(4)\n", None, ("returned a tuple, not samples",)),
        ("def f():\n    return {'x': np.ones(3)}\n", None, ("returned a dict, not samples",)),
        ("def f():\n    return 'data.npz'\n", None, ("returned a str, not samples",)),
        ("def f():\n    yield np.ones(3), 1, 2\n", None, ("sample 0", "is a tuple of 3")),
        ("def f():\n    yield {'y': np.ones(3)}\n", None, ("no input 'y'",)),
        ("def f():\n    yield None\n", None, ("sample 0", "not numbers")),
        ("def f():\n    yield from ()\n", None, ("holds no samples",)),
        ("def f():\n    yield np.ones(3)\n    yield np.array([1, np.inf, 1])\n", None, ("sample 1", "infinity")),
        ("def f():\n    raise OSError('disk gone')\n    yield\n", 3, ("data: data.py:f: OSError: disk gone",)),
        ("def f():\n    yield np.ones(3)\n    open('/no/such/file')\n", 4, ("FileNotFoundError",)),
        ("def f(n):\n    yield n\n", None, ("missing 1 required positional argument",)),
    ],
)
def test_python_that_is_wrong_is_the_users_to_mend(text: str, line: int | None, words: tuple[str, ...], tmp_path: Path) -> None:
    error = refused(UsageError, code(tmp_path, text), tmp_path, VECTOR, *words)
    assert (error.place.line if error.place else None) == line


def test_python_without_its_package_exits_5(tmp_path: Path) -> None:
    error = refused(MissingError, code(tmp_path, "import no_such_package_of_anyone\ndef f(): ...\n"), tmp_path, VECTOR, "pip install")
    assert error.exit_code == 5


def test_python_lists_all_that_decides_its_samples(tmp_path: Path) -> None:
    source = code(tmp_path, "import augment\ndef f(): ...\n", reads=["a.bin", "more"])
    (tmp_path / "augment.py").write_text("import yaml\n")
    for name in ("a.bin", "more/b.bin", "more/deep/c.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in source.user_files(tmp_path)] == ["data.py", "augment.py", "a.bin", "b.bin", "c.bin"]
    assert [one.lower() for one in source.packages(tmp_path)] == ["numpy", "pyyaml"]


# ---- random


def test_random_data_follow_the_signature_and_repeat(tmp_path: Path) -> None:
    wanted = signature(
        x=("float32", ("N", 3, "T")), h=("float16", (1, 2)), ids=("int64", ("N", "T")), m=("bool", ("N",)), b=("uint8", ("N", 100))
    )
    source = make("random", "normal", sizes={"T": 7}, high=5)
    first, second = take(source, tmp_path, wanted), take(source, tmp_path, wanted)
    assert len(first) == 64
    assert first[0].inputs["x"].shape == (3, 7) and first[0].inputs["ids"].shape == (7,)
    assert {name: array.dtype.name for name, array in first[0].inputs.items()} == {spec.name: spec.dtype for spec in wanted.inputs}
    assert all(
        np.array_equal(one.inputs[name], other.inputs[name]) for one, other in zip(first, second, strict=True) for name in one.inputs
    )
    assert not np.array_equal(first[0].inputs["x"], first[1].inputs["x"])
    assert set(np.concatenate([one.inputs["b"] for one in first])) == set(range(5))
    assert abs(np.mean([one.inputs["x"] for one in first])) < 0.1


def test_random_data_depend_on_seed_and_not_on_count(tmp_path: Path) -> None:
    few, many, other = (take(make("random", "uniform", **o), tmp_path, VECTOR) for o in ({"samples": 2}, {"samples": 3}, {"seed": 1}))
    assert np.array_equal(few[1].inputs["x"], many[1].inputs["x"]) and not np.array_equal(few[1].inputs["x"], other[1].inputs["x"])
    assert all(one.inputs["x"].min() >= 0 and one.inputs["x"].max() < 1 for one in many)


def test_random_data_say_that_they_mean_nothing(tmp_path: Path) -> None:
    assert "nothing about accuracy" in make("random", True).synthetic
    assert make("random", True).source == "normal"
    assert make("npz", "d.npz").synthetic == ""


def test_random_data_need_the_size_of_an_axis_that_may_vary(tmp_path: Path) -> None:
    refused(UsageError, make("random", "normal", sizes={"t": 3}), tmp_path, PAIR, "axis 'T' of input 'ids'", "sizes: {T: 20}")
    refused(UsageError, make("random", "normal", high=1000), tmp_path, signature(b=("uint8", ("N", 3))), "does not fit uint8")
    refused(UsageError, make("random", "normal"), tmp_path, signature(s=("str", ("N",))), "no numbers for")


@pytest.mark.parametrize(
    "options", [{"source": "gauss"}, {"source": False}, {"samples": 0}, {"high": 0}, {"sizes": {"T": 0}}, {"seeds": 1}]
)
def test_random_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        registry.load("datasets", "random").model_validate({"source": "normal", **options})
