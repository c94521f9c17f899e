"""Two reports held against each other: verdicts, refusals, exit codes, and how pipelines are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import edgeopt
from edgeopt.cli import call
from edgeopt.core.comparison import Change, Comparison
from edgeopt.core.errors import IncomparableError, UsageError
from edgeopt.core.report import Report, Row
from edgeopt.core.session import Speedup
from edgeopt.stages import changes, findings, github, gitlab, markdown
from edgeopt.stages.compare import compare
from tests import walks
from tests.unit import reports

Edit = Callable[[Row], dict[str, Any]]


def edited(report: Report, edit: Edit) -> Report:
    return report.model_copy(update={"rows": [row.model_copy(update=edit(row)) for row in report.rows]})


def written(folder: Path, report: Report) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder)
    return folder


def compared(tmp_path: Path, new: Report, old: Report | None = None, **options: Any) -> Comparison:
    return compare(written(tmp_path / "old", old or reports.plain()), written(tmp_path / "new", new), **options)


def slower(factor: float, spread: float = 0.008) -> Edit:
    return lambda row: {"latency_ms": reports.latency(row.latency_ms.p50 * factor, spread)} if row.latency_ms else {}


def change(found: Comparison, figure: str, variant: str = "int8", target: str = "x86-openvino") -> Change:
    [row] = [row for row in found.rows if (row.variant, row.target) == (variant, target)]
    [one] = [one for one in row.changes if one.figure == figure]
    return one


def verdicts(found: Comparison, figure: str) -> set[str]:
    return {one.verdict for row in found.rows for one in row.changes if one.figure == figure}


# ---- verdicts


def test_a_report_against_itself_is_the_same_throughout(tmp_path: Path) -> None:
    found = compared(tmp_path, reports.plain(), fail_on=["score", "latency", "speedup", "size", "memory"])
    assert {one.verdict for row in found.rows for one in row.changes if row.variant != "bf16"} == {"same"}
    assert found.exit_code == 0 and not found.differences and change(found, "latency").change == 0


@pytest.mark.parametrize(("factor", "verdict"), [(1.10, "worse"), (0.90, "better"), (1.01, "same"), (0.995, "same")])
def test_latency_is_judged_beyond_both_intervals(tmp_path: Path, factor: float, verdict: str) -> None:
    found = compared(tmp_path, edited(reports.plain(), slower(factor)))
    one = change(found, "latency")
    assert one.verdict == verdict and one.change == pytest.approx(factor - 1)
    assert one.ci95 is not None and one.ci95[0] < factor - 1 < one.ci95[1]


def test_what_two_copies_read_apart_is_allowed_for(tmp_path: Path) -> None:
    calm, restless = reports.plain(), reports.plain()
    restless = restless.model_copy(update={"targets": [one.model_copy(update={"noise_percent": 8.0}) for one in restless.targets]})
    assert change(compared(tmp_path / "calm", edited(calm, slower(1.06))), "latency").verdict == "worse"
    assert change(compared(tmp_path / "restless", edited(restless, slower(1.06))), "latency").verdict == "same"


def test_what_unchanged_artifacts_read_apart_is_the_machines(tmp_path: Path) -> None:
    runtime: Edit = lambda row: {"runtime": "openvino 2026.4"}  # noqa: E731
    old, new = edited(reports.plain(), runtime), edited(edited(reports.plain(), slower(1.2)), runtime)
    found = compared(tmp_path, new, old)
    assert verdicts(found, "latency") == {"same"}
    assert any("20.0 % apart" in note for note in found.notes)
    upgraded = compared(tmp_path, edited(new, lambda row: {"runtime": "openvino 2027.0"}), old)
    assert verdicts(upgraded, "latency") == {"worse"}
    assert "another runtime: openvino 2026.4 → openvino 2027.0" in upgraded.notes


def test_many_rows_widen_the_intervals(tmp_path: Path) -> None:
    few = reports.plain().model_copy(update={"rows": [row for row in reports.plain().rows if row.variant == "int8"][:1]})
    alone, among = (compared(tmp_path / name, edited(one, slower(1.03)), one) for name, one in (("few", few), ("all", reports.plain())))
    one, many = change(alone, "latency"), change(among, "latency")
    assert one.ci95 and many.ci95 and many.ci95[0] < one.ci95[0] < one.ci95[1] < many.ci95[1]


def test_an_unstable_session_proves_nothing(tmp_path: Path) -> None:
    new = edited(edited(reports.plain(), slower(1.5)), lambda row: {"flags": ["unstable"]})
    one = change(compared(tmp_path, new, fail_on=["latency"]), "latency")
    assert one.verdict == "not comparable" and "new session is flagged unstable" in (one.reason or "")


def test_speedup_throughput_size_and_memory(tmp_path: Path) -> None:
    def edit(row: Row) -> dict[str, Any]:
        artifact = row.artifact and row.artifact.model_copy(update={"size_bytes": row.artifact.size_bytes + 1})
        gain = row.speedup and Speedup(
            value=row.speedup.value / 2, ci95=(row.speedup.value / 2.05, row.speedup.value / 1.95), verdict="faster"
        )
        return {"artifact": artifact, "speedup": gain, "peak_rss_mb": (row.peak_rss_mb or 0) * 0.9}

    found = compared(tmp_path, edited(reports.plain(), edit))
    assert change(found, "size").verdict == "worse" and change(found, "speedup").verdict == "worse"
    assert change(found, "memory").verdict == "better"
    assert (
        change(compared(tmp_path, edited(reports.plain(), lambda row: {"peak_rss_mb": 1.04 * (row.peak_rss_mb or 0)})), "memory").verdict
        == "same"
    )
    rate = reports.troubled()
    halved = compared(
        tmp_path,
        edited(rate, lambda row: {"throughput_per_s": 50.0, "throughput_ci95": (49.0, 51.0), "flags": []}),
        edited(rate, lambda row: {"flags": []}),
    )
    one = change(halved, "throughput", "int8", "x86-openvino-throughput")
    assert one.verdict == "worse" and one.higher_is_better and one.unit == "per s"


def test_scores_are_compared_by_their_intervals_where_the_samples_are_not_here(tmp_path: Path) -> None:
    def fallen(by: float) -> Edit:
        return lambda row: {"scores": reports.scores(row.scores["top1"].value - by)} if row.scores else {}

    big, small = compared(tmp_path, edited(reports.plain(), fallen(0.05))), compared(tmp_path, edited(reports.plain(), fallen(0.004)))
    assert change(big, "top1").verdict == "worse" and change(big, "top1").change == pytest.approx(-0.05)
    assert change(small, "top1").verdict == "same" and not change(small, "top1").paired
    assert change(big, "sqnr").verdict == "worse"


def test_rows_on_one_side_and_failed_rows_are_told(tmp_path: Path) -> None:
    new = reports.plain()
    rows = [row.model_copy(update={"variant": "int4"}) if row.variant == "fp16" else row for row in new.rows]
    broken = {
        "status": "failed",
        "reason": "NaN\nmore",
        "latency_ms": None,
        "speedup": None,
        "scores": {},
        "peak_rss_mb": None,
        "artifact": None,
    }
    rows = [row.model_copy(update=broken) if row.variant == "int8" else row for row in rows]
    found = compared(tmp_path, new.model_copy(update={"rows": rows}), fail_on=["latency"])
    assert {(row.variant, row.found) for row in found.rows} >= {("int4", "new"), ("fp16", "old"), ("int8", "both")}
    assert change(found, "latency").reason == "failed in the new run: NaN"
    assert found.exit_code == 4 and "not comparable" in found.exit_reasons[0]
    assert "2 rows only in the old report" in changes.tally(found) and "only in the new report" in changes.markdown(found)


def test_nothing_in_common_is_inconclusive(tmp_path: Path) -> None:
    new = reports.plain()
    found = compared(tmp_path, new.model_copy(update={"rows": [row.model_copy(update={"variant": f"x{row.variant}"}) for row in new.rows]}))
    assert found.exit_code == 4 and "no variant and target" in found.exit_reasons[0]


# ---- the same samples on both sides


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the null backend."""
    place = tmp_path_factory.mktemp("run")
    edgeopt.run(walks.write(place / "r"), place / "out", store=edgeopt.Store(place / "store"))
    return place / "out"


