"""A run's first lines say in one place what was read, what was left out (why, file, line) and what is not used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.flags import flags
from support.rows import write_rows
from weft.cli import main

STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
THINK = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'].split('</think>')[-1].strip() + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] <think>\n' }}{% endif %}"
)
DATED = (
    "{{ strftime_now('%H:%M:%S %f') }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
TEMPLATES = {"strict": STRICT, "think": THINK, "dated": DATED}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Callable[[str | None], Path]:
    """Make a copy of the tiny model with a chat template."""

    def made(name: str | None) -> Path:
        if name is None:
            return tiny_model
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATES[name]}))
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        return folder

    return made


Q = [f"How many cats has house {n}?" for n in range(12)]
A = [f"House {n} has {n + 1} cats." for n in range(12)]
TALKS: list[Any] = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in zip(Q, A, strict=True)
]
PLAIN: list[Any] = [{"instruction": q, "output": a} for q, a in zip(Q, A, strict=True)]
PAIRS: list[Any] = [{"prompt": q, "chosen": a, "rejected": "No idea."} for q, a in zip(Q, A, strict=True)]
TWO = [{"role": "user", "content": "Hello"}, *TALKS[0]]


def put(rows: list[Any], **at: Any) -> list[Any]:
    """Return the rows with others in some places."""
    return [at.get(f"row{n}", row) for n, row in enumerate(rows, start=1)]


def parts(message: dict[str, str]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


CASES: dict[str, tuple[str, str | None, list[Any], int, list[str]]] = {
    # the shared case it is like: verb, template, rows, rows that are used, what is said
    "appledouble": ("sft", None, PLAIN, 12, []),
    "context": (
        "sft",
        None,
        [
            {"instruction": "How many?", "context": q, "response": a, "category": "qa"}
            for q, a in zip(Q, A, strict=True)
        ],
        12,
        ["contexts from 'context'", "the column 'category' is not read"],
    ),
    "mixed_columns": (
        "sft",
        None,
        put([{"question": q, "answer": a} for q, a in zip(Q, A, strict=True)], row1=PLAIN[0]),
        12,
        ["questions from 'instruction' and 'question'"],
    ),
    "messages_as_text": ("sft", None, [{"messages": json.dumps(talk)} for talk in TALKS], 12, []),
    "nan": (
        "sft",
        None,
        put(PLAIN, row4=PLAIN[3] | {"output": float("nan")}, row8=PLAIN[7] | {"output": float("nan")}),
        10,
        ["2 rows were left out (empty answer), the first in line 4 of"],
    ),
    "number_input": (
        "sft",
        None,
        [{"instruction": "Add one to the number.", "input": n, "output": n + 1} for n in range(12)],
        12,
        ["contexts from 'input'"],
    ),
    "parts": ("sft", None, [{"messages": [parts(one) for one in talk]} for talk in TALKS], 12, []),
    "roles": (
        "sft",
        None,
        [
            {"conversations": [{"from": "Human", "value": q}, {"from": "Assistant", "value": a}]}
            for q, a in zip(Q, A, strict=True)
        ],
        12,
        [],
    ),
    "surrogate": (
        "sft",
        None,
        put(PLAIN, row6=PLAIN[5] | {"output": "Six \ud83d"}),
        11,
        ["1 row was left out (half a character", "line 6 of"],
    ),
    "one_bad_row": (
        "sft",
        "strict",
        put([{"messages": talk} for talk in TALKS], row7={"messages": TWO}),
        11,
        ["1 row was left out (the chat template refuses the conversation: roles must alternate), in line 7 of"],
    ),
    "system_row": (
        "sft",
        "strict",
        [{"messages": [{"role": "system", "content": "Be brief."}, *talk]} for talk in TALKS],
        12,
        ["the chat template has no place for system turns: their text is put before the first turn of the user"],
    ),
    "date": ("sft", "dated", [{"messages": talk} for talk in TALKS], 12, ["throughout the run"]),
    "thinking": (
        "sft",
        "think",
        [
            {"messages": [talk[0], talk[1] | {"content": "<think>\ncounting\n</think>\n" + talk[1]["content"]}]}
            for talk in TALKS
        ],
        12,
        [],
    ),
    "dpo_one_bad_row": (
        "dpo",
        "strict",
        put(PAIRS, row6={"prompt": TWO[:-1], "chosen": TALKS[0][1:], "rejected": TALKS[1][1:]}),
        11,
        ["1 row was left out (the chat template refuses the conversation: roles must alternate), in line 6 of"],
    ),
    "dpo_system": (
        "dpo",
        None,
        [pair | {"system": "Be brief."} for pair in PAIRS],
        12,
        ["system prompts from 'system'"],
    ),
}


def first_lines(
    verb: str, model: Path, data: Path, template: str, capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    keys = {"model_name_or_path": model, "dataset_name": data, "num_clients": 1, "sample_clients": 1, "seq_length": 256}
    keys |= {"template": template, "num_rounds": 1, "max_steps": 1, "output_dir": "/nowhere"}
    capsys.readouterr()
    code = main([verb, *flags(keys), "--use_peft", "--dry_run", *more])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return f"{code}\n" + "\n".join(line for line in out.splitlines() if line.startswith("rows")) + "\n" + err


def check(said: str, used: int, words: list[str]) -> None:
    assert said.startswith("0\n"), said
    assert "read 12 rows of '" in said
    assert f"; {used} are used." in said
    for word in words:
        assert word in said
    assert ("left out" in said) == (used < 12)


@pytest.mark.parametrize("name", CASES)
def test_a_case_that_a_stranger_met_is_read_or_told(name: str, model, tmp_path: Path, capsys):
    verb, template, rows, used, words = CASES[name]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    if name == "appledouble":
        folder = tmp_path / "folder"
        folder.mkdir()
        shutil.move(data, folder)
        (folder / "._rows.jsonl").write_bytes(b"\x00\x05\x16\x07\x00\xff")
        data = folder
    check(first_lines(verb, model(template), data, "chat" if template else "alpaca", capsys), used, words)


@pytest.mark.parametrize("name", CASES)
def test_the_shared_cases_are_read_or_told(name: str, model, shared_data: Path, capsys):
    folder = shared_data.parent / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no case in {folder}")
    verb, template, _, used, words = CASES[name]
    data = folder if name == "appledouble" else folder / "rows.jsonl"
    said = first_lines(verb, model(template), data, "chat" if template else "alpaca", capsys)
    check(said, used, words)


def test_where_all_rows_fall_out_the_counts_are_the_message(model, tmp_path: Path, capsys):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    data = write_rows(tmp_path / "tools.jsonl", [{"messages": [talk[0], call, *talk[1:]]} for talk in TALKS])
    said = first_lines("sft", model(None), data, "alpaca", capsys)
    assert said.startswith("2\n")
    assert f"12 x turn with tool calls, the first in line 1 of '{data}'" in said
    data = write_rows(tmp_path / "two.jsonl", [{"messages": TWO}] * 12)
    said = first_lines("sft", model("strict"), data, "chat", capsys)
    assert "12 x the chat template refuses the conversation: roles must alternate, the first in line 1" in said
    assert "--template alpaca" in said
    check(first_lines("sft", model("strict"), data, "alpaca", capsys), 12, [])  # the remedy works


def test_half_a_character_in_plain_text_is_replaced_and_told(model, tmp_path: Path, capsys):
    rows = [{"text": f"{q} {a}"} for q, a in zip(Q, A, strict=True)]
    data = write_rows(tmp_path / "text.jsonl", put(rows, row6={"text": "Six \ud83d"}, row9={"text": 5, "more": 1}))
    said = first_lines("pretrain", model(None), data, "auto", capsys)
    assert "read 12 rows" in said
    assert "; 11 are used." in said
    assert f"halves of characters; they were replaced, in line 6 of '{data}'" in said
    assert f"1 row was left out (text that is no text), in line 9 of '{data}'" in said
    assert "the column 'more' is not read" in said


VERBS = {
    "sft": (put(PLAIN, row3={"instruction": "q"}), ["--few_shot", "1"]),
    "dpo": (put(PAIRS, row3=PAIRS[2] | {"chosen": ""}), []),
    "dpo kto": (put(PAIRS, row3=PAIRS[2] | {"chosen": ""}), ["--loss", "kto"]),
    "grpo": (put(PLAIN, row3={"instruction": "q", "output": ""}), ["--max_new_tokens", "8"]),
    "prompt": (put(PLAIN, row3={"instruction": "q", "output": ""}), []),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_and_so_do_rows_to_measure_on(verb: str, model, tmp_path: Path, capsys):
    rows, more = VERBS[verb]
    data = write_rows(tmp_path / "rows.jsonl", [row | {"topic": "x"} for row in rows])
    others = [{key: f"Now: {value}" if value else value for key, value in row.items()} for row in rows]
    apart = write_rows(tmp_path / "apart.jsonl", others)
    keys = {"model_name_or_path": model(None), "dataset_name": data, "eval_dataset_name": apart, "num_clients": 1}
    keys |= {"sample_clients": 1, "seq_length": 128, "template": "alpaca", "output_dir": tmp_path / "run"}
    use = [] if verb == "prompt" else ["--use_peft"]
    assert main([verb.split()[0], *flags(keys), *use, *more, "--dry_run"]) == 0
    out, err = capsys.readouterr()
    assert "read 24 rows" in out
    assert "22 are used" in out
    assert "2 rows were left out (" in err
    assert f"the first in line 3 of '{data}'" in err
    assert "the column 'topic' is not read" in err


def test_a_run_says_it_first_and_once(keys, tmp_path: Path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", put(PLAIN, row3={"instruction": "q", "output": ""}))
    assert main(["sft", *flags(keys | {"dataset_name": data, "num_clients": 1, "sample_clients": 1})]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].removeprefix("weft: ").startswith("read 12 rows of")
    assert lines[
        1
    ] == f"weft: 1 row was left out (no column that is known to hold answers), in line 3 of '{data}'." or (
        lines[1] == f"weft: 1 row was left out (empty answer), in line 3 of '{data}'."
    )
    assert sum("left out" in line for line in lines) == 1
