"""The report as Markdown."""

from __future__ import annotations

import re

import pytest
import reports

from edgeopt.stages.markdown import markdown


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("make", [reports.plain, reports.troubled, reports.nasty])
def test_every_table_has_the_same_columns_in_every_line(make: object) -> None:
    blocks = [block.splitlines() for block in markdown(make()).split("\n\n") if block.startswith("| ")]  # type: ignore[operator]
    assert len(blocks) > 4
    for lines in blocks:
        assert len({len(cells(line)) for line in lines}) == 1, lines
        assert re.fullmatch(r"\|( -+:? \|)+", lines[1])


def test_the_decision_comes_first() -> None:
    text = markdown(reports.plain())
    assert text.startswith("# mnist-cnn\n\n**Every target has what it needs.** (exit code 0)\n\n## What to take\n")
    assert "- **x86-openvino: take int8**: 2.10× faster than fp32 [2.05, 2.16], 3.9× smaller, top1 0.2 points lower [−0.3, +0.7]" in text


def test_failures_environment_and_repetition_are_told() -> None:
    text = markdown(reports.troubled())
    assert "```text\nfine-tune: ValueError: NaN in the loss\n  → lower the learning rate\n```" in text
    assert "**A step failed.** (exit code 8)" in text
    assert "| CPU | Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz |" in text
    assert "edgeopt run recipes/mnist-cnn.yaml --remeasure" in text
    assert "import-torch (2.91 s, 118.4 dB) → export-onnx" in text
    assert "**not measured**" in text
    assert "12,346 per s [12,100, 12,590]" in text


def test_texts_of_others_stay_text() -> None:
    text = markdown(reports.nasty())
    outside = re.sub(r"```text\n.*?\n```", "", text, flags=re.DOTALL)
    assert "<script" not in outside
    assert "\\`tick\\` \\*star\\*" in outside
    assert "\x1b" not in text


def test_a_fence_is_longer_than_any_inside() -> None:
    first = reports.plain()
    rows = [first.rows[0].model_copy(update={"status": "failed", "reason": "see\n````\n# no heading", "exit_code": 8})]
    assert "`````text\nsee\n````\n# no heading\n`````" in markdown(first.model_copy(update={"rows": rows}))
