"""Messages between processes of one machine, and messages that share tensors."""

from __future__ import annotations

import threading
from mmap import mmap
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest
import safetensors.torch
import torch

from weft.core.types import Probe, Task, Tensors
from weft.core.wire import Packer, body_of, pack, unpack
from weft.sites.model_process import ModelProcess
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


def test_a_packed_message_is_the_file_that_safetensors_reads_and_nobody_can_write_to_it():
    values = Tensors({"odd": torch.tensor([True]), "w": torch.randn(3, 5).bfloat16(), "none": torch.zeros(0, 2)})
    message = Task("a", 1, 1, values)
    raw = pack(message, "r")
    body = body_of(message)
    size = int.from_bytes(raw[:8], "little")
    # What joining the pieces to bytes gave.
    assert raw == b"".join([raw[: 8 + size], *body.pieces])
    assert size % 8 == 0
    read = safetensors.torch.load(bytes(raw))
    assert all(torch.equal(read[str(number)], value) for number, value in enumerate(values.values()))
    # A message is sent again after a failure, and an answer may be polled for twice.
    assert raw.readonly
    found = unpack(raw, run="r")
    assert isinstance(found, Task)
    found.params["w"].zero_()
    assert raw == pack(message, "r")


def test_an_answer_of_the_model_process_is_not_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    here, there = Pipe()
    process = ModelProcess(tmp_path / "site.yaml", tmp_path, "a")
    monkeypatch.setattr(process, "_connect", lambda: here)
    answer = pack(Task("a", 1, 1, Tensors({"w": torch.randn(LARGE)})), "r")

    def reply() -> None:
        assert receive(there) == b"question"
        send(there, answer)

    site = threading.Thread(target=reply)
    site.start()
    found = process.work(memoryview(b"question"))
    site.join()
    assert isinstance(found, memoryview)
    assert isinstance(found.obj, mmap)
    assert found.readonly
    assert found == answer


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
