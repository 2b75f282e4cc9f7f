"""An attack or a cleaner in a file of a user's that has an error: which sentence says so, and what is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import weft
from weft.errors import ConfigError, RunError

ATTACK = """
from dataclasses import replace
import torch
from weft.core.attack import Attack

class Mine(Attack):
    changes_updates = True
    def send(self, own, honest, scene):
        return [changed(update, honest) for update in own]

def streams(update, change):
    new = {s: {n: change(v) for n, v in values.items()} for s, values in update.streams.items()}
    return replace(update, streams=new)

"""
SENDS = {
    "raises": (
        "def changed(update, honest): return 1 / 0\n",
        "failed with ZeroDivisionError: division by zero (line 15 ",
    ),
    "nothing": ("def changed(update, honest): return None\n", "sent a NoneType instead of an Update in round 1"),
    "another's": ("def changed(update, honest): return honest[0]\n", "sent an update of 'c"),
    "wrong shape": (
        "def changed(update, honest): return streams(update, lambda v: torch.zeros(3))\n",
        "of shape (3,) instead of (",
    ),
    "no tensors": (
        "def changed(update, honest): return streams(update, lambda v: v.numpy())\n",
        "sent streams that hold something else than tensors in round 1",
    ),
}
POISON = """
from weft.core.attack import Attack

class Mine(Attack):
    poisons = ("conversations",)
    def poison(self, rows, choices, lots):
        return changed(list(rows))

"""
POISONS = {
    "raises": ("def changed(rows): return 1 / 0\n", "failed with ZeroDivisionError: division by zero (line 9 of '"),
    "fewer rows": ("def changed(rows): return rows[1:]\n", "correct its poison, which keeps their number."),
    "no rows": ("def changed(rows): return [0 for _ in rows]\n", "made a int of a row, which is a Example"),
}
CLEANER = """
from weft.data.cleaning.cleaner import Cleaner

class Mine(Cleaner):
    pass

"""
CLEANERS = {
    "rewrite raises": ("def boom(self, text, counts): return 1 / 0\nMine.rewrite = boom\n", "(line 7 of '"),
    "no text": ("Mine.rewrite = lambda self, text, counts: None\n", "made a NoneType of a text: correct its rewrite"),
    "faults raise": ("Mine.faults = lambda self, samples, tools: {}[0]\n", "failed with KeyError: 0 (line 7 of '"),
    "no numbers": ("Mine.faults = lambda self, samples, tools: [0]\n", "returned a list: correct its faults"),
    "no such row": ("Mine.faults = lambda self, samples, tools: {99999: 'x'}\n", "returned row 99999 of "),
    "no reason": ("Mine.faults = lambda self, samples, tools: {0: None}\n", "returned the reason None: correct"),
    "start raises": ("Mine.start = lambda self: 1 / 0\n", "ZeroDivisionError: division by zero (line 7 of '"),
}


def part(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    return f"{file}:Mine"


@pytest.mark.parametrize(("text", "words"), SENDS.values(), ids=SENDS.keys())
def test_an_attack_that_fails_in_a_round_ends_the_run_in_a_sentence(keys, text: str, words: str, tmp_path: Path):
    with pytest.raises(RunError) as ended:
        weft.train(keys | {"attack": part(tmp_path, ATTACK + text), "num_malicious": 2, "sample_clients": 4})
    assert str(ended.value).startswith("The attack Mine ")
    assert words in str(ended.value)
    assert str(ended.value).endswith(": correct it, and go on with --resume.")
    assert "\n" not in str(ended.value)


def test_an_attack_may_send_numbers_that_are_not_finite(keys, tmp_path: Path):
    """The control: what an attacker can do, a user's attack can. The round refuses such updates."""
    text = ATTACK + "def changed(update, honest): return streams(update, lambda v: v * float('nan'))\n"
    run = weft.train(keys | {"attack": part(tmp_path, text), "num_malicious": 2, "sample_clients": 4}, quiet=True)
    assert run.summary["failures"]


@pytest.mark.parametrize(("text", "words"), POISONS.values(), ids=POISONS.keys())
def test_an_attack_on_rows_that_fails_is_refused(keys, text: str, words: str, tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | {"attack": part(tmp_path, POISON + text), "num_malicious": 2})
    assert str(refused.value).startswith("The attack Mine ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


@pytest.mark.parametrize(("text", "words"), CLEANERS.values(), ids=CLEANERS.keys())
def test_a_cleaner_that_fails_is_refused(keys, text: str, words: str, tmp_path: Path):
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | {"clean": [part(tmp_path, CLEANER + text)]})
    assert str(refused.value).startswith("The cleaner Mine ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()
