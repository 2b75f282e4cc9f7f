"""Answers graded by a model behind an endpoint: ratings from 1 to 10, and preferences between two answers.

Every judgement is kept in a file at once and not asked for again (`weft.tasks.judgements`). What cannot be read as a
verdict is counted beside the score, never left out in silence. A judge reads the questions and answers that it grades,
so it is given rows of the server only; those of a client only where the client's site named that endpoint itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from weft.errors import ClientFailed, ConfigError
from weft.models.completions import Reply
from weft.models.endpoint import Endpoint, RequestRefused
from weft.tasks.judge_templates import Kind, Template, Templates, built_in, preference, rating
from weft.tasks.judgements import Judgements, digest

Origin = Literal["server", "client"]
"""Whose rows are judged."""
Result = Literal["win", "loss", "tie"]
IN_A_ROW = 3
"""Failures without a success between them, after which the judge counts as down."""
PARAMETERS = {"temperature": 0, "max_tokens": 2048}


class Item(NamedTuple):
    """One conversation that is judged."""

    name: str
    questions: tuple[str, ...]
    """Of the user: one, or two."""
    answers: tuple[str, ...]
    """Of the model that is judged, one for each question."""
    references: tuple[str, ...] = ()
    """Reference answers, one for each question; empty: there are none."""
    others: tuple[str, ...] = ()
    """Answers of the model that it is compared with; for `compare` only."""


class Ratings(NamedTuple):
    """The ratings of some items."""

    scores: list[float | None]
    """From 1 to 10; None: unparsed, or not judged."""
    unparsed: int
    """Replies without a rating in 1-10."""
    unjudged: int
    """Items that the judge did not reply to; they are asked for again by the same command."""

    def mean(self) -> float | None:
        """Return the mean of those that have a rating; None: none has."""
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else None


class Comparisons(NamedTuple):
    """The preferences between two models on some items."""

    results: list[Result | None]
    """Of the model that is judged. A win or a loss counts only if both orders of the answers agree, else it is a tie;
    None: unparsed, or not judged, in one order at least."""
    unparsed: int
    unjudged: int
    split: list[bool]
    """Whether a result is a tie because the two orders gave different verdicts, as of a judge that favours a place."""

    @property
    def disagreed(self) -> int:
        """How many are such ties."""
        return sum(self.split)

    def win_rate(self) -> float | None:
        """Return wins and half of the ties as a share of the known results; None: there are none."""
        known = [result for result in self.results if result is not None]
        return (known.count("win") + known.count("tie") / 2) / len(known) if known else None


@dataclass
class Cost:
    """What judgements cost."""

    requests: int = 0
    """Sent, repeated ones included."""
    repeats: int = 0
    known: int = 0
    """Judgements that were in the file; the numbers of tokens leave them out."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Replies whose tokens the server did not count."""
    price: float | None = None
    """In the currency of the prices that were given; None: none were."""


def check_origin(origin: Origin, url: str, allowed: str | None) -> None:
    """Refuse to show a client's rows to a judge.

    Args:
        origin: whose rows they are.
        url: of the judge.
        allowed: `judge_endpoint` in the client's site.yaml; None: it names none.

    Raises:
        ConfigError: they are a client's, and its site did not name this endpoint.
    """
    if origin == "server" or (allowed is not None and allowed.rstrip("/") == url.rstrip("/")):
        return
    raise ConfigError(
        "The rows are a client's, and a judge behind an endpoint would read them: judge the server's own rows, or "
        "have the site name this endpoint by judge_endpoint in its site.yaml."
    )


