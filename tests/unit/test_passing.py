"""Messages between processes of one machine, and messages that share tensors."""

from __future__ import annotations

import threading
from mmap import mmap
from multiprocessing.connection import Pipe

import pytest
import torch

from weft.core.types import Probe, Task, Tensors
from weft.core.wire import Packer, pack, unpack
from weft.sites.pipe import LARGE, receive, send


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 3 * LARGE + 7])
def test_bytes_come_as_they_were_sent(size: int):
    here, there = Pipe()
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().tobytes()
    sender = threading.Thread(target=lambda: [send(here, raw), send(here, b"next")])
    sender.start()
    assert receive(there)[:] == raw
    assert receive(there)[:] == b"next"
    sender.join()
    here.close()
    with pytest.raises(EOFError):
        receive(there)


def test_tensors_lie_in_the_memory_that_was_handed_over_and_are_nobody_elses():
    values = Tensors({"whole": torch.randn(600, 700), "few": torch.tensor([True, False]), "last": torch.randn(3)})
    raw = pack(Task("a", 1, 1, values), "r")
    here, there = Pipe()
    sender = threading.Thread(target=lambda: [send(here, raw), send(here, raw)])
    sender.start()
    first, second = receive(there), receive(there)
    sender.join()
    assert isinstance(first, mmap)
    one, other = unpack(first, run="r"), unpack(second, run="r")
    assert isinstance(one, Task)
    assert isinstance(other, Task)
    one.params["whole"].zero_()
    assert all(torch.equal(other.params[name], value) for name, value in values.items())


def test_messages_that_share_tensors_are_packed_as_if_they_did_not():
    params, side = Tensors({"w": torch.randn(4, 5)}), Tensors({"s": torch.randn(2)})
    sent = [
        Task("a", 3, 3, params, {"x": side}),
        Task("b", 3, 3, params, {"x": side}, attempt=1),
        Task("c", 3, 3, params, {"y": side}),
        Task("d", 3, 3, Tensors({"w": torch.zeros(4, 5)}), {"x": side}),
        Probe("a", 3, params, {"x": side}, personal=False),
        Probe("b", 3, params, export=True),
    ]
    packer = Packer("r")
    for message in sent:
        assert packer.pack(message) == pack(message, "r")
    found = unpack(packer.pack(sent[-1]), run="r")
    assert isinstance(found, Probe)
    assert (found.personal, found.export) == (True, True)
