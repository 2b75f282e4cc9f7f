"""A TLS listener that stands for a server: it checks certificates, and answers nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tls_listener(kit: Path, port: int, trusted: Path | None = None) -> Iterator[None]:
    """Listen with a server kit's certificate.

    Args:
        kit: the server's kit.
        port: on loopback.
        trusted: the authority whose clients are let in; None: the kit's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "startup" / "server.crt", kit / "startup" / "server.key")
    context.load_verify_locations(trusted or kit / "startup" / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    kept = []
    with socket.create_server(("127.0.0.1", port)) as listener:

        def accept() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError):  # of clients that are refused
                    kept.append(context.wrap_socket(plain, server_side=True))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()
