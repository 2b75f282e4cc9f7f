"""A ledger of what was spent: lines of JSON that only grow, each with a hash over itself and all before it.

A line is on disk before what it pays for is released, so that a crash may count what was never seen, and never the
other way round. A file that was changed, or shortened, by hand no longer fits its hashes, or the head beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from weft.core.files import sync_directory, write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject

CHAIN = "chain"
START = hashlib.sha256(b"weft privacy ledger 1").hexdigest()


class Ledger:
    """A ledger in a file; `FILE.head` beside it holds the newest hash."""

    def __init__(self, file: Path) -> None:
        """Read the ledger, or begin an empty one.

        Raises:
            ConfigError: the file cannot be read, or was changed.
        """
        self.file, self.head = file, file.with_name(f"{file.name}.head")
        self.entries: list[JsonObject] = []
        self._chain = START
        try:
            content = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise ConfigError(f"The ledger '{file}' cannot be read ({error.strerror}): make it readable.") from None
        chains = self._read(content)
        saved = self.head.read_text(encoding="utf-8").strip() if self.head.exists() else START
        # A process may end between both files: the head is then one line behind.
        if saved not in (*chains[-2:], *([START] if len(chains) < 2 else [])):
            raise self._changed(len(self.entries))
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the process ended within a line, so what it pays for was never released
            with open(file, "r+b") as out:
                out.truncate(len(whole))
                os.fsync(out.fileno())

    def append(self, entry: JsonObject) -> None:
        """Add a line; when this returns, it is on disk.

        Raises:
            OSError: it could not be written; nothing may be released.
        """
        chain = _next(self._chain, entry)
        line = json.dumps(entry | {CHAIN: chain}, sort_keys=True) + "\n"
        is_new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab") as out:
            out.write(line.encode())
            out.flush()
            os.fsync(out.fileno())
        if is_new:
            sync_directory(self.file.parent)
        write_atomic(self.head, f"{chain}\n".encode())
        self._chain = chain
        self.entries.append(entry)

    def _read(self, content: bytes) -> list[str]:
        """Take the entries of whole lines; return their hashes."""
        chains = []
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                chain = entry.pop(CHAIN)
            except (ValueError, KeyError, AttributeError, TypeError):
                raise self._changed(number) from None
            self._chain = _next(self._chain, entry)
            if chain != self._chain:
                raise self._changed(number)
            self.entries.append(entry)
            chains.append(chain)
        return chains

    def _changed(self, line: int) -> ConfigError:
        return ConfigError(
            f"The ledger '{self.file}' was changed by hand (line {line} does not fit the others), so nobody can say "
            "what was spent: put back the file as it was, with its '.head', from a backup."
        )


def _next(chain: str, entry: JsonObject) -> str:
    return hashlib.sha256(f"{chain}\n{json.dumps(entry, sort_keys=True)}".encode()).hexdigest()
