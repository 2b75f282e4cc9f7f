"""A model behind an OpenAI-compatible endpoint: log-probabilities of texts, continuations of them, and chat.

Likelihoods come from `POST /completions` with `echo` and `logprobs`, which vLLM and others answer; a service that does
not return the log-probabilities of the prompt cannot be used for them. Chat (`POST /chat/completions`) is answered by
all of them.
"""

from __future__ import annotations

import email.utils
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException

from weft.core.metrics import ENDPOINT_COUNTS
from weft.core.texts import printable
from weft.errors import ClientFailed, ConfigError, RunError
from weft.json_types import JsonObject
from weft.models.completions import LEAST_BYTES, NoLogprobs, Reply, ScoredText, most_bytes, reply_of, span_score, usage
from weft.models.http_exchange import TooLong, fetch
from weft.models.request_threads import RequestThreads

WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first retry, doubled each time, and the longest pause that a server's Retry-After may impose."""


REDIRECTS = (301, 302, 303, 307, 308)
"""Codes that lead to another address."""


class RequestRefused(ConfigError):
    """The server refuses a request, and would refuse it again."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """Status of HTTP."""

    @property
    def is_of_one_text(self) -> bool:
        """Whether it may be due to this text alone: too long, or against the server's rules."""
        return self.code in (400, 413, 422)


