"""How long a site waits for its line, with and without a delay: two sites over NVIDIA FLARE, each behind a slow line.

    python benchmarks/delay.py [MBITS ...]     lines of 10, 100 and 1000 Mbit/s, or of those that are named
    python benchmarks/delay.py loss            what a delay costs in loss, in one process; needs the shared data

Every byte between a site and the server passes a proxy that lets through so many bits a second each way. A site counts
the seconds that it works (`work.json`); it writes the count when a task arrives. Its idle share is what is left of the
time from one task to the next. The first rounds are left out: until the second task, nobody has begun early.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from common import machine
from runtimes import keys_of

SITES = ("a", "b")
LINES = (10, 100, 1000)
ROUNDS, SKIPPED, STEPS = 9, 2, 24
ARMS: dict[str, dict[str, Any]] = {
    "no delay": {},
    "delay": {"delay": 1},
    "delay, 2 fragments": {"delay": 1, "fragments": 2},
}
LOSSES: dict[str, dict[str, Any]] = {
    "every 40 steps": {"max_steps": 40, "num_rounds": 6},
    "every 10 steps": {"max_steps": 10, "num_rounds": 24},
    "every 40 steps, in 4 fragments": {"max_steps": 10, "num_rounds": 24, "fragments": 4},
}
"""Exchanges of the arms of `loss`, by the same 240 steps of four clients."""
PIECE = 1 << 14
"""Bytes that pass a line at once."""


class Direction:
    """One way of a line: all connections together get so many bytes a second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at, self.lock = rate, 0.0, threading.Lock()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what comes, until one end is closed."""
        try:
            while data := source.recv(PIECE):
                with self.lock:
                    self.free_at = max(time.monotonic(), self.free_at) + len(data) / self.rate
                    until = self.free_at
                time.sleep(max(0.0, until - time.monotonic()))
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Line:
    """A proxy in front of a port of this machine."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.up, self.down = Direction(1e12), Direction(1e12)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self.listen, daemon=True).start()

    def limit(self, mbits: float) -> None:
        """Let through so many Mbit/s each way from now on."""
        self.up.rate = self.down.rate = mbits * 1e6 / 8

    def listen(self) -> None:
        """Accept connections for ever."""
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:  # the server has not started yet
                near.close()
                continue
            for end in (near, far):  # what waits here has not passed the line
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PIECE)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.up.carry, args=(near, far), daemon=True).start()
            threading.Thread(target=self.down.carry, args=(far, near), daemon=True).start()


class Arrival(NamedTuple):
    """A task at a site."""

    at: float
    """Seconds of the clock."""
    worked: float
    """Seconds that the site has worked until then."""


