"""junit: a report as JUnit XML: one test case per gate and row, so that any CI shows what fell short.

fail and inconclusive are failures (of that type), what could not be measured is skipped. A failed row
is an error in a case of its own; a row without gates has such a case too. Shape: the Jenkins/Surefire XSD that GitLab,
GitHub actions, Jenkins and Azure read.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as xml

from edgeopt.core.report import GateResult, Report, Row
from edgeopt.stages.decision import decide
from edgeopt.stages.words import Words

# XML 1.0 has no place for these, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(*reports: Report) -> str:
    """Reports as one JUnit document: one suite per target."""
    names = " ".join(dict.fromkeys(report.recipe.name for report in reports))
    root = xml.Element("testsuites", {"name": _clean(f"edgeopt {names}")})
    for report in reports:
        _suites(root, report)
    _count(root)
    xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _suites(root: xml.Element, report: Report) -> None:
    words = Words(report)
    for target in report.targets:
        suite = xml.SubElement(
            root, "testsuite", {"name": _clean(target.name), "timestamp": report.created_at[:19], "hostname": "localhost"}
        )
        properties = xml.SubElement(suite, "properties")
        for name, value in (
            ("edgeopt", report.edgeopt),
            ("recipe", report.recipe.digest),
            ("decision", decide(words, target.name).sentence),
        ):
            xml.SubElement(properties, "property", {"name": name, "value": _clean(value)})
        for row in words.rows[target.name]:
            _row(words, report, suite, row)
        _count(suite)


def _row(words: Words, report: Report, suite: xml.Element, row: Row) -> None:
    gates = words.gates(row)
    if row.status == "failed" or not gates:
        case = _case(report, suite, row, "builds and runs", sum(step.seconds for step in row.history))
        if row.status == "failed":
            _told(case, "error", f"exit code {row.exit_code}", "; ".join(words.why_not(row)))
        elif row.status == "unavailable":
            _told(case, "skipped", "", "; ".join(words.why_not(row)))
    for gate in gates:
        _gate(words, _case(report, suite, row, words.wants(gate.gate)), gate)


def _gate(words: Words, case: xml.Element, gate: GateResult) -> None:
    told = words.judged(gate)
    if gate.verdict == "not_measured":
        _told(case, "skipped", "", told)
    elif gate.verdict == "fail" or (gate.verdict == "inconclusive" and gate.gate.get("inconclusive") != "pass"):
        _told(case, "failure", gate.verdict, told)
    else:
        xml.SubElement(case, "system-out").text = _clean(told)


def _case(report: Report, suite: xml.Element, row: Row, name: str, seconds: float = 0.0) -> xml.Element:
    where = {"classname": _clean(f"{report.recipe.name}.{row.target}"), "name": _clean(f"{row.variant}: {name}")}
    return xml.SubElement(suite, "testcase", {**where, "time": f"{seconds:.3f}"})


def _told(case: xml.Element, kind: str, type: str, message: str) -> None:
    element = xml.SubElement(case, kind, {"message": _clean(message.splitlines()[0]), **({"type": type} if type else {})})
    if kind != "skipped":
        element.text = _clean(message)


def _count(suite: xml.Element) -> None:
    cases = list(suite.iter("testcase"))
    counts = {"tests": len(cases)} | {
        kind: len(list(suite.iter(one))) for kind, one in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    for name, value in counts.items():
        suite.set(name, str(value))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("", text)
