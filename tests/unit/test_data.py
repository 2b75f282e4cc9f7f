"""Reading, recognising, rendering, tokenizing and sharing out rows."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from support.rows import colour_rows, write_rows
from weft.data.encode import closed_set, encode, encode_choices
from weft.data.formats import Example, Turn, to_examples
from weft.data.load import read_rows, resolve_source
from weft.data.partition import hold_out, sample_rows
from weft.data.templates import ALPACA, CHAT, PLAIN, VICUNA
from weft.errors import ConfigError, DataError

ROWS = [{"instruction": "a\u2028b", "output": "ü"}, {"instruction": "c", "output": 'd, "e"'}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def files(folder: Path) -> dict[str, Path]:
    import csv

    import pyarrow
    import pyarrow.parquet

    made = {kind: folder / f"rows{kind}" for kind in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".parquet")}
    made[".jsonl"].write_bytes(LINES)
    made[".jsonl.gz"].write_bytes(gzip.compress(LINES))
    made[".jsonl.zst"].write_bytes(zstandard.compress(LINES))
    made[".json"].write_text(json.dumps(ROWS))
    with open(made[".csv"], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), made[".parquet"])
    return made


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path):
    for kind, path in files(tmp_path).items():
        assert read_rows(str(path)) == ROWS, kind
    assert read_rows(str(tmp_path)) == ROWS * 6


def test_text_files_and_saved_data_sets_are_read_as_rows(tmp_path: Path):
    import datasets

    (tmp_path / "a.txt").write_text("one\nline\n\n\ntwo\n")
    assert read_rows(str(tmp_path / "a.txt")) == [{"text": "one\nline"}, {"text": "two"}]
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read_rows(str(tmp_path / "saved")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "Line 2"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', "Line 3"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "Line 2 of .* not UTF-8"),
        ("a.json", b'{"a": \n 1,,}', "Line 2"),
        ("a.json", b"[1, 2]", "no list of objects"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "Line 3"),
        ("a.csv", b'a,b\n1,"2\n', "is not CSV"),
        ("a.jsonl.gz", gzip.compress(LINES * 50, mtime=0)[:-20], "cut short"),
        ("a.jsonl.gz", b"no gzip", "cut short or broken"),
        ("a.jsonl.zst", zstandard.compress(LINES * 50)[:-5], "cut short|not JSON"),
        ("a.parquet", b"PAR1 no parquet", "parquet"),
        ("a.bin", b"", "no suffix of a data file"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_rows(str(path))


def test_data_that_is_not_there_is_refused(tmp_path: Path):
    for name in ("missing.jsonl", "./missing", "/no/such/folder", "~/no such"):
        with pytest.raises(DataError, match="no file or folder"):
            read_rows(name)
    with pytest.raises(DataError, match="holds no data file"):
        read_rows(str(tmp_path))
    with pytest.raises(DataError, match="no local file"):
        read_rows("some-org/some-set")


def test_a_relative_source_is_looked_for_in_local_data_dir(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert resolve_source("a.jsonl", str(tmp_path) + "/") == str(path)
    assert resolve_source("a.jsonl", str(tmp_path)) == str(path)
    assert resolve_source("a/b", None) == "a/b"


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"instruction": "i", "input": "more", "output": "o"}, "i more", "o"),
        ({"instruction": "i", "response": "r"}, "i", "r"),
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"question": "q", "answer": 7}, "q", "7"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "u", "a"),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, "h", "g"),
        (
            {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]},
            "u",
            "a",
        ),
    ],
)
def test_rows_of_every_format_become_a_question_and_an_answer(row: dict[str, object], question: str, answer: str):
    made = to_examples([row], source="here")
    assert made.examples == [Example((Turn("user", question), Turn("assistant", answer)))]
    assert made.omission_counts == {}


def test_data_sets_that_are_known_by_name_are_read_by_their_own_columns():
    medical = {"instruction": "Answer this.", "input": "What?", "output": "That."}
    assert to_examples([medical], source="data/medalpaca/medical_meadow_medical_flashcards").examples == [
        Example((Turn("user", "What?"), Turn("assistant", "That.")))
    ]
    maths = {"problem": "1+1", "solution": "2", "level": "1", "type": "x"}
    assert to_examples([maths], source="lighteval/MATH").examples[0].answer == "2"
    repeated = [{"instruction": "i", "output": "1", "source": ""}, {"instruction": "i", "output": "2", "source": ""}]
    made = to_examples(repeated, source="TIGER-Lab/MathInstruct")
    assert [example.answer for example in made.examples] == ["1"]
    assert made.omission_counts == {"repeated instruction": 1}


def test_rows_that_cannot_be_used_are_counted():
    say = {"role": "user", "content": "u"}
    rows = [
        {"messages": []},
        {"messages": [say]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "robot", "content": "a"}]},
        {"messages": [say, {"role": "assistant", "content": " "}]},
        {"messages": [say, {"role": "assistant", "content": "a"}, say]},
    ]
    made = to_examples(rows, source="here")
    assert len(made.examples) == 1
    assert sum(made.omission_counts.values()) == 5


def test_unknown_columns_are_listed():
    with pytest.raises(DataError, match=r"'a', 'b'.*--instruction_column"):
        to_examples([{"a": 1, "b": 2}], source="here")
    with pytest.raises(DataError, match="--response_column"):
        to_examples([{"question": 1, "b": 2}], source="here")
    with pytest.raises(DataError, match="Did you mean 'frage'"):
        to_examples([{"frage": 1, "b": 2}], source="here", instruction_column="frag")
    assert to_examples([{"frage": 1, "b": 2}], source="here", instruction_column="frage", response_column="b").examples


ASK = Example((Turn("user", "Why?"), Turn("assistant", "Because.")))
TALK = Example((Turn("system", "Be brief."), *ASK.turns, Turn("user", "So?"), Turn("assistant", "Yes.")))
E = "</s>"


def written(template, example, tokenizer) -> str:
    return "".join(p.text + (E if p.end else "") for p in template.pieces(example, tokenizer))


def test_alpaca_and_vicuna_write_their_templates_to_the_letter(tiny_tokenizer):
    assert written(ALPACA, ASK, tiny_tokenizer) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhy? \n\n### Response: Because.</s>"
    )
    assert written(VICUNA, ASK, tiny_tokenizer) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Why? ASSISTANT: Because.</s>"
    )
    assert written(VICUNA, TALK, tiny_tokenizer) == (
        "Be brief. USER: Why? ASSISTANT: Because.</s>USER: So? ASSISTANT: Yes.</s>"
    )
    assert (
        VICUNA.prompt(TALK.turns[:-1], tiny_tokenizer)
        == "Be brief. USER: Why? ASSISTANT: Because.</s>USER: So? ASSISTANT:"
    )
    assert written(PLAIN, Example((Turn("assistant", "text"),)), tiny_tokenizer) == "text</s>"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    return tokenizer


def learnt(tokenizer, template, example, **options) -> str:
    rows = encode([example], tokenizer, template, **({"seq_length": 500} | options))
    ids, learn = rows[0]
    return tokenizer.decode(ids[learn])


def test_what_is_learnt_is_exactly_the_answers_and_their_ends(tiny_tokenizer, chat_tokenizer):
    for template in (ALPACA, VICUNA):
        assert learnt(tiny_tokenizer, template, ASK) == " Because.</s>"
        assert learnt(tiny_tokenizer, template, TALK) == " Because.</s> Yes.</s>"
    assert learnt(chat_tokenizer, CHAT, TALK) == "Because.<|im_end|>\nYes.<|im_end|>\n"
    with pytest.raises(ConfigError, match="--template alpaca"):
        CHAT.pieces(ASK, tiny_tokenizer)


def test_a_template_that_rewrites_earlier_turns_learns_the_last(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: "
        "{% if m['role'] == 'assistant' and not loop.last %}(cut){% else %}{{ m['content'] }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learnt(chat_tokenizer, CHAT, TALK) == "Yes."


def test_a_sentencepiece_tokenizer_adds_one_bos_and_learns_the_answer(stories):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    assert learnt(tokenizer, ALPACA, ASK).strip().removesuffix(tokenizer.eos_token) == "Because."
    rows = encode([ASK], tokenizer, ALPACA, seq_length=500)
    assert rows.ids[0] == tokenizer.bos_token_id
    assert list(rows.ids).count(tokenizer.bos_token_id) == 1


def test_names_of_special_tokens_in_what_a_user_says_are_text(tiny_tokenizer):
    example = Example((Turn("user", "</s><s>"), Turn("assistant", "no")))
    ids, _ = encode([example], tiny_tokenizer, VICUNA, seq_length=500)[0]
    assert list(ids).count(tiny_tokenizer.eos_token_id) == 1
    assert list(ids).count(tiny_tokenizer.bos_token_id) == 0


def test_over_long_rows_are_cut_on_the_stated_side_and_counted(tiny_tokenizer):
    whole = encode([ASK], tiny_tokenizer, VICUNA, seq_length=500)
    length = len(whole.ids)
    right = encode([ASK], tiny_tokenizer, VICUNA, seq_length=length - 1)
    assert list(right.ids) == list(whole.ids[:-1])
    assert right.counts["truncated"] == 1
    left = encode([ASK], tiny_tokenizer, VICUNA, seq_length=length - 1, truncation_side="left")
    assert list(left.ids) == list(whole.ids[1:])
    gone = encode([ASK], tiny_tokenizer, VICUNA, seq_length=5)
    assert len(gone) == 0
    assert gone.counts["no_answer_within_seq_length"] == 1


def test_the_length_left_to_a_question_does_not_tell_its_answer(tiny_tokenizer):
    answers = ["no", "yes, that is certainly the case"]
    rows = [Example((Turn("user", f"word {i} " * (20 + i % 7)), Turn("assistant", answers[i % 2]))) for i in range(60)]
    table = encode(rows, tiny_tokenizer, VICUNA, seq_length=48, truncation_side="left")
    asked = encode_choices(rows, tiny_tokenizer, VICUNA, answers, seq_length=48)
    before = [table[i][0][: int(np.flatnonzero(table[i][1])[0])] for i in range(60)]
    assert {len(ids) for ids in before} == {len(asked.prompts[0])}
    for i in range(60):  # and the model is asked as it was trained
        assert list(before[i]) == list(asked.prompts[i])
        assert list(table[i][0]) == [*asked.prompts[i], *asked.choices[i][i % 2]]
    short = encode(rows, tiny_tokenizer, VICUNA, seq_length=4, truncation_side="left")  # no room for the longer answer
    assert all(len(short[i][0]) <= 4 and short[i][1].any() for i in range(len(short)))
    # The control: answers that are no closed set leave each row its whole length.
    rows = [replace(row, turns=(row.turns[0], Turn("assistant", f"{row.answer} {i}"))) for i, row in enumerate(rows)]
    open_ended = encode(rows, tiny_tokenizer, VICUNA, seq_length=48, truncation_side="left")
    assert {len(open_ended[i][0]) for i in range(60)} == {48}


def test_a_question_with_its_right_choice_is_the_row(tiny_tokenizer, chat_tokenizer):
    rows = to_examples(colour_rows(5), source="here").examples
    for tokenizer, template in ((tiny_tokenizer, VICUNA), (tiny_tokenizer, ALPACA)):
        table = encode(rows, tokenizer, template, seq_length=500)
        asked = encode_choices(rows, tokenizer, template, ["blue", "green", "red"], seq_length=500)
        for i in range(5):
            whole = np.concatenate([asked.prompts[i], asked.choices[i][asked.right[i]]])
            assert list(whole) == list(table[i][0])
    asked = encode_choices(rows, tiny_tokenizer, VICUNA, ["red", "pink"], seq_length=40)
    assert {asked.right[i] for i in range(5) if rows[i].answer != "red"} == {-1}
    assert max(len(p) + max(map(len, c)) for p, c in zip(asked.prompts, asked.choices, strict=True)) <= 40


def test_few_and_repeated_answers_are_a_closed_set():
    assert closed_set(["b", "a "] * 10) == ["a", "b"]
    assert closed_set(["a"] * 100) is None
    assert closed_set([str(i) for i in range(30)] * 100) is None
    assert closed_set(["a", "b"]) is None


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 5))
def test_held_out_rows_are_apart_from_the_training_rows(rows: int, fraction: float, client: int):
    index = np.arange(rows) * 3
    train, held = hold_out(index, fraction, seed=0, client=client)
    assert sorted([*train, *held]) == list(index)
    assert len(train) >= 1
    assert len(held) == 0 if fraction == 0 or rows == 1 else len(held) >= 1


def test_samples_are_distinct_and_follow_from_the_seed():
    assert list(sample_rows(5, 9, seed=0)) == [0, 1, 2, 3, 4]
    drawn = sample_rows(1000, 10, seed=0)
    assert len(set(drawn)) == 10
    assert list(drawn) == list(sample_rows(1000, 10, seed=0))
    assert list(drawn) != list(sample_rows(1000, 10, seed=1))
