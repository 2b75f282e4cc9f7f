"""What an endpoint answered, and was paid for: a file of JSON lines, each by a digest of what was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from weft.core.files import drop_unfinished_line, whole_lines
from weft.errors import ConfigError, RunError
from weft.json_types import JsonObject


def digest_of_question(*parts: object) -> str:
    """Return the name of a question: SHA-256 of all that its answer depends on, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Kept:
    """Answers by digest; each is on disk before the next is asked for, so that none is paid for twice."""

    def __init__(self, path: Path, kind: str, fields: Sequence[str]) -> None:
        """Read what is there; a last line that a kill cut off is dropped.

        Args:
            path: of the file.
            kind: what its lines are, in messages: "judgements", "replies".
            fields: that every line has.

        Raises:
            ConfigError: the file cannot be read, or is none of these.
        """
        self.path, self.kind = path, kind
        self._lock = threading.Lock()
        self._known: dict[str, JsonObject] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for line in whole_lines(path):
                one = json.loads(line)
                self._known[one["key"]] = {name: one[name] for name in fields}
            drop_unfinished_line(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{path}' cannot be read as {kind} ({type(error).__name__}): move it away, and they are asked for "
                "anew."
            ) from None
        self._former = frozenset(self._known)

    def is_former(self, key: str) -> bool:
        """Whether a question was answered before this file was opened."""
        return key in self._former

    def get(self, key: str) -> JsonObject | None:
        """Return the line of a question; None: it is not known."""
        return self._known.get(key)

    def put(self, key: str, line: JsonObject) -> None:
        """Keep an answer.

        Raises:
            RunError: it cannot be written.
        """
        with self._lock:
            try:
                with open(self.path, "ab") as file:
                    file.write(json.dumps({"key": key} | line).encode() + b"\n")
            except OSError as error:
                raise RunError(
                    f"One of the {self.kind} cannot be written to '{self.path}' ({error.strerror}): make room, then "
                    "run the same command again; the earlier ones are kept."
                ) from None
            self._known[key] = line
