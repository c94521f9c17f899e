"""The report as JUnit XML, read back as a CI would."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import reports

from edgeopt.core.report import Report
from edgeopt.stages.junit import junit


def suites(report: Report) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(junit(report).encode())
    assert root.tag == "testsuites"
    return {suite.get("name", ""): suite for suite in root}


def case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [one for one in suite.iter("testcase") if one.get("name") == name]
    return found


@pytest.mark.parametrize("make", [reports.plain, reports.troubled, reports.nasty])
def test_counts_agree_with_what_is_inside(make: object) -> None:
    report = make()  # type: ignore[operator]
    root = ElementTree.fromstring(junit(report).encode())
    for element in (root, *root):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(name, "-1")) == len(list(element.iter(tag)))
    bare = [
        row
        for row in report.rows
        if row.status == "failed" or not any((one.variant, one.target) == (row.variant, row.target) for one in report.gates)
    ]
    assert int(root.get("tests", "0")) == len(report.gates) + len(bare)


def test_each_verdict_is_what_a_ci_understands() -> None:
    suite = suites(reports.troubled())["x86-openvino"]
    assert case(suite, "int8: p90 at most 5 ms").find("failure") is None
    failed = case(suite, "fp32: p90 at most 5 ms").find("failure")
    assert failed is not None
    assert (failed.get("type"), failed.get("message")) == ("fail", "p90 at most 5 ms: fail, 5.92 ms [5.86, 5.98]")
    inconclusive = case(suite, "pruned: top1 loses at most 1 point").find("failure")
    assert inconclusive is not None
    assert inconclusive.get("type") == "inconclusive"


def test_what_was_not_measured_is_skipped_with_its_reason() -> None:
    suite = suites(reports.troubled())["x86-onnxruntime"]
    skipped = case(suite, "bf16: p90 at most 5 ms").find("skipped")
    assert skipped is not None
    assert "this runtime executes f32 here, not bf16" in skipped.get("message", "")


def test_a_failed_row_is_an_error_with_the_whole_reason() -> None:
    error = case(suites(reports.troubled())["x86-openvino-throughput"], "pruned: builds and runs").find("error")
    assert error is not None
    assert error.get("type") == "exit code 8"
    assert error.text == "failed: fine-tune: ValueError: NaN in the loss\n  → lower the learning rate"


def test_a_row_without_gates_is_one_case() -> None:
    suite = suites(reports.troubled())["rtx-ada"]
    assert case(suite, "int8: builds and runs").get("time") == "11.260"


def test_an_inconclusive_gate_that_may_be_so_is_no_failure() -> None:
    first = reports.plain()
    lenient = [one.model_copy(update={"gate": {**one.gate, "inconclusive": "pass"}}) for one in first.gates]
    found = case(suites(first.model_copy(update={"gates": lenient}))["x86-openvino"], "pruned: top1 loses at most 1 point")
    assert found.find("failure") is None


def test_the_decision_is_a_property_of_the_suite() -> None:
    suite = suites(reports.plain())["x86-openvino"]
    told = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert (told["decision"] or "").startswith("x86-openvino: take int8: 2.10× faster")


def test_texts_that_xml_has_no_place_for_are_cleaned() -> None:
    text = junit(reports.nasty())
    assert "\x1b" not in text
    names = [one.get("name", "") for suite in suites(reports.nasty()).values() for one in suite.iter("testcase")]
    assert any('<script>alert("1")</script>' in name for name in names)
