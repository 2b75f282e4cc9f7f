"""The child process in which a reward runs (`python -m` this module), so that a hang or crash cannot stop training.

It reads one line of JSON with the settings and replies whether the reward could be loaded; then it reads one line for
every answer and writes its reward. Prints of a reward go to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

from weft import plugins
from weft.json_types import JsonObject
from weft.registry import REWARDS
from weft.rewards import builtin

DEATH_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG: the signal that a process gets when its parent ends."""
LOADING = 60.0
"""Seconds of computing within which a reward must load."""


def end_with_parent(parent: int | None) -> None:
    """Have the system kill this process when its parent ends, however that ends; only Linux can.

    Args:
        parent: process id of the parent; None: nothing is done. To Linux the parent is the thread that started this
            process, so that a parent that starts it in another thread than its main one gives None.
    """
    if parent is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(1)


def limit_computing(seconds: float) -> None:
    """Let the system end this process after so many more seconds of computing, should the reward switch off alarms."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def load(name: str, settings: JsonObject) -> builtin.Reward:
    """Return the reward of a name, the function of FILE.py[:FUNCTION], or that of an installed package."""
    file = plugins.parse(name)
    reward: builtin.Reward
    if name in REWARDS:
        reward = getattr(builtin, name)(settings)
    elif file is None:
        reward = plugins.installed_parts("weft.rewards")[name].load()
    else:
        path = Path(file.path)
        path.stat()  # raises the clearest error if the file is missing
        sys.path.insert(0, str(path.resolve().parent))
        module = plugins.module_of(plugins.read(file), path)
        reward = getattr(module, file.name or "reward")
        # A site agrees to the code in the file that it accepts, not to functions that the file imports.
        if file.digest and getattr(reward, "__module__", "") != module.__name__:
            raise ImportError(f"'{file.name}' is not defined in it")
    return reward


def score(reward: builtin.Reward, job: dict[str, str], error_kinds: set[str]) -> JsonObject:
    """Return the reward of one answer, or its error; the traceback of each kind of error is printed once."""
    try:
        return {"reward": float(reward(job["prompt"], job["completion"], job["answer"]))}
    except Exception as error:
        kind = type(error).__name__
        if kind not in error_kinds:
            error_kinds.add(kind)
            traceback.print_exc()
        return {"error": kind}


def main() -> None:
    """Score answers for one parent until it closes its end of the pipe."""
    # Messages use duplicated descriptors, since a reward may itself read standard input and print.
    jobs, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def send(message: JsonObject) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    settings = json.loads(jobs.readline())
    end_with_parent(settings.get("parent"))
    limit_computing(LOADING)
    try:
        reward = load(settings["name"], settings)
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    send({"ready": True})
    error_kinds: set[str] = set()
    for line in jobs:
        # The parent kills a child that hangs; where it cannot, the alarm or the limit ends the process.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["seconds"] + 1)
        limit_computing(2 * settings["seconds"] + 1)
        result = score(reward, json.loads(line), error_kinds)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(result)


if __name__ == "__main__":
    main()
