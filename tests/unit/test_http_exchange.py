"""Answers of a server that is not trusted: an end in time, whatever part drips; a form that cannot be read is told."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from weft.errors import ClientFailed, ConfigError
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint
from weft.models.http_exchange import fetch
from weft.tasks.endpoint_model import EndpointModel
from weft.tasks.requests import Text

TEXT = [ScoredText("One two", ((0, 7),))]


class Server:
    """Answers every connection by a function of its own."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.answer, self.over = answer, threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(1 << 16)
                self.answer(connection)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # closed with something unread, the answer would be lost
                    pass
            except OSError:
                pass


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def serve(answer: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.over.set()
        server.socket.close()


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "header": (OK + b"A: ", b"x"),
    "body": (OK + b"Content-Length: 60000000\r\n\r\n", b" "),
    "body without a length": (OK + b"\r\n", b" "),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "trailer": (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"A: b\r\n"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("part", DRIPS)
def test_an_answer_that_drips_ends_in_time(part: str, serving):
    begin, drop = DRIPS[part]

    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        for _ in range(400):
            connection.sendall(drop)
            time.sleep(0.05)

    endpoint = Endpoint(serving(drip).url, "m", retries=0, wait=0.01, timeout=0.4)
    began = time.monotonic()
    with pytest.raises(ClientFailed, match=r"did not answer within 0\.4 s"):
        endpoint.chat([{"role": "user", "content": "x"}], {})
    assert time.monotonic() - began < 8  # it drips for 20 s


def test_a_whole_answer_in_time_is_read_and_limited(serving):
    body = b"x" * 5000
    server = serving(lambda connection: connection.sendall(OK + b"Content-Length: 5000\r\n\r\n" + body))
    assert fetch(urllib.request.Request(server.url), 30, 1 << 20) == body
    assert fetch(urllib.request.Request(server.url), 30, 7) == body[:7]


def saying(data: object | bytes) -> Callable[[socket.socket], None]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    head = OK + f"Content-Length: {len(raw)}\r\nContent-Type: application/json\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + raw)


def logprobs(**values: object) -> dict[str, object]:
    good = {"token_logprobs": [None, -1.0, -1.0], "tokens": ["One", " two", "x"], "text_offset": [0, 3, 7]}
    return {"choices": [{"text": "", "logprobs": good | values}]}


@pytest.mark.parametrize(
    "data",
    [
        {"choices": ["text"]},
        {"choices": [{"logprobs": [1]}]},
        {"choices": [{"index": None, "logprobs": {}}]},
        {"choices": [{"index": "abc"}]},
        logprobs(token_logprobs=5),
        logprobs(token_logprobs=["a", "b", "c"]),
        logprobs(token_logprobs={"a": 1, "b": 2, "c": 3}),
        logprobs(tokens=3),
        logprobs(text_offset=7),
        logprobs(text_offset=[None, None, None]),
    ],
    ids=lambda data: json.dumps(data)[:60],
)
def test_answers_of_another_form_are_told_and_end_nothing(data: object, serving):
    endpoint = Endpoint(serving(saying(data)).url, "m", retries=0, wait=0.01)
    with pytest.raises(ClientFailed, match="answered what cannot be read"):
        endpoint.likelihoods(TEXT)


@pytest.mark.parametrize("raw", [b"[" * 200_000, b"<html>", b"\xff\xfe{}", b"9" * 5000])
def test_what_is_no_json_is_said_to_be_none(raw: bytes, serving):
    endpoint = Endpoint(serving(saying(raw)).url, "m", retries=0, wait=0.01)
    for ask in (lambda: endpoint.likelihoods(TEXT), endpoint.names, lambda: endpoint.complete("x", {})):
        with pytest.raises(ClientFailed, match="did not answer with JSON"):
            ask()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_log_probabilities_that_are_no_numbers_are_none(value: str, serving):
    raw = json.dumps(logprobs()).replace("-1.0", value).encode()
    endpoint = Endpoint(serving(saying(raw)).url, "m", retries=0, wait=0.01)
    with pytest.raises(ConfigError, match="returns no log-probabilities"):
        endpoint.likelihoods(TEXT)


def test_a_score_of_nothing_is_not_kept(serving, tmp_path):
    """A server that was set right is asked again."""
    server = serving(saying(logprobs(text_offset=[0, 90, 91])))
    model = EndpointModel(Endpoint(server.url, "m", retries=0, wait=0.01), chat=False)
    model.keep_in(tmp_path / "replies.jsonl")
    assert model.score_texts([Text("One two")])[0].tokens == 0
    server.answer = saying(logprobs())
    assert model.score_texts([Text("One two")])[0] == model.score_texts([Text("One two")])[0]
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 1
    assert model.known == 1


def test_counts_of_tokens_that_cannot_be_are_none(serving):
    for count in (-5, True, 1.5, "7", 10**4000):
        usage = {"prompt_tokens": count, "completion_tokens": 3}
        raw = {"choices": [{"text": "a", "finish_reason": {"a": "x" * 9999}}], "usage": usage}
        # JSON of 4,000 digits is written by hand: Python refuses to.
        data = json.dumps(raw | {"usage": 0}).replace('"usage": 0', f'"usage": {{"prompt_tokens": {big(count)}}}')
        endpoint = Endpoint(serving(saying(data.encode())).url, "m", retries=0, wait=0.01)
        reply = endpoint.complete("x", {})
        assert reply.prompt_tokens is None
        assert len(reply.finish) <= 50
        assert endpoint.tokens() == (0, 0)


def big(count: object) -> str:
    return "1" + "0" * 4000 if isinstance(count, int) and count > 10**12 else json.dumps(count)


@pytest.mark.parametrize("header", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "inf", "nan", "x", "-5"])
def test_a_retry_after_that_is_no_time_is_none(header: str, serving):
    answer = f"HTTP/1.1 503 Busy\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n".encode()
    endpoint = Endpoint(serving(lambda connection: connection.sendall(answer)).url, "m", retries=0, wait=0.01)
    with pytest.raises(ClientFailed, match="answered 503"):
        endpoint.names()
