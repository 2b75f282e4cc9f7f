"""What a run draws from secrets: kept beside the checkpoint, the same after a resume, and nowhere to be read."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

import weft
from support.results import events, same_values, weights
from weft.core.secret import FILE

NOISY = '''
from dataclasses import dataclass, replace
from typing import ClassVar
from weft.core.exchange import Privacy

@dataclass(frozen=True)
class Noisy(Privacy):
    """Noise at every client and at the server."""

    draws_secrets: ClassVar[bool] = True

    def _noised(self, streams, party):
        return {
            stream: {
                name: value + 1e-4 * party.secret.normal(tuple(value.shape), name, party.round, party.attempt).to(value)
                for name, value in values.items()
            }
            for stream, values in streams.items()
        }

    def on_client(self, update, party):
        return replace(update, streams=self._noised(update.streams, party)), party.memory

    def on_server(self, total, party):
        return replace(total, streams=self._noised(total.streams, party)), party.memory
'''


@pytest.fixture
def noisy(keys: dict[str, object], tmp_path: Path) -> dict[str, object]:
    (tmp_path / "noisy.py").write_text(NOISY)
    part = {"privacy": f"{tmp_path / 'noisy.py'}:Noisy"}
    return keys | part | {"num_rounds": 2, "max_steps": 1, "save_model_freq": 1, "eval_every": 0}


def test_a_run_that_needs_no_secret_has_none(keys):
    run = weft.train(keys | {"num_rounds": 1, "max_steps": 1})
    assert not list(run.path.rglob(FILE))


def test_secrets_are_kept_by_each_party_and_stand_in_no_other_file(noisy):
    run = weft.train(noisy | {"eval_every": 1})
    secrets = sorted(run.path.rglob(FILE))
    clients = {path.parent.name for path in secrets if path.parent.parent.name == "clients"}
    assert clients == {client for event in events(run) for client in event["clients"]}
    assert run.path / FILE in secrets
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert len({path.read_bytes() for path in secrets}) == len(secrets)
    others = [path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != FILE]
    for path in secrets:
        key = path.read_bytes()
        for written in (key, key.hex().encode(), base64.b64encode(key)):
            assert not any(written in content for content in others)


def test_a_resumed_run_draws_the_same_noise_and_one_with_another_secret_does_not(noisy, tmp_path: Path):
    run = weft.train(noisy)
    whole = weights(run)
    for name, change in (("again", False), ("other", True)):
        copy = tmp_path / name
        shutil.copytree(run.path, copy)
        shutil.rmtree(copy / "checkpoints" / "round_000002")
        if change:
            (copy / FILE).write_bytes(bytes(32))
        again = weft.train(noisy | {"output_dir": str(copy)}, resume=True)
        assert same_values(weights(again), whole) is not change
