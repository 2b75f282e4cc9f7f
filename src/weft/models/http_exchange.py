"""One exchange with a server over HTTP that is not trusted: no redirects, a limit of bytes, and an end in time.

The timeout of a socket is that of a single read, so a server that sends a byte now and then is never late by it. Here a
timer shuts the sockets of an exchange down when the time is over, in whatever part of the answer it is.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.request
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TooLong(Exception):
    """An answer has more bytes than are read."""


class Flights:
    """The exchanges under way, which can all be ended."""

    def __init__(self) -> None:
        self._over = False
        self._lock = threading.Lock()
        self._flights: set[_Flight] = set()

    def add(self, flight: _Flight) -> None:
        """Watch an exchange."""
        with self._lock:
            self._flights.add(flight)
            if self._over:
                flight.end()

    def remove(self, flight: _Flight) -> None:
        """Forget an exchange that is done."""
        with self._lock:
            self._flights.discard(flight)

    def __len__(self) -> int:
        return len(self._flights)

    def end(self) -> None:
        """End all exchanges, and any that begins from now on."""
        with self._lock:
            self._over = True
            for flight in self._flights:
                flight.end()


class _Flight:
    """The sockets of one exchange, and whether its time is over."""

    def __init__(self) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def add(self, one: socket.socket) -> None:
        """Watch a socket."""
        with self._lock:
            self._sockets.append(one)
            if self.over:
                _shut(one)

    def end(self) -> None:
        """Shut everything down; whoever reads gets the end of the stream."""
        with self._lock:
            self.over = True
            for one in self._sockets:
                _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed, or another socket has taken it over
        one.shutdown(socket.SHUT_RDWR)


_own = threading.local()
"""`flight`: the exchange of the thread."""


class _Watched(http.client.HTTPConnection):
    """A connection whose sockets are watched from the moment that they are connected."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        create = self._create_connection  # type: ignore[has-type]

        def watched(*where: Any, **how: Any) -> socket.socket:
            made: socket.socket = create(*where, **how)
            _own.flight.add(made)
            return made

        self._create_connection = watched

    def connect(self) -> None:
        """Connect, and watch the socket that TLS has put around the first one."""
        super().connect()
        _own.flight.add(self.sock)


class _WatchedTLS(_Watched, http.client.HTTPSConnection):
    """The same with TLS."""


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Watched, request)


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_WatchedTLS, request, context=self._context)  # type: ignore[attr-defined]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the request would take its key along, to whatever host is named."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Let the code be an error."""


OPENER = urllib.request.build_opener(_NoRedirect, _Plain, _Secure)
DIRECT = urllib.request.build_opener(_NoRedirect, _Plain, _Secure, urllib.request.ProxyHandler({}))
"""Goes round the proxy of the environment, which does not reach this machine's own addresses."""


def fetch(request: urllib.request.Request, timeout: float, most: int, flights: Flights | None = None) -> bytes:
    """Return the body of an answer.

    Args:
        request: sent as it is.
        timeout: seconds for the whole exchange.
        most: bytes of the longest answer.
        flights: of which the exchange is one while it lasts.

    Raises:
        TimeoutError: the time is over before the answer is whole, or all flights were ended.
        TooLong: the answer is longer.
        OSError: the server cannot be reached; an HTTPError, which is one, if it answers with a code from 300.
        HTTPException: it does not speak HTTP.
    """
    opener = DIRECT if urlsplit(request.full_url).hostname in LOOPBACK else OPENER
    flight = _own.flight = _Flight()
    flights = flights if flights is not None else Flights()
    flights.add(flight)
    timer = threading.Timer(timeout, flight.end)
    timer.daemon = True
    timer.start()
    try:
        with opener.open(request, timeout=timeout) as answer:
            body: bytes = answer.read(most + 1)
    except (OSError, ValueError, http.client.HTTPException):
        if flight.over:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        flights.remove(flight)
    if len(body) > most:
        raise TooLong
    if flight.over:  # without a length, a stream that was shut down looks like a whole one
        raise TimeoutError
    return body
