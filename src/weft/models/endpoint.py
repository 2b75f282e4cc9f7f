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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

from weft.core.texts import printable
from weft.errors import ClientFailed, ConfigError, RunError
from weft.json_types import JsonObject

MOST_BYTES = 64 << 20
"""Longest response that is read; the server is not trusted to stop."""
WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first retry, doubled each time, and the longest pause that a server's Retry-After may impose."""


REDIRECTS = (301, 302, 303, 307, 308)
"""Codes that lead to another address."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the request would take its key along, to whatever host is named."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Let the code be an error."""


OPENER = urllib.request.build_opener(_NoRedirect)
DIRECT = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
"""Goes round the proxy of the environment, which does not reach this machine's own addresses."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestRefused(ConfigError):
    """The server refuses a request, and would refuse it again."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """Status of HTTP. 400, 413 and 422 may be due to one text (too long, against its rules)."""


class Reply(NamedTuple):
    """An answer in a chat, and what it cost."""

    text: str
    prompt_tokens: int | None
    """As the server counts them; None: it does not."""
    completion_tokens: int | None
    finish: str
    """stop, length, content_filter, ..., as the server says; "" if it does not."""


class ScoredText(NamedTuple):
    """A text, and the spans of it (first character, end) whose log-probability is asked for."""

    text: str
    spans: tuple[tuple[int, int], ...]


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
        wait: float = WAIT,
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
            wait: seconds before the first repetition.
            flags: for the address and the model's name, to be named in messages.
        """
        self.url, self.model, self.key = url.rstrip("/"), model, key
        self.timeout, self.retries, self.parallel, self.wait = timeout, retries, parallel, wait
        self.flags = flags
        self._opener = DIRECT if urlsplit(self.url).hostname in LOOPBACK else OPENER
        self.stopped = threading.Event()
        """While it is set, failed requests are not repeated: whoever asked waits for none of them."""
        self._lock = threading.Lock()
        self._requests = self._repeats = 0

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
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return [score for scores in pool.map(self._score, chunks) for score in scores]

    def write(self, prompt: str, count: int, tokens: int, *, temperature: float, top_p: float, seed: int) -> list[str]:
        """Return `count` continuations of a text, of up to `tokens` tokens each; raises as `likelihoods`."""
        request = {"prompt": prompt, "n": count, "max_tokens": tokens, "temperature": temperature, "top_p": top_p}
        answer = self._post("completions", request | {"seed": seed % 2**31})
        return [str(choice.get("text", "")) for choice in answer["choices"]]

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
        text = message.get("content") if isinstance(message, dict) else None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, completion = (count if isinstance(count, int) else None for count in counts)
        finish = choice.get("finish_reason") if isinstance(choice, dict) else None
        return Reply(text if isinstance(text, str) else "", prompt, completion, str(finish or ""))

    def tally(self) -> dict[str, float]:
        """Return the number of requests, and of repeated ones, since the last call."""
        with self._lock:
            counts = {"endpoint_requests": float(self._requests), "endpoint_retries": float(self._repeats)}
            self._requests = self._repeats = 0
        return counts

    def _score(self, texts: Sequence[ScoredText]) -> list[tuple[float, int]]:
        # The one generated token begins where the text ends, so no span counts it.
        request = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        answer = self._post("completions", {"prompt": [text.text for text in texts], **request})
        choices = sorted(answer["choices"], key=lambda choice: int(choice.get("index", 0)))
        if len(choices) != len(texts):
            raise ClientFailed(f"the endpoint answered {len(choices)} of {len(texts)} texts")
        return [
            self._span_score(text, choice.get("logprobs") or {}) for text, choice in zip(texts, choices, strict=True)
        ]

    def _span_score(self, text: ScoredText, logprobs: JsonObject) -> tuple[float, int]:
        """Return the sum of the log-probabilities of the tokens that begin in a text's spans, and their number."""
        values, tokens = logprobs.get("token_logprobs"), logprobs.get("tokens") or []
        if not values or len(values) < 2:
            raise ConfigError(
                f"The endpoint {self.url} returns no log-probabilities of the texts that it is sent (echo, logprobs): "
                "use a server that does, such as vLLM's, or train the prompt of a local model, without --endpoint."
            )
        places = logprobs.get("text_offset")
        if not places:  # not every server returns offsets: count the characters of the tokens
            places, at = [], 0
            for token in tokens:
                places.append(at)
                at += len(token)
        total, count = 0.0, 0
        for place, value in zip(places, values, strict=False):
            if value is not None and any(begin <= place < end for begin, end in text.spans):
                total, count = total + float(value), count + 1
        return total, count

    def _post(self, path: str, payload: JsonObject) -> JsonObject:
        """Send a request, and repeat it while the failure may pass."""
        body = json.dumps({"model": self.model, **payload}).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        failure = ""
        for attempt in range(self.retries + 1):
            with self._lock:
                self._requests += 1
                self._repeats += attempt > 0
            pause = self.wait * 2**attempt
            try:
                request = urllib.request.Request(f"{self.url}/{path}", body, headers)
                with self._opener.open(request, timeout=self.timeout) as answer:
                    completion = json.loads(answer.read(MOST_BYTES))
                if (
                    isinstance(completion, dict)
                    and isinstance(completion.get("choices"), list)
                    and completion["choices"]
                ):
                    return completion
                failure = "did not answer with completions"
            except urllib.error.HTTPError as error:
                with error:
                    failure = self._may_pass(error)
                    pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except TimeoutError:
                failure = f"did not answer within {self.timeout:g} s"
            except (OSError, ValueError, HTTPException) as error:  # a URLError is an OSError, broken JSON a ValueError
                inner = getattr(error, "reason", error)
                failure = f"could not be reached ({type(inner).__name__})"
            if attempt < self.retries and self.stopped.wait(min(pause, LONGEST_WAIT)):
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


def _seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After, which is a number of them or a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(header)).timestamp() - time.time())
    except ValueError:
        return 0.0
