"""Masked sums of sites: those of the plain run, and a server that lies is refused by sites in words."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("nvflare")
from support.fake_sites import NAMES, FakeSites
from support.kits import kits_of
from support.results import metrics, weights
from support.rows import colour_rows, write_rows
from weft.core.types import Message, ProtectionReply, ProtectionRequest, Task
from weft.core.wire import pack, unpack
from weft.errors import ConfigError, RunError
from weft.protection import masking
from weft.protection.members import Keys, Members, names_tensor, to_bytes, to_tensor
from weft.runtimes.mailbox import PollResult, TransportBroken
from weft.sites.client import UNLIKE
from weft.sites.policy import SitePolicy, read_policy
from weft.sites.server import serve

pytestmark = pytest.mark.xdist_group("masked_sites")  # what all of it needs is made once

MASKS = {"protection": "masks"}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return kits_of(tmp_path_factory.mktemp("authority"), [f"site_{number}" for number in range(10)] + list(NAMES))


@pytest.fixture
def masked(sites: FakeSites, kits) -> FakeSites:
    """Three sites with their kits."""
    return with_kits(sites, kits)


def with_kits(sites: FakeSites, kits) -> FakeSites:
    sites.kits = kits
    for name in sites.policies:
        sites.begin(name)
    return sites


def assert_near(one, other, tolerance: float = 1e-5) -> None:
    ours, theirs = weights(one), weights(other)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)


def scored(found) -> list[dict[str, float]]:
    """What all clients scored together, evaluation by evaluation."""
    return [line for line in metrics(found) if line["event"] == "eval"]


def test_masked_sums_are_those_of_the_plain_run(run, masked: FakeSites, tmp_path: Path):
    there = serve(run | MASKS, masked, list(NAMES), "1")
    plain = serve(run | {"output_dir": str(tmp_path / "runs/plain")}, masked, list(NAMES), "1")
    assert_near(there, plain)
    # Scores are of models that differ by the step of their numbers.
    for ours, theirs in zip(scored(there), scored(plain), strict=True):
        measured = {metric: value for metric, value in theirs.items() if isinstance(value, float)}
        assert {metric: ours[metric] for metric in measured} == pytest.approx(measured, rel=1e-4)
        assert (ours["rows"], ours["members"]) == (theirs["rows"], list(NAMES))
        assert not ours["clients"]
    secret = masked.folder / NAMES[0] / "run" / "clients" / NAMES[0] / "secret.key"
    assert secret.stat().st_mode & 0o077 == 0


def test_a_site_is_warned_of_a_run_in_which_its_masks_do_not_follow_from_the_model(run, masked: FakeSites, caplog):
    """A server could write --codec_down to send one site another model: the site's log says so."""
    for keys, warned in ((MASKS, False), (MASKS | {"codec_down": "int8"}, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="weft.site"):
            serve(
                run | keys | {"num_rounds": 1, "output_dir": f"{run['output_dir']}_{int(warned)}"},
                masked,
                list(NAMES),
                "1",
            )
        assert (UNLIKE in caplog.messages) is warned


def test_a_site_without_a_kit_joins_no_masked_sum(run, sites: FakeSites):
    with pytest.raises(ConfigError, match="runs without a start-up kit"):
        serve(run | MASKS, sites, list(NAMES), "1")


def test_a_run_that_begins_anew_has_other_keys(run, masked: FakeSites, tmp_path: Path):
    """The rounds are the same ones again: under old keys, one answer then and another now would open an update."""
    for folder in ("one", "two"):
        serve(run | MASKS | {"num_rounds": 1, "output_dir": str(tmp_path / folder / "run")}, masked, list(NAMES), "1")
    keys = [
        to_bytes(reply.streams["keys"]["mask"])
        for reply in (unpack(raw, run="run") for raw in masked.answered if raw[:1] != b"{")
        if isinstance(reply, ProtectionReply) and reply.phase == "keys"
    ]
    assert len(keys) == len(set(keys)) == 12  # of each run: three of the round, and three of its evaluation


class Losing(FakeSites):
    """Loses some sites in one phase of every round, for the rest of that round."""

    def __init__(self, policies: dict[str, SitePolicy], folder: Path) -> None:
        super().__init__(policies, folder)
        self.plan: dict[int, tuple[str, list[str]]] = {}
        """By round: the phase, and who is lost in it."""
        self.only_plain = False
        self.lost: set[str] = set()

    def ask(self, client: str, ticket: str, raw: bytes | memoryview | None, wait: float) -> PollResult:
        words = bytes(raw) if raw is not None else b"{"
        if words[:1] != b"{":
            message = unpack(words, run=self.site_clients[client].run)
            phase, gone = self.plan.get(message.round, ("", []))
            at = message.phase if isinstance(message, ProtectionRequest) else type(message).__name__
            if at == ("keys" if phase == "" else phase):
                self.lost = set(gone)
            elif at in ("keys", "Probe") or (at == "Task" and self.only_plain):
                self.lost = set()
            if client in self.lost and at != "Undo":
                raise TransportBroken("cut")
        return super().ask(client, ticket, raw, wait)


def ten(keys, kits, tmp_path: Path) -> Losing:
    policies = {}
    for number in range(10):
        folder = tmp_path / "ten" / f"site_{number}"
        folder.mkdir(parents=True)
        write_rows(folder / "rows.jsonl", colour_rows(10 + number, number))
        accept = {"models": [keys["model_name_or_path"]], "min_report_rows": 1}
        policy = {"data": "rows.jsonl", "accept": accept, "threads": 1}
        (folder / "site.yaml").write_text(yaml.safe_dump(policy))
        policies[f"site_{number}"] = read_policy(folder / "site.yaml")
    made = Losing(policies, tmp_path / "work")
    with_kits(made, kits)
    return made


def test_sites_lost_in_any_phase_leave_the_exact_sum_of_the_others(keys, run, kits, tmp_path: Path):
    """Three of ten are gone before keys, after keys, after shares, and after their masked updates."""
    names = [f"site_{number}" for number in range(10)]
    sites = ten(keys, kits, tmp_path)
    phases = ["keys", "shares", "Task", "unmask"]
    gone = {round: random.Random(round).sample(names, 3) for round in range(4)}
    given = run | {"sites": names, "sample_clients": 10, "num_rounds": 4, "max_steps": 1, "silence_timeout": 4.0}
    given |= {"eval_every": 0, "max_attempts": 2}
    sites.plan = {round: (phase, gone[round]) for round, phase in enumerate(phases)}
    there = serve(given | MASKS, sites, names, "1")
    rounds = [line for line in metrics(there) if line["event"] == "round"]
    for round, line in enumerate(rounds):
        wanted = names if phases[round] == "unmask" else sorted(set(names) - set(gone[round]))
        assert line["clients"] == wanted, round
    # The same without masks: whoever dropped out before its update was masked sends none.
    sites.plan = {round: ("Task", gone[round]) for round in range(3)}
    sites.only_plain = True
    plain = serve(given | {"output_dir": str(tmp_path / "runs/plain")}, sites, names, "1")
    assert [line["clients"] for line in metrics(plain) if line["event"] == "round"] == [
        one["clients"] for one in rounds
    ]
    assert_near(there, plain)


def values_of(message: Message) -> dict[str, torch.Tensor]:
    if isinstance(message, Task):
        return message.extra.get("masks", {})
    return message.streams.get(message.phase, {}) if isinstance(message, ProtectionRequest) else {}


def with_values(message: Message, **changes: torch.Tensor) -> Message:
    values = values_of(message) | changes
    if isinstance(message, Task):
        return replace(message, extra=message.extra | {"masks": values})
    assert isinstance(message, ProtectionRequest)
    return replace(message, streams={message.phase: values})


def with_members(message: Message, change: Callable[[dict[str, Keys]], None]) -> Message:
    if "members" not in values_of(message):
        return message
    members = Members.read(to_bytes(values_of(message)["members"]))
    keys = dict(members.keys)
    change(keys)
    return with_values(message, members=to_tensor(Members(keys, members.graph).raw))


OWN = masking.public_key(bytes(range(32)))


def own_key(message: Message) -> Message:
    """Give every site the server's key in place of the other sites' keys, with their signatures."""

    def swap(keys: dict[str, Keys]) -> None:
        other = next(name for name in sorted(keys) if name != message.client)
        keys[other] = keys[other]._replace(mask=OWN)

    return with_members(message, swap)


def invented(message: Message) -> Message:
    """Fill the list with members that are the server's own."""

    def fill(keys: dict[str, Keys]) -> None:
        for name in [name for name in keys if name != message.client]:
            keys[f"{name}_twin"] = Keys(
                *(masking.derive(name.encode(), word) for word in ("a", "b", "c")), keys.pop(name).proof
            )

    return with_members(message, fill)


def two_lists(message: Message) -> Message:
    """Tell one site, when the sum is opened, that another has published other keys: those that it uses at one time."""
    if not isinstance(message, ProtectionRequest) or message.phase != "unmask" or message.client != NAMES[0]:
        return message
    members = Members.read(to_bytes(values_of(message)["members"]))
    return with_values(message, members=to_tensor(Members(members.keys, 20).raw))


def few_neighbours(message: Message) -> Message:
    """Leave every site two peers, both of whom may be the server's friends."""
    if isinstance(message, ProtectionRequest) and "members" in values_of(message):
        members = Members.read(to_bytes(values_of(message)["members"]))
        return with_values(message, members=to_tensor(Members(members.keys, 2).raw))
    return message


def alone(message: Message) -> Message:
    """Ask every site to join a sum of its own."""
    return with_members(
        message, lambda keys: [keys.pop(name) for name in list(keys) if name != message.client] and None
    )


def few(message: Message) -> Message:
    """Say that fewer took part than can open the sum."""
    if not isinstance(message, Task):
        return message
    return with_values(message, cohort=names_tensor([NAMES[0], message.client]))


def few_survivors(message: Message) -> Message:
    """Ask for the own mask of one site alone, whose masked update is there."""
    if not isinstance(message, ProtectionRequest) or message.phase != "unmask":
        return message
    return with_values(message, survivors=names_tensor([message.client]))


LIES = {
    "a replaced key": (own_key, "its certificate does not vouch for"),
    "invented members": (invented, "its certificate does not vouch for"),
    "two lists": (two_lists, "with other members"),
    "a graph of few neighbours": (few_neighbours, "asked to share masks with 2 others, which the run does not say"),
    "a cohort of one": (alone, "asked to join a sum of 1, and 3 are the fewest"),
    "fewer than the threshold": (few, "too few to open the sum later"),
    "one survivor": (few_survivors, "asked to open a sum of 1 clients, and 3 are the fewest"),
}


@pytest.mark.parametrize(("lie", "words"), LIES.values(), ids=LIES.keys())
def test_a_server_that_lies_is_refused_in_words_and_opens_nothing(
    run, masked: FakeSites, lie: Callable[[Message], Message], words: str, caplog: pytest.LogCaptureFixture
):
    masked.change = lie
    with caplog.at_level(logging.WARNING, "weft.site"), pytest.raises(RunError):
        serve(run | MASKS | {"max_attempts": 1, "num_rounds": 1}, masked, list(NAMES), "1")
    said = [record.getMessage() for record in caplog.records if words in record.getMessage()]
    assert said, caplog.text
    assert all(line.startswith("round 1: this site was asked") or "was sent" in line for line in said)


def test_no_server_gets_both_secrets_of_a_site(run, masked: FakeSites, caplog: pytest.LogCaptureFixture):
    """After the sum is opened over all, it says that one site had dropped out, to get that site's other secret."""
    asked: list[ProtectionRequest] = []

    def look(message: Message) -> Message:
        if isinstance(message, ProtectionRequest) and message.phase == "unmask":
            asked.append(message)
        return message

    masked.change = look
    serve(run | MASKS | {"num_rounds": 1}, masked, list(NAMES), "1")
    assert {message.client for message in asked} == set(NAMES)
    revealed = Counter[str]()
    for message in asked:
        for victim in NAMES:
            others = names_tensor([name for name in NAMES if name != victim])
            for attempt, scored_too in product((0, 1), (False, True)):
                again = with_values(message, survivors=others)
                again = replace(again, attempt=attempt, evaluation=scored_too)
                with caplog.at_level(logging.WARNING, "weft.site"):
                    raw = masked.site_clients[message.client].work(bytes(pack(again, "run")))
                reply = unpack(raw, run="run")
                revealed[type(reply).__name__] += 1
    assert revealed == {"Failure": 2 * 3 * 3 * 4}  # asked in the round and in its evaluation
    for words in ("clients that did not take part in it", "3 are the fewest", "its own public key was replaced"):
        assert words in caplog.text


def test_a_round_whose_sum_was_lost_is_not_begun_again_and_the_run_goes_on(run, masked: FakeSites):
    """The sites have given what opens the sum of the first round, and no answer arrived."""

    def lose(message: Message) -> Message:
        opens = isinstance(message, ProtectionRequest) and message.phase == "unmask" and message.round == 0
        masked.deaf = {*masked.deaf, message.client} if opens else masked.deaf - {message.client}
        return message

    masked.change = lose
    done = serve(run | MASKS | {"num_rounds": 2, "eval_every": 0, "silence_timeout": 1.5}, masked, list(NAMES), "1")
    rounds = [line for line in metrics(done) if line["event"] == "round"]
    assert [(line["round"], len(line["clients"])) for line in rounds if not line.get("repeated")] == [(1, 0), (2, 3)]


def test_a_site_takes_part_in_no_smaller_sum_than_its_policy_says(run, masked: FakeSites, tmp_path: Path, caplog):
    """A server that asks for fewer, after it said that there are enough, is refused by the site."""
    for name in NAMES[:1]:
        policy = masked.policies[name]
        masked.policies[name] = policy.model_copy(
            update={"accept": policy.accept.model_copy(update={"min_clients": 3})}
        )
        masked.begin(name)

    def without_one(message: Message) -> Message:
        return with_members(message, lambda keys: keys.pop(NAMES[2]) and None)

    masked.change = without_one
    given = run | MASKS | {"min_contributors": 2, "max_attempts": 1, "num_rounds": 1}
    with caplog.at_level(logging.WARNING, "weft.site"), pytest.raises(RunError):
        serve(given, masked, list(NAMES), "1")
    assert "asked to join a sum of 2, and 3 are the fewest" in caplog.text
