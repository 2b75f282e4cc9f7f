"""Rows that the runs of a study share: made once, and anew where anything is different that they follow from."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from weft.config import build
from weft.data.preferences import PreferencePair
from weft.data.remembered import MOST, remembered, rows_are_shared
from weft.data.source_kinds import Judgements
from weft.data.templates import ALPACA, CHAT, VICUNA
from weft.data.turns import Turn


class Made:
    """A maker that counts its calls, and notes something on the conversations as it works."""

    def __init__(self, notes: dict[str, None] | None = None) -> None:
        self.times, self.notes = 0, notes

    def __call__(self) -> int:
        self.times += 1
        if self.notes is not None:
            self.notes["a system turn was moved"] = None
        return self.times


def test_rows_are_made_once_for_equal_arguments_within_a_study_only(tiny_tokenizer):
    make = Made()
    for expected in (1, 2):
        assert remembered(make, tiny_tokenizer, ALPACA, ["row"], 48) == expected
    with rows_are_shared():
        assert [remembered(make, tiny_tokenizer, ALPACA, ["row"], 48) for _ in range(3)] == [3, 3, 3]
        # Each run loads a tokenizer of its own: its content counts, not the object.
        assert remembered(make, copy.deepcopy(tiny_tokenizer), ALPACA, ["row"], 48) == 3
    assert remembered(make, tiny_tokenizer, ALPACA, ["row"], 48) == 4


def test_rows_are_made_anew_where_anything_differs(tiny_tokenizer):
    make, other, templated = Made(), copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<new>"])
    templated.chat_template = "{{ messages[0]['content'] }}"
    with rows_are_shared():
        first = remembered(make, tiny_tokenizer, ALPACA, ["row"], 48)
        others = [
            remembered(make, tiny_tokenizer, VICUNA, ["row"], 48),
            remembered(make, tiny_tokenizer, ALPACA, ["row", "and one"], 48),
            remembered(make, tiny_tokenizer, ALPACA, ["row"], 47),
            remembered(make, other, ALPACA, ["row"], 48),
            remembered(make, templated, ALPACA, ["row"], 48),
            remembered(make, tiny_tokenizer, replace(CHAT, date="2026-01-01"), ["row"], 48),
        ]
        assert len({first, *others}) == 7
        # Only the newest are kept, so the first one is made again.
        assert len(others) > MOST
        assert remembered(make, tiny_tokenizer, ALPACA, ["row"], 48) == 8


def test_what_a_template_noted_is_noted_for_every_run(tiny_tokenizer):
    first, second = replace(CHAT, notes={}), replace(CHAT, notes={})
    with rows_are_shared():
        remembered(Made(first.notes), tiny_tokenizer, first, ["row"])
        make = Made(second.notes)
        remembered(make, tiny_tokenizer, second, ["row"])
    assert make.times == 0
    assert list(second.notes) == ["a system turn was moved"]


def test_pairs_are_tokenized_once_and_each_run_writes_into_references_of_its_own(tiny_tokenizer):
    pairs = [PreferencePair((Turn("user", f"Is {one} odd?"),), "Yes", "No") for one in range(3)]
    config = build({"model_name_or_path": "m", "dataset_name": "d", "objective": "preference"})
    with rows_are_shared():
        first, second = (
            Judgements(config, unpaired=False, examples=list(pairs)).table(tiny_tokenizer, ALPACA) for _ in range(2)
        )
        assert second.prompts is first.prompts
        first.reference[:] = -1.0
        first.partner[:] = 0
        third = Judgements(config, unpaired=False, examples=list(pairs)).table(tiny_tokenizer, ALPACA)
        judged = Judgements(config, unpaired=True, examples=list(pairs)).table(tiny_tokenizer, ALPACA)
    for table in (second, third):
        assert np.isnan(table.reference).all()
        assert table.partner.tolist() == [0, 1, 2]
    assert len(judged) == 6
