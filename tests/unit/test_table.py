"""The report on the console."""

from __future__ import annotations

import re

import pytest
import reports
from rich.cells import cell_len

from edgeopt.cli.table import table

EVERY = [reports.plain, reports.troubled, reports.nasty, reports.large]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(make: object, width: int) -> None:
    assert all(cell_len(line) <= width for line in table(make(), width).splitlines())  # type: ignore[operator]


def test_twelve_rows_fit_one_screen() -> None:
    assert len(table(reports.plain(), 80).splitlines()) <= 24


def test_without_a_terminal_there_is_no_colour_and_nothing_is_lost() -> None:
    bare, coloured = table(reports.troubled(), 80), table(reports.troubled(), 80, coloured=True)
    assert "\x1b" not in bare
    assert "\x1b[" in coloured
    assert [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()] == bare.splitlines()


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in table(reports.nasty(), 80)


def test_each_row_has_its_figures_and_its_verdict_in_words() -> None:
    lines = table(reports.plain(), 80).splitlines()
    assert "int8           2.71  2.10× [2.05, 2.16]  5.05  98.10 %  4/4 take" in lines
    assert "fp16           5.71  1.00× [0.97, 1.02]  9.88  98.30 %  2/4 fails p90, speedup" in lines
    assert "pruned         3.02  1.88× [1.84, 1.94]  8.10  97.13 %  3/4 open: top1" in lines


def test_gates_reasons_and_decisions_stand_below() -> None:
    text = " ".join(table(reports.troubled(), 80).split())
    assert "gates: top1 drop ≤ 1 point; p90 ≤ 5 ms; speed-up ≥ 1.5×; size ≤ 20 MB" in text
    assert "open: the 95 % interval holds the limit" in text
    assert "pruned on x86-openvino-throughput: fine-tune: ValueError: NaN in the loss" in text
    assert "x86-openvino: take int8: 2.10× faster than fp32 [2.05, 2.16], 3.9× smaller" in text
    assert "jetson-orin: nothing to take: fp32, int8: not available here" in text


def test_a_throughput_target_is_told_in_its_own_unit() -> None:
    text = table(reports.troubled(), 80)
    assert re.search(r"variant +per s +speed-up", text)
    assert "12,346" in text


def test_a_wide_terminal_shows_intervals_and_all_scores() -> None:
    text = table(reports.plain(), 120)
    assert "2.71 [2.69, 2.73]" in text
    assert "37.4 dB" in text


def test_of_very_many_rows_the_foremost_are_shown_and_the_rest_counted() -> None:
    text = table(reports.large(), 80)
    assert "… and 210 more rows, all of them in report.html" in text
    assert text.count(" take\n") == 2
    assert len(text.splitlines()) < 110


def test_a_report_without_rows_or_scores_or_gates_is_shown() -> None:
    first = reports.plain()
    bare = [one.model_copy(update={"scores": {}}) for one in first.rows]
    assert "take int8" in table(first.model_copy(update={"rows": bare, "gates": []}))
    assert "nothing to take" in table(first.model_copy(update={"rows": [], "gates": []}))
