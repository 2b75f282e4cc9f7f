"""DiLoCo with a delay: an update travels while the next round is trained (Streaming DiLoCo, arXiv 2501.18512)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import support.quadratics
import weft
from support.fake_sites import NAMES, FakeSites, train_here
from support.quadratics import Federation
from weft.algorithms.diloco import LOCAL, DiLoCo
from weft.core.types import DELTA, LocalWork, Task, Total
from weft.core.wire import pack, unpack
from weft.errors import ConfigError
from weft.federation.client_host import ClientHost
from weft.federation.record import RoundRecord
from weft.federation.state import advance
from weft.runs.layout import RunDir
from weft.runtimes.actors import Actors, answer_at_actor
from weft.runtimes.inprocess import InProcess
from weft.sites.server import serve
from weft.training.loop import GradientSteps

STEPS, LR = 5, 0.1


def weights(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*.safetensors")
    return load_file(file)


def same(one, other) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


@pytest.fixture
def delayed(keys) -> dict:
    own = {"fed_alg": "diloco", "use_peft": False, "dtype": "float32", "sample_clients": 3, "num_rounds": 5}
    return keys | own | {"eval_every": 0, "fed_args": {"delay": 1, "outer_lr": 0.7}}


def by_the_paper(
    federation: Federation,
    rounds: int,
    alpha: float,
    lr: float,
    momentum: float,
    missed: list[set[int]] | None = None,
) -> torch.Tensor:
    """The paper's algorithm with one fragment, in float64, tau = H; return the global values after all rounds.

    `missed`: of each round the clients that were away. They begin anew from the global values.
    """
    centres, curvatures = federation.objective.centres.double(), federation.objective.curvatures.double()
    shares = torch.from_numpy(federation.rows / federation.rows.sum())
    count = federation.clients
    around = torch.zeros(3, dtype=torch.float64)
    velocity = torch.zeros_like(around)
    local = torch.zeros(count, 3, dtype=torch.float64)
    fresh = [True] * count
    for step in range(1, rounds * STEPS + 1):
        local = local - LR * torch.einsum("cij,cj->ci", curvatures, local - centres)
        if step % STEPS:
            continue
        # What was sent tau = H steps ago has arrived now: `around` has it; in the first round nothing was sent.
        away = missed[(step - 1) // STEPS] if missed else set()
        there = [client for client in range(count) if client not in away]
        weight = torch.zeros(count, dtype=torch.float64)
        weight[there] = shares[there] / shares[there].sum()
        gradient = weight @ (around - local)
        for client in there:
            if fresh[client]:  # it began at the global values: there is nothing to mix
                fresh[client] = False
            else:
                local[client] = alpha * local[client] + (1 - alpha) * around
        velocity = momentum * velocity + gradient
        around = around - lr * (gradient + momentum * velocity)
        for client in away:
            fresh[client], local[client] = True, around
    return around


@pytest.mark.parametrize(("alpha", "lr", "momentum"), [(0.5, 1.0, 0.0), (0.0, 0.6, 0.5), (0.8, 0.6, 0.9)])
def test_a_delay_is_the_papers_loop(alpha: float, lr: float, momentum: float):
    federation = Federation(clients=4, cohort=4)
    algorithm = DiLoCo(outer_lr=lr, momentum=momentum, inner_state="reset", delay=1, alpha=alpha)
    state = federation.run(algorithm, 7, steps=STEPS, lr=LR)
    expected = by_the_paper(federation, 7, alpha, lr, momentum)
    torch.testing.assert_close(state.params["w"].double(), expected, atol=2e-5, rtol=1e-5)
    prompt = federation.run(replace(algorithm, delay=0, alpha=0.5), 7, steps=STEPS, lr=LR)
    assert (prompt.params["w"] - state.params["w"]).norm() > 0.01


def test_who_missed_a_round_begins_at_the_servers_values():
    federation = Federation(clients=4, cohort=4, failure_rate=0.3)
    algorithm = DiLoCo(outer_lr=0.7, momentum=0.5, inner_state="reset", delay=1)
    records: list[RoundRecord] = []
    state = federation.run(algorithm, 8, steps=STEPS, lr=LR, records=records)
    missed = [{int(name.removeprefix("client_")) for name in record.failures} for record in records]
    assert any(missed)
    assert not any(record.repeated for record in records)
    expected = by_the_paper(federation, 8, 0.5, 0.7, 0.5, missed)
    torch.testing.assert_close(state.params["w"].double(), expected, atol=2e-5, rtol=1e-5)


def test_a_delay_of_two_fragments_equals_the_rounds_worked_by_hand():
    """One client, outer learning rate 1, no momentum, alpha 1/2; every round adds 1 to each value.

    round  begins at   ends at   arrives      sends          server after it   client after it
    0      0, 0        1, 1      (begins)     0: 1 - 0       1, 0              1, 1
    1      1, 1        2, 2      0: 1         1: 2 - 0       1, 2              1.5, 2
    2      1.5, 2      2.5, 3    1: 2         0: 2.5 - 1     2.5, 2            2.5, 2.5
    3      2.5, 2.5    3.5, 3.5  0: 2.5       1: 3.5 - 2     2.5, 3.5          3, 3.5
    """
    algorithm = DiLoCo(outer_lr=1.0, momentum=0.0, inner_state="reset", fragments=2, delay=1)
    state, memory = algorithm.init({"0.w": torch.zeros(1), "1.w": torch.zeros(1)}), {}
    servers, clients = [(1, 0), (1, 2), (2.5, 2), (2.5, 3.5)], [(1, 1), (1.5, 2), (2.5, 2.5), (3, 3.5)]
    for server, client in zip(servers, clients, strict=True):
        task = algorithm.task(state, "a", state.round)
        rule = algorithm.rule(task, memory)
        start = rule.begin(task.params)
        done = rule.finish(LocalWork(start, {name: value + 1 for name, value in start.items()}, 1, 0.1))
        assert len(done.streams[DELTA]) == 1
        memory = done.memory
        state = advance(algorithm, state, Total(done.streams, ("a",), 1.0), {})
        assert tuple(float(value) for value in state.params.values()) == server
        assert tuple(float(value) for value in memory[LOCAL].values()) == client


class GoingOn(InProcess):
    """Begins a client's next round when it has answered, as a site's process does."""

    def exchange(self, messages) -> Iterator:
        for message in self.client_host.by_speed(messages):
            reply = self.client_host.reply(message)
            if isinstance(message, Task):
                self.client_host.go_on(message)
            yield reply


class Counted(GradientSteps):
    """Counts trainings, and those that were begun in a thread."""

    rounds: ClassVar[list[tuple[int, int]]] = []
    begun: ClassVar[list[int]] = []

    def work(self, model, objective, rows, rule, job):
        Counted.rounds.append((job.round, job.client))
        if threading.current_thread().name == "head start":
            Counted.begun.append(job.round)
        return super().work(model, objective, rows, rule, job)


@pytest.mark.parametrize("failure_rate", [0.0, 0.3])
def test_a_round_that_was_begun_early_is_the_same_and_is_trained_once(monkeypatch, failure_rate: float):
    federation = Federation(clients=1, cohort=1, failure_rate=failure_rate)
    algorithm = DiLoCo(outer_lr=0.7, momentum=0.5, delay=1, rounds=6)
    plain = federation.run(algorithm, 6, optimizer="adamw")
    monkeypatch.setattr(support.quadratics, "InProcess", GoingOn)
    monkeypatch.setattr(support.quadratics, "GradientSteps", Counted)
    Counted.rounds, Counted.begun = [], []
    records: list[RoundRecord] = []
    early = federation.run(algorithm, 6, optimizer="adamw", records=records)
    assert torch.equal(plain.params["w"], early.params["w"])
    if not failure_rate:
        assert [round for round, _ in Counted.rounds] == list(range(6))
        assert Counted.begun == [1, 2, 3, 4, 5]  # none for a round after the last
    else:
        assert any(record.failures for record in records)


class AtActor(InProcess):
    """Answers as Ray's actors do: the memory comes with the message, and goes back with the answer."""

    def exchange(self, messages) -> Iterator:
        for message in messages:
            if not isinstance(message, Task):
                yield self.client_host.reply(message)
                continue
            store = self.client_host.train_clients.memory
            bare, params = (np.frombuffer(pack(task), np.uint8) for task in (replace(message, params={}), message))
            memory = store.load(message.client, message.round)
            raw, saved = answer_at_actor(self.client_host, bare, params, memory, 1.0, None, None, True)
            store.save(message.client, *saved)
            yield unpack(raw.data)


