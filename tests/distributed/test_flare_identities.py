"""Identities over real FLARE: own keys, revocation, several administrators, what the supervisor may, one job a name.

The tests of this file share one federation and run in their order.
"""

from __future__ import annotations

import gc
import re
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from support.flare import MARKS
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import RunConfig, build
from weft.sites.admin import OVER, AdminSession, admin_session
from weft.sites.job import write_job
from weft.sites.local_federation import LocalFederation
from weft.sites.processes import command, end, start
from weft.sites.provisioning import add_kit
from weft.sites.watcher import run_name, watch

pytest.importorskip("nvflare")
from nvflare.fuel.flare_api.api_spec import AuthorizationError

pytestmark = [*MARKS, pytest.mark.slow]
SITES = ("hospital_a", "hospital_b")
ALICE = "alice@hospital"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LocalFederation]:
    work = tmp_path_factory.mktemp("federation")
    policies = {}
    for number, name in enumerate((*SITES, "hospital_c")):
        write_rows(work / f"{name}.jsonl", colour_rows(24 + 3 * number, number))
        policies[name] = work / f"{name}.yaml"
        policy = {"data": f"{name}.jsonl", "threads": 1, "accept": {"models": [str(tiny_model)], "min_train_rows": 1}}
        policies[name].write_text(yaml.safe_dump(policy))
    made = LocalFederation(work, {name: policies[name] for name in SITES})
    made.policies = policies
    add_kit(made.kits, ALICE)
    try:
        for name in ("server", *SITES):
            made.start(name)
        made.wait(set(SITES))
        yield made
    finally:
        made.close()
    gc.collect()


@pytest.fixture
def config(keys) -> RunConfig:
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients", "output_dir")}
    own = {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "silence_timeout": 5.0, "eval_every": 0}
    return build(left | own | {"num_rounds": 2, "min_clients": 1})


def file_of(config: RunConfig, folder: Path) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return [str(path)]


def text(made: LocalFederation, pattern: str) -> str:
    paths = [path for path in made.kits.rglob(pattern) if path.is_file()]
    assert paths
    return "\n".join(path.read_text(errors="replace") for path in paths)


