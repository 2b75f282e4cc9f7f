"""A tiny model behind HTTP, as OpenAI's API has it: greedy texts, chat, log-probabilities of texts, and failures."""

from __future__ import annotations

import json
import threading
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.local_server import running


class ModelServer(ThreadingHTTPServer):
    """Answers on a free port of this machine's own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Answerer)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.begin = self.tokenizer.encode("")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Path and content of the requests that were answered."""
        self.keys: list[str | None] = []
        self.requests = self.ends_after = self.fails_every = 0
        """`ends_after` so many answers it is down; every request of number `fails_every` is answered by 429."""
        self.chats = self.completes = self.scores = True
        self.models = ["tiny"]
        self.longest = 0
        """Characters of the longest text that is taken; 0: any."""
        self.one = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def written(self, text: str, asked: dict[str, Any]) -> dict[str, Any]:
        import torch

        ids = [*self.begin, *self.tokenizer.encode(text, add_special_tokens=False)]
        begin, finish = len(ids), "length"
        while len(ids) - begin < asked["max_tokens"]:
            with torch.no_grad():
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
            said = self.tokenizer.decode(ids[begin:], skip_special_tokens=True)
            if ids[-1] == self.tokenizer.eos_token_id or any(stop in said for stop in asked.get("stop", ())):
                finish = "stop"
                break
        said = self.tokenizer.decode(ids[begin:], skip_special_tokens=True)
        for stop in asked.get("stop", ()):
            said = said.partition(stop)[0]
        return {"text": said, "finish_reason": finish}

    def scored(self, text: str) -> dict[str, Any]:
        import torch

        ids = self.tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            logps = self.model(torch.tensor([[*self.begin, *ids]])).logits[0].log_softmax(-1)
        # As vLLM has it: the first token of all has no value, and the letters of a token that begins texts are counted.
        names = [self.tokenizer.decode([one]) for one in self.begin]
        shift = sum(map(len, names))
        places = [shift + len(self.tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
        begun = [*self.begin, *ids]
        values = [None, *(float(logps[place, one]) for place, one in enumerate(begun[1:]))]
        found = {
            "tokens": [*names, *(self.tokenizer.decode([one]) for one in ids), "x"],
            "token_logprobs": [*values, -1.0],
            "text_offset": [*(0 for _ in names), *places],
        }
        return {"text": text + "x", "logprobs": found if self.scores else None}


class Answerer(BaseHTTPRequestHandler):
    """One request."""

    server: ModelServer

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path, server = self.path.removeprefix("/v1/"), self.server
        with server.one:
            server.requests += 1
            server.keys.append(self.headers.get("Authorization"))
            code, choices = 200, []
            if server.ends_after and len(server.asked) >= server.ends_after:
                code = 503
            elif server.fails_every and server.requests % server.fails_every == 0:
                code = 429
            elif path == "chat/completions" and server.chats:
                text = "\n".join(one["content"] for one in asked["messages"])
                made = server.written(text, asked)
                choices = [{"message": {"content": made["text"]}, "finish_reason": made["finish_reason"]}]
            elif path == "completions" and server.completes:
                texts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
                if server.longest and max(map(len, texts)) > server.longest:
                    code = 400
                else:
                    choices = [
                        server.scored(text) if asked.get("echo") else server.written(text, asked) for text in texts
                    ]
            else:
                code = 404
            if code == 200:
                server.asked.append((path, asked))
        listed = [choice | {"index": place} for place, choice in enumerate(choices)][::-1]
        self.answer(code, {"choices": listed, "usage": {"prompt_tokens": 10, "completion_tokens": 2}})

    def answer(self, code: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serving_model(folder: Path) -> AbstractContextManager[ModelServer]:
    """Serve a folder's model for a while."""
    return running(ModelServer(folder))
