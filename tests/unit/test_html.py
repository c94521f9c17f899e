"""The report as one HTML page, read without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import reports

from edgeopt.core.report import Report
from edgeopt.stages.html import PAGE, html


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
    assert len(figures) == 8
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
        "kept_in_float classifier, conv_stem",
        "per_channel: yes",
        "118.4 dB, at least 60 dB asked",
        '{"conv1": [16, 8]',
    ):
        assert told in texts, told


def test_five_hundred_rows_stay_below_five_megabytes() -> None:
    assert len(html(reports.large()).encode()) < 5_000_000


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
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", (PAGE / "report.css").read_text().split(":root {")[theme + 1]))
    for text in ("ink", "soft", "accent", "good", "bad", "warn"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name in ("good", "bad", "warn"):
        assert contrast(colours[name], colours[f"{name}-wash"]) >= 4.5, name
    assert contrast(colours["ink"], colours["accent-wash"]) >= 4.5
    for mark in ("mark", "accent", "ink"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


def test_the_chart_library_and_its_licences_travel_together() -> None:
    library, licences = (PAGE / "plot.min.js").read_text(), (PAGE / "plot.LICENSE.txt").read_text()
    version = re.search(r"Observable Plot ([\d.]+)", library)
    assert version
    assert f"@observablehq/plot@{version[1]}" in licences
    assert "</script" not in library
    assert len(library) < 300_000
    assert "Copyright 2020-2025 Observable, Inc." in "".join(Page(html(reports.plain())).texts)
