"""The report's page in a real Chromium: drawn, quiet, reachable by keyboard, light and dark, wide and narrow."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import edgeopt
from edgeopt.core import registry
from edgeopt.stages.compare import compare
from edgeopt.stages.html import html
from edgeopt.stages.side_by_side import side_by_side
from tests import walks
from tests.unit import reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REMEDY = "apt-get install chromium, and pip install 'edgeopt[dev]'"
SHAPES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A Chromium, or the words that say how to get one."""
    place = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        place = None
    if place is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Chromium to open the page with: {REMEDY}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    made = {make.__name__: make() for make in (reports.plain, reports.troubled, reports.nasty, reports.large)}
    for name, report in made.items():
        found[name] = folder / f"{name}.html"
        run = reports.run_folder(report, folder / name)
        report.write(run)
        found[name].write_text(html(report, run), encoding="utf-8")
    for name in ("troubled", "large"):
        found[f"moved-{name}"] = folder / f"moved-{name}.html"
        comparison = compare(folder / "plain", folder / name, force=True)
        found[f"moved-{name}"].write_text(side_by_side(comparison, made["plain"], made[name]), encoding="utf-8")
    return found


@dataclass
class Seen:
    """A page that was opened, and all it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(chromium: Browser, path: Path, shape: str = "wide", theme: Any = "light") -> Seen:
    page = chromium.new_page(viewport=SHAPES[shape], color_scheme=theme)  # type: ignore[arg-type]
    seen = Seen(page)
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("dialog", lambda dialog: (seen.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("[data-chart] svg", state="attached")
    page.wait_for_function("[...document.querySelectorAll('[data-chart]')].every(box => box.querySelector('svg'))")
    return seen


SEEN = [(name, shape, theme) for name in ("plain", "troubled", "moved-troubled") for shape in SHAPES for theme in ("light", "dark")]


@pytest.mark.parametrize(("name", "shape", "theme"), [*SEEN, ("nasty", "phone", "dark")])
def test_every_chart_is_drawn_in_silence(chromium: Browser, pages: dict[str, Path], name: str, shape: str, theme: str) -> None:
    seen = opened(chromium, pages[name], shape, theme)
    page = seen.page
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in seen.asked if url.startswith("file:")]) == 1
    for chart in page.locator("[data-chart]").all():
        assert chart.locator("svg").count() == 1
        assert chart.locator("svg .dots > *, svg rect, svg path").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
        "the page is wider than its window"
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]
    page.close()


def test_marks_are_where_the_figures_say(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    marks = page.evaluate("""() => [...document.querySelector('.scatter').querySelectorAll('.dots > *')].map(dot => {
        const box = dot.getBoundingClientRect();
        return [dot.getAttribute('aria-label').split(':')[0], box.x + box.width / 2, box.y + box.height / 2];
    })""")
    place = {name: (x, y) for name, x, y in marks}
    assert sorted(place, key=lambda name: place[name][0]) == ["pruned-int8", "int8", "pruned", "bf16", "fp32", "fp16"]
    assert place["pruned-int8"][1] > place["pruned"][1] > place["int8"][1] > place["bf16"][1] > place["fp32"][1]
    widths = page.evaluate(
        "[...document.querySelector('[data-chart=size]').querySelectorAll('rect')].map(bar => bar.getBoundingClientRect().width)"
    )
    assert widths[0] / widths[3] == pytest.approx(19_700_000 / 5_049_972, rel=0.01)
    page.close()


@pytest.mark.parametrize(("name", "least"), [("plain", 60), ("moved-troubled", 25)])
def test_the_keyboard_reaches_everything(chromium: Browser, pages: dict[str, Path], name: str, least: int) -> None:
    page = opened(chromium, pages[name]).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    focusable = "a[href], summary, select, button, [tabindex='0']"
    wanted = page.evaluate(f"[...document.querySelectorAll({focusable!r})].filter(one => one.checkVisibility()).length")
    reached = page.evaluate(
        "() => { window.reached = new Set(); document.addEventListener('focusin', e => window.reached.add(e.target)); return 0; }"
    )
    for _ in range(wanted + 2):
        page.keyboard.press("Tab")
        reached = page.evaluate("window.reached.size")
    assert wanted > least
    assert reached == wanted
    page.close()


def test_arrow_keys_walk_the_marks_and_show_their_figures(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    page.focus(".scatter .dots > [tabindex='0']")
    heard = [page.evaluate("document.activeElement.getAttribute('aria-label')")]
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        heard.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert [label.split(":")[0] for label in heard] == ["pruned-int8", "int8", "pruned"]
    page.wait_for_function("document.querySelector('.scatter .tip')?.textContent.includes('pruned: inconclusive')")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("fp16")
    page.close()


def test_layers_are_walked_in_the_order_of_execution(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    strip = page.locator("[data-chart=strip]").first
    strip.locator(".dots > [tabindex='0']").focus()
    heard = []
    for _ in range(11):
        heard.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press("ArrowRight")
    assert [label.split(",")[0] for label in heard[:3]] == ["fp32: image_reorder", "fp32: conv0", "fp32: conv1"]
    assert heard[9].startswith("fp16: image_reorder, conversion, ")
    page.wait_for_function("document.querySelector('[data-chart=strip] .tip')?.textContent.includes('fp16: conv')")
    widths = [strip.locator(".dots > *").nth(index).evaluate("one => one.getBoundingClientRect().width") for index in (1, 2)]
    assert widths[0] / widths[1] == pytest.approx(190 / 182, rel=0.02)
    page.close()


def test_the_layers_of_another_variant_can_be_chosen(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = opened(chromium, pages["plain"])
    chart = seen.page.locator("[data-chart=layers]").first
    assert (
        chart.locator("svg").get_attribute("aria-label") == "The 12 slowest layers of int8 on x86-openvino"
    )  # the one to take comes first
    assert "attention/softmax" in (chart.text_content() or "")
    chart.locator("xpath=ancestor::figure").locator("select").select_option("fp32")
    seen.page.wait_for_function("document.querySelector('[data-chart=layers] svg').getAttribute('aria-label').includes('of fp32')")
    assert seen.said == []
    seen.page.close()


def test_marks_lie_below_their_roof_by_what_is_left(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    chart = page.locator("[data-chart=roofline]").first
    heard = chart.locator(".dots > *").evaluate_all("dots => dots.map(dot => dot.getAttribute('aria-label'))")
    assert any(label.startswith("int8: 36 % of what is possible") for label in heard)
    assert {"INT8 761 GOP/s", "BF16 448 GOP/s", "FP32 232 GOP/s"} <= set(chart.locator("text").all_text_contents())
    frame = chart.locator("svg").bounding_box()
    for box in chart.locator("path, .dots > *").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())"):
        assert frame is not None and box["left"] >= frame["x"] - 1 and box["right"] <= frame["x"] + frame["width"] + 1
    page.close()


def test_changes_lie_on_the_side_that_their_sign_says(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["moved-large"]).page
    chart = page.locator("[data-chart=moves]").first
    line = chart.locator("svg line[stroke-opacity], svg g[stroke-opacity] line").first.bounding_box()
    marks = chart.locator(".dots > *").evaluate_all(
        "dots => dots.map(dot => [dot.getAttribute('aria-label'), dot.getBoundingClientRect().x + dot.getBoundingClientRect().width / 2])"
    )
    assert line is not None and marks
    for told, x in marks:
        sign = re.search(r", ([+−])[\d.]+ ", told)
        assert sign is None or (x > line["x"]) == (sign[1] == "+") or abs(x - line["x"]) < 2, told
    page.close()


def test_the_pointer_shows_a_mark_s_figures(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    page.locator(".scatter .dots [aria-label^='int8:']").first.hover(force=True)
    page.wait_for_function("document.querySelector('.scatter .tip')?.textContent.includes('2.71 ms [2.69, 2.73]')")
    page.close()


def test_another_score_can_be_chosen(chromium: Browser, pages: dict[str, Path]) -> None:
    seen = opened(chromium, pages["plain"])
    seen.page.locator("select").first.select_option("sqnr")
    seen.page.wait_for_function("document.querySelector('.scatter svg').textContent.includes('sqnr (dB)')")
    assert seen.said == []
    seen.page.close()


def test_tables_sort_both_ways_with_missing_figures_last(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"]).page
    table = page.locator("#target-1 table.sortable")
    for sort, expected in (
        ("ascending", ["pruned-int8", "pruned", "int8", "fp16", "fp32", "bf16"]),
        ("descending", ["fp32", "fp16", "int8", "pruned", "pruned-int8", "bf16"]),
    ):
        table.get_by_role("button", name="p50").press("Enter")
        assert table.locator("thead [aria-sort]").first.get_attribute("aria-sort") == sort
        assert table.locator("tbody th").all_text_contents() == expected
    page.close()


def test_without_scripts_every_figure_is_still_there(chromium: Browser, pages: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["plain"].as_uri())
    assert page.get_by_text("Take int8").count() == 2
    assert page.get_by_text("Drawn where scripts may run").first.is_visible()
    page.locator("summary", has_text="The figures behind this chart").first.click()
    assert page.get_by_text("98.10 % [97.46, 98.74]").first.is_visible()
    context.close()


def test_it_prints_on_paper_in_light(chromium: Browser, pages: dict[str, Path]) -> None:
    page = opened(chromium, pages["plain"], theme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize("name", ["large", "moved-large"])
def test_five_hundred_rows_open_quickly(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    assert pages[name].stat().st_size < 5_000_000
    seen = opened(chromium, pages[name])
    took = seen.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    seen.page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    print(f"{name}: loaded in {took:.0f} ms")
    assert seen.said == []
    if name == "large":
        assert seen.page.locator("#target-0 .scatter .dots > *").count() == 250
        assert seen.page.locator("#target-0 [data-chart=latency] rect").count() == 24
        assert seen.page.locator("table.sortable tbody tr").count() == 500
    seen.page.close()


REAL = """\
edgeopt: 1
name: small
model: {onnx: model.onnx}
data:
  calibrate: {npz: calibrate.npz}
  evaluate: {npz: evaluate.npz}
