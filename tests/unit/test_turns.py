"""Rows as people have them: what is read, what is left out and why, and which columns are not read."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from weft.data.formats import to_examples
from weft.data.preferences import to_preferences
from weft.data.rows import Account, File, PlacedRows
from weft.errors import DataError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PLAIN = [("user", "q"), ("assistant", "a")]
BRIEF = [("system", "s"), *PLAIN]


def turns(row: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    made = to_examples([row], source="here", **options)
    assert not made.omissions
    return [(turn.role, turn.text) for turn in made.examples[0].turns]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


READ = {
    "openorca": ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, BRIEF),
    "an empty system prompt": ({"system_prompt": "", "question": "q", "response": "a"}, PLAIN),
    "metamath": ({"query": "q", "response": "a", "original_question": "x"}, PLAIN),
    "capital names": ({"Question": "q", "Answer": "a"}, PLAIN),
    "input and output": ({"input": "q", "output": "a"}, PLAIN),
    "input and target": ({"input": "q", "target": "a"}, PLAIN),
    "problem and solution": ({"problem": "q", "solution": "a", "level": 1}, PLAIN),
    "dolly": ({"instruction": "q", "context": "c", "response": "a"}, [("user", "q\n\nc"), ("assistant", "a")]),
    "dolly without a context": ({"instruction": "q", "context": "", "response": "a"}, PLAIN),
    "a numeric input": ({"instruction": "q", "input": 0, "output": 1}, [("user", "q 0"), ("assistant", "1")]),
    "a missing input": ({"instruction": "q", "input": float("nan"), "output": "a"}, PLAIN),
    "a date": ({"question": "q", "answer": datetime.date(2024, 1, 2)}, [("user", "q"), ("assistant", "2024-01-02")]),
    "an answer behind a space": ({"prompt": "q", "completion": " a"}, PLAIN),
    "an indented answer": ({"prompt": "q", "completion": "    a"}, [("user", "q"), ("assistant", "    a")]),
    "null beside text": ({"instruction": None, "question": "q", "output": None, "answer": "a"}, PLAIN),
    "history": (
        {"instruction": "q", "output": "a", "history": [["x", "y"]], "system": "s"},
        [("system", "s"), ("user", "x"), ("assistant", "y"), *PLAIN],
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PLAIN),
    "capital roles": ({"conversations": [{"from": "Human", "value": "q"}, {"from": "Assistant", "value": "a"}]}, PLAIN),
    "other roles": (
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "prompter", "content": "q"},
                A | {"role": "bot"},
            ]
        },
        BRIEF,
    ),
    "role null beside from": (
        {"messages": [{"role": None, "from": "user", "content": None, "value": "q"}, A | {"from": None}]},
        PLAIN,
    ),
    "parts": (
        {"messages": [{"role": "user", "content": parts("q")}, {"role": "assistant", "content": parts("a")}]},
        PLAIN,
    ),
    "JSON in a text": ({"messages": json.dumps([Q, A])}, PLAIN),
    "Python in a text": ({"messages": str([Q, A])}, PLAIN),
    "a table of messages": ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, PLAIN),
    "ultrachat": ({"id": "1", "data": ["q", "a"]}, PLAIN),
    "a prompt of messages": ({"prompt": [Q], "completion": [A]}, PLAIN),
    "a prompt of messages as text": ({"prompt": json.dumps([Q]), "completion": json.dumps([A])}, PLAIN),
    "an empty system turn": ({"messages": [{"role": "system", "content": ""}, Q, A]}, PLAIN),
    "two system turns": (
        {"messages": [{"role": "system", "content": "s"}, {"role": "system", "content": "t"}, Q, A]},
        [("system", "s"), ("system", "t"), *PLAIN],
    ),
    "a system prompt beside messages": ({"system": "s", "messages": [Q, A]}, BRIEF),
    "a system prompt that messages have": (
        {"system": "x", "messages": [{"role": "system", "content": "s"}, Q, A]},
        BRIEF,
    ),
    "answers one behind the other": ({"messages": [Q, A, A]}, [*PLAIN, ("assistant", "a")]),
    "guanaco": ({"text": "### Human: q### Assistant: a"}, PLAIN),
    "hh as text": ({"text": "\n\nHuman: q\n\nAssistant: a"}, PLAIN),
    "text that looks like JSON": ({"question": "[1, 2]?", "answer": "{}"}, [("user", "[1, 2]?"), ("assistant", "{}")]),
}


@pytest.mark.parametrize("name", READ)
def test_rows_of_every_kind_are_read(name: str):
    row, expected = READ[name]
    assert turns(row) == expected


LEFT = {
    "turn with tool calls": {"messages": [Q, A | {"content": None, "tool_calls": [{"id": "1"}]}]},
    "turn of a tool": {"messages": [Q, {"role": "tool", "content": "1"}, A]},
    "turn with a part that is no text (image_url)": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, A]
    },
    "unknown role 'robot' in a conversation": {"messages": [{"role": "robot", "content": "q"}, A]},
    "message without a role": {"messages": [{"content": "q"}, A]},
    "malformed message": {"messages": [1, A]},
    "conversation that is no list of messages": {"messages": "hello"},
    "conversation without an answer": {"messages": [Q]},
    "conversation that begins with an answer": {"messages": [A, Q, A]},
    "empty turn of the assistant": {"messages": [Q, A | {"content": None}]},
    "no messages": {"messages": []},
    "empty answer": {"question": "q", "answer": float("nan")},
    "empty question": {"question": " \n", "answer": "a"},
    "half a character, such as of an emoji that was cut": {"question": "q", "answer": "six \ud83d"},
    "answer of bytes, not text": {"question": "q", "answer": b"a"},
    "answer that is no text": {"question": "q", "answer": ["a"]},
    "question that is no text": {"question": {"text": "q"}, "answer": "a"},
    "history that is no list of pairs": {"question": "q", "answer": "a", "history": "x"},
    "no column that is known to hold answers": {"question": "q", "b": 1},
}


@pytest.mark.parametrize("reason", LEFT)
def test_a_row_that_cannot_be_used_is_left_out_with_its_reason_and_place(reason: str):
    rows = PlacedRows(
        [{"question": "q", "answer": "a"}, LEFT[reason], LEFT[reason]], File("x.jsonl", "line"), [1, 4, 9]
    )
    made = to_examples(rows, source="x.jsonl")
    assert made.rows == [0]
    assert made.omissions == {reason: (2, "line 4 of 'x.jsonl'")}


def test_columns_that_are_not_read_are_named_and_those_that_are_too():
    account = Account()
    talk = {"messages": [Q | {"weight": 0, "name": None}, A], "source": "x"}
    to_examples([talk, {"question": "q", "answer": "a", "topic": 1}], source="here", account=account)
    assert list(account.unread_columns) == ["source", "topic", "messages.weight"]
    assert account.roles == {
        "conversations": {"messages": None},
        "questions": {"question": None},
        "answers": {"answer": None},
    }
    assert list(account.lines()) == ["the columns 'source', 'topic' and 'messages.weight' are not read."]


def test_of_very_many_reasons_the_most_frequent_are_told_and_the_rest_counted():
    rows = [{"messages": [Q | {"role": f"person {n}"}, A]} for n in (0, 0, *range(1, 30))]
    left = to_examples(rows, source="x", answer_optional=False).omissions
    lines = left.lines()
    assert len(left) == 30
    assert len(lines) == 12
    assert lines[0] == "2 rows were left out (unknown role 'person 0' in a conversation), the first in row 1 of 'x'."
    assert lines[-1] == "19 rows were left out (19 other reasons), the first in row 13 of 'x'."


def test_turns_behind_the_last_answer_are_told():
    account = Account()
    to_examples([{"messages": [Q, A, Q]}], source="here", account=account)
    assert list(account.notes) == ["turns after the last answer are left out, in 1 of the conversations."]


def test_whole_numbers_that_pandas_made_of_a_column_with_gaps_are_whole():
    rows = [{"question": "q", "answer": value} for value in (1.0, float("nan"), 3.0)]
    assert [one.answer for one in to_examples(rows, source="x").examples] == ["1", "3"]
    rows[1]["answer"] = 2.5
    assert [one.answer for one in to_examples(rows, source="x").examples] == ["1.0", "2.5", "3.0"]


def test_columns_are_joined_and_an_instruction_stands_before_them():
    row = {"title": "t", "body": "b", "summary": "s", "a,b": "c"}
    options = {"instruction_column": "title,body", "response_column": "summary"}
    assert turns(row, **options) == [("user", "t\n\nb"), ("assistant", "s")]
    assert turns(row, prefix="Summarise:", **options)[0] == ("user", "Summarise:\n\nt\n\nb")
    assert turns(row | {"body": None}, **options)[0] == ("user", "t")
    assert turns(row, **options | {"instruction_column": "a,b"})[0] == ("user", "c")
    assert turns({"messages": [Q, A]}, prefix="Now:") == [("user", "Now:\n\nq"), ("assistant", "a")]
    with pytest.raises(DataError, match=r"no column 'bodi'.*Did you mean 'body'"):
        to_examples([row], source="x", instruction_column="title,bodi", response_column="summary")


def test_rows_without_an_answer_are_questions_where_none_is_needed():
    rows = [{"prompt": [Q]}, {"messages": [Q]}, {"question": "q", "answer": None}, {"question": "q", "answer": "a"}]
    made = to_examples(rows, source="x", answer_optional=True)
    assert [[(t.role, t.text) for t in one.turns] for one in made.examples] == [
        [("user", "q"), ("assistant", "")]
    ] * 3 + [PLAIN]


@pytest.mark.parametrize(
    ("better", "refused"), [("closest_answer", False), ("loser", True), ("myLosing", True), ("badge", False)]
)
def test_a_column_is_swapped_by_whole_words_of_its_name(better: str, refused: bool):
    rows = [{"prompt": "q", better: "a", "other": "b"}]
    read = lambda: to_preferences(rows, source="x", unpaired=False, chosen_column=better, rejected_column="other")  # noqa: E731
    if refused:
        with pytest.raises(DataError, match="look swapped"):
            read()
    else:
        assert read().examples[0].answer == "a"


def test_pairs_in_every_layout_are_read():
    account = Account()
    rows = [
        {"system": "s", "question": "q", "chosen": " a", "rejected": " b"},
        {
            "system": None,
            "prompt": json.dumps([Q]),
            "chosen": json.dumps([A]),
            "rejected": json.dumps([A | {"content": "b"}]),
        },
        {"Prompt": "q", "Chosen": [A | {"content": parts("a")}], "Rejected": "b", "score": 1},
        {"prompt": "q", "chosen": "six \ud83d", "rejected": "b"},
    ]
    made = to_preferences(rows, source="x", unpaired=False, account=account)
    assert [(one.answer, one.other) for one in made.examples] == [("a", "b")] * 3
    assert [turn.role for turn in made.examples[0].turns] == ["system", "user"]
    assert made.omissions == {"half a character, such as of an emoji that was cut": (1, "row 4 of 'x'")}
    assert list(account.unread_columns) == ["score"]


def test_labels_in_every_notation_are_read_and_others_are_dropped():
    values = [True, 1, 1.0, "Yes", "true", False, 0, 0.0, "NO", "0", None, float("nan"), 2, ""]
    rows = [{"question": "q", "response": "a", "label": value} for value in values]
    made = to_preferences(rows, source="x", unpaired=True)
    assert [one.good for one in made.examples] == [True] * 5 + [False] * 5
    assert made.omission_counts == {"label that is neither true nor false": 4}


def test_kto_takes_pairs_and_labels_side_by_side():
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "completion": "c", "label": False}]
    account = Account()
    made = to_preferences(rows, source="x", unpaired=True, account=account)
    assert [(one.answer, one.other, one.good) for one in made.examples] == [("a", "b", True), ("c", "", False)]
    assert list(account.notes) == ["1 pairs become a good and a bad answer each, as kto needs them."]
