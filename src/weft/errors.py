"""The errors of Weft.

    WeftError
    ├── ConfigError       a mistake of the user: one sentence, exit code 2
    │   ├── DataError     ... in the data: a file, a line, a column
    │   ├── RunInUse      ... another process writes to the run
    │   └── MissingExtra  ... an optional package is not installed
    ├── ClientFailed      one client could not finish a task: its update is dropped, the round goes on
    │   ├── BadUpdate     ... or its reply is invalid
    │   ├── LateUpdate    ... or its reply came too late, or twice
    │   ├── SumOpened     ... or it has opened a sum of the round, and joins no other
    │   └── LeftRun       ... or it takes part no more
    └── RunError          a fault while running: nothing is lost, the run can be resumed, exit code 1

A message says what was given, why it cannot be, and what to write instead. If the work goes on, `warn` is used: the
command line prints only warnings of this class.
"""

import warnings


class WeftWarning(UserWarning):
    """Something that the user should know, though the work goes on."""


def warn(sentence: str) -> None:
    """Warn in one sentence; `warnings` prints it once per calling line."""
    warnings.warn(sentence, WeftWarning, stacklevel=3)


class WeftError(Exception):
    """The root of every error that Weft raises on purpose."""


class ConfigError(WeftError):
    """The configuration is invalid; the message holds the remedy."""


class DataError(ConfigError):
    """The user's data cannot be read or used."""


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
    """A client's reply is damaged, or does not answer the request."""


class LateUpdate(ClientFailed):
    """A client's reply arrived after its request was closed."""


class SumOpened(ClientFailed):
    """A client has opened a sum of the round, and joins no other."""

    def __init__(self) -> None:
        super().__init__(
            "has opened a sum of this round, and a second one over other members would show the difference"
        )


class LeftRun(ClientFailed):
    """A client leaves the run: the shared model failed a test of its own."""


class RunError(WeftError):
    """A run stopped without a mistake of the user; its committed rounds are kept."""

    def __init__(self, fault: str, remedy: str = "") -> None:
        """Say what happened; with `remedy`, what to do with the run itself stands behind a colon."""
        super().__init__(f"{fault}: {remedy}." if remedy else fault)
        self.fault = f"{fault}." if remedy else fault
        """The message without the remedy, for whoever has another one: a study goes on by its own command."""


class BudgetSpent(RunError):
    """A budget of differential privacy allows no further round."""


class ServerAway(RunError):
    """The server of a federation of sites does not answer."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped from the keyboard or a notebook; its committed rounds are kept."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in place of a traceback."""
        return [f"weft: {self}"]
