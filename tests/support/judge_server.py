"""A judge for the tests, as OpenAI's chat: its verdict is a function of what it is asked, and it can misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.local_server import running


class JudgeServer(ThreadingHTTPServer):
    """Answers chats on a free port of this machine's own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, verdict: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Answerer)
        self.verdict = verdict
        self.asked: list[dict[str, Any]] = []
        """Requests that were answered."""
        self.keys: list[str | None] = []
        self.requests = 0
        self.fails_every = 0
        """Every request of this number is answered by 429."""
        self.refused: Callable[[str], int] = lambda text: 0
        """The code by which a text is refused; 0: it is not."""
        self.retry_after = "0.01"
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        self.one = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """Say nothing: whoever asked may be gone."""


class Answerer(BaseHTTPRequestHandler):
    """One request."""

    server: JudgeServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        with self.server.one:
            self.server.requests += 1
            every = self.server.fails_every
            code = 429 if every and self.server.requests % every == 0 else self.server.refused(text) or 200
            if self.path != "/v1/chat/completions":
                code = 404
            if code == 200:
                self.server.asked.append(asked)
            self.server.keys.append(self.headers.get("Authorization"))
            said = self.server.verdict(text) if code == 200 else ""
        answer: dict[str, Any] = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        if self.server.usage is not None:
            answer["usage"] = self.server.usage
        body = json.dumps(answer).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def judging(verdict: Callable[[str], str]) -> AbstractContextManager[JudgeServer]:
    """Answer chats for a while."""
    return running(JudgeServer(verdict))
