"""The process in which rewards are computed, so that one that hangs or breaks harms nothing: `python -m` this module.

It reads a line of JSON with the settings, answers whether they can be used, then reads a line for every answer to be
scored and writes its reward. What a reward prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from weft import plugins
from weft.json_types import JsonObject
from weft.registry import REWARDS
from weft.rewards import builtin


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
        path.stat()  # its own error says best that it is not there
        sys.path.insert(0, str(path.resolve().parent))
        module = plugins.module_of(plugins.read(file), path)
        reward = getattr(module, file.name or "reward")
        # A site that accepts a file agrees to what is written in it, not to whatever it imports.
        if file.digest and getattr(reward, "__module__", "") != module.__name__:
            raise ImportError(f"'{file.name}' is not defined in it")
    return reward


def score(reward: builtin.Reward, job: dict[str, str], error_kinds: set[str]) -> JsonObject:
    """Return the reward of one answer, or what went wrong; each kind of error is shown once."""
    try:
        return {"reward": float(reward(job["prompt"], job["completion"], job["answer"]))}
    except Exception as error:
        kind = type(error).__name__
        if kind not in error_kinds:
            error_kinds.add(kind)
            traceback.print_exc()
        return {"error": kind}


def main() -> None:
    """Serve one parent until its end of the pipe closes."""
    # What rewards read and print must not meet the messages: these get descriptors of their own.
    jobs, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def send(message: JsonObject) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    settings = json.loads(jobs.readline())
    try:
        reward = load(settings["name"], settings)
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    send({"ready": True})
    error_kinds: set[str] = set()
    for line in jobs:
        # Whoever started this may be gone by the time that a reward hangs: the alarm ends the process then.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["seconds"] + 1)
        result = score(reward, json.loads(line), error_kinds)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(result)


if __name__ == "__main__":
    main()
