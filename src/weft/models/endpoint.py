"""A model behind an OpenAI-compatible endpoint: how likely it finds texts, and what it writes.

Likelihoods come from `POST /completions` with `echo` and `logprobs`, which vLLM and others answer; a service that keeps
the log-probabilities of the prompt to itself cannot be used.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from weft.errors import ClientFailed, ConfigError, RunError
from weft.json_types import JsonObject

MOST_BYTES = 64 << 20
"""Longest answer that is read."""
WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first retry, doubled each time; and the longest that a server may ask for."""


class Spoken(NamedTuple):
    """A text, and the stretches of it, in characters from and to, whose likelihood is asked for."""

    text: str
    asked: tuple[tuple[int, int], ...]


class Endpoint:
    """Asks one model at one place, several requests at a time; what fails for a moment is asked again."""

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
    ) -> None:
        """Ask nothing yet.

        Args:
            url: of the API, up to and with its version (`http://127.0.0.1:8000/v1`).
            model: what the server calls it.
            key: name of the environment variable with the key; no key is sent where it is empty or not set.
            timeout: seconds for one answer.
            retries: times that a failed request is sent again.
            parallel: requests under way at a time.
            wait: seconds before the first of them.
        """
        self.url, self.model, self.key = url.rstrip("/"), model, key
        self.timeout, self.retries, self.parallel, self.wait = timeout, retries, parallel, wait
        self._lock = threading.Lock()
        self._asked = self._again = 0

    def check(self) -> None:
        """Ask once, and see that likelihoods come back.

        Raises:
            ConfigError: the server refuses what it is asked, or gives no log-probabilities.
            RunError: it cannot be reached.
        """
        try:
            found = self.likelihoods([Spoken("One two three four.", ((0, 19),))])
        except ClientFailed as failure:
            raise RunError(f"{failure}; start it, then run the same command again.".capitalize()) from None
        if found[0][1] < 1:
            raise ConfigError(f"The endpoint {self.url} scores no tokens of a text: use a server of a language model.")

    def likelihoods(self, texts: Sequence[Spoken], size: int = 16) -> list[tuple[float, int]]:
        """Return for every text the sum of log-probabilities (nats) of the tokens that begin in what is asked for, and
        how many they are.

        Raises:
            ClientFailed: the server could not be asked, however often.
            ConfigError: it refuses what it is asked, or gives no log-probabilities.
        """
        chunks = [texts[at : at + size] for at in range(0, len(texts), size)]
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            return [one for found in pool.map(self._score, chunks) for one in found]

    def write(self, prompt: str, count: int, tokens: int, *, temperature: float, top_p: float, seed: int) -> list[str]:
        """Return `count` continuations of a text; raises as `likelihoods`."""
        asked = {"prompt": prompt, "n": count, "max_tokens": tokens, "temperature": temperature, "top_p": top_p}
        answer = self._post(asked | {"seed": seed % 2**31})
        return [str(choice.get("text", "")) for choice in answer["choices"]]

    def tally(self) -> dict[str, float]:
        """Return requests made, and made again, since this was last called."""
        with self._lock:
            found = {"endpoint_requests": float(self._asked), "endpoint_retries": float(self._again)}
            self._asked = self._again = 0
        return found

    def _score(self, texts: Sequence[Spoken]) -> list[tuple[float, int]]:
        prompts = [one.text for one in texts]
        answer = self._post({"prompt": prompts, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1})
        choices = sorted(answer["choices"], key=lambda choice: int(choice.get("index", 0)))
        if len(choices) != len(texts):
            raise ClientFailed(f"the endpoint {self.url} answered {len(choices)} of {len(texts)} texts")
        return [self._of(one, choice.get("logprobs") or {}) for one, choice in zip(texts, choices, strict=True)]

    def _of(self, one: Spoken, found: JsonObject) -> tuple[float, int]:
        """Return sum and number of what is asked for, of the tokens that the server names."""
        values, tokens = found.get("token_logprobs"), found.get("tokens") or []
        if not values or len(values) < 2:
            raise ConfigError(
                f"The endpoint {self.url} gives no log-probabilities of the texts that it is sent (echo, logprobs): "
                "use a server that does, such as vLLM's, or learn before a model of your own without --endpoint."
            )
        places = found.get("text_offset")
        if not places:
            places, at = [], 0
            for token in tokens:
                places.append(at)
                at += len(token)
        total, count = 0.0, 0
        for place, value in zip(places, values, strict=False):
            if value is not None and any(begin <= place < end for begin, end in one.asked):
                total, count = total + float(value), count + 1
        return total, count

    def _post(self, asked: JsonObject) -> JsonObject:
        """Send a request until it is answered."""
        body = json.dumps({"model": self.model, **asked}).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        failed = ""
        for attempt in range(self.retries + 1):
            with self._lock:
                self._asked += 1
                self._again += attempt > 0
            pause = self.wait * 2**attempt
            try:
                request = urllib.request.Request(f"{self.url}/completions", body, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    found = json.loads(answer.read(MOST_BYTES))
                if isinstance(found, dict) and isinstance(found.get("choices"), list) and found["choices"]:
                    return found
                failed = "answered something else than completions"
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in (408, 409, 425, 429) and error.code < 500:
                        raise ConfigError(
                            f"The endpoint {self.url} refuses what it is asked ({error.code} {error.reason}): check "
                            f"--endpoint, --endpoint_model ({self.model}) and the key in the variable {self.key}."
                        ) from None
                    failed = f"answered {error.code} {error.reason}"
                    pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except TimeoutError:
                failed = f"did not answer within {self.timeout:g} s"
            except (OSError, ValueError) as error:  # a URLError is an OSError, broken JSON a ValueError
                inner = getattr(error, "reason", error)
                failed = f"could not be reached ({type(inner).__name__})"
            if attempt < self.retries:
                time.sleep(min(pause, LONGEST_WAIT))
        raise ClientFailed(f"the endpoint {self.url} {failed}, {self.retries + 1} times")


def _seconds(said: str | None) -> float:
    try:
        return max(0.0, float(said or 0))
    except ValueError:
        return 0.0
