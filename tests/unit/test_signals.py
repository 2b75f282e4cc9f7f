"""Signals that ask a process to end."""

from __future__ import annotations

import os
import signal

import pytest

from weft.sites.signals import ENDING, as_interrupts, held_back


@pytest.mark.parametrize("number", ENDING)
def test_every_signal_that_asks_for_an_end_is_an_interrupt_once(number: signal.Signals):
    """Whoever is interrupted ends what it started, and a second signal does not interrupt that."""
    before, ended = [signal.getsignal(number) for number in ENDING], []

    def interrupted() -> None:
        with as_interrupts():
            try:
                os.kill(os.getpid(), number)
            finally:
                with held_back():
                    os.kill(os.getpid(), number)
                    ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == [number]
    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_signal_that_is_ignored_stays_so_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
