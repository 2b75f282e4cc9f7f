"""Sites and servers that are lost, slow, cut off or restarted during a run."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest
import torch

from support.fake_sites import NAMES, FakeSites, train_here
from support.results import metrics, weights
from support.rows import colour_rows, write_rows
from weft.core.wire import unpack
from weft.runtimes.mailbox import PollResult
from weft.sites.server import serve


def test_an_answer_that_is_lost_is_asked_for_again_and_not_worked_out_twice(run, sites: FakeSites, tmp_path: Path):
    sites.lose = 4
    there = serve(run | {"fed_alg": "scaffold"}, sites, list(NAMES), "1")
    one = train_here(run | {"fed_alg": "scaffold"}, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    assert sites.lose == 0


@pytest.mark.slow
def test_a_slow_site_is_waited_for_and_a_silent_one_is_not(run, sites: FakeSites):
    """What goes on is alive; only silence ends a turn."""
    slow = sites.site_clients["hospital_b"]
    sites.slow["hospital_b"] = 1.5
    done = serve(run | {"num_rounds": 1, "silence_timeout": 0.7, "min_clients": 2}, sites, list(NAMES), "1")
    assert set(done.summary["failures"]) == {"hospital_b"}
    assert "made no progress for 0.7 s" in metrics(done)[0]["failures"]["hospital_b"]
    sites.begin("hospital_b")
    slow = sites.site_clients["hospital_b"]

    over = threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            slow._steps += 1

    thread = threading.Thread(target=live)
    thread.start()
    other = run | {"num_rounds": 1, "silence_timeout": 1.0, "output_dir": str(done.path) + "-2"}
    done = serve(other, sites, list(NAMES), "1")
    over.set()
    thread.join()
    sites.slow.clear()
    assert done.summary["failures"] == {}


class Busy(FakeSites):
    """One of the sites reports progress for ever, and answers nothing but the handshake."""

    greeted = False

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
        if client == "hospital_b" and self.greeted and (raw is None or raw[:1] != b"{"):
            time.sleep(0.02)
            return PollResult(time.monotonic_ns(), None, True)
        result = super().ask(client, ticket, raw, wait)
        self.greeted |= client == "hospital_b" and result.answer is not None
        return result


def test_a_site_that_is_only_ever_busy_holds_no_round_for_ever(run, sites: FakeSites):
    busy = Busy(sites.policies, sites.folder)
    given = run | {"num_rounds": 1, "eval_every": 0, "silence_timeout": 30.0, "turn_timeout": 4.0, "min_clients": 2}
    done = serve(given, busy, list(NAMES), "1")
    assert metrics(done)[0]["failures"] == {
        "hospital_b": "did not answer within 4 s (turn_timeout), whatever progress it reported"
    }


class Hasty(FakeSites):
    """A site that replies at once with some progress: it has no answer, or does not even accept the message."""

    accepts = True

    def ask(self, client: str, ticket: str, raw: bytes | None, wait: float) -> PollResult:
        if client == "hospital_b" and (raw is None or raw[:1] != b"{"):
            with self.lock:
                self.asked.append((client, raw))
            return PollResult(time.monotonic_ns(), None, self.accepts)
        return super().ask(client, ticket, raw, wait)


@pytest.mark.parametrize(("accepts", "most"), [(True, 17), (False, 5)])
def test_a_site_that_replies_at_once_does_not_keep_the_server_busy(run, sites: FakeSites, accepts: bool, most: int):
    """Nor has it a large message sent again and again."""
    hasty = Hasty(sites.policies, sites.folder)
    hasty.accepts = accepts
    given = run | {"num_rounds": 1, "eval_every": 0, "silence_timeout": 30.0, "turn_timeout": 1.5, "min_clients": 2}
    serve(given, hasty, list(NAMES), "1")
    polls = [raw for name, raw in hasty.asked if name == "hospital_b" and (raw is None or raw[:1] != b"{")]
    assert 1 < len(polls) <= 3 * most  # of the task, of what it is to forget, and of the result


def test_a_site_that_comes_back_with_most_rows_is_named(run, sites: FakeSites, capfd):
    """It said at first that it has few, and after a restart that it has a billion."""

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:
            sites.begin("hospital_b")
            fresh = sites.site_clients["hospital_b"]
            plain = fresh.work

            def lie(raw: bytes) -> bytes:
                answer = plain(raw)
                if raw[:1] == b"{":
                    answer = json.dumps(json.loads(answer) | {"rows": 1 << 30}).encode()
                return answer

            fresh.work = lie  # type: ignore[method-assign]

    serve(run | {"num_rounds": 2, "min_clients": 2}, sites, list(NAMES), "1", hear=hear)
    assert "the site 'hospital_b' says that it has 1073741824 of" in "".join(capfd.readouterr())


def test_a_site_that_is_cut_off_is_missed_and_comes_back(run, sites: FakeSites):
    heard: list[dict[str, object]] = []

    def hear(said: dict[str, object]) -> None:
        heard.append(said)
        number = said.get("round", {}).get("round", 0)
        if number == 1:
            sites.cut.add("hospital_c")
        if number == 2:
            sites.cut.clear()

    given = run | {"num_rounds": 4, "silence_timeout": 1.0, "min_clients": 2}
    done = serve(given, sites, list(NAMES), "1", hear=hear)
    rounds = [line for line in metrics(done) if line["event"] == "round"]
    assert [len(line["clients"]) for line in rounds] == [3, 2, 3, 3]
    assert "could not be reached (cut) for 1 s" in rounds[1]["failures"]["hospital_c"]


def test_what_a_silent_site_has_to_forget_is_said_when_it_is_heard_again(run, sites: FakeSites, tmp_path: Path):
    """It was cut off after it had worked: its variate must not be that of a round which did not count."""

    def hear(said: dict[str, object]) -> None:
        number = said.get("round", {}).get("round", 0)
        if number == 1:
            sites.deaf.add("hospital_c")
        if number == 2:
            sites.deaf.clear()
            assert not [raw for client, raw in sites.asked if client == "hospital_c" and raw and b"Undo" in raw]

    given = run | {"num_rounds": 3, "silence_timeout": 1.0, "min_clients": 2, "fed_alg": "scaffold", "eval_every": 0}
    done = serve(given, sites, list(NAMES), "1", hear=hear)
    rounds = [line for line in metrics(done) if line["event"] == "round"]
    assert [len(line["clients"]) for line in rounds] == [3, 2, 3]
    sent = [raw for client, raw in sites.asked if client == "hospital_c" and raw and raw[:1] != b"{"]
    kinds = [type(unpack(raw, run="run")).__name__ for raw in sent]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["Task", "Undo", "Task", "Probe"]


def test_a_restarted_site_gets_another_handshake_and_goes_on(run, sites: FakeSites, tmp_path: Path):
    """What it remembers is on its disk: the numbers are those of a run in which nothing happened."""

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:
            sites.begin("hospital_a")

    done = serve(run | {"fed_alg": "scaffold"}, sites, list(NAMES), "1", hear=hear)
    one = train_here(run | {"fed_alg": "scaffold"}, sites, tmp_path)
    assert (done.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()


def test_a_site_that_comes_back_with_other_rows_is_not_taken(run, sites: FakeSites):
    policy = sites.policies["hospital_a"]

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:
            write_rows(Path(policy.data.path), colour_rows(50, 9))
            sites.begin("hospital_a")

    done = serve(run | {"num_rounds": 2, "min_clients": 2}, sites, list(NAMES), "1", hear=hear)
    assert set(done.summary["failures"]) == {"hospital_a"}
    reason = metrics(done)[-2]["failures"]["hospital_a"]
    assert reason.startswith('refuses the run now: "its rows or its tokenizer are not those that the run began with')


def test_a_server_that_is_started_again_goes_on_from_the_last_committed_round(run, sites: FakeSites, tmp_path: Path):
    class Killed(Exception):
        pass

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 3:
            raise Killed

    given = run | {"num_rounds": 4, "fed_alg": "scaffold", "checkpoint_seconds": 0, "save_model_freq": 1}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=hear)
    for name in NAMES:
        sites.begin(name)
    there = serve(given, sites, list(NAMES), "1", resume=True)
    one = train_here(given, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    assert all(torch.equal(weights(there)[name], value) for name, value in weights(one).items())


def test_a_result_that_did_not_arrive_is_said_and_sent_again_by_the_next_submission(
    run, sites: FakeSites, tmp_path: Path
):
    heard: list[dict[str, object]] = []

    def hear(said: dict[str, object]) -> None:
        heard.append(said)
        if said.get("round", {}).get("round") == 2:
            sites.cut.add("hospital_c")

    given = run | {"num_rounds": 2, "silence_timeout": 1.0, "eval_every": 0, "min_clients": 2}
    serve(given, sites, list(NAMES), "1", hear=hear)
    assert heard[-1] == {"undelivered": {"hospital_c": "could not be reached (cut) for 1 s"}}
    result = tmp_path / "work" / "hospital_c" / "run" / "adapter"
    assert not result.exists()
    sites.cut.clear()
    serve(given, sites, list(NAMES), "1", resume=True, hear=hear)
    assert heard[-1] == {"undelivered": {}}
    assert (result / "adapter_model.safetensors").exists()
