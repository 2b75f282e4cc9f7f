"""A server that wants to learn more of a site than the run may spend: it asks again, otherwise, or in a new run."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_private_sites import change

from support.fake_sites import NAMES, FakeSites
from weft.core.types import DELTA, Failure, Message, Task, Update
from weft.core.wire import pack, unpack
from weft.errors import ConfigError
from weft.privacy.ledger import Ledger
from weft.sites.client import SiteClient
from weft.sites.server import serve
from weft.sites.site_ledger import RELEASES, spent_of

pytest.importorskip("dp_accounting")
A = "hospital_a"
ROWS = {"privacy_unit": "row", "target_epsilon": 8, "clip_norm": 1.0, "num_rounds": 2, "sample_clients": 3}


class Hostile:
    """Says to one site what it likes, in the words that an honest server once used."""

    def __init__(self, sites: FakeSites) -> None:
        self.sites = sites
        said = [raw for name, raw in sites.asked if name == A and raw is not None]
        self.handshakes = [json.loads(raw) for raw in said if raw[:1] == b"{"]
        self.run = str(self.handshakes[0]["id"])
        messages = [unpack(raw, run=self.run) for raw in said if raw[:1] != b"{"]
        # A message whose answer is late is sent once more.
        self.tasks = list({message.round: message for message in messages if isinstance(message, Task)}.values())

    @property
    def site(self) -> SiteClient:
        return self.sites.site_clients[A]

    def greets(self, **changes: object) -> dict[str, object]:
        """Begin anew with other words; `keys` are changed in the run's."""
        request = next(one for one in self.handshakes if "run" in one)
        keys = changes.pop("keys", {})
        request = request | changes | {"run": request["run"] | keys}
        answer: dict[str, object] = json.loads(bytes(self.site.work(json.dumps(request).encode())))
        return answer

    def asks(self, message: Message) -> object:
        return unpack(self.site.work(pack(message, self.run)), run=self.run)

    def asks_all(self) -> Iterator[object]:
        return (self.asks(task) for task in self.tasks)


@pytest.fixture
def served(run, sites: FakeSites) -> Hostile:
    """An honest run is over, and spent its budget."""
    serve(run | ROWS, sites, list(NAMES), "1")
    return Hostile(sites)


def values(update: object) -> list[bytes]:
    assert isinstance(update, Update), update
    return [value.numpy().tobytes() for _, value in sorted(update.streams[DELTA].items())]


def test_the_same_question_has_the_same_answer_and_costs_nothing(served: Hostile):
    """The control of all others: the words that are said again are those that the site answers."""
    first = [values(served.asks(task)) for task in served.tasks]
    assert len(first) == 2
    served.greets()
    assert [values(served.asks(task)) for task in served.tasks] == first
    assert len(Ledger(served.sites.folder / A / "run" / RELEASES).entries) == 2


def test_no_secret_of_a_site_crossed_the_line_and_its_name_tells_nothing_of_it(served: Hostile):
    """Neither the 32 bytes, nor those of the rows that follow from them; the name stands in the site's ledger alone."""
    crossed = b"".join(served.sites.answered) + b"".join(raw for _, raw in served.sites.asked if raw)
    for name in NAMES:
        memory = served.sites.site_clients[name].client_host.train_clients.memory
        (file,) = (served.sites.folder / name / "run" / "clients").glob("*/secret.key")
        assert file.stat().st_mode & 0o777 == 0o600
        known, key = memory.secret_name(name), file.read_bytes()
        assert known in (served.sites.folder / name / "run" / RELEASES).read_text()
        for secret in (key, memory.secret(name)._key, bytes.fromhex(known)):
            for written in (secret, secret.hex().encode(), base64.b64encode(secret)):
                assert written not in crossed
        assert key.hex() not in known


def test_a_run_that_begins_anew_in_between_gives_no_fresh_noise(served: Hostile):
    """With the secret of another run the same tasks would have other noise, and the mean of many has none."""
    assert "refused" not in served.greets(birth="another")
    assert "refused" not in served.greets()
    for answer in served.asks_all():
        assert isinstance(answer, Failure)
        assert "its target_epsilon allows no more" in answer.reason


def test_a_secret_that_is_gone_is_no_fresh_budget(served: Hostile):
    for file in (served.sites.folder / A / "run" / "clients").glob("*/secret.key"):
        file.unlink()
    served.sites.begin(A)
    served.greets()
    for answer in served.asks_all():
        assert isinstance(answer, Failure)


