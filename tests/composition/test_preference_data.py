"""Rows of preferences: which are read, which are dropped or refused, and what judged answers are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

import weft
from support.preferences import judged_rows, preference_rows
from support.rows import write_rows
from weft.data.preferences import to_preferences
from weft.errors import DataError

HUMAN = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: which?\n\nAssistant:"


def test_preferences_of_every_kind_are_read():
    message = lambda role, text: {"role": role, "content": text}  # noqa: E731
    talk = [message("user", "hi"), message("assistant", "hello"), message("user", "which?")]
    kinds = [
        {"chosen": HUMAN + " this", "rejected": HUMAN + " that"},
        {"prompt": HUMAN, "chosen": "this", "rejected": "that"},
        {"prompt": talk, "chosen": [message("assistant", "this")], "rejected": [message("assistant", "that")]},
        {
            "prompt": "hi",
            "chosen": [*talk, message("assistant", "this")],
            "rejected": [*talk, message("assistant", "that")],
        },
    ]
    for row in kinds:
        (found,) = to_preferences([row], source="x", unpaired=False).examples
        assert [(turn.role, turn.text.strip()) for turn in found.turns] == [
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "which?"),
        ]
        assert (found.answer.strip(), found.other.strip()) == ("this", "that")


DROPPED = {
    "equal answers": {"prompt": "q", "chosen": "a", "rejected": " a"},
    "no prompt": {"prompt": "", "chosen": "a", "rejected": "b"},
    "empty chosen answer": {"prompt": "q", "chosen": " ", "rejected": "b"},
    "answer or prompt that is no text": {"prompt": "q", "chosen": 3, "rejected": "b"},
    "dialogues that differ before the last answer": {
        "prompt": None,
        "chosen": "\n\nHuman: x\n\nAssistant: a",
        "rejected": "\n\nHuman: y\n\nAssistant: b",
    },
}


def test_rows_that_cannot_be_used_are_dropped_and_counted():
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    found = to_preferences([good, *DROPPED.values()], source="x", unpaired=False)
    assert len(found.examples) == 1
    assert found.omission_counts == dict.fromkeys(DROPPED, 1)
    labels = [{"prompt": "q", "completion": "a", "label": value} for value in (True, "false", 0, "perhaps")]
    made = to_preferences(labels, source="x", unpaired=True)
    assert [one.good for one in made.examples] == [True, False, False]
    assert made.omission_counts == {"label that is neither true nor false": 1}


BAD = {
    "labels for pairs": ([{"prompt": "q", "completion": "a", "label": True}], "dpo", "labels go with --loss kto"),
    "neither": ([{"prompt": "q", "output": "a"}], "dpo", "preferences are read from 'chosen' and 'rejected'"),
    "nothing": ([], "dpo", "is empty"),
}


@pytest.mark.parametrize(("data", "loss", "said"), BAD.values(), ids=BAD.keys())
def test_data_that_is_no_preferences_is_refused_with_the_reason(
    preference_keys, tmp_path: Path, data, loss: str, said: str
):
    path = write_rows(tmp_path / "bad.jsonl", data)
    with pytest.raises(DataError, match=said):
        weft.train(preference_keys | {"dataset_name": str(path), "loss": loss})


def test_answers_that_do_not_fit_are_dropped_and_prompts_are_cut(preference_keys, tmp_path: Path, capsys):
    data = [*preference_rows(40), {"prompt": "q", "chosen": "leaf " * 300, "rejected": "b"}]
    data += [{"prompt": "sea " * 300, "chosen": "a", "rejected": "b"}]
    path = write_rows(tmp_path / "long.jsonl", data)
    run = weft.train(preference_keys | {"dataset_name": str(path), "num_rounds": 1, "seq_length": 128})
    assert run.summary["rows"]["no_answer_within_seq_length"] == 1
    assert run.summary["rows"]["prompts_cut"] == 1


def test_judged_answers_are_compared_with_those_of_the_same_client(judged_keys, tmp_path: Path):
    from weft.config import build
    from weft.federation.clients import InMemory
    from weft.launch.population import populate
    from weft.models.tokenizer import load_tokenizer

    alone = write_rows(tmp_path / "alone.jsonl", judged_rows(1))
    clients = {"many": judged_keys["dataset_name"], "one": str(alone)}
    given = {k: v for k, v in judged_keys.items() if k not in ("dataset_name", "num_clients")}
    config = build(given | {"clients": clients, "eval_fraction": 0.0})
    people = populate(config, load_tokenizer(config), InMemory(), rows="judged", pool=False)
    for site in people.trained:
        mine = {tuple(site.train.table.answers[int(row)].tolist()) for row in site.train.index}
        for row in range(len(site.train)):
            own, other = site.train[row].answers
            assert len(own)
            assert tuple(other.tolist()) in mine
    run = weft.train(given | {"clients": clients, "eval_fraction": 0.0, "num_rounds": 1})
    assert run.summary["failures"] == {}


def test_swapped_columns_are_found():
    row = {"prompt": "Why?", "rejected": "so", "chosen": "because"}
    with pytest.raises(DataError, match="look swapped"):
        to_preferences([row], source="x", unpaired=False, chosen_column="rejected", rejected_column="chosen")
    named = {"prompt": "Why?", "loser": "so", "winner": "because"}
    found = to_preferences([named], source="x", unpaired=False, chosen_column="winner", rejected_column="loser")
    assert (found.examples[0].answer, found.examples[0].other) == ("because", "so")
    with pytest.raises(DataError, match=r"'winer'.*Did you mean 'winner'"):
        to_preferences([named], source="x", unpaired=False, chosen_column="winer", rejected_column="loser")
    scored = [row | {"score_chosen": 1.0, "score_rejected": 8.0}] * 3 + [row | {"score_chosen": 9, "score_rejected": 8}]
    with pytest.raises(DataError, match="In 3 of 4 scored rows"):
        to_preferences(scored, source="x", unpaired=False)
    assert len(to_preferences(scored[2:], source="x", unpaired=False).examples) == 2  # as many either way
