"""The base model that the runs of a study share: read from disk once, and untouched for every run.

Its weights lie in a file in memory that has no name. Each run gets them in a private mapping of that file: what nobody
writes to is the same memory for all, and a page that a run writes to becomes that run's own (copy on write, mmap(2)).
So no run can train into another's base, and frozen weights take no further memory.
"""

from __future__ import annotations

import copy
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weft.core.host_memory import free_memory
from weft.core.model_types import CausalModel
from weft.models.checkpoint import find_checkpoint, load_weights, missing_seed
from weft.models.notes import Note, ignore_note

ALIGNMENT = 64
"""Bytes. Tensors begin at multiples of it as torch's own do: kernels are chosen by it, and so are the last bits."""


class _Place(NamedTuple):
    tensor: Tensor
    """Of the kept model."""
    offset: int
    device: torch.device
    """Where a run has it."""


@dataclass
class _Kept:
    """A model whose tensors lie in a file in memory."""

    key: object
    model: CausalModel
    places: list[_Place]
    file: int
    size: int
    notes: list[str]

    def copy(self) -> CausalModel:
        """Return the model for one run."""
        private = mmap.mmap(self.file, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return _with_tensors(self.model, ((old, _at(private, at, old).to(device)) for old, at, device in self.places))


@dataclass
class _Shelf:
    """Room for one base."""

    kept: _Kept | None = None

    def clear(self) -> None:
        if self.kept is not None:
            os.close(self.kept.file)
            self.kept = None


_shelf: ContextVar[_Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def base_is_shared() -> Iterator[None]:
    """Keep the newest model of `shared_base` until the end of the block."""
    shelf = _Shelf()
    token = _shelf.set(shelf)
    try:
        yield
    finally:
        _shelf.reset(token)
        shelf.clear()


def shared_base(
    source: str,
    *,
    seed: int = 0,
    token: bool = False,
    trust_remote_code: bool = False,
    note: Note = ignore_note,
    load: Callable[..., CausalModel] = load_weights,
    **settings: Any,
) -> CausalModel:
    """Return what `load_weights` returns for these arguments, without reading the files again where that was done.

    They are read again where they or the arguments differ, for a base that is quantised, offloaded, partly drawn at
    random, or comes with its own code, and where the host's memory would not hold two of them. The state of torch's
    generator is that after loading.

    Args:
        source: a folder, or a hub name.
        seed: of missing weights; it does not matter where there are none.
        token: use the stored token of the hub.
        trust_remote_code: run code that comes with the model.
        note: called with a sentence about each peculiarity of the checkpoint.
        load: reads the files.
        settings: the further arguments of `load_weights`.

    Raises:
        ConfigError: as `load_weights`.
    """
    fixed = {"token": token, "trust_remote_code": trust_remote_code, **settings}
    shelf = _shelf.get()
    if shelf is None or trust_remote_code or settings.keys() - {"allow_missing", "dtype", "device_map"}:
        return load(source, seed=seed, note=note, **fixed)
    key = (source, fixed, _files(source, token=token))
    if shelf.kept is not None and shelf.kept.key == key:
        for sentence in shelf.kept.notes:
            note(sentence)
        torch.manual_seed(missing_seed(seed))
        return shelf.kept.copy()
    shelf.clear()  # before the next is read: there are never two
    notes: list[str] = []

    def heard(sentence: str) -> None:
        notes.append(sentence)
        note(sentence)

    model = load(source, seed=seed, note=heard, **fixed)
    if not _can_be_shared(model, seed):
        return model
    shelf.kept = _keep(key, model, notes)
    return shelf.kept.copy()


def _files(source: str, *, token: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Return what changes when somebody writes to a file of a model, or the hub has a newer commit of it."""
    weights = find_checkpoint(source, token).files
    files = {*weights, *(path for path in weights[0].parent.iterdir() if path.is_file())}
    return sorted((str(path), _identity(path)) for path in files)


def _identity(path: Path) -> tuple[int, ...]:
    # The time of the inode too: whoever copies a file may keep the time of its content.
    state = path.stat()
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _can_be_shared(model: CausalModel, seed: int) -> bool:
    """Say whether copies of a model that was just loaded would be what loading it again gives."""
    tensors = _tensors(model)
    # A quantised weight is more than its numbers.
    plain = all(type(one) in (nn.Parameter, Tensor) and one.is_contiguous() for one in tensors)
    plain &= getattr(model.config, "quantization_config", None) is None
    apart = len({one.untyped_storage().data_ptr() for one in tensors}) == len(tensors)
    seeded = torch.Generator().manual_seed(missing_seed(seed)).get_state()
    drawn = not torch.equal(torch.get_rng_state(), seeded)
    free = free_memory()
    fits = free is None or 2 * _layout(tensors)[1] < free
    return plain and apart and not drawn and fits and hasattr(os, "memfd_create")


def _tensors(model: CausalModel) -> list[Tensor]:
    """Return the parameters and buffers of a model, each once, but for empty ones."""
    found = {id(one): one for one in [*model.parameters(), *model.buffers()]}
    return [one for one in found.values() if one.numel()]


def _layout(tensors: list[Tensor]) -> tuple[list[int], int]:
    """Return where each tensor begins in a file of all of them, and the size of that file, in bytes."""
    offsets, end = [], 0
    for one in tensors:
        offsets.append(end)
        end += -(-one.numel() * one.element_size() // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _keep(key: object, model: CausalModel, notes: list[str]) -> _Kept:
    """Move a model into a file in memory; `model` itself is of no use then."""
    tensors, devices = _tensors(model), [one.device for one in _tensors(model)]
    offsets, size = _layout(tensors)
    file = os.memfd_create("weft base")
    os.ftruncate(file, size)
    shared = mmap.mmap(file, size)
    values = []
    for one, offset in zip(tensors, offsets, strict=True):
        values.append(_at(shared, offset, one))
        values[-1].copy_(one.detach())
        one.data = one.data.new_empty(0)  # at once, so that there are never two of the whole model
    kept = _with_tensors(model, zip(tensors, values, strict=True))
    places = [_Place(*place) for place in zip(_tensors(kept), offsets, devices, strict=True)]
    return _Kept(key, kept, places, file, size, notes)


def _at(memory: mmap.mmap, offset: int, like: Tensor) -> Tensor:
    """Return the tensor that lies at a place in memory."""
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=offset).view(like.shape)


def _with_tensors(model: CausalModel, values: Iterable[tuple[Tensor, Tensor]]) -> CausalModel:
    """Return a copy of a model, its configuration included, with other tensors in the place of its own."""
    memo: dict[int, Any] = {}
    for old, value in values:
        is_parameter = isinstance(old, nn.Parameter)
        new = nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value
        new.__dict__.update(old.__dict__)  # transformers notes there what it has initialised
        memo[id(old)] = new
    return copy.deepcopy(model, memo)