def test_a_folder_that_was_deleted_counts_as_another_run_in_the_sites_ledger(run, sites: FakeSites, tmp_path: Path):
    """The site makes room on its disk; what the run had of it is still spent."""
    folder = change(sites, A, tmp_path, ledger={"file": "spent.jsonl", "max_epsilon": 20.0})
    serve(run | ROWS, sites, list(NAMES), "1")
    assert spent_of(Ledger(folder / "spent.jsonl"))[0] == 8
    hostile = Hostile(sites)
    for twice, left in ((16, True), (16, False)):
        shutil.rmtree(sites.folder / A / "run")
        sites.begin(A)
        served = hostile.greets()
        answers = list(hostile.asks_all())
        if left:
            assert "refused" not in served
            assert all(isinstance(answer, Update) for answer in answers)
        else:
            assert not any(isinstance(answer, Update) for answer in answers)
        assert spent_of(Ledger(folder / "spent.jsonl"))[0] == twice


def test_many_runs_of_a_tiny_epsilon_may_not_fail_as_often_as_they_are(run, sites: FakeSites, tmp_path: Path):
    """Deltas add up, too: a thousand runs of a delta of 1e-5 would give away a patient in one of a hundred cases."""
    change(sites, A, tmp_path, ledger={"file": "spent.jsonl", "max_epsilon": 20.0, "max_delta": 2.5e-5})
    small = run | {"privacy_unit": "client", "target_epsilon": 0.5, "clip_norm": 0.1, "num_rounds": 1, "max_steps": 1}
    small |= {"sample_clients": 3, "min_clients": 3}
    for number in range(2):
        serve(small | {"output_dir": f"{run['output_dir']}-{number}"}, sites, list(NAMES), "1")
    words = "may spend a delta of 1e-05, and of the 2.5e-05 that this site allows for all runs 5e-06 is left"
    with pytest.raises(ConfigError, match=words):
        serve(small | {"output_dir": f"{run['output_dir']}-2"}, sites, list(NAMES), "1")


OTHER_KEYS = {
    "less noise": {"noise_multiplier": 0.01},
    "a larger epsilon, and less noise": {"target_epsilon": 1000, "noise_multiplier": 0.05},
    "a larger epsilon": {"target_epsilon": 30},
    "more rounds": {"num_rounds": 40},
    "a huge batch": {"batch_size": 4000},
    "more steps": {"max_steps": 40},
    "another unit": {"privacy_unit": "instruction"},
    "another bound": {"clip_norm": 1e6},
    "another delta": {"target_delta": 0.5},
    "another seed": {"seed": 12345},
    "the noise of the server": {"privacy_unit": "client"},
    "nothing": {"privacy_unit": "none", "target_epsilon": None},
}
"""What a server may say in a second handshake, after it has spent the budget."""


@pytest.mark.parametrize("other", OTHER_KEYS.values(), ids=OTHER_KEYS.keys())
def test_other_keys_after_the_budget_is_spent_open_nothing(run, sites: FakeSites, tmp_path: Path, other):
    """A site whose policy names an epsilon and a unit of its own noise answers no task any more, by whatever keys."""
    change(sites, A, tmp_path, accept={"max_epsilon": 8.0, "privacy": ["row", "instruction"]})
    serve(run | ROWS, sites, list(NAMES), "1")
    hostile = Hostile(sites)
    refused = hostile.greets(keys=other)
    answers = list(hostile.asks_all()) if "refused" not in refused else []
    assert "refused" in refused or answers
    assert not any(isinstance(answer, Update) for answer in answers), other


@pytest.mark.parametrize(
    "changes",
    [{"round": -1}, {"round": 2}, {"round": 10**9}, {"attempt": -1}, {"attempt": 10**9}, {"base_version": 9}],
    ids=str,
)
def test_rounds_that_the_run_has_not_are_answered_by_nothing(served: Hostile, changes):
    answer = served.asks(replace(served.tasks[0], **changes))
    assert isinstance(answer, Failure)


def test_a_repeated_round_costs_again_and_no_round_comes_for_nothing(served: Hostile):
    """Other parameters, another attempt, a message to load: each is another release, and the budget is spent."""
    task = served.tasks[0]
    bent = {name: value + 1e-3 for name, value in task.params.items()}
    for changed in (replace(task, attempt=1), replace(task, params=bent), replace(task, params=bent, attempt=3)):
        answer = served.asks(changed)
        assert isinstance(answer, Failure)
        assert "allows no more" in answer.reason
