"""Adversarial samples at inference: questions with choices are changed, a little, until the model answers wrongly.

All attacks see the model's log-probabilities, as a participant does who has the weights. `characters` and `synonyms`
change the words whose absence moves the answer most (TextFooler, 1907.11932; DeepWordBug, 1801.04354); `tokens` follows
the gradient of the margin at the input embeddings (HotFlip, 1712.06751).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from weft.errors import ConfigError, DataError
from weft.json_types import JsonObject
from weft.tasks.declaration import EvalTask
from weft.tasks.expressions import render
from weft.tasks.gradients import Swaps
from weft.tasks.local_model import LocalModel
from weft.tasks.perturbations import WORD, Edit, Synonyms, misspelt
from weft.tasks.requests import ChoiceLogps, Choices, Item

Say = Callable[[str, int, int], None]
MARK = "\ue000"
"""A letter that no text has: it shows where a column stands in a question."""
EXAMPLES = 5
"""Successful attacks that are written down with their texts."""


@dataclass
class Victim:
    """An item that the model answers rightly, while it is attacked."""

    item: Item
    before: str
    """The text that is changed, as it stands in the question."""
    margin: float
    """Log-probability of the right choice less that of the likeliest other one (nats)."""
    text: str = ""
    budget: int = 0
    """Words that may be changed."""
    order: list[int] = field(default_factory=list)
    """Numbers of its words, those that move the answer most first."""
    changes: int = 0
    fooled: bool = False

    def __post_init__(self) -> None:
        self.text = self.before

    def asked(self, text: str) -> Item:
        """Return the item with another text."""
        question = self.item.prompt.question.replace(self.before, text, 1)
        return replace(self.item, prompt=replace(self.item.prompt, question=question))


@dataclass(frozen=True)
class Report:
    """What an attack came to."""

    attack: str
    items: int
    right_before: int
    right_after: int
    queries: int
    changed_words: float
    """Mean over the items that were fooled."""
    survivors: frozenset[int]
    """Numbers of the items that are answered rightly whatever the attack tried."""
    examples: list[JsonObject]

    @property
    def accuracy(self) -> float:
        """Robust accuracy."""
        return self.right_after / max(1, self.items)

    def as_json(self) -> JsonObject:
        """Return the numbers as plain data."""
        share = self.accuracy
        return {
            "robust_accuracy": share,
            "standard_error": math.sqrt(share * (1 - share) / max(1, self.items)),
            "success_rate": 1 - self.right_after / max(1, self.right_before),
            "queries_per_item": self.queries / max(1, self.right_before),
            "changed_words": self.changed_words,
            "examples": self.examples,
        }


class Attacker:
    """Attacks the items of one task that a model answers rightly."""

    def __init__(self, task: EvalTask, model: LocalModel, *, column: str, budget: float, seed: int = 0) -> None:
        """Take the task and the model.

        Args:
            task: of the kind choice.
            model: in this process.
            column: of the rows, whose text is changed.
            budget: largest share of its words that are changed.
            seed: of typing mistakes.
        """
        self.task, self.model, self.column, self.budget, self.seed = task, model, column, budget, seed
        self.queries = 0

    @cached_property
    def synonyms(self) -> Synonyms:
        """Words of similar meaning, of the model's own embedding."""
        return Synonyms(self.model.model)

    @cached_property
    def swaps(self) -> Swaps:
        """Token swaps by the gradient."""
        return Swaps(self.model)

    def victims(self, items: Sequence[Item]) -> list[Victim]:
        """Return the items that are answered rightly as they stand."""
        found = []
        for item, (right, margin) in zip(items, self._judge(items), strict=True):
            if right:
                found.append(Victim(item, str(item.row[self.column]), margin))
        return found

    def attack(self, name: str, items: Sequence[Item], say: Say = lambda *_: None) -> Report:
        """Attack all items that are answered rightly; returns what is left of the accuracy."""
        victims = self.victims(items)
        self.queries = 0
        for victim in victims:
            words = len(WORD.findall(victim.before))
            victim.budget = math.ceil(self.budget * words) if words else 0
        if name != "tokens":
            self._rank(victims)
        most = max((victim.budget for victim in victims), default=0)
        for step in range(most):
            active = [victim for victim in victims if not victim.fooled and step < victim.budget]
            if not active:
                break
            say(name, step, most)
            self._step(active, [self._candidates(name, victim, step) for victim in active])
        say(name, most, most)
        fooled = [victim for victim in victims if victim.fooled]
        return Report(
            name,
            len(items),
            len(victims),
            len(victims) - len(fooled),
            self.queries,
            sum(victim.changes for victim in fooled) / max(1, len(fooled)),
            frozenset(victim.item.number for victim in victims if not victim.fooled),
            [{"item": v.item.number, "before": v.before, "after": v.text} for v in fooled[:EXAMPLES]],
        )

    def _judge(self, items: Sequence[Item]) -> list[tuple[bool, float]]:
        """Return of each item whether it is answered rightly, and its margin."""
        requests = [self.task.scorer.request(item) for item in items]
        replies = self.model.score_choices([request for request in requests if isinstance(request, Choices)])
        self.queries += len(replies)
        return [self._judged(item, reply) for item, reply in zip(items, replies, strict=True)]

    def _judged(self, item: Item, reply: ChoiceLogps) -> tuple[bool, float]:
        scores = self.task.scorer.scores(item, reply)
        right = int(scores["right"])
        others = [logp for number, logp in enumerate(reply.logps) if number != right]
        return scores["accuracy"] > 0, reply.logps[right] - max(others)

    def _rank(self, victims: Sequence[Victim]) -> None:
        """Order each victim's words by how far the margin falls without them."""
        asked, owners = [], []
        for victim in victims:
            for number, match in enumerate(WORD.finditer(victim.before)):
                asked.append(victim.asked(victim.before[: match.start()] + victim.before[match.end() :]))
                owners.append((victim, number))
        margins: dict[int, list[tuple[float, int]]] = {}
        for (victim, number), (_, margin) in zip(owners, self._judge(asked), strict=True):
            margins.setdefault(id(victim), []).append((margin, number))
        for victim in victims:
            victim.order = [number for _, number in sorted(margins.get(id(victim), []))]

    def _candidates(self, name: str, victim: Victim, step: int) -> list[str]:
        """Return the texts to try at a step."""
        if name == "tokens":
            item = victim.asked(victim.text)
            request = self.task.scorer.request(item)
            assert isinstance(request, Choices)
            right = int(self.task.scorer.scores(item, _any_reply(request))["right"])
            edits = self.swaps.of(request, right, victim.text)
        else:
            # Changes keep the number of words, so that numbers of words stay those of the beginning.
            words = list(WORD.finditer(victim.text))
            if step >= len(victim.order) or victim.order[step] >= len(words):
                return []
            match = words[victim.order[step]]
            word = match.group()
            others = misspelt(word, self.seed) if name == "characters" else self.synonyms.of(word)
            edits = [Edit(match.start(), match.end(), other) for other in others]
        return [victim.text[: edit.begin] + edit.text + victim.text[edit.end :] for edit in edits]

    def _step(self, victims: Sequence[Victim], candidates: Sequence[list[str]]) -> None:
        """Give each victim the candidate with the smallest margin, if that is smaller than before."""
        asked = [victim.asked(text) for victim, texts in zip(victims, candidates, strict=True) for text in texts]
        judged = iter(self._judge(asked))
        for victim, texts in zip(victims, candidates, strict=True):
            results = [(next(judged), text) for text in texts]
            if not results:
                continue
            (right, margin), text = min(results, key=lambda result: (result[0][0], result[0][1]))
            if margin < victim.margin or not right:
                victim.text, victim.margin, victim.fooled = text, margin, not right
                victim.changes += 1