def with_samples(run: Path, folder: Path, **values: Any) -> Path:
    """A copy of a run folder with these per-sample scores and the figures that follow from them."""
    from edgeopt.core import registry
    from edgeopt.stages import statistics

    shutil.copytree(run, folder)
    report = Report.read(folder)
    scores = dict(report.rows[0].scores)
    for name, array in values.items():
        made = registry.load("scores", name)()
        figures = statistics.score(array, None, made.finish, made.higher_is_better, made.binary, 0)
        scores[name] = scores[name].model_copy(update={**figures, "samples": len(array)})
    with np.load(folder / "sessions/null/scores.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(folder / "sessions/null/scores.npz", **(arrays | {f"fp32/{name}": array for name, array in values.items()}))
    edited(report, lambda row: {"scores": scores}).write(folder)
    return folder


def test_the_same_samples_are_paired(run_folder: Path, tmp_path: Path) -> None:
    """Seven of 500 lost and none won: far within both intervals, and proved when paired (McNemar p = .016)."""
    rng = np.random.default_rng(0)
    old = (rng.uniform(size=500) < 0.8).astype(float)
    new = old.copy()
    new[np.flatnonzero(old)[:7]] = 0
    before, after = with_samples(run_folder, tmp_path / "old", top1=old), with_samples(run_folder, tmp_path / "new", top1=new)
    one = change(compare(before, after), "top1", "fp32", "null")
    assert (one.paired, one.verdict) == (True, "worse") and one.change == pytest.approx(-7 / 500)
    assert change(compare(after, before), "top1", "fp32", "null").verdict == "better"
    (after / "plan.json").unlink()
    alone = change(compare(before, after), "top1", "fp32", "null")
    assert (alone.paired, alone.verdict) == (False, "same") and alone.change == pytest.approx(-7 / 500)


def test_samples_of_something_else_are_not_paired(run_folder: Path, tmp_path: Path) -> None:
    values = np.tile([1.0, 0.0], 100)
    before, after = with_samples(run_folder, tmp_path / "old", top1=values), with_samples(run_folder, tmp_path / "new", top1=values)
    assert change(compare(before, after), "top1", "fp32", "null").paired
    np.savez(after / "sessions/null/scores.npz", **{"fp32/top1": np.ones(200)})
    assert not change(compare(before, after), "top1", "fp32", "null").paired
    (after / "sessions/null/scores.npz").write_bytes(b"no archive")
    assert not change(compare(before, after), "top1", "fp32", "null").paired


def test_statistics_of_a_score_are_paired_too(run_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    signal = rng.uniform(90, 110, 60)
    old, new = np.stack([signal, signal / 1000], axis=1), np.stack([signal, signal / 900], axis=1)
    before, after = with_samples(run_folder, tmp_path / "old", sqnr=old), with_samples(run_folder, tmp_path / "new", sqnr=new)
    one = change(compare(before, after), "sqnr", "fp32", "null")
    assert (one.paired, one.verdict) == (True, "worse") and one.change == pytest.approx(10 * np.log10(0.9), abs=1e-6)


# ---- refusals


def test_what_was_measured_differently_is_refused_and_named(tmp_path: Path) -> None:
    new = reports.plain()
    machine = {**new.machine, "cpu": "Another CPU", "id": "sha256:ff"}
    first = new.targets[0].model_copy(update={"threads": 1, "batch": 8, "scenario": "throughput", "data_digest": "sha256:" + "cd" * 32})
    other = new.model_copy(update={"machine": machine, "targets": [first, *new.targets[1:]]})
    with pytest.raises(IncomparableError) as caught:
        compared(tmp_path, other)
    assert caught.value.exit_code == 4 and "--force" in caught.value.remedy
    for word in (
        "machine: cpu",
        "Another CPU",
        "threads on x86-openvino: 2 → 1",
        "batch on x86-openvino: 1 → 8",
        "scenario",
        "evaluation data",
    ):
        assert word in caught.value.cause, word
    assert len(compared(tmp_path, other, force=True).differences) == 5


def test_targets_that_were_not_measured_need_not_agree(tmp_path: Path) -> None:
    new = reports.plain()
    unmeasured = [target.model_copy(update={"session": None, "data_digest": None, "threads": 7}) for target in new.targets]
    found = compared(tmp_path, new.model_copy(update={"targets": unmeasured, "machine": {"id": "else"}}))
    assert not found.differences and verdicts(found, "size") == {"same"}


def test_what_is_no_report_is_the_users_to_mend(tmp_path: Path) -> None:
    good = written(tmp_path / "good", reports.plain())
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "newer.json").write_text((good / "report.json").read_text().replace('"schema_version": 1', '"schema_version": 9'))
    for wrong in ("none", "empty", "broken.json", "newer.json"):
        for pair in ((tmp_path / wrong, good), (good, tmp_path / wrong)):
            with pytest.raises(UsageError) as caught:
                compare(*pair)
            assert caught.value.remedy, wrong
    with pytest.raises(UsageError, match="did you mean 'latency'"):
        compare(good, good, fail_on=["latecny"])


# ---- the command


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = call(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_what_changed_and_fails_on_what_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = str(written(tmp_path / "old", reports.plain())), str(written(tmp_path / "new", edited(reports.plain(), slower(1.2))))
    code, out, err = said(capsys, "compare", old, new)
    assert code == 0 and not err
    assert "worse" in out and "+20.0 %" in out and "2.71 → 3.25 ms" in out
    code, out, _ = said(capsys, "compare", old, f"{new}/report.json", "--fail-on", "size,latency")
    assert code == 3 and "exit 3: latency of int8 on x86-openvino is worse" in out
    assert said(capsys, "compare", new, old, "--fail-on", "latency")[0] == 0
    assert said(capsys, "compare", old, new, "--fail-on", "colour")[0] == 2


def test_the_command_refuses_and_is_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = reports.plain().model_copy(update={"machine": {"cpu": "Other\x1b[31m", "id": "x"}})
    old, new = str(written(tmp_path / "old", reports.plain())), str(written(tmp_path / "new", other))
    code, out, err = said(capsys, "compare", old, new)
    assert code == 4 and not out and "machine: cpu" in err and "→" in err
    code, out, _ = said(capsys, "compare", old, new, "--force")
    assert code == 0 and out.startswith("measured differently: machine: cpu") and "\x1b" not in out
    code, out, err = said(capsys, "compare", old, new, "--force", "--format", "md")
    assert code == 0 and out.startswith("# mnist-cnn") and "## Measured differently" in out
    code, out, _ = said(capsys, "compare", old, new, "--json")
    assert code == 4 and json.loads(out)["error"] == "IncomparableError"


def test_every_form_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = str(written(tmp_path / "old", reports.plain())), str(written(tmp_path / "new", edited(reports.plain(), slower(1.2))))
    code, out, _ = said(capsys, "compare", old, new, "--format", "json", "--fail-on", "latency")
    assert code == 3 and Comparison.model_validate_json(out).exit_code == 3
    assert json.loads(said(capsys, "compare", old, new, "--json")[1])["edgeopt_comparison"] == 1
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    out = said(capsys, "compare", old, new, "--format", "github", "--fail-on", "latency")[1]
    lines = out.splitlines()
    assert (
        len(lines) == 10
        and all(line.startswith("::error ") for line in lines)
        and lines[-1].endswith("::2 more: see the step summary or report.md")
    )
    assert "| int8 | x86-openvino | latency | 2.71 → 3.25 ms | +20.0 %" in (tmp_path / "summary.md").read_text()
    quality = json.loads(said(capsys, "compare", old, new, "--format", "gitlab")[1])
    assert {one["severity"] for one in quality} == {"minor"} and len({one["fingerprint"] for one in quality}) == len(quality) == 11


# ---- a baseline in the recipe


def test_a_baseline_in_the_recipe_is_shown_and_judged(tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = walks.write(tmp_path / "r")
    first = edgeopt.run(recipe, tmp_path / "one")
    assert first.baseline is None
    kept = tmp_path / "r/baseline.json"
    tiny = first.rows[0].artifact and first.rows[0].artifact.model_copy(update={"size_bytes": 1})
    kept.write_text(edited(first, lambda row: {"artifact": tiny}).model_dump_json())
    recipe.write_text(walks.RECIPE + "baseline: {report: baseline.json, fail_on: [score]}\n")
    report = edgeopt.run(recipe, tmp_path / "two")
    assert report.exit_code == 0 and report.baseline and (report.baseline.old.path, report.baseline.new.path) == ("baseline.json", ".")
    assert change(report.baseline, "size", "fp32", "null").verdict == "worse"
    assert {one.paired for row in report.baseline.rows for one in row.changes if one.kind == "score"} == {False}
    recipe.write_text(walks.RECIPE + "baseline: baseline.json\n")
    report = edgeopt.run(recipe, tmp_path / "three")
    assert report.exit_code == 3 and "against the baseline: size of fp32 on null is worse" in report.exit_reasons
    assert "## Against the baseline" in (tmp_path / "three/report.md").read_text()
    assert [one.level for one in findings.of_report(report, tmp_path / "three")] == ["error"]
    assert "against the baseline: 1 worse" in said(capsys, "report", str(tmp_path / "three"))[1]


def test_a_baseline_of_another_machine_is_inconclusive(tmp_path: Path, own_store: Path) -> None:
    recipe = walks.write(tmp_path / "r")
    first = edgeopt.run(recipe, tmp_path / "one")
    other = first.model_copy(update={"machine": {**first.machine, "cpu": "x", "id": "y"}})
    (tmp_path / "r/baseline.json").write_text(other.model_dump_json())
    recipe.write_text(walks.RECIPE + "baseline: baseline.json\n")
    report = edgeopt.run(recipe, tmp_path / "two")
    assert report.exit_code == 4 and report.baseline is None and "machine: cpu" in report.exit_reasons[0]


def test_a_baseline_that_is_not_there_is_told_before_anything_runs(tmp_path: Path, own_store: Path) -> None:
    recipe = walks.write(tmp_path / "r", walks.RECIPE + "baseline: nowhere.json\n")
    with pytest.raises(UsageError, match=r"recipe.yaml:12:.*no such file: .*nowhere.json"):
        edgeopt.run(recipe, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    recipe.write_text(walks.RECIPE + "baseline: {report: a.json, fail_on: [colour]}\n")
    with pytest.raises(UsageError, match="fail_on"):
        edgeopt.run(recipe, tmp_path / "one")


# ---- reports for pipelines

CODE_QUALITY = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string"},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string"},
                    "lines": {"type": "object", "required": ["begin"], "properties": {"begin": {"type": "integer", "minimum": 1}}},
                },
            },
        },
    },
}  # fmt: skip


