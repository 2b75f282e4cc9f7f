"""The server's store of jobs: one job at a time for each name of a run, whoever submits or repeats it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.errors import ConfigError

pytest.importorskip("nvflare")
from nvflare.apis.fl_context import FLContext
from nvflare.apis.server_engine_spec import ServerEngineSpec
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage

from weft.sites.admin import EMPTY_TRIES, AdminSession
from weft.sites.job import REPORT, ROUNDS
from weft.sites.job_store import JobStore


def engine_with(store: FilesystemStorage) -> ServerEngineSpec:
    """Return a stand-in for FLARE's engine that has nothing but the store."""
    names = {name: (lambda *_, **__: None) for name in ServerEngineSpec.__abstractmethods__}
    fake = type("FakeEngine", (ServerEngineSpec,), names | {"get_component": lambda *_: store})
    return fake()  # type: ignore[no-any-return]


class Server:
    def __init__(self, kit: Path) -> None:
        self.kit = kit
        (kit / "runs").mkdir()
        self.context = FLContext()
        store = FilesystemStorage()
        engine = engine_with(store)
        self.context.get_engine = lambda: engine  # type: ignore[method-assign]
        self.jobs = JobStore(str(kit / "jobs"))

    def submit(self, name: str = "r", rounds: int = 3) -> str:
        return str(self.jobs.create({"name": name, ROUNDS: rounds}, b"", self.context)["job_id"])

    def clone(self, job: str) -> str:
        return str(self.jobs.clone(job, {"name": "r"}, self.context)["job_id"])

    def set(self, job: str, **meta: Any) -> None:
        self.jobs.update_meta(job, meta, self.context)

    def report(self, **status: Any) -> None:
        (self.kit / "runs" / "r.json").write_text(json.dumps(status))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("WEFT_KIT", str(tmp_path))
    return Server(tmp_path)


def test_a_run_that_waits_or_goes_on_has_its_name_alone(server: Server):
    job = server.submit()
    for state in ("SUBMITTED", "DISPATCHED", "RUNNING"):
        server.set(job, status=state)
        with pytest.raises(ConfigError, match="goes on already"):
            server.submit()
    server.submit("other")
    server.set(job, status="FINISHED:ABORTED")
    again = server.clone(job)
    with pytest.raises(ConfigError, match="goes on already"):
        server.clone(job)
    with pytest.raises(ConfigError, match="goes on already"):
        server.submit()
    assert server.jobs.get_job(again, server.context) is not None


def test_a_job_whose_server_died_does_not_hold_its_name(server: Server):
    job = server.submit()
    server.set(job, status="RUNNING", start_time="2020-01-01 00:00:00.0")
    assert server.submit() not in ("", job)


def test_of_many_at_once_one_gets_the_name(server: Server):
    outcomes: list[str] = []

    def submit() -> None:
        try:
            outcomes.append(server.submit())
        except ConfigError:
            outcomes.append("")

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, outcomes)) == [False] * 7 + [True]


def test_a_run_that_is_done_keeps_its_name_unless_it_is_to_have_more_rounds(server: Server):
    job = server.submit()
    server.set(job, status="FINISHED:COMPLETED")
    server.report(job=job, state="done", num_rounds=3)
    with pytest.raises(ConfigError, match="is done, with 3 rounds"):
        server.submit()
    server.set(server.submit(rounds=5), status="FINISHED:COMPLETED")
    server.report(job=job, state="stopped", num_rounds=5, final=True)
    server.submit(rounds=5)


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", ""])
def test_a_name_that_is_no_folder_is_refused_at_the_door(server: Server, name: str):
    with pytest.raises(ConfigError, match="cannot be called"):
        server.submit(name)
    assert os.listdir(server.kit / "jobs") == []


def test_the_description_of_a_job_has_what_its_run_reported_and_no_other_jobs_report(server: Server):
    job = server.submit()
    server.report(job=job, state="trains", rounds=[])
    assert server.jobs.get_job(job, server.context).meta[REPORT]["state"] == "trains"
    server.report(job="another", state="trains")
    assert REPORT not in server.jobs.get_job(job, server.context).meta
    (server.kit / "runs" / "r.json").write_text("{")
    assert REPORT not in server.jobs.get_job(job, server.context).meta


class MomentarilyEmpty:
    """A session whose list of jobs is empty at first, as FLARE's was seen to be while a job ended."""

    def __init__(self, *lists: list[dict[str, str]]) -> None:
        self.lists = list(lists)

    def list_jobs(self, **_: object) -> list[dict[str, str]]:
        return self.lists.pop(0)

    def get_system_info(self) -> SimpleNamespace:
        return SimpleNamespace(server_info=SimpleNamespace(start_time=0.0))


def test_a_list_that_is_empty_for_a_moment_is_asked_for_again():
    session = MomentarilyEmpty([], [{"job_id": "1", "status": "FINISHED:COMPLETED"}])
    assert [job["job_id"] for job in AdminSession(session).jobs()] == ["1"]
    assert AdminSession(MomentarilyEmpty(*[[]] * (1 + EMPTY_TRIES))).jobs() == []
