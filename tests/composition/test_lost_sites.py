"""Runs whose clients are lost: they wait, begin rounds again, and never end as if all was well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.fake_sites import NAMES, FakeSites, train_here
from support.results import metrics, weights
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.core import wire
from weft.core.types import Failure, Task
from weft.errors import ConfigError, RunError
from weft.runtimes import remote
from weft.sites.rejoin import STALE, Rejoin
from weft.sites.server import serve, warn_of_one


class Killed(Exception):
    """The server's process ended."""


def kill_after(round: int):
    """Return a listener that ends the server when a round is recorded, and only the one before it is committed."""

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == round:  # type: ignore[union-attr]
            raise Killed

    return hear


def accept(sites: FakeSites, name: str, **changes: object) -> None:
    """Change a policy as its administrator would, and start the site again."""
    policy = sites.policies[name]
    own = {key: changes.pop(key) for key in ("accept_changed",) if key in changes}
    sites.policies[name] = policy.model_copy(update={"accept": policy.accept.model_copy(update=changes)} | own)
    sites.begin(name)


def tasks_of(sites: FakeSites, first: int = 0) -> list[str]:
    """Return the sites that were asked to train, from a message on."""
    sent = [(client, raw) for client, raw in sites.asked[first:] if raw and raw[:1] != b"{"]
    return [client for client, raw in sent if isinstance(wire.unpack(raw, run="run"), Task)]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the server would have made."""
    seconds: list[float] = []
    monkeypatch.setattr(remote, "time", _Clock(seconds))
    return seconds


class _Clock:
    """The time, but for pauses."""

    def __init__(self, seconds: list[float]) -> None:
        import time

        self.monotonic, self.seconds = time.monotonic, seconds

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


def refuse_all(sites: FakeSites, reason: str = "no power") -> None:
    """Let every site answer every task by a refusal."""
    for name in NAMES:
        plain = sites.site_clients[name].work

        def work(raw: bytes, plain=plain, name=name) -> bytes:
            if raw[:1] != b"{" and isinstance(task := wire.unpack(raw, run="run"), Task):
                return wire.pack(Failure(name, task.round, reason), "run")
            return plain(raw)

        sites.site_clients[name].work = work  # type: ignore[method-assign]


def test_a_run_whose_last_round_has_no_client_fails_with_exit_code_1(keys, tmp_path: Path, capsys):
    out = tmp_path / "lost"
    flags = keys | {"client_failure_rate": 0.999, "num_rounds": 2, "max_attempts": 3, "output_dir": str(out)}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(flags))
    assert main(["sft", str(file)]) == 1
    said = capsys.readouterr().err
    assert "Round 2 was begun 3 times and no client's update could be used (" in said
    assert "dropped out (client_failure_rate)" in said
    assert not (out / "summary.json").exists()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["round", "repeated", "repeated", "repeated"]
    assert main(["sft", str(file), "--resume"]) == 1


def test_an_asynchronous_run_whose_last_buffer_is_lost_fails_too(keys, tmp_path: Path):
    import weft

    changes = {"fed_alg": "fedbuff", "client_failure_rate": 0.999, "num_rounds": 2, "output_dir": str(tmp_path / "a")}
    with pytest.raises(RunError, match="Round 2 was begun 1 time and no client's update could be used"):
        weft.train(keys | changes, quiet=True)


def test_endless_refusals_end_with_a_sentence_after_a_back_off_and_the_run_resumes(
    run, sites: FakeSites, tmp_path: Path, pauses: list[float]
):
    given = run | {"num_rounds": 3, "fed_alg": "scaffold", "checkpoint_seconds": 0, "max_attempts": 9}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=kill_after(2))
    refuse_all(sites)
    with pytest.raises(RunError) as failed:
        serve(given, sites, list(NAMES), "1", resume=True)
    assert str(failed.value) == (
        'Round 2 was begun 9 times and no client\'s update could be used (hospital_a: "no power"; hospital_b: '
        '"no power"; hospital_c: "no power"): mend what the clients say, and go on with --resume.'
    )
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60]
    for name in NAMES:
        sites.begin(name)
    there = serve(given, sites, list(NAMES), "1", resume=True)
    one = train_here(given, sites, tmp_path)
    assert there.summary["rounds"] == 3
    assert all(torch.equal(weights(there)[name], value) for name, value in weights(one).items())


def test_after_a_kill_the_server_waits_for_the_sites_of_the_run(run, sites: FakeSites):
    """One site trained alone, and its own update was "the mean"."""
    given = run | {"num_rounds": 3, "checkpoint_seconds": 0, "rejoin_timeout": 300.0, "sites": None}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=kill_after(2))
    first = len(sites.asked)
    for there in (["hospital_b"], [], ["hospital_b", "hospital_c"]):
        with pytest.raises(RunError, match=r"took part in this run and (is|are) not connected: the run goes on when"):
            serve(given, sites, there, "1", resume=True)
    assert sites.asked[first:] == []
    done = serve(given, sites, list(NAMES), "1", resume=True)
    assert [line["clients"] for line in metrics(done) if line["event"] == "round"] == [list(NAMES)] * 3


def test_when_the_time_is_over_it_goes_on_with_fewer_and_a_site_keeps_its_number(run, sites: FakeSites):
    given = run | {"num_rounds": 3, "checkpoint_seconds": 0, "rejoin_timeout": 0.0, "sites": None}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=kill_after(2))
    first = len(sites.asked)
    done = serve(given, sites, ["hospital_b", "hospital_c"], "1", resume=True)
    assert [line["clients"] for line in metrics(done) if line["event"] == "round"] == [
        list(NAMES),
        *[list(NAMES[1:])] * 2,
    ]
    said = [json.loads(raw) for _, raw in sites.asked[first:] if raw and raw[:1] == b"{"]
    assert [one["index"] for one in said if "index" in one] == [1, 2]
    assert json.loads((done.path / "sites.json").read_text())["sites"] == list(NAMES[1:])


@pytest.mark.parametrize("asked", ["min_clients", "policy"])
def test_one_site_alone_never_trains_after_a_kill_where_more_were_asked_for(run, sites: FakeSites, asked: str):
    """The smallest cohort that a site agreed to is the quorum of every round, also after a resume."""
    if asked == "policy":
        for name in NAMES:
            accept(sites, name, min_clients=2)
    given = run | {"num_rounds": 3, "checkpoint_seconds": 0, "rejoin_timeout": 0.0}
    given |= {"min_clients": 2} if asked == "min_clients" else {}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=kill_after(2))
    first = len(sites.asked)
    with pytest.raises(RunError, match="too few for a round"):
        serve(given, sites, ["hospital_b"], "1", resume=True)
    assert tasks_of(sites, first) == []
    done = serve(given, sites, ["hospital_b", "hospital_c"], "1", resume=True)
    assert metrics(done)[-2]["clients"] == ["hospital_b", "hospital_c"]


def test_a_run_that_needs_three_begins_when_another_site_has_come(run, sites: FakeSites):
    """As the page of the server says of two of three: the run is no mistake, and is submitted again."""
    given = run | {"num_rounds": 1, "min_clients": 3}
    with pytest.raises(RunError, match="2 of 3 sites take part, too few for a round"):
        serve(given, sites, list(NAMES[:2]), "1", resume=True)
    assert tasks_of(sites) == []
    done = serve(given, sites, list(NAMES), "1", resume=True)
    assert metrics(done)[0]["clients"] == list(NAMES)


def cohorts_told(sites: FakeSites) -> list[tuple[str, int]]:
    """Return what sites were told after the handshake, sorted."""
    said = [(client, json.loads(raw)) for client, raw in sites.asked if raw and raw[:1] == b"{"]
    return sorted((client, one["cohort"]) for client, one in said if "cohort" in one)


def test_sites_are_told_how_many_agreed_without_those_that_are_absent_or_refuse(run, sites: FakeSites, tmp_path: Path):
    keys = run | {"num_rounds": 1, "eval_every": 0}
    serve(keys, sites, list(NAMES[:2]), "1")
    assert cohorts_told(sites) == [("hospital_a", 2), ("hospital_b", 2)]
    sites.asked.clear()
    accept(sites, "hospital_a", models={"another": None})
    serve(keys | {"output_dir": str(tmp_path / "runs/b")}, sites, list(NAMES), "1")
    assert cohorts_told(sites) == [("hospital_b", 2), ("hospital_c", 2)]
    sites.asked.clear()
    serve(keys | {"output_dir": str(tmp_path / "runs/c"), "sample_clients": 1}, sites, list(NAMES), "1")
    assert {count for _, count in cohorts_told(sites)} == {1}


def test_a_site_refuses_a_cohort_below_its_policy_whatever_it_was_told_before(run, sites: FakeSites):
    accept(sites, "hospital_a", min_clients=2)
    serve(run | {"num_rounds": 1, "eval_every": 0}, sites, list(NAMES), "1")
    client = sites.site_clients["hospital_a"]
    answer = json.loads(client.work(json.dumps({"id": "run", "cohort": 1}).encode()))
    assert answer == {"refused": "a round has 1 clients, and this site asks for 2 at least"}
    assert json.loads(client.work(json.dumps({"id": "run", "cohort": 2}).encode()))["rows"] > 0
    answer = json.loads(client.work(json.dumps({"id": "another", "cohort": 3}).encode()))
    assert answer == {"refused": "it was restarted during the handshake"}


@pytest.mark.parametrize("accepted", [True, False])
def test_a_site_with_other_rows_takes_part_with_them_if_its_policy_says_so(run, sites: FakeSites, accepted: bool):
    """The server kept the old number of rows as the limit, so that every further update was refused."""
    path = Path(sites.policies["hospital_a"].data.path)
    accept(sites, "hospital_a", accept_changed=accepted)

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:  # type: ignore[union-attr]
            write_rows(path, colour_rows(50, 9))
            sites.begin("hospital_a")

    weighed: list[float] = []
    plain = sites.ask

    def ask(client: str, *rest: object):
        said = plain(client, *rest)  # type: ignore[arg-type]
        if client == "hospital_a" and said.answer is not None and b'"Update' in said.answer[:2000].replace(b"\\", b""):
            weighed.append(wire.unpack(said.answer, run="run").weight)  # type: ignore[union-attr]
        return said

    sites.ask = ask  # type: ignore[method-assign]
    done = serve(run | {"num_rounds": 4, "eval_every": 0}, sites, list(NAMES), "1", hear=hear)
    first, second, *rest = (line for line in metrics(done) if line["event"] == "round")
    assert "hospital_a" in first["clients"]
    assert not first["failures"]
    assert all("bad" not in line for line in (first, second, *rest))
    if accepted:
        assert "takes part with them from the next round on" in second["failures"]["hospital_a"]
        assert all("hospital_a" in line["clients"] for line in rest)
        assert max(weighed) > 30 > weighed[0] > 10
    else:
        assert all("its rows or its tokenizer are not those" in line["failures"]["hospital_a"] for line in rest)


def test_the_wait_for_sites_ends_and_begins_anew_when_the_server_was_away(tmp_path: Path):
    now, file = [1000.0], tmp_path / "sites.json"

    def rejoin() -> Rejoin:
        return Rejoin(file, resume=True, clock=lambda: now[0])

    rejoin().check(None, [], 300.0)  # a run that nobody took part in waits for nobody
    assert not file.exists()
    rejoin().keep(["a", "b", "c"])
    rejoin().check(None, ["c", "b", "a", "d"], 300.0)
    with pytest.raises(RunError, match=r"b, c took part in this run and are not connected: .* without them in 300 s"):
        rejoin().check(None, ["a"], 300.0)
    now[0] += 250
    with pytest.raises(RunError, match=r"b took part in this run and is not connected: .* without them in 50 s"):
        rejoin().check(None, ["a", "c"], 300.0)
    now[0] += STALE + 1
    with pytest.raises(RunError, match="in 300 s"):
        rejoin().check(None, ["a"], 300.0)
    now[0] += 299
    with pytest.raises(RunError, match="in 1 s"):
        rejoin().check(None, ["a"], 300.0)
    now[0] += 1
    rejoin().check(None, ["a"], 300.0)
    rejoin().check(["a", "d"], [], 0.0)
    rejoin().check(["d"], [], 300.0)  # a run that no longer names them does not wait for them
    for broken in ("", "[]", '{"sites": 3}', '{"sites": ["a"], "since": "x"}', "[" * 9000):
        file.write_text(broken)
        rejoin().check(None, [], 300.0)


def test_one_site_with_more_rows_than_all_others_is_named():
    notes: list[str] = []
    warn_of_one({"a": 10, "b": 60_000_000, "c": 10}, 1.0, notes.append)
    assert notes == [
        "the site 'b' says that it has 60000000 of 60000020 rows, so the mean is mostly its update: write such as "
        "--max_client_share 0.5 to limit its weight."
    ]
    for rows, share in (({"a": 10, "b": 60, "c": 10}, 0.5), ({"a": 10, "b": 60}, 1.0), ({"a": 1, "b": 1, "c": 2}, 1.0)):
        warn_of_one(rows, share, notes.append)
    assert len(notes) == 1


def test_a_mistake_is_still_no_outage(run, sites: FakeSites):
    accept(sites, "hospital_a", models={"another": None})
    accept(sites, "hospital_b", models={"another": None})
    with pytest.raises(ConfigError, match="1 of 3 sites take part, too few"):
        serve(run | {"min_clients": 2}, sites, list(NAMES), "1")
