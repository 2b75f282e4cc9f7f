"""Processes that are killed at a chosen point of what they write."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_child(work: Callable[[], None], *, kill_at: int) -> int:
    """Run something in a process that is killed at its `kill_at`-th flush or rename (0: never); return its code.

    A process that dies before a call has not made it; one that dies after it has: both are tried.
    """
    pid = os.fork()
    if pid == 0:
        calls = 0
        fsync, replace = os.fsync, os.replace

        def at(original):
            def call(*words, **names):
                nonlocal calls
                calls += 1
                if calls == kill_at:
                    os._exit(9)
                result = original(*words, **names)
                calls += 1
                if calls == kill_at:
                    os._exit(9)
                return result

            return call

        os.fsync, os.replace = at(fsync), at(replace)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
