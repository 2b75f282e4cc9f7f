"""What a command says of a run whose files hold what Weft does not write: one sentence, in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weft.core.texts import printable
from weft.errors import ConfigError, DataError
from weft.runs.layout import RunDir

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""What comes of a value that is of another kind than the one that Weft writes at its place."""
WORDS = 200
"""Most letters of an error that are shown."""


@contextmanager
def as_written(runs: Sequence[str | Path]) -> Iterator[None]:
    """Turn what comes of damaged files into one DataError, with the runs whose files were changed since.

    Files of a run come from other machines and other people. No reader of theirs checks every value: there are
    hundreds, and what an old run has not is left out.

    Args:
        runs: directories that are read.

    Raises:
        DataError: a file holds a value of another kind than Weft writes there.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {printable(str(error), WORDS)}"
        found = [(run, why) for run in runs if (why := _change(run))]
        if not found:
            names = " or ".join(f"'{run}'" for run in runs)
            raise DataError(
                f"A file in {names} holds what Weft does not write ({reason}), although its record is intact: make the "
                "run anew, or report this as a fault of Weft."
            ) from error
        run, why = found[0]
        raise DataError(
            f"A file in '{run}' holds what Weft does not write ({reason}): restore it, or make the run anew; `weft "
            f"verify` says: {why}"
        ) from error


def _change(run: str | Path) -> str:
    """Return a sentence about what was changed in a run since it was written; "": nothing was that its record shows."""
    from weft.launch.verify import verify

    try:
        findings = verify(RunDir(run)).findings
    except ConfigError as error:
        return str(error)
    except UNREADABLE:
        return "its record cannot be read."
    return findings[0].sentence() if findings else ""
