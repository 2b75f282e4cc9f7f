"""Programs from rows and answers: HumanEval, MBPP, HumanEvalPack; code in answers; pass@k.

A program is the code of an answer and then the tests of its row. It is run by `weft.tasks.sandbox`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Literal

from weft.json_types import JsonObject
from weft.tasks.encoding import until_first

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where the continuation of a function by a base model ends (Chen et al. 2021)."""
MBPP_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "[DONE]")
"""The same for MBPP, whose answers are whole programs, with functions beside the one that is tested."""
PACK_IMPORTS = (
    "".join(
        f"import {name}\n"
        for name in "math re sys copy datetime itertools collections heapq statistics functools hashlib string".split()
    )
    + "from typing import *\nfrom collections import *\n"
)
"""Imports before every program of HumanEvalPack, as in its own scorer, without packages (numpy)."""
FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
"""A fenced block; the last may lack its end, where the answer was cut."""
PackKind = Literal["fix", "synthesise", "explain"]


def blocks(answer: str) -> list[str]:
    """Return the code of all fenced blocks of an answer, without empty ones."""
    return [textwrap.dedent(block) for block in FENCE.findall(answer) if block.strip()]


def cut(text: str, stops: Sequence[str] = STOPS) -> str:
    """Return a text up to the first of some stop sequences."""
    return until_first(text, stops)


def defines(code: str, name: str) -> bool:
    """Say whether a program defines a function (or class) of a name at its top level."""
    return re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def code_of(answer: str, name: str = "") -> str:
    """Return the code of a chat model's answer: of its fenced blocks the first one that defines `name`, else the first
    one; where there is none, the whole answer.
    """
    found = blocks(answer)
    return next((block for block in found if name and defines(block, name)), found[0] if found else answer)


def function_of(answer: str, prompt: str, name: str) -> str:
    """Return the whole code of an answer to a prompt that is the beginning of a function.

    Args:
        answer: of a chat model (prose with fenced blocks, or code), or of a base model (the continuation).
        prompt: imports, helpers, and the head of the function, as HumanEval's.
        name: of the function.
    """
    before = answer.partition("```")[0]
    if _indented(before):  # it goes on with the function; a fence after it is prose, or the end of the prompt's
        return prompt + cut(before)
    code = code_of(answer, name)
    if defines(code, name):
        # With what stands before the function in the prompt: answers leave out its imports and helpers.
        return prompt[: _start(prompt, name)] + "\n" + code
    if code == answer:
        return prompt + cut(code)
    return prompt + (code if _indented(code) else textwrap.indent(code, "    "))


def human_eval(row: JsonObject, code: str) -> str:
    """Return the program of HumanEval for the whole code of an answer (`function_of`)."""
    return f"{code}\n{row['test']}\ncheck({row['entry_point']})\n"


def mbpp(row: JsonObject, code: str) -> str:
    """Return the program of MBPP; the row's set-up comes after the code, whose classes it uses (task 367)."""
    return "\n".join([code, row.get("test_setup_code") or "", *row["test_list"], ""])


def human_eval_pack(row: JsonObject, code: str) -> str:
    """Return the program of HumanEvalPack (Python), whose tests call `check` themselves."""
    return f"{PACK_IMPORTS}\n{code}\n{row['test']}\n"


def pack_question(row: JsonObject, kind: PackKind) -> str:
    """Return what a chat model is asked for a row of HumanEvalPack.

    For "explain" this is the first question; its answer goes into `pack_from_words`, whose code is tested.
    """
    if kind == "synthesise":
        return str(row["instruction"])
    if kind == "fix":
        code = f"{row['declaration']}{row['buggy_solution']}\n{row['test']}"
        return f"{code}\n\nFix bugs in {row['entry_point']}."
    return (
        f"{row['declaration']}{row['canonical_solution']}\n\nProvide a concise natural language description of the "
        f"function using at most {len(row['docstring'])} characters."
    )


def pack_from_words(row: JsonObject, description: str) -> str:
    """Return the second question of "explain": to write the function by its description alone.

    The description is cut to the length that was asked for, and lines of the solution in it are taken out: it would
    pass by being copied.
    """
    lines = {line.strip() for line in row["canonical_solution"].split("\n")} - {""}
    words = "\n".join(line for line in description.split("\n") if line.strip() not in lines)
    words = words[: len(row["docstring"])]
    return f"{words}\n\nWrite functional code in Python according to the description.\n\n{row['declaration']}"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples of which c passed: 1 - C(n-c, k) / C(n, k) (Chen et al.
    2021, equation 1).

    Raises:
        ValueError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, of which {passed} passed")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def _start(prompt: str, name: str) -> int:
    """Return where the function of a prompt begins; the end of the prompt if it does not."""
    found = re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", prompt, re.MULTILINE)
    return found.start() if found else len(prompt)


def _indented(text: str) -> bool:
    """Say whether the first line of a text that is not blank is indented."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1].isspace()
