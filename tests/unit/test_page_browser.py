"""Pages in headless Chromium: nothing on the console, nothing loaded, nothing too wide, keys work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chromium import Browser, found
from support.run_files import lay_run
from weft.cli import main
from weft.pages.report import write_report
from weft.runs.comparison import Outcome
from weft.studies.cells import cells_of
from weft.studies.measures import Measure
from weft.studies.page import as_written, page_of
from weft.studies.picture import draw
from weft.studies.study import read_study
from weft.studies.table import rows_of

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


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with more arms than colours, a failure, and a choice with long words."""
    page = tmp_path_factory.mktemp("study") / "study.html"
    base = {"model_name_or_path": "m" * 200, "dataset_name": "d"}
    arms: dict[str, dict[str, object]] = {f"arm {number}": {} for number in range(17)}
    study = read_study({"base": base, "grid": {"seed": [1, 2]}, "arms": arms, "output_dir": "out"})
    cells = cells_of(study, {})
    costs = {"bytes_up": 10**6, "bytes_down": 10**6, "seconds": 2.0}
    outcomes = {
        cell.name: Outcome("r", {"seed": cell.seed, "fed_alg": "x"}, costs | {"eval": {"loss": 1 + 0.1 * place}})
        for place, cell in enumerate(cells)
    }
    measure, failures = Measure("loss", "lower"), {"arm 1, seed 3": "why " * 300 + "x" * 300}
    rows = rows_of(study, cells, outcomes, [measure], {}, failures)
    choice = [{"arm": "arm 0", "point": [], "chosen": "rate 0.1", "values": {f"rate {one}": 0.5 for one in range(30)}}]
    pictures = {"loss": draw(rows, measure)}
    text = page_of("s" * 200, rows, [measure], pictures, failures, choice, as_written(study), "weft sweep " + "x" * 300)
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_of_a_study_renders(browser: Browser, study_page: Path, width: int, dark: bool):
    browser.open(study_page, width=width, dark=dark)
    assert browser.faults() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)"
    )
    # What is wider than the page is in a box that scrolls, by keys too.
    wide = """[...document.querySelectorAll('table, figure svg')].filter(one =>
      one.getBoundingClientRect().width > one.parentElement.clientWidth + 1).map(one => {
        const box = one.closest('.table, figure'); return [getComputedStyle(box).overflowX, box.tabIndex] })"""
    assert {tuple(one) for one in browser.value(wide)} <= {("auto", 0)}
    assert browser.value("document.querySelectorAll('tbody tr').length") == 17 + 17 + 1 + 1
    assert study_page.stat().st_size < 1_500_000
