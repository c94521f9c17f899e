"""Recipes: what is wrong in one is told with its place, in plain words, all at once."""

import re
from pathlib import Path

import pytest

from edgeopt.core import recipe, target
from edgeopt.core.errors import EdgeoptError, RecipeErrors, UsageError
from edgeopt.core.places import parse_yaml
from edgeopt.core.recipe import Recipe

GOOD = """\
edgeopt: 1
name: demo
model:
  onnx: model.onnx
data:
  evaluate: {random: normal, samples: 8}
scores: [top1]
variants:
  fp32: []
  tuned: [fine-tune]
targets: ["null"]
gates:
  - {score: top1, max_drop: 0.01}
"""
TORCH = "torch: {factory: m.py:build, inputs: {x: {shape: [N, 4]}}}"

# Words of pydantic that nobody should have to read.
JARGON = re.compile(
    r"valid (dictionary|integer|string|list|boolean|number)|instance of|unable to parse|Input should|input should|NoneType|ctx|\bNone\b"
)


def check(text: str, base: Path = Path()) -> Recipe:
    return recipe.check(parse_yaml(text, "r.yaml"), base)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def told(text: str, base: Path = Path()) -> list[EdgeoptError]:
    """The problems of a recipe; every one has a place, a cause, a remedy and no jargon."""
    with pytest.raises(EdgeoptError) as caught:
        check(text, base)
    problems = getattr(caught.value, "problems", [caught.value])
    for problem in problems:
        assert problem.place, problem
        assert problem.place.file == "r.yaml"
        assert problem.remedy, problem
        assert not JARGON.search(str(problem)), problem
        assert "\n" not in problem.cause, problem
    return problems


def only(text: str, base: Path = Path()) -> tuple[str, str]:
    """The one problem of a recipe: `line:column: cause`, and the remedy."""
    problems = told(text, base)
    assert len(problems) == 1, list(map(str, problems))
    [problem] = problems
    return f"{problem.place}: {problem.cause}".removeprefix("r.yaml:"), problem.remedy


def test_a_good_recipe_is_read() -> None:
    read = check(GOOD)
    assert (read.name, read.reference_name, [use.target.name for use in read.uses]) == ("demo", "fp32", ["null"])
    assert read.data.evaluate.options == {"source": "normal", "samples": 8}


@pytest.mark.parametrize(
    ("old", "new", "place", "remedy"),
    [
        ("gates:", "gatess:", "12:1", "did you mean 'gates'?"),
        ("onnx: model.onnx", "onnx: model.onnx\n  ony: 3", "5:3", "known here: keras, onnx, pt2, torch"),
        ("onnx: model.onnx", "onnx: {file: m.onnx, pakage: x}", "4:24", "did you mean 'package'?"),
        ("onnx: model.onnx", TORCH.replace("inputs: ", "wieghts: w, inputs: "), "4:32", "did you mean 'weights'?"),
        ("onnx: model.onnx", TORCH.replace("shape: [N, 4]", "shape: [N, 4], dtyp: int8"), "4:60", "did you mean 'dtype'?"),
        ("onnx: model.onnx", TORCH.replace("inputs: ", "weights: {file: w, kee: k}, inputs: "), "4:51", "did you mean 'key'?"),
        ("evaluate: {", "evalute: {random: normal}\n  evaluate: {", "6:3", "did you mean 'evaluate'?"),
        ("samples: 8", "sampels: 8", "6:30", "did you mean 'samples'?"),
        ("[top1]", "[{top1: {outptu: y}}]", "7:18", "did you mean 'output'?"),
        ("[fine-tune]", "[{fine-tune: {epoch: 3}}]", "10:24", "did you mean 'epochs'?"),
        ("[fine-tune]", "[{execute-bf16: {level: 3}}]", "10:27", "nothing can be set here: remove it"),
        ("max_drop:", "max_dropp:", "13:19", "did you mean 'max_drop'?"),
        ("{score: top1, max_drop: 0.01}", "{speedup: {mn: 1.5}}", "13:16", "did you mean 'min'?"),
        ('["null"]', "[{extends: x86-openvino, thread: 1}]", "11:35", "did you mean 'threads'?"),
        ('["null"]', "[{extends: x86-openvino, options: {fo: 1}}]", "11:45", None),
        ('["null"]', "[{x86-openvino: {nead: built}}]", "11:27", "known here: need; to change a field write {extends: NAME, field: value}"),
        ("name: demo", "name: demo\nmeasure: {budget: 3}", "3:11", "did you mean 'budget_s'?"),
    ],
)
def test_an_unknown_key_is_an_error_at_every_depth(old: str, new: str, place: str, remedy: str | None) -> None:
    found = told(changed(old, new))
    unknown = [problem for problem in found if problem.cause.startswith("unknown key")]
    assert [f"{problem.place}" for problem in unknown] == [f"r.yaml:{place}"]
    assert remedy in (None, unknown[0].remedy)
    # Besides: the key that was meant is not told to be missing as well.
    assert not any("is missing" in problem.cause for problem in found)


