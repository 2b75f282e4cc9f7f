"""Threads for requests to one server, and how they end: by themselves, by a failure, by one interrupt or by two."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from weft.errors import warn
from weft.models.http_exchange import Flights


class RequestThreads:
    """Sends requests in parallel.

    The interpreter waits for threads when it exits, and whoever interrupts it there sees a traceback: so all threads
    have ended before an interrupt is passed on.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.stopped = threading.Event()
        """While it is set, no request begins: whoever asked waits for no more of them."""
        self.flights = Flights()
        """The exchanges under way."""

    @contextmanager
    def open(self, keeper: str = "") -> Iterator[ThreadPoolExecutor]:
        """Yield threads, which have ended when the context ends.

        Args:
            keeper: whose replies are kept, in a message ("judge"). These are paid for: where the context fails, and
                after one interrupt, those that are on their way are waited for; a second interrupt ends them. "": they
                are not kept, and one interrupt ends them.
        """
        pool = ThreadPoolExecutor(self.parallel)
        try:
            yield pool
        except KeyboardInterrupt:
            if not keeper:
                self._land(pool, at_once=True)
            elif len(self.flights):
                warn(f"waiting for {len(self.flights)} replies of the {keeper} to keep them; Ctrl-C gives them up.")
            raise
        finally:
            if keeper:
                self._land(pool, at_once=False)
            else:
                pool.shutdown(cancel_futures=True)

    def _land(self, pool: ThreadPoolExecutor, *, at_once: bool) -> None:
        """Let no further request begin, and wait for those under way; `at_once`, or an interrupt, ends these."""
        self.stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        try:
            if at_once:
                self.flights.end()
            pool.shutdown()
        except KeyboardInterrupt:
            self.flights.end()
            pool.shutdown()
            raise
        finally:
            self.flights = Flights()
            self.stopped.clear()
