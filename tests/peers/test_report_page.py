"""The report in a real browser: nothing is loaded, every figure draws, the slider tells its numbers, keys work."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "mobileprune"))
from report_evidence import embedded, evidence, whole_page

from mobileprune.report.comparison import Compared, comparison_page

_ALL_DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
_AXIS = "getComputedStyle(document.querySelector('#figure-latency .xtick text')).fill"
FIGURES = ("frontier", "slices", "latency", "macs", "blocks", "curves")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("no chromium on the PATH: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page that is open, with what it asked of the network and what it complained about."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **how})
        self.page = self.context.new_page()
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(file.as_uri())
        self.until(_ALL_DRAWN)

    def until(self, condition: str) -> None:
        """Wait for a JavaScript condition (the page's own policy forbids the browser to poll one by itself)."""
        end = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]

    def told(self, name: str) -> str:
        return str(self.page.text_content(f'[data-choice="{name}"]'))


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    opened: list[Visit] = []

    def go(text: str, **how: Any) -> Visit:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        opened.append(Visit(browser, file, **how))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_draws_and_nothing_leaves_the_page(visit: Any, scheme: str) -> None:
    seen = visit(whole_page(), color_scheme=scheme)
    for key in FIGURES:
        figure = seen.page.locator(f"#figure-{key} .plot")
        assert figure.count() >= 1, key
        for i in range(figure.count()):
            box = figure.nth(i).bounding_box()
            assert box["width"] > 150 and box["height"] > 150, key
            marks = "path.point, g.trace path, .heatmaplayer image, .barlayer path"
            assert figure.nth(i).locator(marks).count() > 0, key
    assert seen.outside() == []
    assert seen.complaints == []


def test_the_slider_tells_the_choice_of_every_budget(visit: Any) -> None:
    text = whole_page()
    seen, choices = visit(text), embedded(text, "choices")
    slider = seen.page.locator("#budget")
    for at in (0, 24, 25, 99):
        slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", at)
        for name, value in choices[at]["shown"].items():
            assert seen.told(name) == value
        marked = seen.page.evaluate("document.querySelector('#figure-frontier .plot').data.at(-1)")
        assert (marked["x"], marked["y"]) == ([choices[at]["x"]], [choices[at]["y"]])
    assert seen.complaints == []


def test_the_keyboard_reaches_and_moves_the_slider(visit: Any) -> None:
    text = whole_page()
    seen, choices = visit(text), embedded(text, "choices")
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate("document.activeElement.id") == "budget":
            break
    else:
        pytest.fail("Tab never came to the slider")
    seen.page.keyboard.press("Home")
    assert seen.told("limit") == choices[0]["shown"]["limit"]
    seen.page.keyboard.press("ArrowRight")
    assert seen.told("limit") == choices[1]["shown"]["limit"]
    assert seen.page.get_attribute("#budget", "aria-valuetext") == choices[1]["words"]


def test_text_and_figures_follow_the_theme(visit: Any) -> None:
    seen = visit(whole_page(), color_scheme="light")
    light = seen.page.evaluate(_AXIS)
    seen.page.emulate_media(color_scheme="dark")
    seen.until(f"{_AXIS} !== {light!r}")
    background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert _contrast(_rgb(seen.page.evaluate(_AXIS)), _rgb(background)) > 7


def test_a_narrow_screen_needs_no_sideways_scrolling(visit: Any) -> None:
    seen = visit(whole_page(), viewport={"width": 360, "height": 700})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert seen.page.locator("#figure-frontier .plot").bounding_box()["width"] <= 360


def test_it_prints(visit: Any, tmp_path: Path) -> None:
    seen = visit(whole_page(), color_scheme="dark")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen.until(f"{_AXIS} === 'rgb(0, 0, 0)'")  # black on paper, also for who reads in the dark
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    seen.until(f"{_AXIS} !== 'rgb(0, 0, 0)'")
    seen.page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    seen.page.emulate_media(media="print")
    assert not seen.page.is_visible("nav")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.complaints == []


def test_the_comparison_draws(visit: Any) -> None:
    runs = [Compared(f"run-{i}", {"model": "net"}, evidence()) for i in range(3)]
    seen = visit(comparison_page(runs, ["model"]))
    assert seen.page.locator("#figure-frontiers g.trace").count() == 3
    assert seen.page.locator("#figure-results g.trace").count() == 3
    assert seen.outside() == [] and seen.complaints == []


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3])


def _contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """WCAG 2's contrast ratio of two sRGB colours."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