@pytest.mark.parametrize(
    ("old", "new", "head", "remedy"),
    [
        ("fine-tune", "fine-tun", "10:11: unknown pass 'fine-tun'", "did you mean 'fine-tune'?"),
        ("[top1]", "[top11]", "7:10: unknown score 'top11'", "did you mean 'top1'?"),
        ("random: normal", "randm: normal", "6:14: unknown dataset 'randm'", "did you mean 'random'?"),
        ('"null"', "x86-opnvino", "11:11: unknown target 'x86-opnvino'", "did you mean 'x86-openvino'? (see `edgeopt targets`)"),
        ('"null"', "{extends: x86-opnvino}", "11:12: unknown target 'x86-opnvino'", "did you mean 'x86-openvino'? (see `edgeopt targets`)"),
        ('"null"', "mine.yaml", "11:11: no such file: mine.yaml", "check the path: it is relative to the recipe's folder"),
        ("score: top1,", "score: top2,", "13:6: no score is named 'top2' in this recipe", "did you mean 'top1'?"),
        ("0.01}", "0.01, targets: [nul]}", "13:45: no target is named 'nul' in this recipe", "did you mean 'null'?"),
        ("0.01}", "0.01, variants: [tned]}", "13:46: no variant is named 'tned' in this recipe", "did you mean 'tuned'?"),
        ("name: demo", "name: demo\nreference: fp23", "3:1: no variant is named 'fp23' in this recipe", "did you mean 'fp32'?"),
    ],
)
def test_an_unknown_name_is_told_where_it_stands_and_what_was_meant(old: str, new: str, head: str, remedy: str) -> None:
    assert only(changed(old, new)) == (head, remedy)