class Watch(threading.Thread):
    """Reads a site's count whenever it is written, and keeps it as it was when tasks arrived."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self.file, self.arrivals, self.over = file, list[Arrival](), threading.Event()

    def run(self) -> None:
        """Look five hundred times a second."""
        from weft.sites.bounds import RESERVE

        last = 0
        while not self.over.wait(0.002):
            try:
                seen = self.file.stat()
                if seen.st_ino == last:
                    continue
                last = seen.st_ino
                counts = json.loads(self.file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if counts["messages"].get("Task", 0) == len(self.arrivals) + 1:
                # Written when work begins, with some seconds in advance.
                self.arrivals.append(Arrival(seen.st_mtime, counts["seconds"] - RESERVE))


def idle_of(arrivals: list[Arrival]) -> list[tuple[float, float]]:
    """Return the seconds from each task to the next, and the share of them in which the site did not work."""
    pairs = zip(arrivals[SKIPPED:], arrivals[SKIPPED + 1 :], strict=False)
    return [(b.at - a.at, 1 - (b.worked - a.worked) / (b.at - a.at)) for a, b in pairs]


def main(lines: list[float], folder: Path) -> None:
    """Run every arm over every line, and print a table."""
    from weft.config import build
    from weft.sites.local_federation import LocalFederation
    from weft.sites.watcher import watch

    run = keys_of(folder, "delay", list(SITES))
    run |= {"fed_alg": "diloco", "use_peft": False, "num_rounds": ROUNDS, "max_steps": STEPS, "batch_size": 8}
    run = {name: value for name, value in run.items() if name != "clients"} | {"runtime": "nvflare"}
    run |= {"sites": list(SITES), "silence_timeout": 120.0}
    size = sum(file.stat().st_size for file in Path(run["model_name_or_path"]).glob("*.safetensors"))
    print(f"{machine()}\n{size / 1e6:.1f} MB of parameters, {STEPS} steps a round, {ROUNDS} rounds")
    policies = {}
    for site in SITES:
        policies[site] = folder / f"{site}.yaml"
        policy = {"data": f"{site}.jsonl", "threads": 1, "accept": {"models": [run["model_name_or_path"]]}}
        policies[site].write_text(yaml.safe_dump(policy), encoding="utf-8")
    parties = LocalFederation(folder / "up", policies)
    proxies = {site: Line(parties.port) for site in SITES}
    for site, proxy in proxies.items():
        path = parties.kits / site / "startup" / "fed_client.json"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"localhost:{parties.port}", f"localhost:{proxy.port}"), encoding="utf-8")
    try:
        for name in ("server", *SITES):
            parties.start(name)
        parties.wait(set(SITES), patience=300.0)
        print("| line, Mbit/s | arm | seconds a round | idle share of a site |\n|---|---|---|---|", flush=True)
        for mbits in lines:
            for arm, own in ARMS.items():
                name = f"{arm.replace(', ', '-').replace(' ', '-')}-{mbits:g}"
                watches = [Watch(parties.kits / site / "weft" / name / "work.json") for site in SITES]
                for one in watches:
                    one.start()
                for proxy in proxies.values():
                    proxy.limit(mbits)
                given = build(run | {"fed_args": {"outer_lr": 0.6, "momentum": 0.9, **own}})
                last = watch(parties.admin, given, name, lambda _: None)
                assert last["state"] == "done", last
                for one in watches:
                    one.over.set()
                found = [pair for one in watches for pair in idle_of(one.arrivals)]
                assert len(found) == len(SITES) * (ROUNDS - SKIPPED - 1), [len(one.arrivals) for one in watches]
                seconds, shares = zip(*found, strict=True)
                middle, share = statistics.median(seconds), statistics.median(shares)
                print(f"| {mbits:g} | {arm} | {middle:.2f} | {100 * share:.0f} % |", flush=True)
    finally:
        parties.close()


def loss() -> None:
    """Train with and without a delay, and print a table of held-out losses."""
    import pretraining

    import weft
    from weft.commands.pretrain import RECIPE

    keys = RECIPE | pretraining.federated(4) | {"tokenizer": str(pretraining.tokenizer()), "fed_alg": "diloco"}
    keys |= {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "dtype": "float32", "threads": 1, "eval_every": 0}
    keys |= {"seq_length": 64, "batch_size": 4, "learning_rate": 4e-3, "eval_rows": None, "dataset_sample": None}
    ways: dict[str, dict[str, Any]] = {"no delay": {}, "delay": {"delay": 1}}
    print(f"{machine()}\n| exchange | {' | '.join(ways)} |\n|---|---|---|", flush=True)
    for name, changes in LOSSES.items():
        found = []
        for way in ways.values():
            own = {key: value for key, value in changes.items() if key == "fragments"} | way
            run = keys | {key: value for key, value in changes.items() if key != "fragments"} | {"fed_args": own}
            with tempfile.TemporaryDirectory() as out:
                found.append(weft.train(run | {"output_dir": f"{out}/run"}, quiet=True).summary["eval"]["loss"])
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:] == ["loss"]:
        loss()
        sys.exit()
    with tempfile.TemporaryDirectory() as temporary:
        main([float(word) for word in sys.argv[1:]] or list(LINES), Path(temporary))
