"""Sites over NVIDIA FLARE: real processes, real certificates, mutual TLS on loopback."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import weft
from support.flare import MARKS
from support.rows import colour_rows, write_rows
from support.tcp_proxy import TcpProxy
from weft.cli import main
from weft.config import build
from weft.runs.chain import read_chain
from weft.sites.admin import admin_session
from weft.sites.job import write_job
from weft.sites.local_federation import LocalFederation
from weft.sites.processes import command, end, start
from weft.sites.provisioning import add_kit, make_kits
from weft.sites.watcher import watch

pytest.importorskip("nvflare")
pytestmark = MARKS
SITES = ("hospital_a", "hospital_b")


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[LocalFederation, TcpProxy]]:
    """A server and two sites that run through all tests of this file, one of them behind a proxy."""
    work = tmp_path_factory.mktemp("federation")
    policies = {}
    for number, name in enumerate(SITES):
        rows = [row | {"prompt": row["instruction"]} for row in colour_rows(24 + 3 * number, number)]
        rows = [row | {"chosen": row["output"], "rejected": "none"} for row in rows]
        write_rows(work / f"{name}.jsonl", rows)
        accept = {"models": [str(tiny_model)], "max_rounds": 1000, "min_report_rows": 1}
        policies[name] = work / f"{name}.yaml"
        policies[name].write_text(yaml.safe_dump({"data": f"{name}.jsonl", "threads": 1, "accept": accept}))
    made = LocalFederation(work, policies)
    proxy = TcpProxy(made.port)
    path = made.kits / "hospital_a" / "startup" / "fed_client.json"
    path.write_text(path.read_text().replace(f"localhost:{made.port}", f"localhost:{proxy.port}"))
    try:
        made.begin()
        yield made, proxy
    finally:
        made.close()
        proxy.close()
    gc.collect()


@pytest.fixture
def parties(proxied: tuple[LocalFederation, TcpProxy]) -> LocalFederation:
    return proxied[0]


@pytest.fixture
def proxy(proxied: tuple[LocalFederation, TcpProxy]) -> TcpProxy:
    return proxied[1]


@pytest.fixture
def run(keys, parties: LocalFederation) -> dict[str, object]:
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    own = {"runtime": "nvflare", "sites": list(SITES), "threads": 1, "silence_timeout": 20.0, "eval_every": 1}
    return left | own | {"choices": ["red", "green", "blue"]}


def here(run: dict[str, object], parties: LocalFederation, tmp_path: Path):
    clients = [{"name": name, "data": str(parties.work / f"{name}.jsonl")} for name in SITES]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    return weft.train(own | {"clients": clients, "output_dir": str(tmp_path / "here")}, quiet=True)


def there(parties: LocalFederation, name: str) -> Path:
    return parties.kits / "server" / "runs" / name


def same(ours: Path, theirs: Path) -> None:
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    one, other = (load_file(next(path.glob("adapter/*.safetensors"))) for path in (ours, theirs))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


KINDS: dict[str, dict[str, object]] = {
    "few bytes": {"codec": "int4", "codec_down": "int4"},
    "flora by dpo": {
        "lora_aggregation": "stack",
        "client_ranks": [2, 8],
        "objective": "preference",
        "loss": "dpo",
        "choices": None,
    },
}


def test_results_are_those_of_one_process_bit_for_bit(run, parties: LocalFederation, tmp_path: Path, capsys):
    """Two runs at a time, and one that a site refuses; the next test has SCAFFOLD."""

    def ran(kind: str) -> dict[str, object]:
        return watch(parties.admin, build(run | KINDS[kind]), kind.replace(" ", "-"), lambda _: None)

    with ThreadPoolExecutor() as pool:
        long = pool.submit(refused, run, parties)
        ends = dict(zip(KINDS, pool.map(ran, KINDS), strict=True))
        said = str(long.result()["error"])
    assert 'hospital_b: "the run has 1001 rounds, and this site accepts 1000 at most' in said
    assert str(parties.work) not in said
    for kind, last in ends.items():
        assert last["state"] == "done", (kind, last)
        path = there(parties, kind.replace(" ", "-"))
        mine = here(run | KINDS[kind], parties, tmp_path / kind).path
        same(path, mine)
        rounds, own = ([one for one in read_chain(run / "chain.jsonl")[0] if "state" in one] for run in (path, mine))
        assert [one["state"] for one in rounds] == [one["state"] for one in own]
        assert all(one["signatures"].keys() == set(one["clients"]) for one in rounds)
        capsys.readouterr()
        assert main(["verify", str(path)]) == 0  # by the certificate of the server's own kit
        assert " updates are signed by their sites, 0 are not." in capsys.readouterr().out
    capsys.readouterr()
    assert main(["status", "--kit", str(parties.admin)]) == 0
    out = capsys.readouterr().out
    assert "sites: hospital_a, hospital_b" in out
    assert "  why: 0 of 1 sites take part" in out
    assert main(["logs", "long", "--server", str(parties.kits / "server")]) == 0
    assert "takes no part" in capsys.readouterr().out
    with admin_session(parties.admin) as session:  # FLARE ends jobs some seconds after their runs
        for _ in range(300):
            if all(job["status"].startswith("FINISHED") for job in session.jobs()):
                break
            time.sleep(0.1)
    assert main(["stop", "--kit", str(parties.admin)]) == 2


def refused(run: dict[str, object], parties: LocalFederation) -> dict[str, object]:
    config = build(run | {"num_rounds": 1001, "min_clients": 1, "sites": ["hospital_b"], "sample_clients": 1})
    return watch(parties.admin, config, "long", lambda _: None)


def pids(word: str, of: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in words and str(of) in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_killed_processes_lose_no_committed_round(run, parties: LocalFederation, tmp_path: Path):
    """kill -9 of a site's model in a round, then of the server: the numbers are those of a run without.

    Rounds are long beside the second between two looks, so that both are killed before the end.
    """
    given = run | {"num_rounds": 8, "checkpoint_seconds": 0, "fed_alg": "scaffold", "max_steps": 60}
    stages = ["site", "server"]

    def hear(said: dict[str, object]) -> None:
        rounds = [one["round"]["round"] for one in said.get("rounds", []) if "round" in one]
        if rounds and rounds[-1] >= 1 and stages[:1] == ["site"]:
            stages.pop(0)
            (model,) = pids("weft.sites.model_process", parties.kits / "hospital_a")
            os.kill(model, signal.SIGKILL)
        elif rounds and rounds[-1] >= 2 and stages[:1] == ["server"]:
            stages.pop(0)
            parties.parties["server"].send_signal(signal.SIGKILL)
            parties.parties.pop("server").wait()
            parties.start("server")

    last = watch(parties.admin, build(given), "killed", hear)
    assert last["state"] == "done", last
    assert stages == []
    same(there(parties, "killed"), here(given, parties, tmp_path).path)


@pytest.mark.slow
def test_a_broken_connection_and_a_site_that_was_away_end_no_run(run, parties: LocalFederation, proxy: TcpProxy):
    """The other site goes on; a site that was cut off is reached again, a restarted one joins after a resubmission.

    Nobody needs to wait for it: the server's supervisor resubmits the run. It does not resubmit a run that was stopped.
    """
    given = run | {"num_rounds": 1000, "checkpoint_seconds": 0, "max_steps": 60, "silence_timeout": 4.0}
    given |= {"eval_every": 0}
    parts: list[tuple[str, bool]] = []
    stage = "whole"
    jobs = set()

    def hear(said: dict[str, object]) -> None:
        nonlocal stage
        jobs.add(said.get("job"))
        rounds = [one["round"] for one in said.get("rounds", []) if "round" in one]
        if not rounds or said.get("final"):
            return
        missed = "hospital_a" in rounds[-1]["failures"]
        parts.append((stage, missed))
        if stage == "whole" and not missed:
            proxy.cut()
            stage = "cut"
        elif stage == "cut" and missed:
            proxy.mend()
            stage = "mended"
        elif stage == "mended" and not missed:
            parties.stop("hospital_a")
            stage = "away"
        elif stage == "away" and missed:
            parties.start("hospital_a")
            jobs.clear()
            stage = "started"
        elif stage == "started" and "hospital_a" in rounds[-1]["clients"]:
            stage = "over"
            threading.Thread(target=main, args=(["stop", "away", "--kit", str(parties.admin)],)).start()

    last = watch(parties.admin, build(given), "away", hear)
    assert stage == "over", (stage, parts)
    assert last["state"] == "stopped"
    assert len(jobs - {None}) == 2  # the one that was ended for hospital_a, and the one with it
    with admin_session(parties.admin) as session:
        for _ in range(300):
            if session.state(last["job"]).startswith("FINISHED"):
                break
            time.sleep(0.1)
        time.sleep(2.0)
        newest = session.jobs()[0]
        assert newest["job_id"] == last["job"]
        assert newest["status"].startswith("FINISHED")
    parties.wait(set(SITES))


def test_a_job_with_code_is_refused(run, parties: LocalFederation, tmp_path: Path):
    """The site's own settings refuse it, whoever sends it: also classes of FLARE that a run does not need."""
    trace = tmp_path / "it-ran"
    job = write_job(build(run | {"sites": ["hospital_a"]}), "code", tmp_path)
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n\n\nclass Evil:\n    pass\n")
    path = job / "app" / "config" / "config_fed_client.json"
    words = json.loads(path.read_text())
    words["components"][0]["path"] = "evil.Evil"
    path.write_text(json.dumps(words))
    with admin_session(parties.admin) as session:
        number = session.session.submit_job(str(job))
        for _ in range(300):
            if session.state(number).startswith("FINISHED"):
                break
            time.sleep(0.2)
        assert session.state(number).startswith("FINISHED")
        assert "COMPLETED" not in session.state(number)
    assert not trace.exists()


