"""What the supervisor of a server does with runs whose jobs are over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weft.sites.admin import GONE
from weft.sites.supervisor import FALLS, LONGEST, TOGETHER, Supervisor

CRASHED, ENDED = "FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABORTED"
ROUND = {"round": {"round": 1, "failures": {}}}


class Desk:
    """A server's desk without a server; jobs are numbered as they are handed in."""

    def __init__(self, kit: Path) -> None:
        self.kit, self.now = kit, 1000.0
        self.connected = {"a": 1.0, "b": 1.0}
        self.known: list[dict[str, Any]] = []
        self.says: dict[str, dict[str, Any]] = {}
        self.ended: list[str] = []
        (kit / "runs").mkdir(parents=True)
        self.supervisor = Supervisor(kit, lambda _: None, lambda: self.now)

    def begin(self, **said: Any) -> str:
        """Hand a job in, whose run says so; it runs."""
        number = str(len(self.known))
        self.known.insert(0, {"job_id": number, "job_name": "r", "status": "RUNNING"})
        self.say(number, **said)
        return number

    def say(self, job: str, **said: Any) -> None:
        self.says[job] = {"job": job, "state": "trains", "rounds": [], "sites": {"a": 3, "b": 4}} | said
        (self.kit / "runs" / "r.json").write_text(json.dumps(self.says[job]))

    def over(self, state: str = CRASHED) -> None:
        self.known[0]["status"] = state

    def look(self, seconds: float = 0.0) -> int:
        """Let time pass and look; return how many jobs there have been."""
        self.now += seconds
        self.supervisor.look(self)  # type: ignore[arg-type]
        return len(self.known)

    def jobs(self, limit: int | None = None) -> list[dict[str, Any]]:
        return self.known[:limit]

    def sites(self) -> dict[str, float]:
        return self.connected

    def status(self, job: str) -> dict[str, Any]:
        return self.says[job]

    def stop(self, job: str) -> None:
        self.ended.append(job)
        self.over(ENDED)

    def again(self, job: str) -> None:
        assert job == self.known[0]["job_id"]
        self.known.insert(0, {"job_id": str(len(self.known)), "job_name": "r", "status": "SUBMITTED"})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_run_whose_process_died_is_resubmitted_once(desk: Desk):
    desk.begin(rounds=[ROUND])
    assert desk.look() == 1
    desk.over()
    assert desk.look() == 2
    assert desk.look(10.0) == 2


@pytest.mark.parametrize(
    "said", [{"state": "done"}, {"state": "stopped", "final": True}, {"state": "failed", "final": True}]
)
@pytest.mark.parametrize("state", [CRASHED, ENDED, GONE])
def test_a_run_that_is_done_stopped_or_impossible_is_not_resubmitted(desk: Desk, said: dict[str, Any], state: str):
    desk.begin(**said)
    desk.over(state)
    assert desk.look() == desk.look(2 * LONGEST) == 1


def test_a_job_that_never_began_is_resubmitted_only_where_the_server_ended(desk: Desk):
    desk.begin(state="done")
    desk.over("FINISHED:COMPLETED")
    desk.again("0")
    desk.over(ENDED)
    assert desk.look(LONGEST) == 2
    desk.over(GONE)
    desk.look()
    assert desk.look(LONGEST) == 3


def test_with_too_few_sites_the_back_off_grows_until_another_comes(desk: Desk):
    del desk.connected["b"]
    pauses = []
    for number in range(12):
        desk.begin(state="failed", error="1 of 2 sites take part, too few for a round", sites={})
        desk.over()
        before, began = desk.look(), desk.now
        while desk.look(1.0) == before:
            assert desk.now < began + LONGEST + 2
        pauses.append(desk.now - began)
        if number > 1:
            assert pauses[-1] >= pauses[-2]
    assert pauses[-1] == LONGEST
    desk.begin(state="failed", error="1 of 2 sites take part, too few for a round", sites={})
    desk.over()
    before = desk.look()
    assert desk.look(1.0) == before
    desk.connected["b"] = 2.0
    assert desk.look(1.0) == before + 1


def test_a_run_that_dies_repeatedly_without_progress_is_not_resubmitted(desk: Desk):
    for _ in range(FALLS):
        desk.begin()
        desk.over()
        before = desk.look()
        assert desk.look(LONGEST) == before + 1
    desk.begin()
    desk.over()
    before = desk.look()
    assert desk.look(10 * LONGEST) == before


def test_a_server_that_was_started_again_waits_a_while_for_the_sites_of_a_run(desk: Desk):
    desk.begin(rounds=[ROUND])
    desk.connected.clear()
    desk.over(GONE)
    assert desk.look() == desk.look(2.0) == 1
    desk.connected["a"] = 3.0
    assert desk.look(2.0) == 1
    desk.connected["b"] = 3.0
    assert desk.look(2.0) == 2
    desk.begin(rounds=[ROUND])
    desk.connected.clear()
    desk.over(GONE)
    assert desk.look() == 3
    assert desk.look(TOGETHER) == 4


def test_a_site_back_for_two_rounds_and_still_missed_gets_the_run_resubmitted(desk: Desk):
    def after(number: int, **failures: str) -> int:
        desk.say("0", rounds=[{"round": {"round": number, "failures": failures}}])
        return desk.look(1.0)

    desk.begin(rounds=[ROUND])
    away = {"b": "could not be reached for 4 s"}
    assert after(2, **away) == 1
    assert after(3) == 1  # its line was cut, and it was found by itself
    assert after(4, **away) == 1
    desk.connected["b"] = 9.0
    assert after(5, **away) == after(6, **away) == 1
    assert after(7, **away) == 2
    assert desk.ended == ["0"]
    desk.known[0]["status"] = "RUNNING"
    desk.say("1", rounds=[{"round": {"round": 8, "failures": {"b": "made no progress for 4 s"}}}])
    assert desk.look(60.0) == 2
