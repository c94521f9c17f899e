"""The command line: what it prints where, what it imports, how it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.cli import answer, call
from edgeopt.cli.commands import SECTIONS

COMMANDS = [name for section in SECTIONS.values() for name in section]
EDGEOPT = [sys.executable, "-m", "edgeopt"]
RECIPE = """\
edgeopt: 1
name: tiny
model: {onnx: tiny.onnx}
data:
  evaluate: {random: normal, samples: 16}
scores: [sqnr]
variants:
  fp32: []
  slim: [simplify]
targets: ["null"]
measure: {budget_s: 0.3, precision_percent: 50}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of one convolution and one linear layer, and a recipe for it."""
    place = tmp_path_factory.mktemp("work")
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name)
        for name, shape in {"w": (4, 3, 3, 3), "m": (4, 5)}.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "g", [image], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), place / "tiny.onnx")
    (place / "tiny.yaml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def run_folder(folder: Path, store: Path) -> Path:
    """A finished run of the recipe."""
    shown = command(folder, store, "run", "tiny.yaml", "--output", "out")
    assert shown.returncode == 0, shown.stderr
    return folder / "out"


@pytest.fixture
def here(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEOPT_CACHE", str(store))
    return folder


def environment(store: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**kept, "EDGEOPT_CACHE": str(store), "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", **more}


def command(folder: Path, store: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGEOPT, *arguments], cwd=folder, env=environment(store, **more), capture_output=True, text=True, timeout=120, check=False
    )


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The one JSON document that a command prints."""
    capsys.readouterr()
    code = call([*arguments, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


# What is imported


def modules_after(code: str) -> set[str]:
    show = "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{show}"], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_click_and_nothing_else(arguments: list[str]) -> None:
    found = modules_after(f"from edgeopt.cli import call\ncall({arguments!r})") - modules_after("")
    assert found - set(sys.stdlib_module_names) <= {"click", "edgeopt", "colorama"}


def test_help_names_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    shown = capsys.readouterr().out
    for section, commands in SECTIONS.items():
        assert f"{section}:" in shown
        for name, (_, summary) in commands.items():
            assert f"  {name}" in shown
            assert summary in shown


# How it ends when it is used wrongly


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["pln"], "error: unknown command 'pln', did you mean 'plan'?\n  → edgeopt --help\n"),
        (["passes", "quantise-int8"], "error: unknown pass 'quantise-int8'\n  → did you mean 'quantize-int8'?\n"),
        (["run", "none.yaml"], "error: no such file: none.yaml\n  → check the path; `edgeopt init MODEL` writes a recipe\n"),
        (["measure", "none"], "error: no such folder: none\n  → name a run folder: runs/NAME-latest is the newest one of a recipe\n"),
        (["measure", "tiny.yaml"], "error: tiny.yaml is a recipe, and this command works on a run folder\n"),
        (["report", "."], "error: . is no run folder: it holds no plan.json\n"),
        (["init", "model.tflite"], "error: model.tflite: not a model that edgeopt imports\n"),
        (["inspect", "tiny.yaml"], "error: tiny.yaml: not a kind of file that can be inspected\n"),
        (["bench", "tiny.onnx", "-t", "nul"], "error: unknown target 'nul'\n  → did you mean 'null'? (see `edgeopt targets`)\n"),
        (["bench", "tiny.onnx", "-t", "null", "--size", "T=0"], "error: --size T=0: not a size\n  → write AXIS=N, as T=20\n"),
        (["cache", "prune"], "error: prune needs to be told what to drop\n"),
    ],
)
def test_wrong_use_exits_with_2_a_cause_and_a_remedy(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    assert call(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(error)
    assert "\n  → " in printed.err
    assert printed.out == ""


def test_a_misspelt_option_is_told_with_the_one_that_was_meant(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "tiny.yaml", "--outptu", "x"]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["pln"], ["run", "none.yaml"], ["run"], ["run", "tiny.yaml", "--nonsense"]])
def test_errors_are_json_where_json_was_asked_for(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert call([*arguments, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["exit_code"]) == ("UsageError", 2)
    assert told["cause"] and told["remedy"]


def test_all_problems_of_a_recipe_are_told_and_nothing_is_left_behind(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(RECIPE.replace("sqnr", "sqnrr").replace("simplify", "simplifi") + "oops: 1\n")
    out = tmp_path / "out"
    assert call(["run", str(bad), "--output", str(out)]) == 2
    shown = capsys.readouterr().err
    assert [line for line in shown.splitlines() if line.startswith("error: ")] == [
        f"error: {bad}:6:10: unknown score 'sqnrr'",
        f"error: {bad}:9:10: unknown pass 'simplifi'",
        f"error: {bad}:12:1: unknown key 'oops'",
    ]
    assert shown.endswith("3 problems\n")
    assert not out.exists()
    bad.write_text(RECIPE)  # tiny.onnx is not beside this one
    assert call(["run", str(bad), "--output", str(out)]) == 2
    assert not out.exists()


def test_untrusted_files_exit_with_6(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: !!python/object/apply:os.system [ls]\n")
    assert call(["plan", str(bad)]) == 6
    (tmp_path / "weights.pt").write_bytes(b"x")
    assert call(["inspect", str(tmp_path / "weights.pt")]) == 6


def test_a_full_disk_exits_with_7(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["init", "tiny.onnx", "--output", "/dev/full", "--force"]) == 7
    assert "the disk is full" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", "tiny.yaml", "--output", "tiny.onnx/x"]) == 2
    assert "tiny.onnx" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_exits_with_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("oh")

    monkeypatch.setattr("edgeopt.stages.doctor.doctor", broken)
    assert call(["doctor", "--json"]) == 1
    printed = capsys.readouterr()
    assert "Traceback" in printed.err
    assert "error: this is a bug of edgeopt: ValueError: oh\n  → please report it" in printed.err
    assert json.loads(printed.out)["error"] == "Bug"


# What goes where


def test_a_run_tells_its_steps_on_stderr_and_its_result_on_stdout_without_control_codes(
    folder: Path, run_folder: Path, store: Path
) -> None:
    shown = command(folder, store, "run", "tiny.yaml", "--output", "again", "-v")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout + shown.stderr
    assert "\r" not in shown.stdout + shown.stderr
    assert shown.stderr.splitlines()[:1] == ["build"]
    assert "fp32" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "report: again/report.html"
    quiet = command(folder, store, "run", "tiny.yaml", "--output", "again", "--quiet")
    assert (quiet.stderr, quiet.returncode) == ("", 0)


def test_json_is_one_document_even_when_libraries_print(folder: Path, run_folder: Path, store: Path) -> None:
    shown = command(folder, store, "run", "tiny.yaml", "--output", "again", "--json")
    assert json.loads(shown.stdout) == json.loads((folder / "again/report.json").read_text())
    code = "import os, edgeopt.stages.doctor as d, edgeopt.cli as c\nreal = d.doctor\n"
    code += "d.doctor = lambda: (os.write(1, b'noise\\n'), print('more noise'), real())[2]\nc.main(['doctor', '--json'])"
    noisy = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(store), capture_output=True, text=True, check=False)
    assert json.loads(noisy.stdout)["edgeopt"]
    assert "more noise" in noisy.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(["plan", "tiny.yaml"], ["passes"], ["passes", "simplify"], ["targets"], ["doctor"]),
        *(["cache"], ["cache", "path"], ["cache", "why", "tiny.yaml"], ["inspect", "tiny.onnx"], ["inspect", "out"]),
        *(["build", "out"], ["measure", "out"], ["report", "out"], ["bundle", "out"]),
    ],
    ids=" ".join,
)
def test_every_command_answers_in_words_and_in_json(
    here: Path, run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert answered(capsys, *arguments)
    assert call(arguments) == 0
    assert capsys.readouterr().out.strip()


def on_terminal(folder: Path, store: Path, *arguments: str, **more: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*EDGEOPT, *arguments], cwd=folder, env=environment(store, COLUMNS="80", **more), stdout=child, stderr=child, stdin=child
    )
    os.close(child)
    text = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(parent)
    assert process.wait(60) == 0
    return text.decode()


def test_a_terminal_gets_colours_unless_somebody_says_no(folder: Path, run_folder: Path, store: Path) -> None:
    assert "\x1b[32m" in on_terminal(folder, store, "targets")
    assert "\x1b[" not in on_terminal(folder, store, "targets", NO_COLOR="1")
    assert "\x1b[" not in on_terminal(folder, store, "run", "tiny.yaml", "--output", "again", TERM="dumb")


def test_lines_fit_a_terminal_of_80_columns(folder: Path, run_folder: Path, store: Path) -> None:
    for arguments in (["passes"], ["targets"], ["doctor"], ["plan", "tiny.yaml"], ["passes", "fine-tune"], ["cache"], ["--help"]):
        shown = on_terminal(folder, store, *arguments, NO_COLOR="1")
        assert max(len(line.rstrip("\r")) for line in shown.split("\n")) <= 80, arguments


def test_a_reader_that_stops_reading_is_no_error(folder: Path, store: Path) -> None:
    process = subprocess.Popen(
        [*EDGEOPT, "passes", "--json"], cwd=folder, env=environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    process.stderr.close()


def test_a_locale_without_arrows_is_no_error(folder: Path, store: Path) -> None:
    shown = command(folder, store, "pln", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (2, "error: unknown command 'pln', did you mean 'plan'?\n  ? edgeopt --help\n")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so_in_one_line(folder: Path, store: Path, sent: signal.Signals, code: int, tmp_path: Path) -> None:
    slow = RECIPE.replace("budget_s: 0.3, precision_percent: 50", "budget_s: 60, precision_percent: 0.0001").replace(
        "tiny.onnx", str(folder / "tiny.onnx")
    )
    (tmp_path / "slow.yaml").write_text(slow)
    arguments = [*EDGEOPT, "run", "slow.yaml", "--output", "out", "--json"]
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/build.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "cancelled\n  → run the same command again" in err
    assert json.loads(out)["exit_code"] == code


# What single commands do


def test_ctrl_c_in_code_made_of_a_string_exits_with_130_too() -> None:
    """Python remembers such an interrupt, caught or not, and would end by SIGINT; namedtuples are made by an `exec`."""
    code = """
import edgeopt.cli
from edgeopt.cli.commands import COMMANDS
COMMANDS.invoke = lambda context: exec("raise KeyboardInterrupt")
edgeopt.cli.main(["doctor"])
"""
    shown = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert shown.returncode == 130
    assert shown.stderr.startswith("cancelled\n")


def test_the_exit_code_of_a_run_is_its_reports(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = here / "strict.yaml"
    strict.write_text(RECIPE + "gates:\n  - {size: {max_mb: 0.000001}}\n")
    assert call(["run", "strict.yaml", "--output", str(tmp_path / "out"), "--quiet"]) == 3
    assert "exit 3: " in capsys.readouterr().out


def test_the_stages_go_on_where_the_last_one_stopped(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for arguments in (
        ["plan", "tiny.yaml", "--output", out],
        ["build", out],
        ["measure", f"{out}/plan.json"],
        ["report", out],
        ["bundle", out],
    ):
        assert call([*arguments, "--quiet"] if arguments[0] in ("build", "measure") else arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "out/bundles/null/manifest.json").is_file()
    assert call(["build", "tiny.yaml", "--output", str(tmp_path / "two"), "--quiet"]) == 0
    assert (tmp_path / "two/build.json").is_file()


def test_a_plan_shows_each_rows_steps_and_what_is_in_the_store(here: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", "tiny.yaml"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "tiny: 2 rows, 4 steps, 4 of them in the store (marked ·)"
    assert "  slim  · import-onnx → · simplify → · compile" in shown


def test_cache_why_names_what_is_new_about_a_step(here: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(step["stored"] for step in answered(capsys, "cache", "why", "tiny.yaml"))
    (here / "tuned.yaml").write_text(RECIPE.replace("[simplify]", "[simplify, cast-fp16]"))
    steps = {(step["plug"], step["rows"][0]): step for step in answered(capsys, "cache", "why", "tuned.yaml")}
    assert steps["simplify", "slim on null"]["stored"]
    assert steps["cast-fp16", "slim on null"]["differs"] == ["never made here"]
    assert steps["null", "slim on null"]["differs"] == ["the step before it (cast-fp16) is another"]


def test_cache_why_tells_an_edited_model_from_a_changed_option(
    here: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(here / "tiny.onnx")
    model.doc_string = "edited"
    onnx.save(model, tmp_path / "tiny.onnx")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    first = answered(capsys, "cache", "why", str(tmp_path / "tiny.yaml"))[0]
    assert first["differs"] == ["a file of yours changed"]


def test_cache_is_pruned_as_told(
    here: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "own"))
    assert answered(capsys, "cache")["entries"] == []
    assert call(["run", "tiny.yaml", "--output", str(tmp_path / "out"), "--quiet"]) == 0
    before = answered(capsys, "cache")
    assert before["size_bytes"] > 0
    assert "import-onnx → simplify" in {entry["what"] for entry in before["entries"]}
    assert len(answered(capsys, "cache", "prune", "--all", "--dry-run")["entries"]) == len(before["entries"])
    assert len(answered(capsys, "cache", "prune", "--older-than", "1")["entries"]) == 0
    assert len(answered(capsys, "cache")["entries"]) == len(before["entries"])
    assert len(answered(capsys, "cache", "prune", "--max-gb", "0")["entries"]) == len(before["entries"])
    assert answered(capsys, "cache")["entries"] == []


def test_passes_lists_them_all_and_one_that_cannot_load_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeopt.passes

    monkeypatch.setattr(edgeopt.passes, "TABLE", (*edgeopt.passes.TABLE, "no-such-file"))
    listed = {facts["name"]: facts for facts in answered(capsys, "passes")}
    assert set(listed) == set(edgeopt.passes.TABLE)
    assert not listed["no-such-file"]["usable"]
    assert "No module named" in listed["no-such-file"]["reason"]
    assert listed["simplify"]["summary"].endswith(".")
    assert call(["passes"]) == 0
    assert "cannot be loaded" in capsys.readouterr().out


def test_one_pass_is_explained_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["passes", "fine-tune"]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # a terminal may be of any width
    for words in (
        "epochs",
        "whole number at least 1",
        "adamw or adam or sgd",
        "learning rate at the start",
        "torch",
        "train",
        "tune (if there)",
    ):
        assert words in shown, words


def test_targets_say_whether_they_can_be_used_here(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {one["name"]: one for one in answered(capsys, "targets")}
    assert listed["null"]["usable"]
    assert listed["x86-openvino"]["thread_count"] >= 1


def test_the_doctor_knows_what_is_installed(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    told = answered(capsys, "doctor")
    assert told["machine"]["cores_allowed"] <= told["machine"]["cores_visible"]
    assert {one["name"] for one in told["backends"]} >= {"null", "onnxruntime", "openvino"}
    extras = {one["name"]: one for one in told["extras"]}
    assert extras["onnxruntime"]["usable"]
    assert "onnxruntime" in extras["torch"]["packages"]  # the extra brings the other one along
    assert all(one["remedy"] == f"pip install 'edgeopt[{name}]'" for name, one in extras.items() if not one["usable"])
    assert told["store"]["path"] == str(own_store)


def test_init_writes_a_recipe_that_runs_at_once(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sub folder" / "mine.yaml"
    assert call(["init", "tiny.onnx", "--output", str(path)]) == 0
    assert "image: float32[N, 3, 8, 8]" in path.read_text()
    assert call(["plan", str(path)]) == 0, capsys.readouterr().err
    assert call(["init", "tiny.onnx", "--output", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    path.write_text("mine")
    assert call(["init", "tiny.onnx", "--output", str(path), "--force"]) == 0
    assert path.read_text() != "mine"


def test_init_reads_a_factory_without_running_it(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('run')\ndef build():\n    pass\n")
    model = f"{tmp_path / 'model.py'}:build"
    assert call(["init", model, "--output", str(tmp_path / "r.yaml"), "--input", "ids=int64[N, T]", "--input", "mask=[N,T]"]) == 0
    text = (tmp_path / "r.yaml").read_text()
    assert "factory: model.py:build" in text
    assert "ids: {shape: [N, T], dtype: int64}" in text
    assert "mask: {shape: [N, T], dtype: float32}" in text
    assert "sizes: {T: 16}" in text
    assert call(["init", model.replace("build", "biuld")]) == 2
    assert "did you mean 'build'?" in capsys.readouterr().err


def test_init_prints_where_no_file_is_wanted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeopt.core.places import parse_yaml

    assert call(["init", "tiny.onnx", "--output", "-"]) == 0
    assert parse_yaml(capsys.readouterr().out, "r.yaml").value["model"] == {"onnx": "tiny.onnx"}


def test_bench_times_a_model_without_a_recipe(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "tiny.onnx", "--target", "null", "--batch", "3", "--seconds", "0.3", "--quiet"]
    report = answered(capsys, *arguments, "--output", str(out))
    [row] = report["rows"]
    assert (row["target"], row["status"], report["targets"][0]["batch"]) == ("null-batch3", "measured", 3)
    assert (out / "report.html").is_file()
    before = set(here.iterdir())
    assert call(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("p50 ", "p90 ", "throughput", "load", "first run", "peak memory", "ms [", "batch 3"):
        assert words in shown, words
    assert set(here.iterdir()) == before


def test_bench_asks_for_the_sizes_that_only_the_user_knows(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "g", row[:1], row[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "open.onnx")
    arguments = ["bench", str(tmp_path / "open.onnx"), "-t", "null", "--seconds", "0.2", "--quiet"]
    assert call(arguments) == 2
    assert capsys.readouterr().err == "error: the axis 'T' of input 'x' may vary, and bench has to know its size\n  → --size T=20\n"
    assert call([*arguments, "--size", "T=20"]) == 0
    assert call([*arguments, "--data", "none.npz"]) == 2
    assert capsys.readouterr().err.startswith("error: no such file: ")


def test_inspect_counts_what_is_in_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "inspect", "tiny.onnx")
    assert found["parameters"] == 4 * 3 * 9 + 4 * 5
    assert found["macs"] == 8 * 8 * 4 * 27 + 4 * 5
    assert found["operators"] == {"Conv": 1, "GlobalAveragePool": 1, "Flatten": 1, "MatMul": 1}
    assert found["signature"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    assert found["facts"]["opset"] == {"ai.onnx": 17}


@pytest.mark.parametrize("spoil", [lambda raw: raw[:100], lambda raw: b"", lambda raw: b"not a model at all" * 10, lambda raw: raw[:-40]])
def test_inspect_says_when_a_file_is_no_whole_model(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "m.onnx").write_bytes(spoil((here / "tiny.onnx").read_bytes()))
    assert call(["inspect", str(tmp_path / "m.onnx")]) == 2
    assert re.search("no ONNX model, or is cut off|is empty", capsys.readouterr().err)


def test_names_in_a_model_command_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x\x1b]0;title\x07\x1b[2J", "y")]
    graph = helper.make_graph([helper.make_node("Relu", [ends[0].name], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    for colours in (False, True):
        monkeypatch.setattr(answer, "coloured", lambda stream=None, colours=colours: colours)
        assert call(["inspect", str(tmp_path / "m.onnx")]) == 0
        shown = capsys.readouterr().out
        assert "x]0;title[2J: float32" in shown and "\x07" not in shown and not re.search(r"\x1b(?!\[[\d;]*m)", shown)
    assert call(["inspect", str(tmp_path / "m.onnx"), "--target", "rtx-\x1b[2Jada"]) == 2
    assert "unknown target 'rtx-[2Jada'" in capsys.readouterr().err


def test_inspect_reads_openvino_torch_exports_and_safetensors(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    openvino, torch, safetensors = pytest.importorskip("openvino"), pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    openvino.save_model(openvino.convert_model(here / "tiny.onnx"), tmp_path / "m.xml", compress_to_fp16=False)
    xml = answered(capsys, "inspect", str(tmp_path / "m.xml"))
    assert (xml["stored"]["float32"], xml["operators"]["Convolution"]) == (128, 1)
    assert xml["signature"]["inputs"][0] == {"name": "image", "dtype": "float32", "shape": ["?", 3, 8, 8]}
    module = torch.nn.Linear(4, 2).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 4),)), tmp_path / "m.pt2")
    program = answered(capsys, "inspect", str(tmp_path / "m.pt2"))
    assert (program["parameters"], program["operators"]) == (10, {"aten.linear": 1})
    safetensors.save_file(dict(module.state_dict()), tmp_path / "w.safetensors")
    assert answered(capsys, "inspect", str(tmp_path / "w.safetensors"))["stored"] == {"float32": 10}
    for name in ("m.pt2", "w.safetensors", "m.xml"):
        (tmp_path / name).write_bytes(b"junk")
        assert call(["inspect", str(tmp_path / name)]) == 2


def test_inspect_shows_how_an_artifact_was_made_and_what_a_run_holds(
    here: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = answered(capsys, "inspect", "out/artifacts/null/slim")
    assert [event["step"] for event in made["history"]] == ["import-onnx", "simplify", "null"]
    rows = answered(capsys, "inspect", "out")["rows"]
    assert [(row["variant"], row["status"]) for row in rows] == [("fp32", "measured"), ("slim", "measured")]


def test_shell_completion_is_offered(folder: Path, store: Path) -> None:
    shown = command(folder, store, **{"_EDGEOPT_COMPLETE": "bash_source"})
    assert "_EDGEOPT_COMPLETE=bash_complete" in shown.stdout
    asked = command(folder, store, **{"_EDGEOPT_COMPLETE": "bash_complete", "COMP_WORDS": "edgeopt pl", "COMP_CWORD": "1"})
    assert asked.stdout.split() == ["plain,plan"]