@pytest.mark.parametrize(
    ("old", "new", "head", "remedy"),
    [
        # numbers, dates and truths where text is wanted
        ("name: demo", "name: 5", "2:1: name should be text, not 5", 'put quotes around it: "5"'),
        ("name: demo", "name: no", "2:1: name should be text, not no", 'put quotes around it: "no"'),
        ("name: demo", "name:", "2:1: name has no value, and should be text", "give it a value, or remove the key"),
        ("0.01}", "0.01, variants: [8]}", "13:46: gates[0].variants[0] should be text, not 8", 'put quotes around it: "8"'),
        # text where something else is wanted
        ("0.01", "small", "13:19: gates[0].max_drop should be a number, not 'small'", "write it plainly, without quotes or a unit"),
        ("0.01", "-1", "13:19: gates[0].max_drop should be at least 0, not -1", "choose a value in that range"),
        ("[top1]", "top1", "7:1: scores should be a list, not 'top1'", "write [top1]"),
        ("[fine-tune]", "fine-tune", "10:3: variants.tuned should be a list, not 'fine-tune'", "write [fine-tune]"),
        ('["null"]', "x86-openvino", "11:1: targets should be a list, not 'x86-openvino'", "write [x86-openvino]"),
        ('["null"]', "[]", "11:1: targets should have at least 1 entry", "add one"),
        ("[top1]", "", "7:1: scores has no value, and should be a list", "give it a value, or remove the key: [] is an empty list"),
        (
            "{score: top1, max_drop: 0.01}",
            "{speedup: 1.5}",
            "13:6: gates[0].speedup should be a mapping (key: value), not 1.5",
            "write {min: 1.5}",
        ),
        (
            "model:\n  onnx: model.onnx",
            "model: m.onnx",
            "3:1: model should be a mapping (key: value), not 'm.onnx'",
            "its keys: torch, onnx, pt2, keras",
        ),
        # choices
        (
            "name: demo",
            "name: demo\npick: latenzy",
            "3:1: pick should be latency, throughput or size, not 'latenzy'",
            "did you mean 'latency'?",
        ),
        ("name: demo", "name: demo\npick: price", "3:1: pick should be latency, throughput or size, not 'price'", "choose one of these"),
        (
            '"null"',
            "{extends: x86-openvino, threads: many}",
            "11:35: threads should be auto or a whole number, not 'many'",
            "write auto or a whole number",
        ),
        ('"null"', "{extends: x86-openvino, batch: -1}", "11:35: batch should be above 0, not -1", "choose a value in that range"),
        (
            "random: normal",
            "random: gauss",
            "6:14: data.evaluate.random should be normal or uniform, not 'gauss'",
            "choose one of these",
        ),
        (
            "[fine-tune]",
            "[{fine-tune: {epochs: 0}}]",
            "10:24: variants.tuned[0].fine-tune.epochs should be at least 1, not 0",
            "choose a value in that range",
        ),
        (
            "[fine-tune]",
            "[{quantize-int8: {engine: modelopt}}]",
            "10:28: variants.tuned[0].quantize-int8.engine: modelopt quantizes torch models, and these are exported already",
            "write `train-int8: {epochs: 0}` instead",
        ),
        (
            "onnx: model.onnx",
            TORCH.replace("4]", "-4]"),
            "4:56: model.torch.inputs.x.shape[1] should be above 0, not -4",
            "choose a value in that range",
        ),
        # names that become files
        (
            "tuned:",
            "../tuned:",
            "10:3: variants.../tuned should be a name of letters, digits, '.', '_' and '-' that begins with a letter or digit",
            "rename it",
        ),
        (
            "name: demo",
            "name: my demo",
            "2:1: name should be a name of letters, digits, '.', '_' and '-' that begins with a letter or digit, not 'my demo'",
            "rename it",
        ),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(old: str, new: str, head: str, remedy: str) -> None:
    assert only(changed(old, new)) == (head, remedy)


@pytest.mark.parametrize(
    ("passes", "head"),
    [
        ("[5]", "variants.tuned[0]: 5 is no name"),
        ("[null]", "variants.tuned[0]: nothing is no name"),
        ("[[simplify]]", "variants.tuned[0]: a list is no name"),
        ("[{simplify: {}, fine-tune: {}}]", "variants.tuned[0]: simplify, fine-tune stand in one entry"),
        ("[{fine-tune: 5}]", "5 is no mapping of options"),
        ("[{fine-tune: [a]}]", "a list is no mapping of options"),
    ],
)
def test_a_pass_is_a_name_or_a_name_with_options(passes: str, head: str) -> None:
    assert only(changed("[fine-tune]", passes))[0].split(": ", 1)[1] == head


@pytest.mark.parametrize(
    ("entry", "cause", "remedy"),
    [
        ("null", "null is no target", 'the name needs quotes: "null"'),
        ("5", "5 is no target", 'the name needs quotes: "5"'),
        ("{x86-openvino: built}", "a mapping is no target", "write a name, a file, {NAME: {need: built}} or {extends: NAME, threads: 1}"),
        ("{x86-openvino: {need: buildt}}", "need should be measured or built or bundled, not buildt", "did you mean 'built'?"),
        ("{extends: x86-openvino, need: 3}", "need should be measured or built or bundled, not 3", "known here: built, bundled, measured"),
    ],
)
def test_what_is_no_target_is_told(entry: str, cause: str, remedy: str) -> None:
    head, given = only(changed('"null"', entry))
    assert (head.split(": ", 1)[1], given) == (cause, remedy)


def test_a_target_that_stands_twice_is_told_at_the_second() -> None:
    head, _ = only(changed('["null"]', '["null", {"null": {need: built}}]'))
    assert head == "11:19: the target 'null' stands here twice"


def test_inline_targets_get_a_name_of_their_own_and_their_need() -> None:
    read = check(changed('["null"]', "[x86-openvino, {extends: x86-openvino, threads: 1}, {x86-onnxruntime: {need: built}}]"))
    assert [(use.target.name, use.need) for use in read.uses] == [
        ("x86-openvino", "measured"),
        ("x86-openvino-threads1", "measured"),
        ("x86-onnxruntime", "built"),
    ]
    assert read.uses[1].target.thread_count == 1


def test_a_list_of_batches_is_a_target_for_each() -> None:
    read = check(
        changed('["null"]', "[{extends: x86-openvino, batch: [1, 8], need: built}, {extends: x86-openvino, name: mine, batch: [4]}]")
    )
    assert [(use.target.name, use.target.batch, use.need) for use in read.uses] == [
        ("x86-openvino-batch1", 1, "built"), ("x86-openvino-batch8", 8, "built"), ("mine-batch4", 4, "measured"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{extends: x86-openvino, batch: []}", "batch: a sweep needs a target and batches"),
        ("{extends: x86-openvino, batch: [1, 1]}", "the target 'x86-openvino-batch1' stands here twice"),
        ("{extends: x86-openvino, batch: [1, 0]}", "batch should be above 0, not 0"),
    ],
)
def test_a_sweep_that_makes_no_sense(written: str, told: str) -> None:
    with pytest.raises(EdgeoptError, match=told):
        check(changed('["null"]', f"[{written}]"))


def test_a_target_compiled_on_the_device_has_to_be_bundled_unless_said_otherwise() -> None:
    read = check(
        changed('["null"]', "[{extends: x86-openvino, compile_on: device}, {extends: x86-onnxruntime, compile_on: device, need: built}]")
    )
    assert [use.need for use in read.uses] == ["bundled", "built"]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("{score: top1, max_drop: 0.01, latency: p90, max_ms: 3}", "judges exactly one of"),
        ("{max_drop: 0.01}", "judges exactly one of"),
        ("{}", "judges exactly one of"),
        ("{score: top1}", "exactly one of max_drop, min, max"),
        ("{score: top1, min: 0.9, max: 1}", "exactly one of max_drop, min, max"),
        ("{size: {max_mb: 3}, min: 1}", "exactly one of max_drop, min, max"),
        ("{latency: p90}", "a percentile and max_ms"),
        ("{size: {max_mb: 3}, max_ms: 3}", "a percentile and max_ms"),
    ],
)
def test_a_gate_is_one_demand(gate: str, words: str) -> None:
    head, _ = only(changed("{score: top1, max_drop: 0.01}", gate))
    assert head.startswith("13:5: gates[0]: ")
    assert words in head


