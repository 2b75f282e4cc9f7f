"""What sealed sums cost a client and the server, and the bytes that travel: `python benchmarks/masks.py`.

Masks: 8 M parameters; 10 clients with one that drops out after it has shared its secrets, and 100 clients with 20
neighbours each, of whom 10 drop out. Encryption: 1 M parameters, 10 clients, one of them gone. All parties run in this
process, without training; CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from common import machine, report

from weft.core.party import Party
from weft.core.promises import Promises
from weft.core.secret import Common, Secret
from weft.core.tensors import num_bytes
from weft.core.types import Failure, Message, ProtectionRequest, Reply, Streams, Task, Update
from weft.protection.ckks import Ckks
from weft.protection.masks import Masks
from weft.protection.sealed import SealedSums

SIZE, ENCRYPTED = 8_000_000, 1_000_000


class Parties:
    """Clients in this process, and the CPU seconds and bytes of each."""

    def __init__(self, count: int, protection: SealedSums, size: int = SIZE) -> None:
        self.protection, self.size = protection, size
        self.names = [f"site_{number:03}" for number in range(count)]
        self.gone = set(self.names[:: max(10, count // 10)])
        common = Common(protection.new_key()) if protection.shares_key else Common(b"")
        secrets = {name: Secret.random() for name in self.names}
        promises = {name: Promises() for name in self.names}
        self.parties = {
            name: Party(
                name, 0, open_secret=lambda name=name: secrets[name], promises=promises[name], common=lambda _: common
            )
            for name in self.names
        }
        self.streams: Streams = {"delta": {"w": torch.randn(size) * 1e-3}}
        self.seconds = dict.fromkeys(self.names, 0.0)
        self.up, self.down = dict.fromkeys(self.names, 0), dict.fromkeys(self.names, 0)

    def answer(self, message: Message) -> Reply:
        """Answer as the client does, after its training."""
        name = message.client
        if isinstance(message, ProtectionRequest):
            self.down[name] += num_bytes(message.streams)
            reply = self.protection.answer(message, self.parties[name])
        else:
            assert isinstance(message, Task)
            self.down[name] += num_bytes(message.extra)
            reply = self.protection.seal(Update(name, 0, 0, self.streams, 1.0), message, self.parties[name])
        assert not isinstance(reply, Failure), reply
        self.up[name] += num_bytes(reply.streams)
        return reply

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Answer one after another; who is gone does not train."""
        for message in messages:
            if isinstance(message, Task) and message.client in self.gone:
                yield Failure(message.client, 0, "is gone")
                continue
            before = time.process_time()
            reply = self.answer(message)
            self.seconds[message.client] += time.process_time() - before
            yield reply

    def run(self, bounds: Streams) -> tuple[float, float, int, int]:
        """Open a sum; return the CPU seconds of the slowest client and of the server, and the bytes of a client."""
        tasks = [Task(name, 0, 0, {}) for name in self.names]
        like: Streams = {"delta": {"w": torch.zeros(self.size)}}
        before = time.process_time()
        replies = list(self.protection.collect(self.exchange, tasks, like, Party("", 0, memory=bounds)))
        server = time.process_time() - before - sum(self.seconds.values())
        (found,) = [reply for reply in replies if isinstance(reply, Update)]
        assert len(found.members) == len(self.names) - len(self.gone)
        torch.testing.assert_close(found.streams["delta"]["w"], self.streams["delta"]["w"], rtol=0, atol=2e-4)
        name = self.names[1]
        return max(self.seconds.values()), server, self.up[name], self.down[name]


def main() -> None:
    """Print the figures of both cohorts, and of numbers of few bits."""
    torch.set_num_threads(1)
    print(f"# {machine()}")
    bound = {"delta/w": torch.tensor(0.01, dtype=torch.float64)}  # as from the third round on
    announced: Streams = {"bounds": bound, "near": bound}
    for count, most in ((10, 1.0), (100, 5.0)):
        for bits in (0, 9):
            client, server, up, down = Parties(count, Masks(bits=bits)).run(announced)
            words = f"masks, 8 M parameters, {count} clients" + (f", bits={bits}" if bits else "")
            report(f"{words}: CPU of a client", client, 0.5, most=True, unit=" s")
            report(f"{words}: CPU of the server", server, most, most=True, unit=" s")
            report(f"{words}: bytes up a parameter", up / SIZE, 2.01 if bits else 4.01, most=True, unit=" B")
            print(f"  {up:,} bytes up, {down:,} down beside the task")
    parties = Parties(10, Ckks(), ENCRYPTED)
    client, server, _, _ = parties.run({})
    up, down = parties.up[parties.names[2]], parties.down[parties.names[2]]  # of one that did not open the sum
    median = sorted(parties.seconds.values())[5]
    opens = client - median
    report("ckks, 1 M parameters, 10 clients: CPU of a client that encrypts", median, 1.0, most=True, unit=" s")
    report("ckks, 1 M parameters, 10 clients: CPU of opening the sum", opens, 0.5, most=True, unit=" s")
    report("ckks, 1 M parameters, 10 clients: CPU of the server", server, 0.5, most=True, unit=" s")
    report("ckks, 1 M parameters: bytes up a parameter", up / ENCRYPTED, 32.5, most=True, unit=" B")
    print(f"  {up:,} bytes up, {down:,} down beside the task")


if __name__ == "__main__":
    main()
