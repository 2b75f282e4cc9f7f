"""A server of completions for the tests, as OpenAI's: a tiny model behind HTTP, which can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.local_server import running


class Completions(ThreadingHTTPServer):
    """Scores and continues texts on a free port of this machine's own."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Answerer)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[int] = []
        """Codes that the next requests are answered by; 0: no answer in time, 1: something else than completions."""
        self.down = 0
        """The code of every request from now on, if not 0."""
        self.scores = True
        self.offsets = True
        self.one = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, text: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        import torch

        ids = self.tokenizer.encode(text, add_special_tokens=False)
        begun = torch.tensor([[self.tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            logps = self.model(begun).logits[0].float().log_softmax(-1)
        if not asked.get("echo"):
            drawn = torch.randint(3, len(self.tokenizer), (asked["n"], asked["max_tokens"]))
            return [{"text": self.tokenizer.decode(line)} for line in drawn]
        values = [float(logps[place, token]) for place, token in enumerate(ids)]
        pieces = [self.tokenizer.decode([token]) for token in ids]
        found: dict[str, Any] = {"tokens": [*pieces, "x"], "token_logprobs": [*values, -1.0]}
        if self.offsets:
            found["text_offset"] = [len(self.tokenizer.decode(ids[:place])) for place in range(len(ids) + 1)]
        return [{"text": text + "x", "logprobs": found if self.scores else None}]


class Answerer(BaseHTTPRequestHandler):
    """One request."""

    server: Completions

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.one:
            self.server.asked.append(asked)
            self.server.keys.append(self.headers.get("Authorization"))
            fault = self.server.down or (self.server.faults.pop(0) if self.server.faults else 200)
            texts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
            made = [one for text in texts for one in self.server.complete(text, asked)] if fault == 200 else []
        if fault == 0:
            time.sleep(1.0)
            return
        body = json.dumps({"choices": [one | {"index": i} for i, one in enumerate(made)][::-1]}).encode()
        self.send_response(200 if fault == 1 else fault)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if fault == 200 else b"{" * len(body))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving(folder: Path) -> AbstractContextManager[Completions]:
    """Serve a folder's model for a while."""
    return running(Completions(folder))
