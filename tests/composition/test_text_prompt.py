"""Prompts in words: proposed, scored by everybody, and kept where they help."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.flags import flags
from support.rows import colour_rows, write_rows
from weft.aggregation.mean import Mean
from weft.algorithms.fedtext import FedText
from weft.cli import main
from weft.core.texts import to_bytes, to_texts
from weft.core.types import SEARCH, Task, Update
from weft.data.words import Words
from weft.errors import ClientFailed, ConfigError
from weft.models.instruction import NAME

CANDIDATES = ["Answer in one word.", "red green blue", "Name the colour of it.", "Do nothing."]


@pytest.fixture
def worded(keys) -> dict[str, object]:
    own = {"use_peft": False, "prompt_method": "text", "fed_alg": "fedtext", "prompt_candidates": CANDIDATES}
    own |= {"prompt_pool": 4, "prompt_length": 40, "num_rounds": 4, "max_steps": 2, "batch_size": 8, "eval_every": 0}
    left = {key: value for key, value in keys.items() if key != "learning_rate"}  # words are learnt without steps
    return left | own | {"dtype": "float32", "sample_clients": 3}


def test_texts_become_tensors_and_the_same_texts_again():
    values = to_bytes(["é a", ""], 3, 8)
    assert values.shape == (3, 8)
    assert to_texts(values) == ["é a", "", ""]
    with pytest.raises(ValueError, match="9 bytes, and 8"):
        to_bytes(["x" * 9], 1, 8)
    for bad in (b"a\x07b", b"\xff\xfe", "a\u202eb".encode()):
        row = torch.zeros(1, 8, dtype=torch.uint8)
        row[0, : len(bad)] = torch.tensor(list(bad), dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"control|codec"):
            to_texts(row)


def test_words_stand_behind_what_a_row_begins_with(tiny_tokenizer):
    words = Words(tiny_tokenizer)
    said = words.tokens("red green")
    assert tiny_tokenizer.decode(said) == "red green\n"
    ids = np.concatenate([words.begin, np.array([7, 8, 9], dtype=np.int32)])
    longer, learn = words.row((ids, np.arange(len(ids)) >= len(ids) - 1), said)
    assert longer.tolist() == [*words.begin, *said, 7, 8, 9]
    assert learn.tolist() == [False] * (len(longer) - 1) + [True]
    assert len(words.tokens("")) == 0


def update(algorithm: FedText, client: str, scores: list[float], proposals: list[str], weight: float = 1.0) -> Update:
    sent = {"scores": torch.tensor(scores), "proposals": to_bytes(proposals, algorithm.proposals, algorithm.length)}
    return Update(client, 0, 0, {SEARCH: sent}, weight)


def test_the_better_half_survives_and_proposals_are_taken_in_turn():
    algorithm = FedText(pool=4, proposals=2, length=16)
    state = algorithm.init({NAME: torch.zeros(16)})
    assert to_texts(state.memory[SEARCH]["pool"]) == ["", "", "", ""]
    assert state.memory[SEARCH]["filled"].tolist() == [True, False, False, False]
    empty = 1e30
    first = [
        update(algorithm, "a", [3.0, empty, empty, empty], ["one", "two"]),
        update(algorithm, "b", [1.0, empty, empty, empty], ["one", "three"]),
    ]
    state = algorithm.step(state, algorithm.combine(first, Mean()))
    assert to_texts(state.memory[SEARCH]["pool"]) == ["", "one", "two", "three"]
    # the means by weights 1 and 3: "" 2.5, one 1.5, two 4, three 2.25
    second = [
        update(algorithm, "a", [1.0, 3.0, 1.0, 3.0], ["one", "four"]),
        update(algorithm, "b", [3.0, 1.0, 5.0, 2.0], ["five", ""], weight=3.0),
    ]
    state = algorithm.step(state, algorithm.combine(second, Mean()))
    assert to_texts(state.memory[SEARCH]["pool"]) == ["one", "three", "five", "four"]
    assert to_texts(state.params[NAME].to(torch.uint8)[None]) == ["one"]
    assert state.memory[SEARCH]["scores"][:2].tolist() == pytest.approx([1.5, 2.25])
    # what was in the pool once does not come back
    third = [update(algorithm, "a", [1.0, 2.0, 3.0, 4.0], ["two", "six"])]
    state = algorithm.step(state, algorithm.combine(third, Mean()))
    assert to_texts(state.memory[SEARCH]["pool"]) == ["one", "three", "six", ""]


def test_a_proposal_that_is_not_to_be_shown_is_refused():
    algorithm = FedText(pool=4, proposals=1, length=16)
    bad = update(algorithm, "a", [0.0] * 4, ["fine"])
    bad.streams[SEARCH]["proposals"][0, 0] = 7
    with pytest.raises(ClientFailed, match="control characters"):
        algorithm.check(bad)


@pytest.mark.parametrize("fed_alg", ["fedtext", "local", "central"])
def test_the_best_words_are_found_and_only_words_travel(
    worded, fed_alg: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    from weft.runtimes.inprocess import InProcess

    crossed: list[object] = []
    exchange = InProcess.exchange

    def watched(self, messages):
        crossed.extend(messages)
        for reply in exchange(self, messages):
            crossed.append(reply)
            yield reply

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no gradients here")

    monkeypatch.setattr(InProcess, "exchange", watched)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    run = weft.train(worded | {"fed_alg": fed_alg}, quiet=True)
    assert run.summary["failures"] == {}
    if fed_alg == "local":
        found = run.instruction("client_1")
        assert found in (run.path / "clients" / "client_1" / "prompt.txt").read_text()
        with pytest.raises(ConfigError, match="--client NAME"):
            run.instruction()
        return
    found = run.instruction()
    assert (run.path / "prompt.txt").read_text() == found + "\n"
    bare = weft.train(worded | {"prompt_candidates": [], "num_rounds": 1, "output_dir": str(tmp_path / "bare")})
    assert run.summary["eval"]["loss"] <= bare.summary["eval"]["loss"] + 0.05
    if fed_alg == "fedtext":
        for task in (message for message in crossed if isinstance(message, Task)):
            assert set(task.params) == {NAME}
            assert {name: value.dtype for name, value in task.extra[SEARCH].items()} == {
                "pool": torch.uint8,
                "filled": torch.bool,
            }
        for sent in (message for message in crossed if isinstance(message, Update)):
            assert set(sent.streams[SEARCH]) == {"scores", "proposals"}
        assert main(["chat", str(run.path), "--prompt", "What colour is the sky?", "--max_new_tokens", "4"]) == 0
        assert main(["export", str(run.path), "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "prompt.txt").read_text() == found + "\n"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["texts_scored"] > 0 for line in lines if line["event"] == "round")


def test_a_resumed_search_ends_bit_identical(worded, tmp_path: Path):
    given = worded | {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given, quiet=True)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in broken.glob("checkpoints/round_00000[34]"):
        shutil.rmtree(path)
    for name in ("summary.json", "prompt.txt"):
        (broken / name).unlink()
    weft.train(given | {"output_dir": str(broken)}, resume=True, quiet=True)
    assert (one.path / "prompt.txt").read_bytes() == (broken / "prompt.txt").read_bytes()
    assert (one.path / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


def test_a_file_of_instructions_is_accepted_and_the_plan_shows_their_size(worded, tmp_path: Path, capsys):
    (tmp_path / "words.txt").write_text("One word.\n\nTwo words.\n", encoding="utf-8")
    keys = {k: v for k, v in worded.items() if k not in ("use_peft", "prompt_candidates", "fed_alg")}
    keys["prompt_candidates"] = str(tmp_path / "words.txt")
    assert main(["prompt", *flags(keys), "--dry_run"]) == 0
    assert "an instruction of at most 40 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_candidates": ["x" * 41]}, "41 bytes, and prompt_length is 40"),
        ({"prompt_candidates": ["a\x1bb"]}, "control characters"),
        ({"fed_alg": "fedavg"}, "--fed_alg fedtext"),
        ({"fed_alg": "scaffold"}, "--fed_alg fedtext"),
        ({"prompt_method": "soft"}, "prompt_candidates, prompt_pool and prompt_length have no effect"),
        (
            {"prompt_method": "soft", "prompt_candidates": None, "prompt_pool": None, "prompt_length": None},
            "searched without gradients",
        ),
        ({"prompt_length": 200}, "longer than the model's context"),
        ({"objective": "preference"}, "likelihood of answers"),
        ({"private_tokens": 2}, "without --private_tokens"),
    ],
)
def test_keys_that_a_text_prompt_cannot_have_are_refused(
    worded, changes: dict[str, object], words: str, tmp_path: Path
):
    rows = [row | {"prompt": row["instruction"], "chosen": "a", "rejected": "b"} for row in colour_rows(20)]
    data = {"dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows))}
    with pytest.raises(ConfigError, match=words):
        weft.train(worded | data | changes, quiet=True)