def test_everything_that_is_wrong_is_told_at_once_in_the_files_order() -> None:
    text = GOOD.replace("edgeopt: 1", "edgeopt: 2").replace("name: demo", "nam: demo").replace("[top1]", "[top11]")
    text = text.replace("fine-tune", "fine-tun").replace('"null"', "x86-opnvino").replace("0.01", "much")
    assert [f"{problem.place}: {problem.cause}" for problem in told(text)] == [
        "r.yaml:1:1: the file is written in format 2, this edgeopt reads 1",
        "r.yaml:2:1: unknown key 'nam'",
        "r.yaml:7:10: unknown score 'top11'",
        "r.yaml:10:11: unknown pass 'fine-tun'",
        "r.yaml:11:11: unknown target 'x86-opnvino'",
        "r.yaml:13:19: gates[0].max_drop should be a number, not 'much'",
    ]


@pytest.mark.parametrize("key", ["edgeopt", "name", "model", "data", "variants", "targets"])
def test_a_key_that_is_missing_is_named(key: str) -> None:
    lines = GOOD.splitlines(keepends=True)
    start = next(index for index, line in enumerate(lines) if line.startswith(key + ":"))
    end = next((index for index in range(start + 1, len(lines)) if not lines[index].startswith(" ")), len(lines))
    problems = told("".join(lines[:start] + lines[end:]))
    assert f"'{key}' is missing in the file" in [problem.cause for problem in problems]


def test_a_missing_key_of_a_part_says_what_it_is() -> None:
    head, remedy = only(changed("evaluate:", "tune:"))
    assert head == "5:1: 'evaluate' is missing in data"
    assert remedy == "add `evaluate: …` (scored once, at the end; shares no sample with the others)"


def test_the_version_in_quotes_is_no_version() -> None:
    assert only(changed("edgeopt: 1", "edgeopt: '1'")) == ("1:1: edgeopt should be 1, not '1'", "write it without quotes")


def test_variants_without_passes_may_be_null_and_names_may_look_like_numbers() -> None:
    read = check(changed("fp32: []", "8:").replace("tuned: [fine-tune]", "on: [{fine-tune: }]"))
    assert read.all_variants["8"] == []
    assert [use.name for use in read.all_variants["on"]] == ["fine-tune"]