def with_recipe(folder: Path) -> Path:
    """A recipe whose gates stand on lines 3 to 6 and whose variants from line 8."""
    folder.mkdir(exist_ok=True)
    gates = "".join(f"  - {json.dumps(gate)}\n" for gate in reports.GATES)
    (folder / "recipe.yaml").write_text(f"edgeopt: 1\ngates:\n{gates}variants:\n" + "".join(f"  {name}: []\n" for name in reports.VARIANTS))
    return folder


def test_findings_stand_at_their_gate_and_are_errors_only_where_nothing_can_be_taken(tmp_path: Path) -> None:
    good = findings.of_report(reports.plain(), with_recipe(tmp_path))
    assert good and {one.level for one in good} == {"notice"}
    assert {one.line for one in good if one.check.startswith("p90")} == {4} and {one.file for one in good} == {"recipes/mnist-cnn.yaml"}
    hopeless = reports.plain()
    hopeless = hopeless.model_copy(update={"rows": [row.model_copy(update={"picked": False}) for row in hopeless.rows]})
    assert {one.level for one in findings.of_report(hopeless, tmp_path)} == {"error", "warning"}
    [failed] = [one for one in findings.of_report(reports.troubled(), tmp_path) if one.check == "failed"]
    assert (failed.level, failed.line) == ("error", 8 + reports.VARIANTS.index("pruned")) and "NaN in the loss" in failed.message