def _any_reply(request: Choices) -> ChoiceLogps:
    return ChoiceLogps(tuple(0.0 for _ in request.choices), tuple(1 for _ in request.choices))


def column_of(task: EvalTask, items: Sequence[Item], column: str | None) -> str:
    """Return the column whose text is changed: the one named, else the longest text that stands in the question.

    Raises:
        ConfigError: there is no such column, it has no words, or its text does not stand in the question as it is.
    """
    inside = {}
    for name in items[0].row:
        texts = [str(item.row.get(name, "")) for item in items]
        worded = next((place for place, text in enumerate(texts) if WORD.search(text)), None)
        if worded is not None and _stands_in(task, items[worded], name):
            inside[name] = sum(map(len, texts))
    if column is None and inside:
        return max(inside, key=lambda name: (inside[name], name))
    if column in inside:
        return column
    names = ", ".join(inside) or "none"
    raise ConfigError(
        f"The task '{task.name}' has no column {column or 'of text'} with words that stand in its question: write one "
        f"of these ({names}) after --column, or name another task."
    )


def _stands_in(task: EvalTask, item: Item, column: str) -> bool:
    """Say whether the question shows a column's text as it is: a label may be a word of every question by chance."""
    value = item.row[column]
    if not (isinstance(value, str) and value.strip() and value in item.prompt.question):
        return False
    try:
        return MARK in render(task.prompt, item.row | {column: MARK})
    except DataError:  # the template reads the column as something else than a text
        return False
