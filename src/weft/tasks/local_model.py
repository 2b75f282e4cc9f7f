"""A model in this process, put to tasks: log-probabilities of choices and texts, and generated texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import ConfigError
from weft.models.generate import Sampling, generate
from weft.models.layout import Question
from weft.tasks.encoding import Encoder, Stop, context_of, until_first, windows
from weft.tasks.requests import ChoiceLogps, Choices, EvaluatedModel, Text, TextLogp, Texts, Writing

if TYPE_CHECKING:
    from weft.models.resident import Resident

TOKENS = 1 << 14
"""Tokens of a batch, padding included, that is scored at a time."""


class LocalModel(EvaluatedModel):
    """A resident model; its mode, and the global random state, stay as they are."""

    def __init__(
        self,
        model: Resident,
        *,
        chat: bool = False,
        batch_size: int = 16,
        lead: np.ndarray | None = None,
        place: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Take over a model.

        Args:
            model: on its device.
            chat: prompts are turns in the tokenizer's chat template.
            batch_size: prompts at a time.
            lead: ids (L,) before every row, of a soft prompt's vectors.
            place: puts a learnt instruction into the ids of a prompt.

        Raises:
            ConfigError: `chat`, and the tokenizer has no chat template.
        """
        self.model, self.chat, self.batch_size = model, chat, batch_size
        self.encoder = Encoder(model.tokenizer, chat=chat)
        self.lead = np.zeros(0, dtype=np.int32) if lead is None else lead
        self.place = place
        front = model.front.length if model.front is not None else 0
        self.longest = context_of(model) - front - len(self.lead)
        self._shares: bool | None = None
        """Shared beginnings can be computed once; None until that was tested."""

    def _row(self, ids: Sequence[int]) -> np.ndarray:
        row = np.array(ids, dtype=np.int32)
        row = row if self.place is None else self.place(row)
        return np.concatenate([self.lead, row])

    # Choices

    def score_choices(self, requests: Sequence[Choices]) -> list[ChoiceLogps]:
        """Return the log-probabilities; a prompt that all choices share is computed once."""
        questions: list[Question] = []
        owners: list[tuple[int, list[int]]] = []
        counts: list[list[int]] = []
        cuts: list[bool] = []
        for number, request in enumerate(requests):
            delimiter = "" if self.chat else request.delimiter
            context = self.encoder.prompt_text(request.prompt)
            pairs = [self.encoder.pair(context, delimiter + choice) for choice in request.choices]
            counts.append([len(choice) for _, choice in pairs])
            groups, cut = self._questions(pairs)
            cuts.append(cut)
            for question, members in groups:
                questions.append(question)
                owners.append((number, members))
        values = [[0.0] * len(request.choices) for request in requests]
        for (number, members), logps in zip(owners, self._rank(questions), strict=True):
            for member, logp in zip(members, logps, strict=True):
                values[number][member] = logp
        return [
            ChoiceLogps(tuple(logps), tuple(count), cut) for logps, count, cut in zip(values, counts, cuts, strict=True)
        ]

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return the log-probability (nats) of each text after another one, and whether it is what the model would
        write greedily. Texts after the same one are scored together."""
        groups, _ = self._questions([self.encoder.pair(*pair) for pair in pairs])
        results = [(0.0, True)] * len(pairs)
        scored = self._scored([question for question, _ in groups])
        for (_, members), values in zip(groups, scored, strict=True):
            for member, value in zip(members, values, strict=True):
                results[member] = value
        return results

    def _questions(self, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[list[tuple[Question, list[int]]], bool]:
        """Return questions whose choices share a prompt, with the choices' numbers, and whether anything was cut."""
        groups: dict[tuple[int, ...], list[int]] = {}
        choices: list[np.ndarray] = []
        cut = False
        for number, (context, choice) in enumerate(pairs):
            # The last token is only predicted, so that it takes no place in the context. A choice that alone is longer
            # keeps its beginning, one token of the prompt before it.
            cut |= len(choice) > self.longest
            choice = choice[: self.longest]
            room = self.longest + 1 - len(choice)
            cut |= len(context) > room
            groups.setdefault(tuple(context[-room:]), []).append(number)
            choices.append(np.array(choice, dtype=np.int32))
        return [
            (Question(self._row(context), [choices[number] for number in members]), members)
            for context, members in groups.items()
        ], cut

    def _rank(self, questions: Sequence[Question]) -> list[list[float]]:
        return [[logp for logp, _ in values] for values in self._scored(questions, greed=False)]

    def _scored(self, questions: Sequence[Question], *, greed: bool = True) -> list[list[tuple[float, bool]]]:
        """Return, of every choice of every question, its log-probability, and whether its tokens are the likeliest.

        Without `greed` the latter is not computed.
        """
        from weft.objectives import beginnings
        from weft.objectives.choices import choice_logps, choice_logps_and_greed

        with self.model.evaluating():
            if self._shares is None:
                self._shares = beginnings.is_exact(self.model)
            if self._shares:
                return beginnings.scores(self.model, questions, self.batch_size, TOKENS)
        sizes = [len(q.prompt) + sum(map(len, q.choices)) for q in questions]
        results: list[list[tuple[float, bool]]] = [[] for _ in questions]
        with self.model.evaluating():
            for chunk in _batches(sizes, self.batch_size):
                asked = [questions[number] for number in chunk]
                if greed:
                    logps, likeliest = choice_logps_and_greed(self.model, asked)
                    values = list(zip(logps.tolist(), likeliest.tolist(), strict=True))
                else:
                    values = [(logp, False) for logp in choice_logps(self.model, asked).tolist()]
                at = 0
                for number in chunk:
                    results[number] = values[at : at + len(questions[number].choices)]
                    at += len(questions[number].choices)
        return results

    # Whole texts

    def score_texts(self, requests: Sequence[Text]) -> list[TextLogp]:
        """Return the log-probabilities; a long text is read in windows, each token once, as lm-eval has it."""
        questions: list[Question] = []
        owners: list[int] = []
        counts = [0] * len(requests)
        for number, request in enumerate(requests):
            ids = self.model.tokenizer.encode(request.text, add_special_tokens=False)
            counts[number] = len(ids)
            for context, targets in windows(ids, self.encoder.prefix, self.longest):
                questions.append(Question(self._row(context), [np.array(targets, dtype=np.int32)]))
                owners.append(number)
        totals, pieces = [0.0] * len(requests), [0] * len(requests)
        for owner, (logp,) in zip(owners, self._rank(questions), strict=True):
            totals[owner] += logp
            pieces[owner] += 1
        return [TextLogp(*values) for values in zip(totals, counts, pieces, strict=True)]

    # Generation

    def write(self, requests: Sequence[Writing], seed: int) -> list[Texts]:
        """Return texts, turn by turn; a prompt that leaves no room for the answer loses its beginning."""
        samples: list[list[list[str]]] = [[[] for _ in range(request.samples)] for request in requests]
        ended, cut = [True] * len(requests), [False] * len(requests)
        for turn in range(max(len(request.turns) for request in requests) + 1):
            lines = [
                (number, sample)
                for number, request in enumerate(requests)
                if turn <= len(request.turns)
                for sample in range(request.samples)
            ]
            self._turn(requests, lines, turn, samples, ended, cut, seed)
        return [Texts(tuple(map(tuple, texts)), *ends) for texts, *ends in zip(samples, ended, cut, strict=True)]

    def _turn(
        self,
        requests: Sequence[Writing],
        lines: Sequence[tuple[int, int]],
        turn: int,
        samples: list[list[list[str]]],
        ended: list[bool],
        cut: list[bool],
        seed: int,
    ) -> None:
        """Write one turn of the lines, (request, sample), into `samples`."""
        prompts: list[np.ndarray] = []
        for number, sample in lines:
            request = requests[number]
            said = samples[number][sample]
            more = [text for pair in zip(said, request.turns, strict=False) for text in pair]
            ids = self.encoder.ids(self.encoder.prompt_text(request.prompt, more))
            room = self.longest - request.max_tokens
            if room < 1:
                raise ConfigError(
                    f"Answers of up to {request.max_tokens} tokens leave no room for a prompt in the model's context "
                    f"of {self.longest}: write --max_new_tokens {max(1, self.longest // 2)}."
                )
            cut[number] |= len(ids) > room
            prompts.append(self._row(ids[-room:]))
        kinds: dict[tuple[int, float, tuple[str, ...]], list[int]] = {}
        for place, (number, _) in enumerate(lines):
            request = requests[number]
            kinds.setdefault((request.max_tokens, request.temperature, request.until), []).append(place)
        for (most, temperature, until), places in kinds.items():
            for chunk in _batches([len(prompts[place]) + most for place in places], self.batch_size):
                group = [places[number] for number in chunk]
                stop = Stop(self.model.tokenizer.decode, until)
                answers = generate(
                    self.model,
                    [prompts[place] for place in group],
                    Sampling(most, temperature),
                    seed=seed + turn + 7919 * group[0],
                    stop=stop,
                )
                for place, (answer,) in zip(group, answers, strict=True):
                    number, sample = lines[place]
                    raw = self.model.tokenizer.decode(answer.ids, skip_special_tokens=True)
                    text = until_first(raw, until)
                    ended[number] &= answer.ended or text != raw
                    samples[number][sample].append(text.strip() if self.chat else text)


def _batches(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield numbers in batches of at most `most`, longest first, that fill at most `TOKENS` places padded."""
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) == most or (len(batch) + 1) * sizes[batch[0]] > TOKENS):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
