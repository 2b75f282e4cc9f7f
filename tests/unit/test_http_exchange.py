"""Answers of a server that is not trusted: an end in time, whatever part drips; a form that cannot be read is told."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from weft.errors import ClientFailed, ConfigError, WeftWarning
from weft.models.completions import ScoredText, most_bytes
from weft.models.endpoint import Endpoint
from weft.models.http_exchange import TooLong, fetch
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
    assert fetch(urllib.request.Request(server.url), 30, len(body)) == body
    with pytest.raises(TooLong):
        fetch(urllib.request.Request(server.url), 30, len(body) - 1)


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
    assert model.known == 0
    later = EndpointModel(model.endpoint, chat=False)
    later.keep_in(tmp_path / "replies.jsonl")
    assert later.score_texts([Text("One two")])[0].tokens
    assert later.known == 1


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


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def test_an_answer_without_end_is_read_as_far_as_its_request_is_worth(serving):
    """Of 64 MiB, which were read before, JSON makes 1.5 GB of objects, for each request in flight."""
    sent = []

    def floods(connection: socket.socket) -> None:
        connection.sendall(HEAD + b'{"choices": [')
        sent.append(0)
        while sent[-1] < 256 << 20:
            connection.sendall(b"{}," * (1 << 16))
            sent[-1] += 3 << 16

    server = serving(floods)
    asked = Endpoint(server.url, "m", timeout=60.0, retries=3, wait=0.01)
    with pytest.raises(ClientFailed, match=r"answered more than 4 MiB to one request$"):
        asked.chat([{"role": "user", "content": "Hello"}], {"max_tokens": 16})
    assert len(sent) == 1  # nothing of it is asked for again
    assert sent[0] < 16 << 20
    with pytest.raises(ClientFailed, match="more than 4 MiB"):
        asked.names()


@pytest.mark.parametrize(
    ("request_", "size", "least", "most"),
    [
        ({"max_tokens": 1, "echo": True}, 200_000, 40 << 20, 64 << 20),
        ({"max_tokens": 512, "n": 8}, 100, 6 << 20, 10 << 20),
        ({"max_completion_tokens": 4096}, 100, 6 << 20, 10 << 20),
        ({}, 100, 16 << 20, 24 << 20),
        ({"max_tokens": 1 << 40}, 100, 64 << 20, 64 << 20),
    ],
)
def test_longest_answers_follow_from_what_is_asked(request_: dict[str, object], size: int, least: int, most: int):
    assert least <= most_bytes(request_, size) <= most


SLOW = """
import sys
from weft.cli import entry
from weft.models.endpoint import Endpoint

def ask():
    endpoint = Endpoint(sys.argv[1], "m", timeout=60.0)
    if sys.argv[2] == "kept":
        with endpoint.pool("endpoint", "answered") as pool:
            jobs = [pool.submit(endpoint.chat, [], {}) for _ in range(9)]
            [job.result() for job in jobs]
    else:
        from weft.models.completions import ScoredText, most_bytes
        endpoint.likelihoods([ScoredText("a b", ((0, 3),))] * 99, 1)

import weft.cli
weft.cli._run = (lambda run: lambda words: run(["ask"]))(weft.cli._run)
import weft.registry
sys.modules["asking"] = type(sys)("asking")
sys.modules["asking"].ask = lambda words: ask()
weft.registry.COMMANDS["ask"] = "asking:ask"
sys.exit(entry())
"""


@pytest.mark.parametrize(("kind", "interrupts"), [("kept", 2), ("not kept", 1)])
def test_an_interrupt_of_requests_in_flight_ends_without_a_traceback(kind: str, interrupts: int, serving):
    begun = threading.Semaphore(0)

    def sleeps(connection: socket.socket) -> None:
        begun.release()
        while connection.recv(1 << 16):  # the rest of the request, which may come by itself; then until the end
            pass

    server = serving(sleeps)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, server.url, kind], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for _ in range(4):
            assert begun.acquire(timeout=60)
        for _ in range(interrupts):
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, said = process.communicate(timeout=50)
    finally:
        process.kill()
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    waits = "weft: waiting for 4 replies of the endpoint to keep them; Ctrl-C gives them up.\n"
    assert said == (waits if kind == "kept" else "") + "weft: interrupted.\n"


def test_replies_on_their_way_are_waited_for_after_one_interrupt(serving):
    """A further turn of the conversations that are under way is not begun."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def answers(connection: socket.socket) -> None:
        begun.release()
        go.wait(30)
        connection.sendall(HEAD + b'{"choices": [{"message": {"content": "yes"}}]}')

    server = serving(answers)
    endpoint, replies = Endpoint(server.url, "m", timeout=60.0, parallel=2), []

    def talk() -> None:
        for _ in range(2):
            replies.append(endpoint.chat([], {}).text)

    def interrupted() -> None:
        with endpoint.pool("endpoint", "answered") as pool:
            for _ in range(9):
                pool.submit(talk)
            assert begun.acquire(timeout=30)
            assert begun.acquire(timeout=30)
            threading.Timer(0.3, go.set).start()
            raise KeyboardInterrupt

    with pytest.warns(WeftWarning, match="waiting for 2 replies"), pytest.raises(KeyboardInterrupt):
        interrupted()
    assert replies == ["yes", "yes"]
    assert endpoint.chat([], {}).text == "yes"  # the next one who asks is answered
