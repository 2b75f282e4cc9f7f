"""What the supervisor of a server does with runs whose jobs are over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weft.sites.admin import ABANDONED
from weft.sites.supervisor import FALLS, LONGEST, TOGETHER, Supervisor

CRASHED, ENDED = "FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABORTED"
ROUND = {"round": {"round": 1, "failures": {}}}


class FakeServer:
    """Stands for an admin session with a server; jobs are numbered in the order of their submission."""

    def __init__(self, kit: Path) -> None:
        self.kit, self.now = kit, 1000.0
        self.connected = {"a": 1.0, "b": 1.0}
        self.listed: list[dict[str, Any]] = []
        self.says: dict[str, dict[str, Any]] = {}
        self.ended: list[str] = []
        self.notes: list[str] = []
        self.meanwhile: dict[str, Any] = {}
        """What a run says while its job is ended."""
        (kit / "runs").mkdir(parents=True)
        self.supervisor = Supervisor(kit, self.notes.append, lambda: self.now)

    def begin(self, **said: Any) -> str:
        """Submit a job that runs, with this status of its run; return its id."""
        number = str(len(self.listed))
        self.listed.insert(0, {"job_id": number, "job_name": "r", "status": "RUNNING"})
        self.say(number, **said)
        return number

    def say(self, job: str, **said: Any) -> None:
        self.says[job] = {"job": job, "state": "trains", "rounds": [], "sites": {"a": 3, "b": 4}} | said
        (self.kit / "runs" / "r.json").write_text(json.dumps(self.says[job]))

    def over(self, state: str = CRASHED) -> None:
        self.listed[0]["status"] = state

    def look(self, seconds: float = 0.0) -> int:
        """Let time pass and look; return how many jobs there have been."""
        self.now += seconds
        self.supervisor.look(self)  # type: ignore[arg-type]
        return len(self.listed)

    def jobs(self, limit: int | None = None) -> list[dict[str, Any]]:
        return self.listed[:limit]

    def sites(self) -> dict[str, float]:
        return self.connected

    def status(self, job: str) -> dict[str, Any]:
        return self.says[job]

    def stop(self, job: str) -> None:
        self.ended.append(job)
        self.over(ENDED)
        if self.meanwhile:
            self.say(job, **self.meanwhile)

    def resubmit(self, job: str) -> None:
        assert job == self.listed[0]["job_id"]
        self.listed.insert(0, {"job_id": str(len(self.listed)), "job_name": "r", "status": "SUBMITTED"})


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(tmp_path)


def test_a_run_whose_process_died_is_resubmitted_once(server: FakeServer):
    server.begin(rounds=[ROUND])
    assert server.look() == 1
    server.over()
    assert server.look() == 2
    assert server.look(10.0) == 2


@pytest.mark.parametrize(
    "said", [{"state": "done"}, {"state": "stopped", "final": True}, {"state": "failed", "final": True}]
)
@pytest.mark.parametrize("state", [CRASHED, ENDED, ABANDONED])
def test_a_run_that_is_done_stopped_or_impossible_is_not_resubmitted(
    server: FakeServer, said: dict[str, Any], state: str
):
    server.begin(**said)
    server.over(state)
    assert server.look() == server.look(2 * LONGEST) == 1


def test_a_job_that_never_began_is_resubmitted_only_where_the_server_ended(server: FakeServer):
    server.begin(state="done")
    server.over("FINISHED:COMPLETED")
    server.resubmit("0")
    server.over(ENDED)
    assert server.look(LONGEST) == 2
    server.over(ABANDONED)
    server.look()
    assert server.look(LONGEST) == 3


def test_with_too_few_sites_the_back_off_grows_until_another_comes(server: FakeServer):
    del server.connected["b"]
    pauses = []
    for number in range(12):
        server.begin(state="failed", error="1 of 2 sites take part, too few for a round", sites={})
        server.over()
        before, began = server.look(), server.now
        while server.look(1.0) == before:
            assert server.now < began + LONGEST + 2
        pauses.append(server.now - began)
        if number > 1:
            assert pauses[-1] >= pauses[-2]
    assert pauses[-1] == LONGEST
    server.begin(state="failed", error="1 of 2 sites take part, too few for a round", sites={})
    server.over()
    before = server.look()
    assert server.look(1.0) == before
    server.connected["b"] = 2.0
    assert server.look(1.0) == before + 1


def test_a_run_that_dies_repeatedly_without_progress_is_not_resubmitted(server: FakeServer):
    for _ in range(FALLS):
        server.begin()
        server.over()
        before = server.look()
        assert server.look(LONGEST) == before + 1
    server.begin()
    server.over()
    before = server.look()
    assert server.look(10 * LONGEST) == before


def test_a_server_that_was_started_again_waits_a_while_for_the_sites_of_a_run(server: FakeServer):
    server.begin(rounds=[ROUND])
    server.connected.clear()
    server.over(ABANDONED)
    assert server.look() == server.look(2.0) == 1
    server.connected["a"] = 3.0
    assert server.look(2.0) == 1
    server.connected["b"] = 3.0
    assert server.look(2.0) == 2
    server.begin(rounds=[ROUND])
    server.connected.clear()
    server.over(ABANDONED)
    assert server.look() == 3
    assert server.look(TOGETHER) == 4


def test_a_site_back_for_two_rounds_and_still_missed_gets_the_run_resubmitted(server: FakeServer):
    def after(number: int, **failures: str) -> int:
        server.say("0", rounds=[{"round": {"round": number, "failures": failures}}])
        return server.look(1.0)

    server.begin(rounds=[ROUND])
    away = {"b": "could not be reached for 4 s"}
    assert after(2, **away) == 1
    assert after(3) == 1  # its connection was interrupted, and it was reached again
    assert after(4, **away) == 1
    server.connected["b"] = 9.0
    assert after(5, **away) == after(6, **away) == 1
    assert after(7, **away) == 2
    assert server.ended == ["0"]
    server.listed[0]["status"] = "RUNNING"
    server.say("1", rounds=[{"round": {"round": 8, "failures": {"b": "made no progress for 4 s"}}}])
    assert server.look(60.0) == 2


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("said", [{"state": "stopped", "final": True}, {"state": "done"}])
def test_a_run_that_is_stopped_while_a_site_comes_back_stays_stopped(
    server: FakeServer, said: dict[str, Any], is_late: bool
):
    """FLARE lists a job as running for some seconds after `weft stop` has ended it."""
    away = {"failures": {"b": "could not be reached for 4 s"}}
    server.begin(rounds=[ROUND])
    for number in (2, 3, 4):
        server.say("0", rounds=[{"round": {"round": number} | away}])
        server.look(1.0)
        server.connected["b"] = 9.0
    last = {"rounds": [{"round": {"round": 5} | away}]}
    if is_late:
        server.meanwhile = last | said
        server.say("0", **last)
    else:
        server.say("0", **last, **said)
    assert server.look(1.0) == server.look(LONGEST) == 1
    assert server.ended == (["0"] if is_late else [])
    assert server.notes == []


def test_a_note_ends_the_reason_of_a_run_once(server: FakeServer):
    server.begin(state="failed", error="b is not connected.")
    server.over()
    server.look()
    assert server.notes == ["r: its job is over (b is not connected); the run is resubmitted."]