def test_an_actor_begins_the_next_round_too(monkeypatch):
    federation, algorithm = Federation(clients=1, cohort=1), DiLoCo(outer_lr=0.7, momentum=0.5, delay=1, rounds=5)
    plain = federation.run(algorithm, 5, optimizer="adamw")
    monkeypatch.setattr(support.quadratics, "InProcess", AtActor)
    monkeypatch.setattr(support.quadratics, "GradientSteps", Counted)
    Counted.rounds, Counted.begun = [], []
    assert torch.equal(plain.params["w"], federation.run(algorithm, 5, optimizer="adamw").params["w"])
    assert [round for round, _ in Counted.rounds] == [0, 1, 2, 3, 4]
    assert Counted.begun == [1, 2, 3, 4]


def test_a_client_stays_with_the_actor_that_has_begun_its_next_round():
    first, second, third = (SimpleNamespace(name=name) for name in "123")
    actors = Actors(cast("ClientHost", None), lambda: third, 3, print)
    actors.trained_by = {"a": first, "b": second}
    actors.free = [first, second, third]
    assert actors._actor_for("b") is second
    assert actors._actor_for("c") is third  # it takes nobody's
    assert actors._actor_for("c") is first
    actors.free = [second]
    assert actors._actor_for("a") is second


def test_a_round_that_begins_at_other_values_is_trained_anew(monkeypatch):
    """After an Undo, and for a client whose memory is another: what was begun is dropped."""
    federation = Federation(clients=4, cohort=4)
    algorithm = DiLoCo(outer_lr=0.7, momentum=0.0, delay=1, rounds=4)
    plain = federation.run(algorithm, 4)
    monkeypatch.setattr(support.quadratics, "InProcess", GoingOn)
    monkeypatch.setattr(support.quadratics, "GradientSteps", Counted)
    Counted.rounds, Counted.begun = [], []
    # One host for four clients: of all that is begun, only the last client's is there when its task comes.
    assert torch.equal(plain.params["w"], federation.run(algorithm, 4).params["w"])
    assert len(Counted.begun) == 3 * 4


