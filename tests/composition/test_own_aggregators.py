"""An aggregator in a file of a user's that has an error: which sentence says so, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import weft
from support.updates import update
from weft.aggregation.mean import Mean
from weft.core.exchange import Aggregator
from weft.core.party import Gathering, Party
from weft.core.types import Total, Update
from weft.errors import ConfigError, RunError
from weft.federation.own_aggregator import checked

ROUND = Gathering(Party("", 0), 2)
HEAD = """
import torch
from weft.core.exchange import Aggregator
from weft.core.types import Total

class Mine(Aggregator):
    def combine(self, updates):
        cohort = list(updates)
        streams = {s: {n: change(v) for n, v in values.items()} for s, values in cohort[0].streams.items()}
        return Total(streams, tuple(u.client for u in cohort), 1.0)

"""
BEFORE = {
    "syntax": ("class Mine(:\n", "is not valid Python (line 1"),
    "raises at import": ("1 / 0\n", "cannot be loaded"),
    "no such class": ("class Other: pass\n", "Mine"),
    "no aggregator": ("class Mine: pass\n", "Mine"),
    "needs that raise": (
        HEAD + "Mine.needs = lambda self, cohort: cohort / 0\n",
        "The aggregator Mine failed in its needs with ZeroDivisionError: division by zero (line 12 of '",
    ),
    "needs of no number": (
        HEAD + "Mine.needs = lambda self, cohort: 'two'\n",
        "The aggregator Mine needs 'two' updates, and that is no number of them: correct its needs.",
    ),
}
OF = HEAD + "def change(v): return v\nof = Mine.combine\n"
TOTAL = OF + "from dataclasses import replace\n"


def returning(**changes: str) -> str:
    """A file whose total has other fields, written in Python."""
    fields = ", ".join(f"{name}={value}" for name, value in changes.items())
    return TOTAL + f"Mine.combine = lambda self, updates: replace(of(self, updates), {fields})\n"


DURING = {
    "no tensors": (
        HEAD + "def change(v): return v.numpy()\n",
        "returned streams that hold something else than tensors",
    ),
    "whole numbers": (HEAD + "def change(v): return v.long()\n", "in torch.int64 instead of torch.float32 in round 1"),
    "no streams": (returning(streams="{}"), "returned other tensors than the updates have"),
    "strangers": (returning(clients="('me',)"), "returned clients among whom 'me' sent no update in round 1"),
    "a name": (returning(flagged="'me'"), "returned flagged clients as a str instead of a tuple of names in round 1"),
    "no weight": (returning(weight="float('nan')"), "returned a weight of nan in round 1"),
    "no memory": (returning(memory="{'a': 1}"), "returned a memory that is no streams of tensors in round 1"),
    "before a round": (
        TOTAL + "def boom(self, gathering): raise ValueError('boom')\nMine.for_round = boom\n",
        "failed in round 1 with ValueError: boom (line 15 of '",
    ),
    "wrong shape": (HEAD + "def change(v): return torch.zeros(3)\n", "of shape (3,) instead of ("),
    "not finite": (HEAD + "def change(v): return v * float('nan')\n", "numbers that are not finite in '"),
    "raises": (
        HEAD + "def change(v): raise ValueError('boom')\n",
        "failed in round 1 with ValueError: boom (line 12 of '",
    ),
    "nothing": (
        HEAD + "Mine.combine = lambda self, updates: None\n",
        "returned a NoneType instead of a Total in round 1",
    ),
    "other names": (
        OF
        + "def combine(self, updates):\n    total = of(self, updates)\n"
        + "    return Total({s: {'x' + n: v for n, v in values.items()} for s, values in total.streams.items()},"
        + " total.clients, 1.0)\nMine.combine = combine\n",
        "returned other tensors than the updates have",
    ),
}
LATER = (
    OF
    + """
def combine(self, updates):
    total = of(self, updates)
    rounds = Path(__file__).with_name("rounds")
    rounds.write_text(rounds.read_text() + "x" if rounds.exists() else "x")
    if len(rounds.read_text()) == 2:
        raise RuntimeError("in the middle")
    return total
Mine.combine = combine
from pathlib import Path
"""
)


@pytest.mark.parametrize(("text", "words"), BEFORE.values(), ids=BEFORE.keys())
def test_a_file_that_cannot_be_loaded_is_refused_before_anything(keys, text: str, words: str, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | {"aggregator": f"{file}:Mine"})
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


@pytest.mark.parametrize(("text", "words"), DURING.values(), ids=DURING.keys())
def test_a_rule_that_fails_in_a_round_ends_the_run_in_a_sentence(keys, text: str, words: str, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(RunError) as ended:
        weft.train(keys | {"aggregator": f"{file}:Mine"})
    assert str(ended.value).startswith("The aggregator Mine ")
    assert words in str(ended.value)
    assert str(ended.value).endswith(": correct it, and go on with --resume.")
    assert "\n" not in str(ended.value)


def test_a_run_whose_rule_failed_in_the_middle_goes_on(keys, tmp_path: Path):
    """And gives what a run gives whose rule never failed: the control is the last assertion."""
    file = tmp_path / "mine.py"
    file.write_text(LATER)
    run = keys | {"aggregator": f"{file}:Mine", "lr_scheduler_type": "constant", "checkpoint_seconds": 0}
    with pytest.raises(RunError, match="failed in round 2 with RuntimeError: in the middle"):
        weft.train(run)
    resumed = weft.train(run, resume=True)
    assert resumed.summary["rounds"] == 3
    whole = weft.train(run | {"output_dir": str(tmp_path / "whole")})
    assert resumed.summary["eval"] == whole.summary["eval"]


def test_an_error_of_an_update_is_not_one_of_the_aggregator():
    def updates() -> Iterator[Update]:
        raise ConnectionError("the wire broke")
        yield

    class Own(Aggregator):
        def combine(self, updates: Iterable[Update]) -> Total:
            return Total({}, tuple(update.client for update in updates), 1.0)

    with pytest.raises(ConnectionError, match="the wire broke"):
        checked(Own(), ROUND).combine(updates())
    assert checked(Own(), ROUND).combine([]) == Total({}, (), 1.0)
    assert isinstance(checked(Mean(), ROUND), Mean)


def test_fewer_updates_than_the_aggregator_needs_may_have_no_streams():
    """The round is repeated; the control is a rule that needs no more than it got."""

    class Own(Aggregator):
        def needs(self, cohort: int) -> int:
            return cohort

        def combine(self, updates: Iterable[Update]) -> Total:
            return Total({}, tuple(update.client for update in updates), 1.0)

    sent = [update("a"), update("b")]
    assert checked(Own(), Gathering(Party("", 0), 3)).combine(sent).clients == ("a", "b")
    with pytest.raises(RunError, match="returned other tensors than the updates have"):
        checked(Own(), Gathering(Party("", 0), 2)).combine(sent)


def test_a_rule_that_fails_while_an_attack_searches_ends_the_run_in_the_same_sentence(keys, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(DURING["raises"][0])
    attack = {"attack": "alie", "attack_args": {"search": True}, "num_malicious": 1, "sample_clients": 3}
    with pytest.raises(RunError, match="The aggregator Mine failed in round 1 with ValueError: boom"):
        weft.train(keys | attack | {"aggregator": f"{file}:Mine"})
