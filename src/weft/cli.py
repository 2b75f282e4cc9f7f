"""The command line: finds the verb and turns errors into sentences and exit codes.

Exit codes: 0 done; 1 a failure; 2 the user's mistake, in one sentence; 130 interrupted (Ctrl-C). Nothing heavy is
imported before a verb needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from weft import registry
from weft.core.texts import printable
from weft.errors import ConfigError, WeftError, WeftWarning

HELP = {
    "sft": "fine-tune on instructions, federated",
    "pretrain": "pre-train on plain text, from scratch or from an open model, federated",
    "dpo": "align a model with preferences, federated: DPO and its family",
    "grpo": "train a model on verifiable rewards, federated",
    "prompt": "learn a prompt for a frozen model, federated",
    "emulate": "make a smaller stand-in for a model that must not be shared",
    "split": "show how rows are split over the clients, without training",
    "clean": "clean the rows of a file, and count what was found",
    "describe": "show what each client's rows are like, without training",
    "demo": "train three simulated hospitals, offline, in under three minutes",
    "evaluate": "score a run or a model on tasks",
    "attack": "change questions until a model answers wrongly, and count how many it takes",
    "audit": "ask a run what it remembers of its rows, and what it gives away",
    "tasks": "list the evaluation tasks, and where their data is",
    "sweep": "make the runs of a study, and a table, a picture and a page of them",
    "compare": "set runs side by side, in tables or on one page",
    "report": "write the page of a run again",
    "privacy": "say what a run protects, and what it has spent",
    "verify": "check that nothing in a run was changed by hand",
    "forget": "make a run anew without a client or without some rows",
    "contribution": "measure what each client added to a run",
    "chat": "talk with a trained model",
    "export": "write a run's adapter or merged model",
    "server": "set up and run the server of a federation of sites",
    "client": "set up and run a site of a federation",
    "submit": "submit a run to the server of a federation",
    "status": "show the state of the sites and the runs",
    "logs": "print the log of a run, on the server's machine",
    "stop": "stop a run of sites; its finished rounds are kept",
    "up": "start a server, its sites and a run on this machine",
    "completion": "print a completion script for bash, zsh or fish",
}


def version() -> str:
    """Return Weft's version."""
    from importlib.metadata import version as of

    return of("weft")


def overview() -> str:
    """Return what `weft --help` prints."""
    verbs = "\n".join(f"  {verb:<12} {HELP[verb]}" for verb in registry.COMMANDS)
    return (
        "weft: federated training of large language models on data that may not leave its owners\n\n"
        f"usage: weft VERB [flags]\n\n{verbs}\n\n"
        "`weft VERB --help` lists a verb's flags. Exit codes: 0 done, 1 failed, 2 your mistake, 130 interrupted."
    )


def entry() -> int:
    """Run the command line for a user; of all warnings only Weft's are printed, each as a line."""

    def show(message: Warning | str, category: type[Warning], *place: object, **where: object) -> None:
        """Print Weft's warnings only, whatever filters a library installs later."""
        if issubclass(category, WeftWarning):
            print(f"weft: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.simplefilter("default", WeftWarning)
    warnings.showwarning = show
    return main()


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; warnings stay as they are."""
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        # Here, not at exit: a closed pipe must be caught below.
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of standard output has exited, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _shown(error: Exception) -> str:
    """Return the words of an error: a name in them may be somebody else's, who must not write to the terminal."""
    return "\n".join(printable(line, len(line)) for line in str(error).split("\n"))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        print(f"weft {version()}")
        return 0
    try:
        module, _, function = registry.require(registry.COMMANDS, words[0], "verb").partition(":")
        code: int = getattr(importlib.import_module(module), function)(words[1:])
        return code
    except ConfigError as error:
        print(f"weft: {_shown(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except (WeftError, OSError) as error:
        print(f"weft: {_shown(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("weft: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(entry())