@pytest.mark.parametrize("inner_state", ["keep", "reset"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_resumed_run_with_a_delay_ends_bit_identical(delayed, tmp_path: Path, inner_state: str, fragments: int):
    given = delayed | {"save_model_freq": 1, "checkpoint_seconds": 0}
    given["fed_args"] = {"delay": 1, "fragments": fragments, "inner_state": inner_state}
    one = weft.train(given)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[345]"), broken / "model"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    same(one, weft.train(given | {"output_dir": str(broken)}, resume=True))


def test_the_shared_model_learns_and_the_bytes_are_those_without_a_delay(delayed):
    run = weft.train(delayed)
    prompt = weft.train(delayed | {"fed_args": {"outer_lr": 0.7}, "output_dir": delayed["output_dir"] + "-prompt"})
    begun = weft.train(delayed | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": delayed["output_dir"] + "-0"})
    assert run.summary["eval"]["loss"] < begun.summary["eval"]["loss"] - 0.2
    assert run.summary["bytes_up"] == prompt.summary["bytes_up"]
    assert run.summary["eval"]["loss"] != prompt.summary["eval"]["loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_peft": True},
        {"use_peft": True, "lora_aggregation": "fedsa"},
        {"codec": "int4", "codec_down": "int4"},
        {"protection": "masks"},
        {"optimizer": "muon"},
        {"fed_args": {"delay": 1, "fragments": 2, "alpha": 0.0}},
    ],
    ids=str,
)
def test_parts_that_go_with_a_delay(delayed, changes: dict):
    run = weft.train(delayed | {"num_rounds": 3} | changes)
    assert run.summary["failures"] == {}
    assert np.isfinite(run.summary["eval"]["loss"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_clients": 2}, "some clients miss rounds"),
        ({"over_selection": 0.5, "sample_clients": 2}, "some clients miss rounds"),
        ({"fed_args": {"delay": 2}}, "the delay is 0 or 1"),
        ({"fed_args": {"delay": 1, "inner_state": "average"}}, "kept or reset"),
        ({"fed_args": {"delay": 1, "alpha": 1.0}}, "from 0 to below 1"),
        ({"fed_args": {"alpha": 0.2}}, "write such as delay=1"),
        ({"fed_alg": "scaffold"}, "has no parameter 'delay', which diloco has: write --fed_alg diloco, or leave out"),
        ({"use_peft": True, "lora_aggregation": "rolora"}, "factors in every round"),
        ({"use_peft": True, "privacy_unit": "client", "noise_multiplier": 1.0}, "accounts for one bounded sum"),
        ({"use_peft": True, "privacy_unit": "row", "noise_multiplier": 1.0}, "draws its noise for one task"),
        ({"parallel": "fsdp"}, "trains before a task has come"),
    ],
    ids=str,
)
def test_what_cannot_bear_a_delay_is_refused_in_one_sentence(delayed, changes: dict, words: str):
    own = {"fed_args": {"delay": 1}} if changes.get("fed_alg") else {}
    with pytest.raises(ConfigError, match=words) as refused:
        weft.train(delayed | own | changes)
    assert "\n" not in str(refused.value)
    assert any(word in str(refused.value) for word in ("write", "leave out", "is 0 or 1", "has no parameter"))
    assert not (RunDir(delayed["output_dir"]).path / "checkpoints").exists()


ELSEWHERE = {"fed_alg": "diloco", "use_peft": False, "dtype": "float32", "num_rounds": 4}
ELSEWHERE |= {"fed_args": {"delay": 1, "outer_lr": 0.7}}


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int, int]]:
    """The thread, the round and the client of every training."""
    found: list[tuple[str, int, int]] = []
    plain = GradientSteps.work

    def work(self, model, objective, rows, rule, job):
        found.append((threading.current_thread().name, job.round, job.client))
        return plain(self, model, objective, rows, rule, job)

    monkeypatch.setattr(GradientSteps, "work", work)
    return found