def test_findings_do_without_a_recipe(tmp_path: Path) -> None:
    assert {one.line for one in findings.of_report(reports.plain(), tmp_path)} == {None}
    (tmp_path / "recipe.yaml").write_text("gates: [")
    assert {one.line for one in findings.of_report(reports.plain(), tmp_path)} == {None}


def test_annotations_are_escaped_and_at_most_ten() -> None:
    def one(index: int) -> findings.Finding:
        return findings.Finding("error", "a: b, c", "s", f"{index} % of\nit::set-env", "a,b.yaml", 3)

    lines = github.annotated([one(index) for index in range(10)]).splitlines()
    assert len(lines) == 10 and lines[0] == "::error file=a%2Cb.yaml,line=3,title=edgeopt%3A a%3A b%2C c::0 %25 of%0Ait::set-env"
    lines = github.annotated([one(index) for index in range(500)]).splitlines()
    assert len(lines) == 10 and lines[-1] == "::error title=edgeopt::491 more: see the step summary or report.md"
    assert github.annotated([]) == ""


def test_a_summary_fits_one_mebibyte_and_says_where_it_was_cut() -> None:
    page = markdown.markdown(reports.large(200))
    pages = [page] * (github.SUMMARY_BYTES // len(page.encode()) + 1)
    cut = github.summary(pages)
    assert len(cut.encode()) <= github.SUMMARY_BYTES and cut.startswith(page) and "lines left out" in cut[-200:]
    small = markdown.markdown(reports.plain())
    assert github.summary([small]) == small


def test_code_quality_is_what_gitlab_reads_and_keeps_its_fingerprints(tmp_path: Path) -> None:
    found = findings.of_report(reports.plain(), with_recipe(tmp_path))
    first = json.loads(gitlab.gitlab(found))
    jsonschema.validate(first, CODE_QUALITY)
    moved = json.loads(gitlab.gitlab(findings.of_report(edited(reports.plain(), slower(1.001)), tmp_path)))
    assert [one["fingerprint"] for one in first] == [one["fingerprint"] for one in moved]
    assert len({one["fingerprint"] for one in first}) == len(first)
    jsonschema.validate(json.loads(gitlab.gitlab([])), CODE_QUALITY)


def test_the_report_command_in_every_form(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = written(tmp_path / "other", reports.plain())
    both = (str(run_folder), str(other / "report.json"))
    code, out, _ = said(capsys, "report", *both)
    assert code == 0 and "small" not in out.splitlines()[0] and "x86-openvino: take" in out and "null: take fp32" in out
    assert [one["recipe"]["name"] for one in json.loads(said(capsys, "report", *both, "--format", "json")[1])] == ["small", "mnist-cnn"]
    assert json.loads(said(capsys, "report", both[1], "--json")[1])["schema_version"] == 1
    root = ElementTree.fromstring(said(capsys, "report", *both, "--format", "junit")[1])
    assert [suite.get("name") for suite in root] == ["null", "x86-openvino", "x86-onnxruntime"]
    assert root.get("name") == "edgeopt small mnist-cnn" and int(root.get("tests", 0)) == len(list(root.iter("testcase")))
    page = said(capsys, "report", *both, "--format", "md")[1]
    assert page.startswith("# small") and "\n# mnist-cnn" in page
    out = said(capsys, "report", *both, "--format", "github")[1]
    assert out.startswith("# small") and sum(line.startswith("::notice ") for line in out.splitlines()) == 10
    jsonschema.validate(json.loads(said(capsys, "report", *both, "--format", "gitlab")[1]), CODE_QUALITY)
    code, out, err = said(capsys, "report", str(tmp_path))
    assert code == 2 and "holds no plan.json" in err


def test_the_report_command_ends_as_its_worst_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = reports.plain().model_copy(update={"exit_code": 3, "exit_reasons": ["nothing to take"]})
    runs = [str(written(tmp_path / str(index), one)) for index, one in enumerate((reports.plain(), bad))]
    assert said(capsys, "report", *runs, "--format", "gitlab")[0] == 3
    assert said(capsys, "report", runs[0], "--format", "gitlab")[0] == 0