def test_a_site_without_a_kit_of_this_federation_is_refused(parties: LocalFederation, tmp_path: Path):
    """A site of another authority, and one that puts another's certificate into a kit of this one."""
    make_kits("localhost", ["stranger", "hospital_a"], tmp_path / "other", parties.port)
    add_kit(parties.kits, "hospital_c")
    wrong = tmp_path / "wrong"
    shutil.copytree(parties.kits / "hospital_c", wrong)
    for name in ("client.crt", "client.key"):
        shutil.copy(tmp_path / "other" / "hospital_a" / "startup" / name, wrong / "startup" / name)
    policy = parties.policies["hospital_a"]
    kits = {"stranger": tmp_path / "other" / "stranger", "wrong": wrong, "right": parties.kits / "hospital_c"}
    begun = {name: start(*command(kit, policy), kit) for name, kit in kits.items()}
    try:
        parties.wait({"hospital_c"})
        time.sleep(2.0)
        with admin_session(parties.admin) as session:
            assert set(session.sites()) == {*SITES, "hospital_c"}
    finally:
        for process in begun.values():
            end(process)


def test_only_the_servers_port_is_listened_to_and_on_loopback_alone(parties: LocalFederation):
    """Beside it, processes of one party speak over loopback ports of their own."""
    listening = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            address, port = words[1].split(":")
            listening.append((address, int(port, 16)))
    assert ("0100007F", parties.port) in listening
    assert ("00000000", parties.port) not in listening