def ended(session: AdminSession, name: str) -> None:
    """Wait until FLARE has ended the jobs of a run, some seconds after the run itself."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        jobs = [job for job in session.jobs() if run_name(job) == name]
        if jobs and all(str(job["status"]).startswith(OVER) for job in jobs):
            return
        time.sleep(0.2)
    raise AssertionError(f"the run '{name}' did not end")


def test_a_healthy_run_logs_no_error_and_leaves_no_file_for_others(
    federation: LocalFederation, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alice = federation.kits / ALICE
    begun = time.monotonic()
    assert watch(alice, config, "healthy", lambda _: None)["state"] == "done"
    with admin_session(alice) as session:
        ended(session, "healthy")
    minutes = (time.monotonic() - begun) / 60
    logged = text(federation, "*.log") + text(federation, "*log*.txt")
    assert not re.findall(r".*\b(?:ERROR|CRITICAL|Traceback)\b.*", logged)
    others = [path for path in (federation.kits, *federation.kits.rglob("*")) if path.exists()]
    assert [path for path in others if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    audit = (federation.kits / "server" / "audit.log").read_text().splitlines()
    assert sum(f"[U:{ALICE}]" in line and "submit_job healthy" in line for line in audit) == 1
    polled = [line for line in audit if re.search("list_jobs|get_job_meta|check_status|app_command", line)]
    assert len(polled) <= 9, minutes  # three commands of three users; there were 480 lines a minute
    assert main(["submit", *file_of(config, tmp_path), "--kit", str(alice), "--name", "healthy"]) == 2
    assert "The run 'healthy' is done, with 2 rounds" in capsys.readouterr().err


def test_the_supervisor_can_only_see_repeat_and_end_jobs(
    federation: LocalFederation, config: RunConfig, tmp_path: Path
):
    with admin_session(federation.kits / "server" / "supervisor") as session:
        assert set(session.sites()) == set(SITES)
        (job,) = (str(job["job_id"]) for job in session.jobs())
        assert session.status(job)["state"] == "done"
        for words in (
            f"delete_job {job}",
            f"configure_job_log {job} all DEBUG",
            "configure_site_log all DEBUG",
            "shutdown all",
            "restart all",
            "disable_client hospital_a",
            "remove_client hospital_a",
            f"app_command {job} weft_stop {{}}",
        ):
            with pytest.raises(AuthorizationError):
                session.session._do_command(words, enforce_meta=False)
        with pytest.raises(AuthorizationError):
            session.session.submit_job(str(write_job(config, "other", tmp_path)))
        assert len(session.jobs()) == 1


def test_a_name_has_one_job_and_a_revoked_administrator_is_cut(
    federation: LocalFederation, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    long = build(config.model_dump(mode="json") | {"num_rounds": 80, "max_steps": 30})
    alice = federation.kits / ALICE
    with ThreadPoolExecutor() as pool, admin_session(federation.admin) as session:
        run = pool.submit(watch, federation.admin, long, "long", lambda _: None)
        until = time.monotonic() + 60
        while not (federation.kits / "server" / "runs" / "long.json").exists() and time.monotonic() < until:
            time.sleep(0.2)
        assert main(["submit", *file_of(long, tmp_path), "--kit", str(alice), "--name", "long"]) == 2
        assert "The run 'long' goes on already" in capsys.readouterr().err
        with admin_session(alice) as other, pytest.raises(Exception, match="ConfigError"):
            other.session.submit_job(str(write_job(long, "long", tmp_path)))  # as one who does not ask first
        (job,) = (str(job["job_id"]) for job in session.jobs() if run_name(job) == "long")
        with admin_session(alice) as other:
            assert other.jobs()
            assert main(["server", "revoke", str(federation.kits), ALICE]) == 0
            time.sleep(3.0)
            with pytest.raises(Exception, match=r"(?i)connect|closed|session|reply"):
                other.jobs()
        capsys.readouterr()
        assert main(["status", "--kit", str(alice)]) == 1
        assert "cannot be reached" in capsys.readouterr().err
        assert main(["stop", "long", "--kit", str(federation.admin)]) == 0
        assert run.result()["state"] == "stopped"
        ended(session, "long")
        assert [str(job["job_id"]) for job in session.jobs() if run_name(job) == "long"] == [job]
    audit = (federation.kits / "server" / "audit.log").read_text().splitlines()
    assert sum(f"[U:admin@weft.local][A:abort_job {job}" in line for line in audit) == 1


def test_a_site_with_its_own_key_connects_and_is_shut_out(
    federation: LocalFederation, config: RunConfig, tmp_path: Path
):
    def kit_of(folder: str) -> Path:
        kit = tmp_path / folder
        assert main(["client", "request", "--name", "hospital_c", "--out", str(kit)]) == 0
        answer = tmp_path / f"{folder}.json"
        words = ["server", "sign", str(federation.kits), str(kit / "request.csr"), "--out", str(answer)]
        assert main(words) == 0
        assert main(["client", "install", str(answer), "--kit", str(kit)]) == 0
        return kit

    def begin(kit: Path) -> object:
        return start(*command(kit, federation.policies["hospital_c"]), kit)

    def gone() -> bool:
        """Wait until FLARE has noticed that a site is away, by its heartbeats."""
        until = time.monotonic() + 60
        with admin_session(federation.admin) as session:
            while time.monotonic() < until and "hospital_c" in session.sites():
                time.sleep(0.5)
            return set(session.sites()) == set(SITES)

    kit, processes = kit_of("one"), []
    wrong = Path(shutil.copytree(kit, tmp_path / "wrong"))
    shutil.copy(federation.kits / "hospital_a" / "startup" / "client.key", wrong / "startup")
    try:
        processes.append(begin(wrong))  # another's certificate is of no use without its key
        processes.append(begin(kit))
        federation.wait({"hospital_c"})
        own = (kit / "startup" / "client.key").read_bytes()
        assert not any(own in path.read_bytes() for path in federation.kits.rglob("*") if path.is_file())
        assert "Connection" not in (wrong / "console.log").read_text().replace("Connection refused", "")
        assert main(["server", "revoke", str(federation.kits), "hospital_c"]) == 0
        assert gone()
        assert "connection was cut: the certificate of 'hospital_c' is revoked" in text(federation, "log.txt")
        federation.stop("server")
        federation.start("server")
        federation.wait(set(SITES))
        both = build(config.model_dump(mode="json") | {"sites": [*SITES, "hospital_c"], "sample_clients": 3})
        last = watch(federation.admin, both, "without", lambda _: None)
        assert last["state"] == "done"
        assert "connected" in str(last["refused"]["hospital_c"])
        assert not (kit / "weft").exists()
        assert "connection was refused: the certificate of 'hospital_c' is revoked" in text(federation, "log.txt")
        end(processes.pop())
        processes.append(begin(kit_of("two")))
        federation.wait({"hospital_c"})
    finally:
        for process in processes:
            end(process)
