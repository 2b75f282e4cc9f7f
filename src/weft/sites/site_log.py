"""The site's log, in which no other party can write: what it sends is escaped, and is one line."""

from __future__ import annotations

import logging
from types import TracebackType

from weft.core.texts import printable

LINE = 4000
"""Most characters of a line."""
MARGIN = "  | "
"""Stands before each line of a traceback, so that none looks like an entry."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class SiteFormatter(logging.Formatter):
    """Formats entries of the site's log: names of keys and of tensors, which a server chooses, reach a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the entry as one line of printable characters."""
        return printable(super().formatMessage(record), LINE)

    def formatException(self, ei: ExcInfo) -> str:
        """Return a traceback whose lines stand behind a margin."""
        # Of a text: an exception's own text may have lines, and characters that a terminal obeys.
        return "\n".join(MARGIN + printable(line, LINE) for line in super().formatException(ei).splitlines())


def begin_log() -> None:
    """Write the log of this process to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(SiteFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
