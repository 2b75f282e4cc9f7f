"""Encrypted sums of sites: those of the plain run, under a key from their kits that the server never sees."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("nvflare")
pytest.importorskip("tenseal", reason="the extra he is not installed")
from support.fake_sites import NAMES, FakeSites
from support.results import metrics, weights
from weft.core.promises import FILE as PROMISES
from weft.core.promises import Promises
from weft.core.types import Message, ProtectionRequest
from weft.errors import ConfigError, RunError
from weft.protection import ciphertexts
from weft.protection.members import names_tensor
from weft.runs.layout import RunDir
from weft.sites.kit_key import FILE
from weft.sites.run_state import BIRTHS, changed
from weft.sites.server import serve

CKKS = {"protection": "ckks"}


@pytest.fixture(scope="module")
def key() -> bytes:
    return ciphertexts.new_key()


@pytest.fixture
def sealed(sites: FakeSites, key: bytes, tmp_path: Path) -> FakeSites:
    """Three sites whose kits have one key."""
    for name in sites.policies:
        kit = tmp_path / "kits" / name
        kit.mkdir(parents=True)
        (kit / FILE).write_bytes(key)
        sites.kits[name] = kit
        sites.begin(name)
    return sites


def test_encrypted_sums_are_those_of_the_plain_run(run, sealed: FakeSites, key: bytes, tmp_path: Path):
    there = serve(run | CKKS, sealed, list(NAMES), "1")
    plain = serve(run | {"output_dir": str(tmp_path / "runs/plain")}, sealed, list(NAMES), "1")
    ours, theirs = weights(there), weights(plain)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-6)
    ours, theirs = ([line["clients"] for line in metrics(one) if line["event"] == "round"] for one in (there, plain))
    assert ours == theirs == [list(NAMES)] * 3
    assert (sealed.kits[NAMES[0]] / FILE).stat().st_mode & 0o077 == 0
    # Neither what crossed nor what the server keeps holds the key, in the form of its file or of its numbers.
    words = [key[at : at + 48] for at in (200, 40_000, 100_000)] + [ciphertexts.Cipher(key).secret._key]
    crossed = [raw for _, raw in sealed.asked if raw is not None] + sealed.answered
    kept = [path.read_bytes() for path in there.path.rglob("*") if path.is_file()]
    assert len(crossed) > 20
    assert kept
    assert not any(word in raw for word in words for raw in crossed + kept)
    assert any(words[0] in path.read_bytes() for path in sealed.kits[NAMES[0]].iterdir()), "the control"


def test_a_site_whose_kit_has_no_key_takes_no_part(run, sealed: FakeSites):
    (sealed.kits[NAMES[1]] / FILE).unlink()
    with pytest.raises(ConfigError, match=r"its kit has no ckks\.key"):
        serve(run | CKKS | {"min_clients": 3}, sealed, list(NAMES), "1")


@pytest.mark.parametrize("content", [b"", b"no key", b"x" * (1 << 20)])
def test_a_damaged_key_is_refused_in_words(run, sealed: FakeSites, content: bytes):
    (sealed.kits[NAMES[1]] / FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"the ckks\.key in its kit is damaged"):
        serve(run | CKKS | {"min_clients": 3}, sealed, list(NAMES), "1")


def test_a_site_with_another_key_than_the_others_takes_no_part(run, sealed: FakeSites):
    (sealed.kits[NAMES[0]] / FILE).write_bytes(ciphertexts.new_key())
    sealed.begin(NAMES[0])
    with pytest.raises(ConfigError, match="another key of encrypted sums than most"):
        serve(run | CKKS | {"min_clients": 3}, sealed, list(NAMES), "1")


def fewer(message: Message) -> Message:
    """Ask to agree to a sum without one of the sites."""
    if isinstance(message, ProtectionRequest) and message.phase == "agree":
        values = message.streams["agree"] | {"survivors": names_tensor([message.client])}
        return replace(message, streams={"agree": values})
    return message


def a_part(message: Message) -> Message:
    """Ask to open a ciphertext that was changed."""
    if isinstance(message, ProtectionRequest) and message.phase == "open":
        values = message.streams["open"]
        changed = values["sum"].clone()
        changed[0, 0, 0] = (changed[0, 0, 0] + 1) % ciphertexts.PRIME
        return replace(message, streams={"open": values | {"sum": torch.flip(changed, (0,)).roll(1, 2)}})
    return message


@pytest.mark.parametrize(
    ("lie", "words"),
    [(fewer, "asked to open a sum of 1 clients, and 3 are the fewest"), (a_part, "was sent ciphertexts")],
)
def test_a_server_that_lies_is_refused_in_words_and_opens_nothing(
    run, sealed: FakeSites, lie: Callable[[Message], Message], words: str, caplog: pytest.LogCaptureFixture
):
    sealed.change = lie
    with caplog.at_level(logging.WARNING, "weft.site"), pytest.raises(RunError):
        serve(run | CKKS | {"max_attempts": 1, "num_rounds": 1}, sealed, list(NAMES), "1")
    assert words in caplog.text


def test_a_run_that_another_of_its_name_replaced_does_not_come_back(tmp_path: Path):
    """Its key and pads would be the old ones, and nothing of what was promised under them is left."""
    run = RunDir(tmp_path)
    states = {"current": {}, "base": "base", "accept_changed": False, "shared_key": True}
    assert changed(run, birth="first", **states) is None
    promises = run.client_dir("here") / PROMISES
    assert Promises(promises).keep(0, "opened", "0")
    assert changed(run, birth="first", **states) is None
    assert Promises(promises).kept(0, "opened") == "0"  # a restart forgets nothing
    assert changed(run, birth="second", **states) is None
    assert not promises.exists()
    for _ in range(2):
        assert "a later run of its name has begun here" in str(changed(run, birth="first", **states))
    assert changed(run, birth="second", **states) is None
    assert "has no birth" in str(changed(run, birth="", **states))
    # Masks have a new secret each time.
    assert changed(run, birth="first", **states | {"shared_key": False}) is None
    assert "a later run of its name has begun here" in str(changed(run, birth="first", **states))
    (tmp_path / BIRTHS).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        changed(run, birth="third", **states)


def test_a_site_refuses_to_leave_tensors_open_unless_its_policy_allows_it(run, sealed: FakeSites):
    """Which tensors are encrypted is the server's word, and the others it would see of every site."""
    serve(run | CKKS | {"num_rounds": 1}, sealed, list(NAMES), "1")
    said = json.loads(next(raw for name, raw in sealed.asked if name == NAMES[0] and raw and b'"birth"' in raw))

    def answer(*patterns: str) -> dict[str, object]:
        asked = said | {"run": said["run"] | {"encrypt": list(patterns)}}
        return json.loads(sealed.site_clients[NAMES[0]].work(json.dumps(asked).encode()))

    assert "does not accept partly_encrypted" in str(answer("*")["refused"])
    assert "agreed" in answer()  # none: all tensors
    policy = sealed.policies[NAMES[0]]
    accept = policy.accept.model_copy(update={"partly_encrypted": True})
    sealed.policies[NAMES[0]] = policy.model_copy(update={"accept": accept})
    sealed.begin(NAMES[0])
    assert "agreed" in answer("*")
    assert "fits no shared tensor" in str(answer("nothing_like_it")["refused"])


def test_a_site_refuses_the_handshake_of_an_earlier_run(run, sealed: FakeSites):
    """The same handshakes, which a server may send again in any order."""
    serve(run | CKKS | {"num_rounds": 1}, sealed, list(NAMES), "1")
    said = next(raw for name, raw in sealed.asked if name == NAMES[0] and raw and b'"birth"' in raw)
    first = json.loads(said)
    site = sealed.site_clients[NAMES[0]]
    assert "agreed" in json.loads(site.work(said))
    assert "agreed" in json.loads(site.work(json.dumps(first | {"birth": "another"}).encode()))
    assert "a later run of its name" in json.loads(site.work(said))["refused"]
