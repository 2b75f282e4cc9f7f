"""What can go wrong, in one small tree.

    WeftError
    ├── ConfigError       the user's mistake: one sentence, exit code 2
    │   ├── DataError     ... in the data: a file, a line, a column
    │   ├── RunInUse      ... another process writes to the run
    │   └── MissingExtra  ... an optional package is not installed
    ├── ClientFailed      one client could not finish a task: its update is dropped, the round goes on
    │   ├── BadUpdate     ... or it sent what no honest client sends
    │   └── LateUpdate    ... or it sent it too late, or twice
    └── RunError          a fault while running: nothing is lost, the run can be resumed, exit code 1

A message says what was given, why it cannot be, and what to write instead. What goes on all the same is said by
`warn`: of all warnings, the command line shows those alone.
"""

import warnings


class WeftWarning(UserWarning):
    """Something that the user should know, though the work goes on."""


def warn(sentence: str) -> None:
    """Warn in one sentence; `warnings` shows a sentence once for each place that it comes from."""
    warnings.warn(sentence, WeftWarning, stacklevel=3)


class WeftError(Exception):
    """The root of every error that Weft raises on purpose."""


class ConfigError(WeftError):
    """The user asked for something that cannot be; the message holds the remedy."""


class DataError(ConfigError):
    """The user's data cannot be read or used as it is."""


class RunInUse(ConfigError):
    """Another process writes to the run's directory."""


class MissingExtra(ConfigError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: run `pip install 'weft[{extra}]'`."
        )


class ClientFailed(WeftError):
    """One client could not finish its task; the message holds none of its data."""


class BadUpdate(ClientFailed):
    """What a client sent is damaged, or not what was asked for."""


class LateUpdate(ClientFailed):
    """What a client sent came when nobody waited for it any more."""


class RunError(WeftError):
    """A run stopped through no mistake of the user; what was committed is kept."""


class ServerAway(RunError):
    """The server of a federation of sites does not answer."""
