"""The report as one HTML page, read without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import reports

from edgeopt.core.comparison import Comparison
from edgeopt.core.report import Report
from edgeopt.stages.compare import compare
from edgeopt.stages.html import PAGE, html
from edgeopt.stages.side_by_side import side_by_side


class Page(HTMLParser):
    """The elements, the texts and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]

    def figures(self) -> Any:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "figures"))


def compared(old: Report, new: Report) -> Comparison:
    """What `edgeopt compare` finds between two reports."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("old", "new")]
        for place, report in zip(places, (old, new), strict=True):
            place.mkdir()
            report.write(place)
        return compare(*places, force=True)


@pytest.mark.parametrize("make", [reports.plain, reports.troubled, reports.nasty])
def test_the_page_is_well_formed_and_whole(make: object) -> None:
    page = Page(html(make()))  # type: ignore[operator]
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= set(ids)


def test_the_page_asks_for_nothing() -> None:
    page = Page(html(reports.plain()))
    assert page.attributes("src") == []
    assert all(link.startswith(("#", "data:")) for link in page.attributes("href"))
    style = (PAGE / "report.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_only_our_own_scripts_may_run() -> None:
    page = Page(html(reports.nasty()))
    policy = next(
        one["content"] or "" for tag, one in page.elements if tag == "meta" and one.get("http-equiv") == "Content-Security-Policy"
    )
    running = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 2
    for text in running:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_texts_of_others_stay_text() -> None:
    text = html(reports.nasty())
    assert "<script>alert" not in text
    page = Page(text)
    assert any('<script>alert("1")</script>' in one for one in page.texts)
    assert any('<script>alert("1")</script>' in row["variant"] for row in page.figures()[0]["rows"])


def test_the_decision_stands_before_all_else() -> None:
    page = Page(html(reports.plain()))
    texts = [one for one in page.texts if one]
    assert texts.index("Take int8") < texts.index("All variants")
    assert "2.10× faster than fp32 [2.05, 2.16]" in texts
    assert "evidence is enough" in texts
    assert "Every target has what it needs." in texts


def test_trouble_is_told() -> None:
    texts = Page(html(reports.troubled())).texts
    for told in ("Nothing to take", "evidence with doubts", "A step failed.", "inconclusive", "not measured", "unavailable", "exempt"):
        assert told in texts, told
    assert "Nothing was measured here, so there is nothing to draw." in texts


def test_behind_each_chart_stands_a_table() -> None:
    page = Page(html(reports.plain()))
    figures = [index for index, (tag, _) in enumerate(page.elements) if tag == "figure"]
    assert len(figures) == 10  # and the roofline; the rest needs the run's folder
    for start, end in zip(figures, [*figures[1:], len(page.elements)], strict=True):
        tags = [tag for tag, _ in page.elements[start:end]]
        assert "table" in tags
        assert "summary" in tags


def test_the_charts_get_their_figures_in_the_units_they_are_told_in() -> None:
    first, _, rate, *_ = Page(html(reports.troubled())).figures()
    assert [one["label"] for one in first["scores"]] == ["top1 (%)", "agreement (%)", "sqnr (dB)"]
    int8 = next(row for row in first["rows"] if row["variant"] == "int8")
    assert (int8["kind"], int8["x"][0], int8["y"][0][0], int8["mb"]) == ("picked", 2.71, 98.1, 5.04997)
    assert [row["variant"] for row in first["rows"] if row["front"]] == ["fp32", "bf16", "int8", "pruned-int8"]
    assert rate["throughput"]
    assert next(row for row in rate["rows"] if row["variant"] == "int8")["x"] == [12345.6, 12100.0, 12590.0]


def test_history_tells_steps_options_notes_and_parity() -> None:
    texts = " ".join(Page(html(reports.plain())).texts)
    for told in (
        "prune-channels",
        "calibrated on 256",
        "tried db minmax: 31.3; mean: 25.2",
        "macs 5,600,000 → 1,500,000",
        "per_channel: yes",
        "118.4 dB, at least 60 dB asked",
        "only 40 samples to learn from",
    ):
        assert told in texts, told


def test_notes_of_many_things_alike_become_tables_that_stay_shut() -> None:
    page = Page(html(reports.plain()))
    texts = [one for one in page.texts if one]
    start = texts.index("(2: 2 in fp32)") - 1
    assert texts[start] == "layers"
    head = ["(2: 2 in fp32)", "layer", "type", "precision", "why", "noise (dB)", "time (µs)"]
    assert texts[start + 1 : start + 8] == head
    assert texts[start + 8 : start + 14] == ["attention/softmax", "Softmax", "fp32", "no INT8 kernel", "unknown", "61.0"]
    start = texts.index("channels")
    assert texts[start + 1 : start + 9] == ["(3)", "before", "after", "kept", "conv1", "16", "8", "50 %"]
    nested = [attributes for tag, attributes in page.elements if tag == "details"]
    assert sum("open" in attributes for attributes in nested) < len(nested) / 2


def test_where_the_time_goes_is_told_in_words_and_tables(tmp_path: Path) -> None:
    report = reports.plain()
    page = Page(html(report, reports.run_folder(report, tmp_path)))
    texts = " ".join(page.texts)
    for told in (
        "It reaches 36 % of what this machine can do: 0.970 ms at its peaks.",
        "FP32 between INT8 layers: attention/softmax, 67.8 µs and 56.9 µs of conversions around it",
        "Measured peaks: 232 FP32, 448 BF16 and 761 INT8 GOP/s, 180 GB/s from the caches and 54.0 GB/s from memory, with 2 threads.",
        "3 conversions of precision or layout",
    ):
        assert told in texts, told
    assert len([tag for tag, _ in page.elements if tag == "figure"]) == 16
    first = page.figures()[0]
    strip = next(one for one in first["layers"] if one["variant"] == "int8")
    assert sum(piece[2] for piece in strip["pieces"]) == pytest.approx(2.71, rel=1e-3)  # pieces of the measured time
    assert [piece[1] for piece in strip["pieces"]][:6] == ["conversion", "int8", "int8", "int8", "conversion", "fp32"]
    assert [one["variant"] for one in first["spreads"]] == list(reports.VARIANTS)
    assert all(sum(one["counts"]) >= 0.99 * 960 for one in first["spreads"])


def test_a_run_folder_that_lost_its_sessions_or_holds_nonsense_gives_the_page_without_them(tmp_path: Path) -> None:
    report = reports.plain()
    folder = reports.run_folder(report, tmp_path)
    for file in folder.rglob("sessions/*/*"):
        file.write_bytes(b"no such thing")
    page = Page(html(report, folder))
    assert page.open == []
    assert page.figures()[0]["layers"] == page.figures()[0]["spreads"] == []
    outside = [one.model_copy(update={"session": "../../etc"}) for one in report.targets]
    assert Page(html(report.model_copy(update={"targets": outside}), folder)).open == []


def test_what_moved_against_the_baseline_stands_on_the_page() -> None:
    old = reports.plain()
    report = old.model_copy(update={"baseline": compared(old, old)})
    page = Page(html(report))
    assert {"Against the baseline", "Baseline"} <= set(page.texts)
    assert [one["unit"] for one in page.figures()[2:5]] == ["%", "points", "dB"]


@pytest.mark.parametrize("make", [reports.plain, reports.troubled, reports.nasty])
def test_two_reports_stand_side_by_side_on_one_page(make: Any) -> None:
    old, new = reports.plain(), make()
    page = Page(side_by_side(compared(old, new), old, new))
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= set(ids)
    assert len([text for attributes, text in page.scripts if attributes.get("type") != "application/json"]) == 2
    figures = [index for index, (tag, _) in enumerate(page.elements) if tag == "figure"]
    for start, end in zip(figures, [*figures[1:], len(page.elements)], strict=True):
        assert "table" in [tag for tag, _ in page.elements[start:end]]


def test_five_hundred_rows_stay_below_five_megabytes(tmp_path: Path) -> None:
    report = reports.large()
    assert len(html(report, reports.run_folder(report, tmp_path)).encode()) < 5_000_000


@pytest.mark.parametrize(
    "make", [lambda: {"rows": [], "gates": []}, lambda: {"targets": [], "rows": [], "gates": []}, lambda: {"machine": {}}]
)
def test_a_report_with_parts_missing_is_a_page_all_the_same(make: Any) -> None:
    report: Report = reports.plain().model_copy(update=make())
    assert Page(html(report)).open == []


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(theme: int) -> None:
    """WCAG 2.2: 4.5 for text, 3 for marks of a chart."""
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", (PAGE / "report.css").read_text().split(":root {")[theme + 1]))
    for text in ("ink", "soft", "accent", "good", "bad", "warn"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name in ("good", "bad", "warn"):
        assert contrast(colours[name], colours[f"{name}-wash"]) >= 4.5, name
    assert contrast(colours["ink"], colours["accent-wash"]) >= 4.5
    kinds = [name for name in colours if name.startswith("k-")]
    assert len(kinds) == 8
    for mark in ("mark", "accent", "ink", *kinds):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


def test_the_chart_library_and_its_licences_travel_together() -> None:
    library, licences = (PAGE / "plot.min.js").read_text(), (PAGE / "plot.LICENSE.txt").read_text()
    version = re.search(r"Observable Plot ([\d.]+)", library)
    assert version
    assert f"@observablehq/plot@{version[1]}" in licences
    assert "</script" not in library
    assert len(library) < 300_000
    assert "Copyright 2020-2025 Observable, Inc." in "".join(Page(html(reports.plain())).texts)
