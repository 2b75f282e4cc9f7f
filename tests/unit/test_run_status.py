"""What an administrator reads of runs: why they failed, what sites did not do; and odd names, which break no table."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from weft.commands import submit
from weft.errors import RunError
from weft.sites import admin, watcher
from weft.sites.run_status import RunPrinter, cell, lines_of, require_result

ODD = ["\x1b[2J\x1b[31mred", "x" * 300, "日本" * 40, "שלום", "a\nb\tc", "e\u0301" * 50, "\u202egnp.exe", "[bold]", ""]


def round_of(number: int, **failures: str) -> dict[str, Any]:
    return {"round": {"round": number, "train_loss": 2.0, "failures": failures}}


@pytest.mark.parametrize("name", ODD)
def test_a_name_takes_its_columns_and_controls_no_terminal(name: str):
    made = cell(name)
    assert cell_len(made) == 40
    isolates = {"\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"}
    assert not [letter for letter in made if unicodedata.category(letter).startswith("C") and letter not in isolates]
    if name == "שלום":
        assert made[0] == "\N{FIRST STRONG ISOLATE}"
        assert "\N{POP DIRECTIONAL ISOLATE}" in made
    for line in lines_of(name, "1", "RUNNING", {"refused": {name: name}, "rounds": [round_of(1, **{name: name})]}):
        assert "\n" not in line
        assert "\x1b" not in line


REPORTS = {
    "an error": (
        "FINISHED:EXECUTION_EXCEPTION",
        {"state": "failed", "error": "no more memory", "rounds": [round_of(3)]},
        ["round 3", "  why: no more memory"],
    ),
    "no word of the run": ("FINISHED:CAN_NOT_SCHEDULE", None, ["  why: too few of its sites were connected"]),
    "a kill": (
        "FINISHED:EXECUTION_EXCEPTION",
        {"state": "trains", "rounds": []},
        ["  why: its process ended; its log at the server says more"],
    ),
    "a refusal": ("RUNNING", {"state": "trains", "refused": {"b": "too short"}}, ["  b takes no part: too short"]),
    "a failure": (
        "RUNNING",
        {"state": "trains", "rounds": [round_of(1, b="old"), round_of(2, c="its disk is full")]},
        ["  c sent no update in the newest round: its disk is full"],
    ),
    "a result": (
        "FINISHED:COMPLETED",
        {"state": "done", "undelivered": {"b": "it was away"}},
        ["  b did not get the result: it was away"],
    ),
}


class Session:
    """Stands for an admin session: jobs with their states and reports."""

    def __init__(self, jobs: list[tuple[str, str, dict[str, Any] | None]]) -> None:
        self.listed = [
            {"job_id": str(number), "job_name": name, "status": state} for number, (name, state, _) in enumerate(jobs)
        ]
        self.reports = {str(number): report for number, (*_, report) in enumerate(jobs)}

    def submit(self, config: object, name: str) -> str:
        return "0"

    def jobs(self, limit: int | None = None) -> list[dict[str, Any]]:
        return self.listed

    def sites(self) -> dict[str, float]:
        return {"a": 1.0, "b\x1b[2J": 1.0}

    def state(self, job: str) -> str:
        return str(self.listed[int(job)]["status"])

    def status(self, job: str) -> dict[str, Any] | None:
        return self.reports[job]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that sets what every admin session answers."""
    current: list[Session] = []

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[Session]:
        yield current[-1]

    monkeypatch.setattr(admin, "admin_session", opened)
    monkeypatch.setattr(watcher, "admin_session", opened)

    def answer(*jobs: tuple[str, str, dict[str, Any] | None]) -> Session:
        current.append(Session(list(jobs)))
        return current[-1]

    return answer


@pytest.mark.parametrize("kind", REPORTS)
def test_status_says_why(session, capsys, kind: str):
    state, report, said = REPORTS[kind]
    session(("run", state, report), ("other", "RUNNING", None), ("run", "FINISHED:ABORTED", None))
    assert submit.status(["--kit", "k"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "sites: a, b\\x1b[2J"
    assert lines[1].startswith(f"run    0  {state}")
    assert lines[-1] == "other  1  RUNNING"
    assert all(word in out for word in said)
    assert "stopped" not in out  # of an older job of the run


def test_every_state_in_which_a_job_of_flare_can_fail_has_words():
    job_def = pytest.importorskip("nvflare.apis.job_def")
    for state in job_def.RunStatus:
        lines = list(lines_of("run", "1", state.value, None))
        assert (len(lines) == 2) == (state.value.startswith(("FINISHED", "FAILED")) and "COMPLETED" not in state.value)


def test_each_round_and_each_failure_is_printed_once(capsys):
    out = RunPrinter()
    first = {
        "state": "trains",
        "job": "1",
        "refused": {"c": "too short"},
        "rounds": [round_of(1, b="its disk is full")],
    }
    out({"state": "begins", "job": "1", "rounds": []})
    out(first)
    out(first | {"rounds": [*first["rounds"], round_of(2), {"evaluation": {"round": 2, "loss": 1.0}}, round_of(3)]})
    out({"state": "done", "job": "1", "rounds": [round_of(2), round_of(3)]})
    printed, errors = capsys.readouterr()
    entries = [json.loads(line) for line in printed.splitlines()]
    assert [entry["round"]["round"] for entry in entries if "round" in entry] == [1, 2, 3]
    assert [entry["state"] for entry in entries] == ["begins", "trains", "trains", "trains", "trains", "done"]
    assert errors.splitlines() == [
        "weft: the site 'c' takes no part: too short.",
        "weft: round 1: the update of 'b' was dropped: its disk is full.",
    ]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"state": "failed", "error": "no more memory"}, "failed: no more memory"),
        ({"state": "stopped"}, "was stopped"),
        ({}, "its log at the server says more"),
        ({"state": "done", "undelivered": {"b": "its disk is full"}}, r"not reach every site \(b: its disk is full\)"),
    ],
)
def test_without_a_result_the_exit_is_a_failure(last: dict[str, Any], said: str):
    with pytest.raises(RunError, match=said):
        require_result("run", last)
    require_result("run", {"state": "done", "undelivered": {}})


def test_the_end_of_a_job_is_read_after_it(session):
    """A run that ends between two looks: what it said last counts, not what was heard before."""
    report = {"state": "done", "undelivered": {"b": "it was away"}, "rounds": [round_of(1)]}
    session(("run", "FINISHED:COMPLETED", report))
    heard: list[dict[str, Any]] = []
    last = watcher.watch(Path("k"), None, "run", heard.append)  # type: ignore[arg-type]
    assert last["undelivered"] == {"b": "it was away"}
    assert heard == [report]
