"""The judgements that were paid for: a file of JSON lines, one for each, by a digest of what was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.core.files import drop_unfinished_line, whole_lines
from weft.errors import ConfigError, RunError
from weft.json_types import JsonObject
from weft.models.endpoint import Reply


def digest(model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]) -> str:
    """Return the name of a question: SHA-256 of all that its answer depends on."""
    words = json.dumps([model, [dict(one) for one in messages], dict(parameters)], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


class Judgements:
    """Replies of a judge by digest; each is on disk before the next is asked for, so that none is paid for twice."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that a kill cut off is dropped.

        Raises:
            ConfigError: the file cannot be read, or is none of judgements.
        """
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for line in whole_lines(path):
                one = json.loads(line)
                tokens = (one["prompt_tokens"], one["completion_tokens"])
                self._known[one["key"]] = Reply(one["reply"], *tokens, one["finish"])
            drop_unfinished_line(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{path}' cannot be read as judgements ({type(error).__name__}): move it away, and they are asked for "
                "anew."
            ) from None

    def get(self, key: str) -> Reply | None:
        """Return a reply; None: it is not known."""
        return self._known.get(key)

    def put(self, key: str, item: str, reply: Reply) -> None:
        """Keep a reply.

        Args:
            key: from `digest`.
            item: what was judged, for whoever reads the file.
            reply: of the judge, whether it can be parsed or not.

        Raises:
            RunError: it cannot be written.
        """
        line: JsonObject = {"key": key, "item": item, "reply": reply.text, "finish": reply.finish}
        line |= {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        with self._lock:
            try:
                with open(self.path, "ab") as file:
                    file.write(json.dumps(line).encode() + b"\n")
            except OSError as error:
                raise RunError(
                    f"A judgement cannot be written to '{self.path}' ({error.strerror}): make room, then run the same "
                    "command again; the earlier ones are kept."
                ) from None
            self._known[key] = reply
