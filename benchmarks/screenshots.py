"""The pictures of the README, from real runs of two recipes: pages in Chromium, the console at 80 columns.

python benchmarks/screenshots.py                      # runs both recipes, mnist-cnn twice; about six minutes on two cores
python benchmarks/screenshots.py --seconds 5          # measures no target longer
python benchmarks/screenshots.py --runs FOLDER        # keeps the run folders there, and takes those that are there already
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parent.parent
PLACE = CLONE / "benchmarks" / "screenshots"
MOST_BYTES = 150_000
COLUMNS = 80
SHARP = 1.5  # pixels of a picture for one of the page
COLOURS = (256, 128, 64, 32)
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #14171b; color: #e7eaee; }}
pre {{ margin: 0; padding: 20px 24px; width: fit-content; font: 14px/1.35 "DejaVu Sans Mono", "Liberation Mono", monospace; }}
</style><pre>$ edgeopt run recipes/mnist-cnn.yaml
{code}</pre>"""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seconds", type=float, help="longest time to measure each target; default: the recipes'")
    asked.add_argument("--runs", type=Path, help="folder of the runs; default: a temporary one")
    asked.add_argument("--to", type=Path, default=PLACE, help="folder of the pictures")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeopt-screenshots-") as scratch:
        runs = (given.runs or Path(scratch)).absolute()
        recipes = copied(Path(scratch) / "recipes", given.seconds)
        mnist, lite = (
            ran(recipes / "mnist-cnn.yaml", runs / "mnist-cnn"),
            ran(recipes / "efficientnet-lite0.yaml", runs / "efficientnet-lite0"),
        )
        pruned = ran(harder(recipes / "mnist-cnn.yaml"), runs / "mnist-cnn-pruned-harder")
        moved = Path(scratch) / "moved.html"
        moved.write_text(edgeopt("compare", str(mnist), str(pruned), "--force", "--format", "html"), encoding="utf-8")
        given.to.mkdir(parents=True, exist_ok=True)
        with chromium() as browser:
            page = opened(browser, mnist / "report.html")
            keep(given.to / "decision.png", shot(page, "header", "#target-0 figure >> nth=0"))
            keep(
                given.to / "phone.png",
                shot(opened(browser, mnist / "report.html", width=390, theme="dark"), "header", "#target-0 figure >> nth=0"),
            )
            page = opened(browser, lite / "report.html")
            keep(given.to / "where-the-time-goes.png", shot(page, "#target-0-where", "#target-0 figure:has([data-chart=roofline])"))
            page = opened(browser, lite / "report.html", theme="dark")
            keep(
                given.to / "layers.png",
                shot(page, "#target-0 figure:has([data-chart=layers])", "#target-0 figure:has([data-chart=layers])"),
            )
            keep(given.to / "compare.png", shot(opened(browser, moved), "header", "#planes figure >> nth=0"))
            terminal = Path(scratch) / "terminal.html"
            terminal.write_text(console(mnist), encoding="utf-8")
            keep(given.to / "console.png", shot(opened(browser, terminal, width=760, charts=False), "pre", "pre", margin=0))


def copied(folder: Path, seconds: float | None) -> Path:
    """The recipes, with another budget where one is asked for."""
    shutil.copytree(CLONE / "recipes", folder)
    for recipe in folder.glob("*.yaml") if seconds else ():
        recipe.write_text(f"{recipe.read_text()}\nmeasure: {{budget_s: {seconds}}}\n")
    return folder


def harder(recipe: Path) -> Path:
    """The same recipe with fewer multiplications left, for a comparison."""
    other = recipe.with_name("mnist-cnn-pruned-harder.yaml")
    text = recipe.read_text()
    assert text.count("{macs: 0.45}") == 2
    other.write_text(text.replace("{macs: 0.45}", "{macs: 0.3}"))
    return other


def ran(recipe: Path, folder: Path) -> Path:
    if not (folder / "report.html").is_file():
        edgeopt("run", str(recipe), "--output", str(folder), codes=(0, 3, 4))  # what the gates say is no business of a picture
    return folder


def edgeopt(*arguments: str, codes: tuple[int, ...] = (0,), **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        cwd=CLONE,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in codes:
        raise SystemExit(f"edgeopt {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def console(run: Path) -> str:
    """What the console says of a run, in its colours, as a document."""
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    from edgeopt.cli.table import table
    from edgeopt.core.report import Report

    recorder = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    recorder.print(Text.from_ansi(table(Report.read(run), COLUMNS, coloured=True)), end="")
    ansi = [(0, 0, 0), (255, 123, 114), (95, 211, 137), (236, 189, 102), (116, 180, 255), (195, 155, 240), (79, 196, 180), (231, 234, 238)]
    theme = TerminalTheme((20, 23, 27), (231, 234, 238), ansi)
    return TERMINAL.format(code=recorder.export_html(inline_styles=True, code_format="{code}", theme=theme))


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    place = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Any, path: Path, width: int = 1280, theme: str = "light", charts: bool = True) -> Any:
    """A page as a reader sees it; one that complains or asks the network for something is no picture for anybody."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme, device_scale_factor=SHARP)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(path.as_uri())
    if charts:
        page.wait_for_function("[...document.querySelectorAll('[data-chart]')].every(box => box.querySelector('svg'))")
    if said:
        raise SystemExit(f"{path.name}: {said}")
    return page


def shot(page: Any, first: str, last: str, margin: int = 24) -> bytes:
    """From the top of one element to the end of another, as wide as the page or as the one element."""
    top, end = (page.locator(one).first.bounding_box() for one in (first, last))
    width = page.viewport_size["width"] if margin else end["x"] + end["width"]
    y = max(0, top["y"] - margin)
    height = end["y"] + end["height"] + margin - y
    return bytes(page.screenshot(full_page=True, clip={"x": 0, "y": y, "width": width, "height": height}))


def keep(path: Path, taken: bytes) -> None:
    """The picture with as few colours as it takes to stay small."""
    from PIL import Image

    image = Image.open(io.BytesIO(taken)).convert("RGB")
    for colours in COLOURS:
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            print(f"{path.name}: {image.width} × {image.height}, {path.stat().st_size / 1000:.0f} kB, {colours} colours")
            return
    raise SystemExit(f"{path.name} does not get below {MOST_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    main()
