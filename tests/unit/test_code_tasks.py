"""Programs of HumanEval, MBPP and HumanEvalPack from rows and answers, and pass@k."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from support.paths import DATA
from weft.errors import ConfigError
from weft.tasks import code
from weft.tasks.isolation import detect
from weft.tasks.sandbox import Isolation, run

ROWS = DATA / "eval"


def rows(name: str) -> list[dict[str, Any]]:
    path = ROWS / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line.strip()]


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    """Reference solutions are no strangers: they run without a sandbox where there is none."""
    return detect(None, True)


def passed(programs: list[str], isolation: Isolation) -> int:
    return sum(outcome.passed for outcome in run(programs, isolation, workers=2))


def test_some_reference_solutions_pass(isolation: Isolation):
    human, pack = rows("humaneval"), rows("humanevalpack_python")
    mbpp = [row for row in rows("mbpp") if row["split"] == "test"]
    picked = [human[place] for place in (0, 32, 38, 50)]
    programs = [code.human_eval(row, row["prompt"] + row["canonical_solution"]) for row in picked]
    programs += [code.mbpp(row, row["code"]) for row in mbpp if row["task_id"] in (11, 367)]
    programs += [code.human_eval_pack(row, row["declaration"] + row["canonical_solution"]) for row in pack[:2]]
    assert passed(programs, isolation) == 8
    broken = [code.human_eval_pack(row, row["declaration"] + row["buggy_solution"]) for row in pack[:3]]
    broken += [code.human_eval(row, row["prompt"] + "    pass\n") for row in picked]
    assert passed(broken, isolation) == 0


@pytest.mark.slow
def test_all_reference_solutions_pass_and_no_buggy_one_does(isolation: Isolation):
    human, pack = rows("humaneval"), rows("humanevalpack_python")
    mbpp = [row for row in rows("mbpp") if row["split"] == "test"]
    assert passed([code.human_eval(row, row["prompt"] + row["canonical_solution"]) for row in human], isolation) == 164
    assert passed([code.mbpp(row, row["code"]) for row in mbpp], isolation) == 500
    for solution, count in (("canonical_solution", 164), ("buggy_solution", 0)):
        programs = [code.human_eval_pack(row, row["declaration"] + row[solution]) for row in pack]
        assert passed(programs, isolation) == count


@pytest.mark.slow
def test_all_reference_solutions_pass_in_every_form_of_an_answer(isolation: Isolation):
    """As a chat model's whole function, as its body alone, and as a base model's continuation that goes on too far."""
    human = rows("humaneval")
    for form in FORMS:
        programs = []
        for row in human:
            answer = form(row["prompt"], row["canonical_solution"])
            programs.append(code.human_eval(row, code.function_of(answer, row["prompt"], row["entry_point"])))
        assert passed(programs, isolation) == 164, form


def whole(prompt: str, body: str) -> str:
    return (
        f"Sure! Use it like this:\n```python\nprint(1)\n```\nHere it is:\n\n```python\n{prompt}{body}```\nIt is fast."
    )


def block(prompt: str, body: str) -> str:
    return f"The body is:\n```\n{body}```"


def continuation(prompt: str, body: str) -> str:
    return f"{body}\n\nprint('and so on')\n\ndef more():\n    return"


def fenced_end(prompt: str, body: str) -> str:
    return f"{body}```\nThis works because it is right."


def bare(prompt: str, body: str) -> str:
    return prompt + body


FORMS = (whole, block, continuation, fenced_end, bare)
PROMPT = 'import math\n\ndef helper(x):\n    return x\n\n\ndef area(r: float) -> float:\n    """Of a circle."""\n'
BODY = "    return math.pi * helper(r) ** 2\n"


@pytest.mark.parametrize("form", FORMS)
def test_code_is_read_from_every_form_of_an_answer(form, isolation: Isolation):
    row = {"test": "def check(f):\n    assert round(f(2.0), 3) == 12.566\n", "entry_point": "area"}
    made = code.function_of(form(PROMPT, BODY), PROMPT, "area")
    assert passed([code.human_eval(row, made)], isolation) == 1


def test_imports_and_helpers_of_the_prompt_stay():
    answer = "```python\ndef area(r):\n    return math.pi * helper(r) ** 2\n```"
    made = code.function_of(answer, PROMPT, "area")
    assert made.startswith("import math\n\ndef helper(x)")
    assert made.count("def area") == 1


def test_an_answer_that_was_cut_is_read_to_its_end():
    assert code.code_of("Here:\n```python\ndef f():\n    return 1\n", "f") == "def f():\n    return 1\n"
    assert code.code_of("no code") == "no code"
    assert code.blocks("```\n```") == []
    assert code.cut("    return 1\nclass A:\n") == "    return 1"
    assert code.cut("def f():\n    return g()\ndef g():\n    return 1\nassert f()", code.MBPP_STOPS).endswith(
        "return 1"
    )


def test_a_description_does_not_carry_its_solution():
    row = {"canonical_solution": "    return a + b\n", "docstring": "x" * 40, "declaration": "def add(a, b):\n"}
    question = code.pack_from_words(row, "It adds.\n  return a + b\n" + "y" * 99)
    assert "return a + b" not in question
    assert question.startswith("It adds.\n" + "y" * 31 + "\n")
    assert question.endswith("def add(a, b):\n")


def test_the_questions_of_humanevalpack_show_what_they_may():
    row = rows("humanevalpack_python")[0]
    assert row["buggy_solution"] in code.pack_question(row, "fix")
    assert row["canonical_solution"] not in code.pack_question(row, "fix") + code.pack_question(row, "synthesise")
    assert row["docstring"] not in code.pack_question(row, "explain")


@pytest.mark.parametrize(
    ("samples", "right", "k", "value"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (10, 3, 1, 0.3),
        (5, 2, 2, 0.7),
        (4, 1, 4, 1.0),
        (200, 1, 100, 0.5),
        (3, 2, 2, 1.0),
    ],
)
def test_pass_at_k_by_hand(samples: int, right: int, k: int, value: float):
    assert code.pass_at_k(samples, right, k) == pytest.approx(value, abs=1e-12)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for right in range(7):
        draws = list(combinations([place < right for place in range(6)], 3))
        assert code.pass_at_k(6, right, 3) == pytest.approx(Counter(map(any, draws))[True] / len(draws))
    for arguments in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            code.pass_at_k(*arguments)


def test_programs_need_a_sandbox():
    """What detect refuses is in test_sandbox; here only that it is a mistake of the user."""
    with pytest.raises(ConfigError):
        detect("false", True)
