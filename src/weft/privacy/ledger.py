"""A ledger of what was spent: lines of JSON that only grow, each with a hash over itself and all before it.

A line is on disk before what it pays for is released, so that a crash may count what was never seen, and never the
other way round. A file that was changed, or shortened, by hand no longer fits its hashes, or the head beside it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from weft.core.chain import BrokenChain, read_lines, to_line
from weft.core.files import sync_directory, write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject

START = hashlib.sha256(b"weft privacy ledger 1").hexdigest()


class Ledger:
    """A ledger in a file; `FILE.head` beside it holds the newest hash."""

    def __init__(self, file: Path) -> None:
        """Read the ledger, or begin an empty one.

        Raises:
            ConfigError: the file cannot be read, or was changed.
        """
        self.file, self.head = file, file.with_name(f"{file.name}.head")
        try:
            content = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise ConfigError(f"The ledger '{file}' cannot be read ({error.strerror}): make it readable.") from None
        try:
            self.entries, self.chains = read_lines(START, content)
        except BrokenChain as broken:
            raise self._changed(broken.line) from None
        saved = self.head.read_text(encoding="utf-8").strip() if self.head.exists() else START
        # A process may end between both files: the head is then one line behind.
        if saved not in (*self.chains[-2:], *([START] if len(self.chains) < 2 else [])):
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
        chain, line = to_line(self.chain, entry)
        is_new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab") as out:
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
        if is_new:
            sync_directory(self.file.parent)
        write_atomic(self.head, f"{chain}\n".encode())
        self.chains.append(chain)
        self.entries.append(entry)

    @property
    def chain(self) -> str:
        """The newest hash."""
        return self.chains[-1] if self.chains else START

    def _changed(self, line: int) -> ConfigError:
        return ConfigError(
            f"The ledger '{self.file}' was changed by hand (line {line} does not fit the others), so nobody can say "
            "what was spent: put back the file as it was, with its '.head', from a backup."
        )