scores: [top1, agreement, sqnr]
variants:
  fp32: []
  int8: [quantize-int8]
targets: [x86-openvino, x86-onnxruntime]
measure: {budget_s: 1}
"""


def test_a_real_run_has_it_all_on_its_page(chromium: Browser, tmp_path: Path, shared_store: Path) -> None:
    missing = [reason for name in ("openvino", "onnxruntime") if (reason := registry.load("backends", name)().probe())]
    if missing:
        pytest.skip("; ".join(missing))
    report = edgeopt.run(walks.write(tmp_path / "r", REAL), tmp_path / "out", store=edgeopt.Store(shared_store))
    for target in report.targets:
        assert target.peaks is not None and {"fp32", "int8"} <= {one.precision for one in target.peaks.gops}
    for row in report.rows:
        assert row.profile is not None and row.profile.roofline is not None and row.profile.roofline.macs == 16 * 32 + 32 * 4, row.variant
        assert row.profile.by_precision.get("int8", 0) > 0 or row.variant == "fp32"
    seen = opened(chromium, tmp_path / "out/report.html")
    kinds = seen.page.locator("[data-chart]").evaluate_all("all => all.map(one => one.dataset.chart)")
    assert sorted(kinds) == sorted(["scatter", "latency", "size", "memory", "spread", "strip", "roofline", "layers"] * 2)
    assert seen.said == []
    seen.page.close()
