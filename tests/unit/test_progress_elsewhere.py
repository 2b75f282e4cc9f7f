"""Progress where there is no terminal: a log, or a notebook."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_runs_progress import drive

from weft.runs import progress
from weft.runs.progress import Progress

LINES = [
    "round 3/5  2 clients  loss 1.2346  12.3k tokens/s  4.5 MB sent  0.0 s left",
    "weft: [bold]two of 3 rows were dropped",
    "round 3/5 evaluation  loss 1.5000  perplexity 4.48  accuracy 87.5%",
    "round 4/5  2 clients  1 dropped  12.3k tokens/s  4.5 MB sent  0.0 s left",
    "5 rounds in 3 min 20 s  loss 1.0000  eval loss 1.5000  perplexity 4.48  accuracy 87.5%  3 B sent",
]


@pytest.mark.parametrize("console", [True, False])
def test_a_log_has_a_line_a_round_and_the_output_stays_for_programs(capsys, console: bool):
    out = io.StringIO()
    drive(Progress(5, quiet=False, as_json=False, console=Console(file=out) if console else None))
    captured = capsys.readouterr()
    assert out.getvalue() + captured.out == ""
    assert captured.err.splitlines() == LINES


def test_a_log_says_now_and_then_how_far_the_tokenizing_is(capsys, monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    with Progress(5, quiet=False, as_json=False) as shown:
        for second in range(0, 100, 10):
            clock.now = float(second)
            shown.tokenizing("a.jsonl", second, 100, 1000 * second)
    assert [line.split("  ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "30% of 100 B",
        "60% of 100 B",
        "90% of 100 B",
    ]


def test_a_notebook_has_one_line_that_is_drawn_anew(capsys, monkeypatch: pytest.MonkeyPatch):
    cells: list[list[str]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        cells.append([data["text/plain"]])
        return SimpleNamespace(update=lambda data, raw, mine=cells[-1]: mine.append(data["text/plain"]))

    ipython, shown = ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    shown.display = display  # type: ignore[attr-defined]
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    drive(Progress(5, quiet=False, as_json=False))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [LINES[2], LINES[4]]
    assert captured.err.splitlines() == [LINES[1]]
    assert cells == [[LINES[0], ""], [LINES[3], ""]]
    ipython.get_ipython = SimpleNamespace  # type: ignore[attr-defined]  # a shell on a terminal has no kernel
    drive(Progress(5, quiet=False, as_json=False))
    assert capsys.readouterr().err.splitlines() == LINES
