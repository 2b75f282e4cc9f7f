"""When a client leaves a run: its questions are read, and each shared model is tested on them before it is used."""

from __future__ import annotations

from collections.abc import Callable

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.types import Tensors
from weft.errors import ConfigError, LeftRun
from weft.evaluation.inspection import Inspection, question_of
from weft.json_types import JsonObject
from weft.keys import leaving
from weft.launch.own_rows import read_own_rows
from weft.models.layout import Question
from weft.models.notes import Note
from weft.models.resident import Resident

REASON = "left the run: the shared model failed a test of its own"
"""What the server hears; it holds nothing of the questions."""


def inspection_of(config: RunConfig, tokenizer: Tokenizer) -> Inspection | None:
    """Return the questions and limits of `leave_when`; None: the run has none.

    Raises:
        ConfigError: a file cannot be read, or has no question with an answer.
    """
    rules = leaving.read(config.leave_when)
    if rules is None:
        return None
    return Inspection(
        _questions(config, tokenizer, rules.forbidden, "forbidden"),
        rules.rate,
        _questions(config, tokenizer, rules.canaries, "canaries"),
        rules.most_rise,
        rules.most_fall,
    )


def measured(config: RunConfig, model: Resident, values: Tensors) -> JsonObject:
    """Return what the test of `leave_when` finds in a model, which the resident model is afterwards; empty: no test.

    Args:
        config: the run.
        model: the resident model.
        values: all trained parameters of the model to test.
    """
    inspection = inspection_of(config, model.tokenizer)
    if inspection is None:
        return {}
    model.load(values)
    found = inspection.look(model)
    return {"rate": found.rate, "canary_loss": found.loss}


def _questions(config: RunConfig, tokenizer: Tokenizer, file: str | None, entry: str) -> list[Question]:
    if file is None:
        return []
    rows = read_own_rows(config, tokenizer, file, f"leave_when ({entry})")
    ends = set(tokenizer.all_special_ids)
    asked = [
        question for row in map(rows.__getitem__, range(len(rows))) if (question := question_of(row, ends)) is not None
    ]
    if not asked:
        raise ConfigError(
            f"leave_when ({entry}): '{file}' has no question with an answer within seq_length: write other rows, or a "
            "larger --seq_length."
        )
    return asked


def inspector(inspection: Inspection, note: Note) -> Callable[[Resident, int], None]:
    """Return the test of a client on the model of a round.

    Args:
        inspection: what it tests; it has seen the model as it was loaded.
        note: receives what was found where the model fails; it is for the client's own log.
    """

    def test(model: Resident, round: int) -> None:
        why = inspection.objection(inspection.look(model))
        if why is not None:
            note(f"round {round + 1}: the shared model fails the test of leave_when: {why}.")
            raise LeftRun(REASON)

    return test
