"""What a client has bound itself to within a protocol of several messages: it is not talked into the opposite.

A client of secure aggregation answers whatever the server asks, and the answers to two questions about one round can
together open what each alone keeps closed. So the client records the first answer's subject, durably, before it gives
the answer, and refuses another one: also after its process was killed.
"""

from __future__ import annotations

import json
from pathlib import Path

from weft.core.files import write_atomic
from weft.errors import ConfigError

ROUNDS = 3
"""Rounds whose promises are kept; about older ones nothing is answered any more."""
FILE = "promises.json"


class Promises:
    """The promises of one client in one run; without a file they last as long as the object."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the file, where there is one.

        Raises:
            ConfigError: the file is damaged, so what was promised is not known.
        """
        self._file = file
        self._oldest, self._words = 0, dict[int, dict[str, str]]()
        if file is None or not file.exists():
            return
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            self._oldest = int(record["oldest"])
            self._words = {int(round): dict(words) for round, words in record["rounds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"The promises of secure aggregation in '{file}' are damaged, so what this client has answered is not "
                "known: restore the file, or begin a new run."
            ) from None

    def keep(self, round: int, purpose: str, word: str) -> bool:
        """Promise a word for a purpose in a round; return whether that or nothing else was promised before."""
        if round < self._oldest:
            return False
        words = self._words.setdefault(round, {})
        if purpose in words:
            return words[purpose] == word
        words[purpose] = word
        self._oldest = max(self._oldest, round - ROUNDS + 1)
        self._words = {kept: words for kept, words in self._words.items() if kept >= self._oldest}
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            rounds = {str(kept): words for kept, words in self._words.items()}
            write_atomic(self._file, json.dumps({"oldest": self._oldest, "rounds": rounds}).encode())
        return True

    def kept(self, round: int, purpose: str) -> str | None:
        """Return the word that was promised, or None."""
        return self._words.get(round, {}).get(purpose)


class EvaluationPromises(Promises):
    """What a client has bound itself to in evaluations, kept with its other promises and apart from them.

    An evaluation after some rounds belongs to the last of these: it makes none of them too old to be repeated.
    """

    def __init__(self, promises: Promises) -> None:
        """Take all promises of the client."""
        self._promises = promises

    def keep(self, round: int, purpose: str, word: str) -> bool:
        """Promise a word for a purpose in the evaluation after so many rounds, as `Promises.keep`."""
        return self._promises.keep(max(0, round - 1), f"evaluation {round} {purpose}", word)

    def kept(self, round: int, purpose: str) -> str | None:
        """Return the word that was promised, or None."""
        return self._promises.kept(max(0, round - 1), f"evaluation {round} {purpose}")