@pytest.mark.parametrize("fragments", [1, 2])
def test_sites_that_go_on_have_the_numbers_of_one_process(
    run, sites: FakeSites, tmp_path: Path, trained, fragments: int
):
    """They are probed in every round too, and restarted in the middle of what they had begun."""
    sites.goes_on = True
    given = run | ELSEWHERE
    given["fed_args"] = {"delay": 1, "outer_lr": 0.7, "fragments": fragments}

    def hear(said: dict) -> None:
        if said.get("round", {}).get("round") == 2:
            sites.begin("hospital_b")

    there = serve(given, sites, list(NAMES), "1", hear=hear)
    early = [round for name, round, _ in trained if name == "head start"]
    assert sorted(early) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    # Of hospital_b, round 3 was trained again: its process had lost it.
    assert [round for name, round, _ in trained if name != "head start"] == [0, 0, 0, 2]
    one = train_here(given, sites, tmp_path)
    same(there, one)


def test_a_server_that_is_killed_goes_on_with_a_delay(run, sites: FakeSites, tmp_path: Path):
    class Killed(Exception):
        pass

    def hear(said: dict) -> None:
        if said.get("round", {}).get("round") == 3:
            raise Killed

    given = run | ELSEWHERE | {"checkpoint_seconds": 0, "save_model_freq": 1}
    sites.goes_on = True
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=hear)
    for name in NAMES[:2]:  # the third goes on: what it has begun is of a round that comes again
        sites.begin(name)
    there = serve(given, sites, list(NAMES), "1", resume=True)
    same(there, train_here(given, sites, tmp_path))


def test_a_site_that_missed_a_round_forgets_what_it_had_begun(run, sites: FakeSites, trained):
    """Its answer is lost for good, so that its update is not used, and it is told to forget it."""
    given = run | ELSEWHERE | {"silence_timeout": 6.0, "min_clients": 2, "eval_every": 0}
    sites.goes_on = True

    def hear(said: dict) -> None:
        number = said.get("round", {}).get("round")
        sites.deaf = {"hospital_c"} if number == 1 else set()

    there = serve(given, sites, list(NAMES), "1", hear=hear)
    lines = [json.loads(line) for line in (there.path / "metrics.jsonl").read_text().splitlines()]
    missed = [sorted(line["failures"]) for line in lines if line["event"] == "round"]
    assert missed[1] == ["hospital_c"]
    if missed == [[], ["hospital_c"], [], []]:  # on a busy machine others may be silent too
        anew = [(round, client) for name, round, client in trained if name != "head start"]
        assert sorted(anew) == [(0, 0), (0, 1), (0, 2), (2, 2)]
        assert ("head start", 2, 2) in trained  # begun at its own values, and not used


def test_masked_sums_are_opened_while_sites_go_on(run, sites: FakeSites, tmp_path: Path):
    pytest.importorskip("nvflare")
    from support.kits import kits_of

    sites.kits, sites.goes_on = kits_of(tmp_path / "authority", list(NAMES)), True
    for name in NAMES:
        sites.begin(name)
    given = run | ELSEWHERE | {"eval_every": 0}
    there = serve(given | {"protection": "masks"}, sites, list(NAMES), "1")
    plain = train_here(given, sites, tmp_path)
    for name, value in weights(there).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=0, atol=1e-5)


def test_a_run_of_sites_that_are_sampled_is_refused_when_they_are_known(run, sites: FakeSites):
    with pytest.raises(ConfigError, match="some clients miss rounds"):
        serve(run | ELSEWHERE | {"sample_clients": 2}, sites, list(NAMES), "1")