@dataclass
class Judge:
    """A model that judges, what it is asked, and where its judgements are kept."""

    endpoint: Endpoint
    file: Path
    """Of the judgements; those in it are not asked for again."""
    origin: Origin
    allowed: str | None = None
    """`judge_endpoint` of the site whose rows are judged."""
    templates: Templates = field(default_factory=built_in)
    parameters: dict[str, object] = field(default_factory=lambda: dict(PARAMETERS))
    """Of every request."""
    prices: tuple[float, float] | None = None
    """Of a million tokens of prompts, and of replies."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Is called with the number of judgements that are there, and of all of one call."""

    def __post_init__(self) -> None:
        """Read the judgements that are there.

        Raises:
            ConfigError: as `check_origin`; the file cannot be read.
        """
        check_origin(self.origin, self.endpoint.url, self.allowed)
        self._kept = Judgements(self.file)
        self._cost, self._lock = Cost(), threading.Lock()

    def rate(self, items: Sequence[Item], turn: int = 1) -> Ratings:
        """Return ratings of the answers to the first or the second question.

        Raises:
            ConfigError: the judge refuses all requests, or the first.
            RunError: it does not answer; what was judged is kept.
        """
        asked = [(item.name, self._messages("single", item, turn)) for item in items]
        replies = self._ask(asked)
        scores = [rating(reply.text) if reply is not None else None for reply in replies]
        unjudged = replies.count(None)
        return Ratings(scores, scores.count(None) - unjudged, unjudged)

    def compare(self, items: Sequence[Item], turn: int = 1) -> Comparisons:
        """Return preferences between `answers` and `others`, each asked for in both orders; raises as `rate`.

        Answers that are equal to the letter tie, and the judge is not asked: it could only favour a place.
        """
        unlike = {place: item for place, item in enumerate(items) if item.answers[:turn] != item.others[:turn]}
        asked = []
        for item in unlike.values():
            swapped = item._replace(answers=item.others, others=item.answers)
            asked += [(one.name, self._messages("pairwise", one, turn)) for one in (item, swapped)]
        replies = iter(self._ask(asked))
        results: list[Result | None] = ["tie"] * len(items)
        split = [False] * len(items)
        unparsed = unjudged = 0
        for place in unlike:
            first, second = next(replies), next(replies)
            if first is None or second is None:
                results[place] = None
                unjudged += 1
                continue
            verdicts = (preference(first.text), preference(second.text))
            if None in verdicts:
                results[place] = None
                unparsed += 1
                continue
            results[place] = "win" if verdicts == ("A", "B") else "loss" if verdicts == ("B", "A") else "tie"
            split[place] = results[place] == "tie" and verdicts != ("C", "C")
        return Comparisons(results, unparsed, unjudged, split)

    def cost(self) -> Cost:
        """Return what has been spent since this object was made."""
        tally = self.endpoint.tally()
        self._cost.requests += int(tally["endpoint_requests"])
        self._cost.repeats += int(tally["endpoint_retries"])
        if self.prices is not None:
            spent = (self._cost.prompt_tokens, self._cost.completion_tokens)
            self._cost.price = sum(price * count for price, count in zip(self.prices, spent, strict=True)) / 1e6
        return self._cost

    def _messages(self, kind: Kind, item: Item, turn: int) -> list[dict[str, str]]:
        template: Template = self.templates[kind, turn, bool(item.references)]
        values = {"question": item.questions[turn - 1]}
        if kind == "single":
            values["answer"] = item.answers[turn - 1]
            lists = {"answer": item.answers}
        else:
            values |= {"answer_a": item.answers[turn - 1], "answer_b": item.others[turn - 1]}
            lists = {"answer_a": item.answers, "answer_b": item.others}
        for name, texts in {"question": item.questions, "ref_answer": item.references, **lists}.items():
            values |= {f"{name}_{number}": text for number, text in enumerate(texts, 1)}
        return template.messages(values)

    def _ask(self, asked: Sequence[tuple[str, list[dict[str, str]]]]) -> list[Reply | None]:
        """Return the reply to every question, in order; None: the judge refused or failed that one alone."""
        keys = [digest(self.endpoint.model, messages, self.parameters) for _, messages in asked]
        wanted = {key: one for key, one in zip(keys, asked, strict=True) if self._kept.get(key) is None}
        self._cost.known += sum(map(self._kept.is_former, set(keys)))
        if wanted:
            self._fill(wanted, len(set(keys)))
        return [self._kept.get(key) for key in keys]

    def _fill(self, wanted: dict[str, tuple[str, list[dict[str, str]]]], total: int) -> None:
        """Ask for all judgements that are wanted, several at a time, and keep each reply at once."""
        with self.endpoint.pool("judge", "judged") as pool:
            self._watch([pool.submit(self._one, key, *one) for key, one in wanted.items()], total)

    def _watch(self, results: Sequence[Future[None]], total: int) -> None:
        """Wait for judgements; raise once it is clear that the judge is down, or refuses more than single texts."""
        done, in_a_row = total - len(results), 0
        answered = done > 0
        trouble: RequestRefused | ClientFailed | None = None
        for result in as_completed(results):
            try:
                result.result()
            except RequestRefused as refusal:
                if not refusal.is_of_one_text:
                    raise
                trouble = refusal
            except ClientFailed as failure:
                trouble = failure
            else:
                done, in_a_row, answered = done + 1, 0, True
                self.progress(done, total)
                continue
            in_a_row += 1
            if in_a_row >= IN_A_ROW and (isinstance(trouble, ClientFailed) or not answered):
                raise trouble
        if trouble is not None and not answered:
            raise trouble

    def _one(self, key: str, name: str, messages: list[dict[str, str]]) -> None:
        reply = self.endpoint.chat(messages, self.parameters)
        self._kept.put(key, name, reply)
        with self._lock:
            self._cost.prompt_tokens += reply.prompt_tokens or 0
            self._cost.completion_tokens += reply.completion_tokens or 0
            self._cost.uncounted += reply.prompt_tokens is None or reply.completion_tokens is None
