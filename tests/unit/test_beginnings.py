"""Choices of questions that begin alike: as each question alone, whatever they share, in fewer tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft.launch.subject import of_model
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives import beginnings
from weft.objectives.beginnings import groups, is_exact, lay_out, scores
from weft.objectives.choices import choice_logps_and_greed
from weft.tasks.local_model import LocalModel

CLOSE = 1e-5
"""Of log-probabilities, as a share of the largest one, in float32."""


def resident(folder: Path) -> Resident:
    model = of_model(str(folder), {"device": "cpu", "dtype": "float32"}, chat=False, batch_size=4).model
    assert isinstance(model, LocalModel)
    return model.model


def drawn(seed: int, count: int, shared: int, lengths: tuple[int, ...] = (1, 3, 2)) -> list[Question]:
    """Return questions whose prompts begin with `shared` tokens that are alike."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(3, 250, shared)
    prompts = [np.concatenate([begin, rng.integers(3, 250, rng.integers(1, 20))]) for _ in range(count)]
    return [
        Question(prompt.astype(np.int32), [rng.integers(3, 250, length).astype(np.int32) for length in lengths])
        for prompt in prompts
    ]


@pytest.mark.parametrize("model", ["tiny_model", "stories"])
def test_scores_are_those_of_each_question_alone(model: str, request: pytest.FixtureRequest):
    where = resident(request.getfixturevalue(model))
    assert is_exact(where)
    questions = [*drawn(0, 9, 12), *drawn(1, 3, 30, (4, 1)), *drawn(2, 2, 0), *drawn(3, 1, 5, (1, 1, 1, 1))]
    questions.append(Question(questions[0].prompt, questions[1].choices))  # the same prompt once more
    with where.evaluating():
        found = scores(where, questions, 4, 1 << 10)
        for question, own in zip(questions, found, strict=True):
            logps, greedy = choice_logps_and_greed(where, [question])
            assert [logp for logp, _ in own] == pytest.approx(logps.tolist(), rel=CLOSE, abs=CLOSE)
            assert [likeliest for _, likeliest in own] == greedy.tolist()


def test_questions_are_grouped_by_how_they_begin():
    one, other, alone = drawn(0, 5, 20), drawn(1, 4, 40), drawn(2, 1, 3)
    prompts = [question.prompt for pair in zip(one, other, strict=False) for question in pair]
    prompts += [one[4].prompt, alone[0].prompt]
    found = {group.shared: sorted(group.members) for group in groups(prompts)}
    assert found == {20: [0, 2, 4, 6, 8], 40: [1, 3, 5, 7], 0: [9]}
    # The last token of a prompt predicts the choices, so it is never part of a beginning.
    ((members, shared),) = groups([prompts[0], prompts[0]])
    assert (sorted(members), shared) == ([0, 1], len(prompts[0]) - 1)
    assert groups([prompts[0]]) == [([0], 0)]


def test_a_beginning_and_last_tokens_take_no_place():
    questions = drawn(0, 16, 25, (1, 1, 1))
    own = sum(len(question.prompt) - 25 for question in questions)
    lines = lay_out(questions, 25)
    assert own <= lines.input_ids.numel() <= 1.25 * own
    assert len(lines.places) == 16  # three choices of one token are predicted at one place
    assert len(lines.tokens) == 48


def test_a_model_that_a_cache_changes_is_asked_question_by_question(stories: Path, monkeypatch: pytest.MonkeyPatch):
    """The control of the test of the model: positions that do not go on behind the beginning."""
    where, laid = resident(stories), lay_out

    def shifted(questions: list[Question], shared: int) -> beginnings.Lines:
        lines = laid(questions, shared)
        return lines._replace(positions=lines.positions - shared)

    monkeypatch.setattr(beginnings, "lay_out", shifted)
    with where.evaluating():
        assert not is_exact(where)
