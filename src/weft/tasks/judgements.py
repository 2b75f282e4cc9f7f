"""The judgements that were paid for, by a digest of what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.json_types import JsonObject
from weft.models.completions import Reply
from weft.tasks.kept import Kept, digest_of_question

FIELDS = ("reply", "prompt_tokens", "completion_tokens", "finish")


def digest(model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]) -> str:
    """Return the name of a question to a judge."""
    return digest_of_question(model, [dict(one) for one in messages], dict(parameters))


class Judgements:
    """Replies of a judge by digest, in a file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises as `Kept`."""
        self._kept = Kept(path, "judgements", FIELDS)

    def get(self, key: str) -> Reply | None:
        """Return a reply; None: it is not known."""
        line = self._kept.get(key)
        if line is None:
            return None
        return Reply(line["reply"], line["prompt_tokens"], line["completion_tokens"], line["finish"])

    def is_former(self, key: str) -> bool:
        """Whether a question was answered before the file was opened."""
        return self._kept.is_former(key)

    def put(self, key: str, item: str, reply: Reply) -> None:
        """Keep a reply.

        Args:
            key: from `digest`.
            item: what was judged, for whoever reads the file.
            reply: of the judge, whether it can be parsed or not.

        Raises:
            RunError: it cannot be written.
        """
        line: JsonObject = {"item": item, "reply": reply.text, "finish": reply.finish}
        self._kept.put(key, line | {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens})
