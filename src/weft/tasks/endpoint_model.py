"""A model behind an OpenAI-compatible API, put to tasks.

It is sent texts and never tokens, so it needs no tokenizer here. What it writes is asked for in its chat, or as what
continues a text; choices are ranked where it returns the log-probabilities of a text. Every reply is on disk at once,
so that none is paid for twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from weft.errors import ConfigError
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint, RequestRefused
from weft.tasks.encoding import until_first
from weft.tasks.kept import Kept, digest_of_question
from weft.tasks.requests import ChoiceLogps, Choices, EvaluatedModel, Text, TextLogp, Texts, Writing

CUTS = 8
"""How often a text that is refused loses a quarter of its prompt, from the beginning, before it is given up."""
MOST_STOPS = 4
"""Texts that end an answer at the endpoint; OpenAI takes no more. Answers are cut at the others here."""
Value = TypeVar("Value")


def _all_counted(scores: Sequence[tuple[float, int]]) -> bool:
    """Return whether every text has a score; others may have one when the server was set right."""
    return all(count for _, count in scores)


class Conversation(NamedTuple):
    """What was written in one conversation."""

    texts: tuple[str, ...]
    ended: bool = True
    cut: bool = False
    refused: bool = False


class EndpointModel(EvaluatedModel):
    """Asks an endpoint, several questions at a time."""

    chunk: ClassVar[int] = 64

    def __init__(
        self, endpoint: Endpoint, *, chat: bool, length: str = "max_tokens", greedy: Mapping[str, object] | None = None
    ) -> None:
        """Take over an endpoint; nothing is sent.

        Args:
            endpoint: that answers.
            chat: texts are asked for in the endpoint's chat, else as what continues the prompt.
            length: the endpoint's name of the longest answer, max_tokens or max_completion_tokens.
            greedy: parameters of requests that take the likeliest tokens; None: a temperature of 0.
        """
        self.endpoint, self.chat, self.length = endpoint, chat, length
        self.greedy = {"temperature": 0} if greedy is None else greedy
        self.known = 0
        """Replies that were in the file when it was opened, and were not asked for again."""
        self._kept: Kept | None = None
        self._lock = threading.Lock()
        self._refusal: RequestRefused | None = None

    def keep_in(self, path: Path) -> None:
        """Keep replies in a file, and do not ask again for those in it; ConfigError if it cannot be read."""
        self._kept = Kept(path, "replies", ("value",))

    def score_choices(self, requests: Sequence[Choices]) -> list[ChoiceLogps]:
        """Return the log-probabilities of the tokens after each prompt.

        Raises:
            ConfigError: the endpoint refuses a request.
            RunError: it does not answer; its replies are kept.
        """
        return self._all([partial(self._ranked, request) for request in requests])

    def score_texts(self, requests: Sequence[Text]) -> list[TextLogp]:
        """Return the log-probabilities of whole texts; raises as `score_choices`."""
        return self._all([partial(self._scored, request.text) for request in requests])

    def write(self, requests: Sequence[Writing], seed: int) -> list[Texts]:
        """Return texts; one that the endpoint refuses to write is empty and marked. Raises as `score_choices`, where
        it refuses to write any."""
        jobs = [
            partial(self._written, request, seed + 7919 * place + sample)
            for place, request in enumerate(requests)
            for sample in range(request.samples)
        ]
        done = self._all(jobs)
        if self._refusal is not None and all(one.refused for one in done):
            raise self._refusal
        replies = []
        for request in requests:
            own, done = done[: request.samples], done[request.samples :]
            marks = (all(one.ended for one in own), any(one.cut for one in own), any(one.refused for one in own))
            replies.append(Texts(tuple(one.texts for one in own), *marks))
        return replies

    def _ranked(self, request: Choices) -> ChoiceLogps:
        def scores(context: str) -> list[tuple[float, int]]:
            # As in lm-eval, trailing spaces of a prompt belong to the choice.
            begin = len(context.rstrip())
            texts = [context + request.delimiter + choice for choice in request.choices]
            return self._scores([ScoredText(text, ((begin, len(text)),)) for text in texts])

        values, cut = self._cutting(request.prompt.text, scores)
        for choice, (_, count) in zip(request.choices, values, strict=True):
            if not count:
                raise ConfigError(
                    f"The endpoint {self.endpoint.url} gives no log-probability of the choice '{choice}': no token "
                    "begins where the prompt ends; end the prompt, or begin the choice, with a space."
                )
        logps, counts = zip(*values, strict=True)
        return ChoiceLogps(logps, counts, cut)

    def _scored(self, text: str) -> TextLogp:
        ((logp, count),) = self._scores([ScoredText(text, ((0, len(text)),))])
        return TextLogp(logp, count)

    def _scores(self, texts: Sequence[ScoredText]) -> list[tuple[float, int]]:
        asked = ["scores", [[text.text, list(text.spans)] for text in texts]]
        values = self._value(asked, lambda: self.endpoint.likelihoods(texts, len(texts)), _all_counted)
        return [(float(logp), int(count)) for logp, count in values]

    def _written(self, request: Writing, seed: int) -> Conversation:
        """Return the texts of all turns of one sample."""
        parameters: dict[str, object] = {self.length: request.max_tokens}
        parameters |= {"temperature": request.temperature, "seed": seed % 2**31} if request.temperature else self.greedy
        if stops := [text for text in request.until if text][:MOST_STOPS]:
            parameters["stop"] = stops
        said: list[str] = []
        ended, cut = True, False
        for _ in range(len(request.turns) + 1):
            more = [text for pair in zip(said, request.turns, strict=False) for text in pair]
            try:
                (raw, finish), shortened = self._turn(request, more, parameters)
            except RequestRefused as refusal:
                if not refusal.is_of_one_text:
                    raise
                self._refusal = refusal
                rest = ("",) * (len(request.turns) + 1 - len(said))
                return Conversation((*said, *rest), ended, cut, True)
            text = until_first(raw, request.until)
            said.append(text.strip() if self.chat else text)
            ended, cut = ended and (finish != "length" or text != raw), cut or shortened
        return Conversation(tuple(said), ended, cut)

    def _turn(
        self, request: Writing, more: Sequence[str], parameters: Mapping[str, object]
    ) -> tuple[tuple[str, str], bool]:
        """Return a text, why it ended, and whether the prompt was cut."""

        def continued(prompt: str) -> list[str]:
            reply = self.endpoint.complete(prompt, parameters)
            return [reply.text, reply.finish]

        def answered() -> list[str]:
            reply = self.endpoint.chat(messages, parameters)
            return [reply.text, reply.finish]

        if self.chat:
            messages = request.prompt.conversation(more)
            (text, finish), cut = self._value(["chat", messages, parameters], answered), False
        else:
            whole = request.prompt.text + "".join(more)
            (text, finish), cut = self._cutting(
                whole, lambda prompt: self._value(["text", prompt, parameters], partial(continued, prompt))
            )
        return (str(text), str(finish)), cut

    def _cutting(self, prompt: str, ask: Callable[[str], Value]) -> tuple[Value, bool]:
        """Ask with a prompt, and with less and less of its end while the endpoint refuses it, as what is too long."""
        for cuts in range(CUTS + 1):
            try:
                return ask(prompt), cuts > 0
            except RequestRefused as refusal:
                if not refusal.is_of_one_text or cuts == CUTS or len(prompt) < 4:
                    raise
                prompt = prompt[len(prompt) // 4 :]
        raise AssertionError("the last cut raises")

    def _value(
        self, question: Sequence[object], ask: Callable[[], Value], lasts: Callable[[Value], bool] = lambda value: True
    ) -> Any:
        """Return what was answered to a question before, else ask, and keep it where it `lasts`."""
        key = digest_of_question(self.endpoint.url, self.endpoint.model, *question)
        line = self._kept.get(key) if self._kept is not None else None
        if self._kept is not None and line is not None:
            with self._lock:
                self.known += self._kept.is_former(key)
            return line["value"]
        value = ask()
        if self._kept is not None and lasts(value):
            self._kept.put(key, {"value": value})
        return value

    def _all(self, jobs: Sequence[Callable[[], Value]]) -> list[Value]:
        """Return what jobs return, several at a time; the first that fails ends them all."""
        with self.endpoint.pool("endpoint", "answered") as pool:
            results = [pool.submit(job) for job in jobs]
            for result in as_completed(results):
                result.result()
            return [result.result() for result in results]