def test_a_reference_is_added_when_every_variant_has_passes() -> None:
    read = check(changed("  fp32: []\n", ""))
    assert list(read.all_variants) == ["reference", "tuned"]


def test_two_scores_of_one_name_need_labels() -> None:
    head, remedy = only(changed("[top1]", "[top1, top1]"))
    assert (head, "label" in remedy) == ("7:16: two scores are named 'top1'", True)
    assert [recipe.Recipe.score_label(check(GOOD), use) for use in check(changed("[top1]", "[top1, {top1: {label: b}}]")).scores] == [
        "top1",
        "b",
    ]


def test_a_misspelt_score_is_not_told_again_for_its_gate() -> None:
    assert only(changed("[top1]", "[tpo1]"))[0] == "7:10: unknown score 'tpo1'"


@pytest.mark.parametrize("text", ["[a, b]\n", "hello\n", "5\n"])
def test_a_file_that_is_no_mapping_is_told_which_keys_it_has(text: str) -> None:
    head, remedy = only(text)
    assert head.startswith("1:1: the file should be a mapping (key: value), not ")
    assert remedy.startswith("its keys: edgeopt, name, model, data")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (changed("name: demo", "name: !!python/name:os.system x"), 6),
        (
            "\n".join(
                ["a: &a [x,x,x,x,x,x,x,x,x]"]
                + [f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)]
            ),
            6,
        ),
        ("x: " * 1 + "[" * 300 + "]" * 300, 6),
        (GOOD + "seed: .inf\n", 2),
        (GOOD + f"seed: {'9' * 5000}\n", 2),
        (changed("  onnx", "\tonnx"), 2),
    ],
)
def test_hostile_yaml_ends_with_its_exit_code(text: str, code: int) -> None:
    with pytest.raises(EdgeoptError) as caught:
        check(text)
    assert caught.value.exit_code == code


def test_a_recipe_is_read_from_folders_with_spaces_and_umlauts_and_windows_line_ends(tmp_path: Path) -> None:
    folder = tmp_path / "möbel & co"
    folder.mkdir()
    path = folder / "mein rezept.yaml"
    path.write_bytes(GOOD.replace("model.onnx", "Größe 1/模型.onnx").replace("\n", "\r\n").encode())
    read = recipe.load(path)
    assert read.model.onnx is not None
    assert (read.base, read.model.onnx.file) == (folder, "Größe 1/模型.onnx")
    path.write_bytes((GOOD + "größe: 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(RecipeErrors) as caught:
        recipe.load(path)
    assert str(caught.value.problems[0].place) == f"{path}:14:1"


def test_a_target_file_beside_the_recipe_is_read_and_checked(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("edgeopt_target: 1\nname: mine\nbackend: 'null'\nthreads: 3\n")
    assert check(changed('"null"', "mine.yaml"), tmp_path).uses[0].target.thread_count == 3
    (tmp_path / "mine.yaml").write_text("edgeopt_target: 1\nname: mine\nbackend: nul\nthreds: 3\n")
    with pytest.raises(RecipeErrors) as caught:
        check(changed('"null"', "mine.yaml"), tmp_path)
    assert str(caught.value) == "mine.yaml:4:1: unknown key 'threds'\n  → did you mean 'threads'?"
    (tmp_path / "mine.yaml").write_text("edgeopt_target: 1\nname: mine\nbackend: nul\n")
    with pytest.raises(RecipeErrors, match=r"mine.yaml:3:1: unknown backend 'nul'"):
        check(changed('"null"', "mine.yaml"), tmp_path)


def test_every_shipped_target_is_read() -> None:
    for name in target.shipped():
        assert target.load(name, Path()).name == name


def test_a_source_is_given_once() -> None:
    head, _ = only(changed("random: normal", "random: normal, source: x"))
    assert head == "6:3: data.evaluate: 'source' stands beside random, which is the source"


def test_a_missing_recipe_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recipe.load(tmp_path / "none.yaml")
    assert "edgeopt init" in caught.value.remedy


def test_the_digest_is_of_what_the_recipe_says_not_of_how_it_is_written() -> None:
    assert check(GOOD).digest == check(GOOD + "# a comment\npick:   latency\n").digest
    assert check(GOOD).digest != check(GOOD + "pick: size\n").digest
