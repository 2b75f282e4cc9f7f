"""Pages in headless Chromium: nothing on the console, nothing loaded, nothing too wide, keys work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chromium import Browser, found
from support.run_files import lay_run
from weft.cli import main
from weft.pages.report import write_report

pytestmark = pytest.mark.skipif(found() is None, reason="no Chromium here: install it, or name one in $CHROMIUM")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = found()
    assert program is not None
    with Browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    first = lay_run(folder / "first", output_dir=str(folder / "first"))
    second = lay_run(folder / "second", level=1.5, output_dir=str(folder / "second"), fed_alg="local")
    big = lay_run(folder / "big", rounds=1000, clients=100)
    both = folder / "both.html"
    assert main(["compare", str(first), str(second), "--html", str(both)]) == 0
    return {"report": write_report(first, against=[second]), "big": write_report(big), "both": both}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", ["report", "big", "both"])
def test_a_page_renders(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.faults() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    back = browser.value("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")
    plots = browser.value("[...document.querySelectorAll('svg.plot')].map(p => p.getBoundingClientRect().width)")
    assert len(plots) == 5  # of the comparison: two against costs, and three curves
    assert all(0.7 * min(width, 450) < one <= 550 for one in plots)
    # No text of a picture is cut off at its edge.
    cut = """[...document.querySelectorAll('svg.plot')].flatMap(plot => { const box = plot.getBoundingClientRect();
      return [...plot.querySelectorAll('text')].filter(one => { const own = one.getBoundingClientRect();
        return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1 })
        .map(one => one.textContent) })"""
    assert browser.value(cut) == []


def test_values_are_read_by_keyboard_and_pointer(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["report"], width=1400)
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.matches('svg.plot')")
    browser.press("End", 35)
    shown = "document.querySelector('figure.chart output').textContent"
    assert browser.value(shown).startswith("round 20 · train 1.447")
    browser.press("ArrowLeft", 37)
    assert browser.value(shown).startswith("round 19 · ")
    box = browser.value("(b => [b.left, b.top, b.width])(document.querySelector('svg.plot').getBoundingClientRect())")
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] * 46 / 400, y=box[1] + 40)
    assert browser.value(shown).startswith("round 1 · train 3")
    assert browser.faults() == []


def test_all_is_there_without_scripts(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["report"], width=390, scripts=False)
    assert browser.faults() == []
    # The tree of a page is read without running any script of it.
    root = browser.send("DOM.getDocument", depth=-1)["root"]["nodeId"]
    for selector, least in (("svg.plot path", 5), ("details table td", 100), ("svg.strip path", 3), (".bar i", 9)):
        assert len(browser.send("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]) >= least
