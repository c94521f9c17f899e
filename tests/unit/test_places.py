"""YAML with places: what is read, what is refused, and where the error points."""

from pathlib import Path

import pytest

from edgeopt.core.errors import EdgeoptError, RecipeErrors, UntrustedError, UsageError
from edgeopt.core.places import MAX_BYTES, parse_yaml, read_yaml


def told(text: str) -> EdgeoptError:
    with pytest.raises(EdgeoptError) as caught:
        parse_yaml(text, "r.yaml")
    return caught.value


def test_a_document_knows_where_keys_and_items_stand() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - {c: 2}\n", "r.yaml")
    assert document.value == {"a": 1, "b": ["x", {"c": 2}]}
    assert str(document.place(("b", 1, "c"))) == "r.yaml:4:6"
    assert str(document.place(("b", 1, "missing"))) == "r.yaml:4:5"
    assert str(document.place(("nowhere",))) == "r.yaml:1:1"


def test_a_part_of_a_document_keeps_its_places() -> None:
    document = parse_yaml("targets:\n  - {extends: a, threads: no}\n", "r.yaml")
    part = document.below(("targets", 0), document.value["targets"][0])
    assert str(part.place(("threads",))) == "r.yaml:2:18"
    assert part.written[("threads",)] == "no"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_windows_line_ends_and_a_byte_order_mark_change_nothing(newline: str) -> None:
    document = parse_yaml("\ufeff" + newline.join(["a: 1", "grüße: [ü, 'x y']", ""]), "r.yaml")
    assert document.value == {"a": 1, "grüße": ["ü", "x y"]}
    assert str(document.place(("grüße",))) == "r.yaml:2:1"


def test_surprises_of_yaml_1_1_stay_text() -> None:
    value = parse_yaml("a: 2024-01-01\nb: 1:30\nc: 010\nd: 2024-99-99\ne: 0\nf: 0.5\n5: x\non: y\n", "r.yaml").value
    assert value == {"a": "2024-01-01", "b": "1:30", "c": "010", "d": "2024-99-99", "e": 0, "f": 0.5, "5": "x", "on": "y"}


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
        ("a: !!python/name:os.system x", "!!python/name:os.system"),
        ("!!python/tuple [1]", "!!python/tuple"),
        ("a: !mine x", "!mine"),
        ("a: !!binary aGVsbG8=", "!!binary"),
        ("a: !!set {x, y}", "!!set"),
        ("a: !<tag:example.org,2000:x> y", "tag:example.org,2000:x"),
        ("!!python/name:os.system k: 1", "!!python/name:os.system"),
    ],
)
def test_tags_are_refused_as_untrusted(text: str, tag: str) -> None:
    error = told(text)
    assert isinstance(error, UntrustedError)
    assert error.exit_code == 6
    assert tag in error.cause


def test_an_alias_bomb_is_refused_before_it_expands() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{this}: &{this} [{', '.join(['*' + last] * 9)}]" for last, this in zip("abcdefgh", "bcdefghi", strict=True)]
    error = told("\n".join(lines))
    assert (error.exit_code, error.remedy) == (6, "remove the aliases that multiply it")


def test_an_alias_that_holds_itself_is_refused() -> None:
    assert told("a: &x [*x]").exit_code == 6


@pytest.mark.parametrize("text", ["a: " + "[" * 200 + "]" * 200, "[" * 100_000, "\n".join("  " * depth + "a:" for depth in range(1500))])
def test_deep_nesting_is_refused(text: str) -> None:
    error = told(text)
    assert error.exit_code == 6
    assert "deep" in error.cause


def test_a_plain_alias_is_read() -> None:
    assert parse_yaml("a: &x [1]\nb: *x\n", "r.yaml").value == {"a": [1], "b": [1]}


def test_a_file_over_a_megabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# " + "x" * MAX_BYTES)
    with pytest.raises(UntrustedError, match=r"1,000,002 bytes"):
        read_yaml(path)


def test_bytes_that_are_no_utf_8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}:2: not UTF-8 text\n  → save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "r.yaml:1:1", "the file is empty"),
        ("# only a comment\n", "r.yaml:1:1", "the file is empty"),
        ("null\n", "r.yaml:1:1", "the file is empty"),
        ("a:\n\tb: 1\n", "r.yaml:2:1", "indent with spaces"),
        ("a: b: c\n", "r.yaml:1:5", "needs quotes"),
        ("x: 1\na: [1, 2\nb: 3\n", "r.yaml:2:4", "close it"),
        ("a: 'x\nb: 1\n", "r.yaml:1:4", "close the quotes"),
        ("a: *x\n", "r.yaml:1:4", "begins with *"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1", "keep one document"),
        ("a: @x\n", "r.yaml:1:4", "needs quotes"),
        ("a: 1\nb: x\x07\n", "r.yaml:2", "U+0007"),
        ("a: !!int x\n", "r.yaml:1:4", "'x' is no int"),
    ],
)
def test_syntax_errors_point_at_the_place_and_say_what_to_do(text: str, place: str, words: str) -> None:
    error = told(text)
    assert error.exit_code == 2
    assert str(error).startswith(place + ": ")
    assert words in str(error)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400", "9" * 5000])
def test_numbers_that_no_figure_can_have_are_refused(number: str) -> None:
    assert told(f"a: {number if number != '1e400' else '1.0e+400'}\n").exit_code == 2


def test_every_duplicate_merge_and_odd_key_is_told_at_once() -> None:
    error = told("a: 1\na: 2\nb:\n  <<: {c: 1}\n  ? [x]\n  : 1\n  d: 1\n  d: 2\n")
    assert isinstance(error, RecipeErrors)
    assert [str(problem).split("\n")[0] for problem in error.problems] == [
        "r.yaml:2:1: 'a' is given twice",
        "r.yaml:4:3: merge keys (<<) are not supported",
        "r.yaml:5:5: a key must be a plain word",
        "r.yaml:8:3: 'd' is given twice",
    ]


def test_missing_files_folders_and_impossible_names_are_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "a\x00b")