class Endpoint:
    """Client of one model at one endpoint: sends requests in parallel, and repeats those that fail for a moment."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        wait: float | None = None,
        flags: tuple[str, str] = ("--endpoint", "--endpoint_model"),
    ) -> None:
        """Store the settings; nothing is sent.

        Args:
            url: of the API, including its version (`http://127.0.0.1:8000/v1`).
            model: its name at the server.
            key: name of the environment variable with the key; no key is sent where it is empty or not set.
            timeout: seconds for one response.
            retries: how often a failed request is repeated.
            parallel: requests in flight at a time.
            wait: seconds before the first repetition; None: `WAIT`.
            flags: for the address and the model's name, to be named in messages.
        """
        self.url, self.model, self.key = url.rstrip("/"), model, key
        self.timeout, self.retries, self.parallel = timeout, retries, parallel
        self.wait = WAIT if wait is None else wait
        self.flags = flags
        self._threads = RequestThreads(parallel)
        self._lock = threading.Lock()
        self._requests = self._repeats = 0
        self._spent = (0, 0)

    def check(self) -> None:
        """Score one short text, to check that the endpoint returns log-probabilities.

        Raises:
            ConfigError: the server refuses the request, or returns no log-probabilities.
            RunError: the server cannot be reached.
        """
        try:
            scores = self.likelihoods([ScoredText("One two three four.", ((0, 19),))])
        except ClientFailed as failure:
            why = str(failure).removeprefix("the endpoint")
            raise RunError(f"The endpoint {self.url}{why}; start it, then run the same command again.") from None
        if scores[0][1] < 1:
            raise ConfigError(f"The endpoint {self.url} scores no tokens of a text: use a server of a language model.")

    def likelihoods(self, texts: Sequence[ScoredText], size: int = 16) -> list[tuple[float, int]]:
        """Return, for every text, the sum of the log-probabilities (nats) of the tokens that begin in its spans, and
        their number.

        Raises:
            ClientFailed: every repetition failed too.
            ConfigError: the server refuses the request, or returns no log-probabilities.
        """
        chunks = [texts[at : at + size] for at in range(0, len(texts), size)]
        with self._threads.open() as pool:
            return [score for scores in pool.map(self._score, chunks) for score in scores]

    def write(self, prompt: str, count: int, tokens: int, *, temperature: float, top_p: float, seed: int) -> list[str]:
        """Return `count` continuations of a text, of up to `tokens` tokens each; raises as `likelihoods`."""
        request = {"prompt": prompt, "n": count, "max_tokens": tokens, "temperature": temperature, "top_p": top_p}
        answer = self._post("completions", request | {"seed": seed % 2**31})
        with _readable():
            return [str(choice.get("text", "")) for choice in answer["choices"][:count]]

    def chat(self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]) -> Reply:
        """Return the answer to a conversation.

        Args:
            messages: each with role and content.
            parameters: of the request, by OpenAI's names (temperature, max_tokens, seed, ...).

        Raises:
            ClientFailed: every repetition failed too.
            RequestRefused: the server refuses the request.
        """
        answer = self._post("chat/completions", {"messages": [dict(one) for one in messages], **parameters})
        choice = answer["choices"][0]
        message = choice.get("message") if isinstance(choice, dict) else None
        return reply_of(answer, message.get("content") if isinstance(message, dict) else None)

    def complete(self, prompt: str, parameters: Mapping[str, object]) -> Reply:
        """Return what continues a text; takes parameters and raises as `chat`."""
        answer = self._post("completions", {"prompt": prompt, **parameters})
        choice = answer["choices"][0]
        return reply_of(answer, choice.get("text") if isinstance(choice, dict) else None)

    def names(self) -> list[str]:
        """Return the names of the models that the server lists; raises as `chat`."""
        listed = self._answer("models", None, "data")["data"]
        return [printable(str(one.get("id"))) for one in listed if isinstance(one, dict) and one.get("id")]

    @contextmanager
    def pool(self, role: str, done: str) -> Iterator[ThreadPoolExecutor]:
        """Yield threads for requests in flight, whose replies are kept as they come.

        Args:
            role: of the endpoint, in messages: "endpoint", "judge".
            done: what it has done of what is kept: "answered", "judged".

        Raises:
            RunError: it does not answer.
        """
        try:
            with self._threads.open(role) as pool:
                yield pool
        except ClientFailed as failure:
            why = str(failure).removeprefix("the endpoint")
            raise RunError(
                f"The {role} at {self.url}{why}: what it {done} is kept; when it answers again, run the same command "
                "again."
            ) from None

    def tally(self) -> dict[str, float]:
        """Return the number of requests, and of repeated ones, since the last call."""
        with self._lock:
            counts = dict(zip(ENDPOINT_COUNTS, (float(self._requests), float(self._repeats)), strict=True))
            self._requests = self._repeats = 0
        return counts

    def tokens(self) -> tuple[int, int]:
        """Return the tokens of prompts and of replies since the last call, as far as the server counts them."""
        with self._lock:
            spent, self._spent = self._spent, (0, 0)
        return spent

    def _score(self, texts: Sequence[ScoredText]) -> list[tuple[float, int]]:
        # The one generated token begins where the text ends, so no span counts it.
        request = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = self._post("completions", {"prompt": [text.text for text in texts], **request})
        try:
            with _readable():
                choices = sorted(answer["choices"], key=lambda choice: int(choice.get("index", 0)))
                if len(choices) != len(texts):
                    raise ClientFailed(f"the endpoint answered {len(choices)} of {len(texts)} texts")
                found = [choice.get("logprobs") or {} for choice in choices]
                return [span_score(text, logprobs) for text, logprobs in zip(texts, found, strict=True)]
        except NoLogprobs:
            raise ConfigError(
                f"The endpoint {self.url} returns no log-probabilities of the texts that it is sent (echo, logprobs): "
                "use a server that does, such as vLLM's, or train the prompt of a local model, without --endpoint."
            ) from None

    def _post(self, path: str, payload: JsonObject) -> JsonObject:
        """Send a request, and count the tokens that it cost."""
        body = json.dumps({"model": self.model, **payload}).encode()
        answer = self._answer(path, body, "choices", most_bytes(payload, len(body)))
        with self._lock:
            prompt, completion = (one + (count or 0) for one, count in zip(self._spent, usage(answer), strict=True))
            self._spent = (prompt, completion)
        return answer

    def _answer(self, path: str, body: bytes | None, part: str, most: int = LEAST_BYTES) -> JsonObject:
        """Send a request, and repeat it while the failure may pass; the answer has the list `part`, not empty, and at
        most `most` bytes."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        failure = ""
        for attempt in range(self.retries + 1):
            if self._threads.stopped.is_set():
                raise ClientFailed("the endpoint was not asked, as the command ends")
            with self._lock:
                self._requests += 1
                self._repeats += attempt > 0
            pause = self.wait * 2**attempt
            try:
                request = urllib.request.Request(f"{self.url}/{path}", body, headers)
                data = json.loads(fetch(request, self.timeout, most, self._threads.flights))
                if isinstance(data, dict) and isinstance(data.get(part), list) and data[part]:
                    return data
                failure = f"did not answer with {'completions' if body else 'its models'}"
            except urllib.error.HTTPError as error:
                with error:
                    failure = self._may_pass(error)
                    pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except TimeoutError:
                failure = f"did not answer within {self.timeout:g} s"
            except TooLong:
                raise ClientFailed(f"the endpoint answered more than {most / 2**20:.0f} MiB to one request") from None
            except (ValueError, RecursionError):  # of JSON: broken, or nested without end
                failure = "did not answer with JSON"
            except (OSError, HTTPException) as error:  # a URLError is an OSError
                inner = getattr(error, "reason", error)
                failure = f"could not be reached ({type(inner).__name__})"
            if attempt < self.retries and self._threads.stopped.wait(min(pause, LONGEST_WAIT)):
                break
        # Without the URL: a site sends the reason, and its network is its own.
        raise ClientFailed(f"the endpoint {failure}, {self.retries + 1} times")

    def _may_pass(self, error: urllib.error.HTTPError) -> str:
        """Return what happened, if it may pass; else refuse the request."""
        reason = printable(str(error.reason), 100)
        if error.code in REDIRECTS:
            raise RequestRefused(
                f"The endpoint {self.url} redirects requests ({error.code}), which would carry the key to "
                "another address: write the address that answers.",
                error.code,
            ) from None
        if error.code not in (408, 409, 425, 429) and error.code < 500:
            raise RequestRefused(
                f"The endpoint {self.url} refuses the request ({error.code} {reason}): check {self.flags[0]}, "
                f"{self.flags[1]} ({self.model}) and the key in the variable {self.key}.",
                error.code,
            ) from None
        return f"answered {error.code} {reason}"


@contextmanager
def _readable() -> Iterator[None]:
    """Turn whatever an answer of another form raises inside the context into ClientFailed."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ClientFailed(f"the endpoint answered what cannot be read ({type(error).__name__})") from None


def _seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After, which is a number of them or a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
