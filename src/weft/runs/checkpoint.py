"""Checkpoints: what the server and its clients remember, bit for bit, on disk.

A checkpoint appears under its name only when it is whole and durable: a kill at any instant leaves the one before.
Tensors are kept in safetensors files, nothing is ever unpickled. Does not know what the memory of a part means.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import quote

from weft.core.digests import sha256_of
from weft.core.files import follow_umask, sync_directory, write_atomic
from weft.core.types import ServerState, Streams, Tensors
from weft.errors import RunError, warn
from weft.json_types import JsonObject
from weft.runs.layout import RunDir

CONTENTS = "contents"


def save(
    run: RunDir,
    state: ServerState,
    extra: JsonObject,
    *,
    keep: int = 2,
    keep_every: int = 0,
    keep_most: int | None = None,
    keep_also: Collection[int] = (),
) -> Path:
    """Write the checkpoint of `state.round` and return its directory; on return it is durable.

    Args:
        run: where; one process at a time may save there.
        state: what the server remembers. Tensors of any device are kept with their dtype, shape and order.
        extra: plain data that JSON holds, returned by `latest` as it is.
        keep: how many of the newest checkpoints stay, at least 1.
        keep_every: rounds that are multiples of this stay too; 0 for none.
        keep_most: how many of those stay, the newest; None for all.
        keep_also: further rounds whose checkpoints stay.
    """
    assert keep >= 1, "a run needs its newest checkpoint"
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    target = run.checkpoints / f"round_{state.round:06d}"
    # A kill while this was written leaves only the temporary folder, which no reader looks at.
    temporary = run.checkpoints / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        tensor_file = temporary / "server.safetensors"
        _write_tensors(tensor_file, state.params, state.memory)
        counts = {"round": state.round, "attempts": state.attempts, "attempt": state.attempt}
        record = counts | {"sha256": sha256_of(tensor_file), "extra": extra}
        write_atomic(temporary / "state.json", json.dumps(record, indent=1).encode())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a disk that is full, above all
        raise
    if target.exists():
        # A directory cannot be replaced in one step: the former one stays readable under another name meanwhile.
        former = target.with_suffix(".old")
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    # The rename is atomic: before it there is no checkpoint of this round, after it a whole one.
    temporary.rename(target)
    sync_directory(run.checkpoints)
    # Only now that the new run can be resumed may the one that it overwrites be deleted.
    run.settle()
    _prune(run, state.round, keep, keep_every, keep_most, keep_also)
    return target


def latest(run: RunDir, note: Callable[[str], None] = warn) -> tuple[ServerState, JsonObject] | None:
    """Return the newest whole checkpoint, tensors on the CPU, and its `extra`; None if there never was one.

    A damaged checkpoint is skipped for the one before, and `note` receives a warning.

    Raises:
        RunError: there are checkpoints and none of them can be read.
    """
    paths = _checkpoints(run)
    for path in reversed(paths):
        try:
            return _read(path)
        except _DamagedFile as error:
            note(f"The checkpoint '{path.name}' is damaged ({error}); the checkpoint before it is used.")
    if paths:
        raise RunError(f"No checkpoint in '{run.checkpoints}' can be read: begin again with --overwrite.")
    return None


def at(run: RunDir, round: int) -> ServerState:
    """Return the state of the checkpoint after `round` rounds; RunError if it is damaged, or gone."""
    paths = [path for path in _checkpoints(run) if _round_of(path) == round]
    for path in reversed(paths):
        with contextlib.suppress(_DamagedFile):
            return _read(path)[0]
    raise RunError(f"The checkpoint of round {round} in '{run.checkpoints}' cannot be read: name another by --round.")


def extra_of(run: RunDir, round: int) -> JsonObject:
    """Return the `extra` of the checkpoint after `round` rounds, unchecked; RunError if it cannot be read."""
    try:
        text = (run.checkpoints / f"round_{round:06d}" / "state.json").read_text(encoding="utf-8")
        extra: JsonObject = json.loads(text)["extra"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"The checkpoint of round {round} in '{run.checkpoints}' cannot be read ({error}).") from None
    return extra


def rewind(run: RunDir, round: int) -> None:
    """Forget what clients and server wrote after `round` rounds: it was never committed, or is to be done again."""
    for path in _checkpoints(run):
        if _round_of(path) > round:
            shutil.rmtree(path)
    for path in run.clients.glob("*/memory_*.safetensors"):
        if _round_of(path) > round:
            path.unlink()


def save_client_memory(run: RunDir, client: str, round: int, streams: Streams, *, at_site: bool = False) -> None:
    """Write what a client remembers after `round`, durably; drops what no checkpoint can ask for any more.

    What is newer than the newest checkpoint stays, since the next one may be being written, and may be of any of these
    rounds. A site, whose server has the checkpoints, keeps the last two.
    """
    directory = run.client_dir(client)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"memory_{round:06d}.safetensors"
    temporary = directory / f".{path.name}.tmp"
    try:
        _write_tensors(temporary, {}, streams)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(directory)
    memories = _memories(directory)
    # A resume from any checkpoint that is left must find the memory that was the newest one then.
    rounds = [_round_of(checkpoint) for checkpoint in _checkpoints(run)]
    needed = {_newest(memories, committed) for committed in rounds} | {*memories[-2:]}
    if not at_site:
        needed |= {memory for memory in memories if _round_of(memory) > max(rounds, default=0)}
    for former in memories:
        if former not in needed:
            former.unlink()


def drop_client_memory(run: RunDir, client: str, round: int) -> None:
    """Forget what a client wrote after `round`, if it wrote anything."""
    (run.client_dir(client) / f"memory_{round:06d}.safetensors").unlink(missing_ok=True)


def load_client_memory(run: RunDir, client: str, round: int) -> Streams:
    """Return what a client remembers after `round` rounds, tensors on the CPU: its newest memory written by then.

    Without one this is empty. What a later round wrote, which a resumed run has yet to do, is not seen.

    Raises:
        RunError: the memory is damaged.
    """
    path = _newest(_memories(run.client_dir(client)), round)
    if path is None:
        return {}
    try:
        return _read_tensors(path)[1]
    except _DamagedFile as error:
        raise RunError(
            f"The memory of client '{client}' in '{path}' is damaged ({error}): begin again with --overwrite."
        ) from error


def memory_file(directory: Path, round: int) -> Path | None:
    """Return the file with what a client remembers after `round` rounds; None: it remembers nothing."""
    return _newest(_memories(directory), round)


class _DamagedFile(Exception):
    """A file is not as it was written."""


def _read(path: Path) -> tuple[ServerState, JsonObject]:
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected, round, extra = record["sha256"], record["round"], record["extra"]
        # Checkpoints of older versions do not have these counts.
        attempts = {key: record.get(key, 0) for key in ("attempts", "attempt")}
        # safetensors checks the layout of a file, not its values: flipped bits show in the digest alone.
        if sha256_of(path / "server.safetensors") != expected:
            raise _DamagedFile("its tensors are not those that were saved")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedFile(f"{type(error).__name__}: {error}") from error
    params, memory = _read_tensors(path / "server.safetensors")
    return ServerState(params=params, memory=memory, round=round, **attempts), extra


def _params_key(name: str) -> str:
    return f"params/{name}"


def _memory_key(stream: str, name: str) -> str:
    # With the stream's own slashes encoded no two pairs make the same key.
    return f"memory/{quote(stream, safe='')}/{name}"


def _write_tensors(path: Path, params: Tensors, memory: Streams) -> None:
    from safetensors.torch import save_file

    flat = {_params_key(name): tensor for name, tensor in params.items()}
    flat |= {
        _memory_key(stream, name): tensor for stream, tensors in memory.items() for name, tensor in tensors.items()
    }
    # The file sorts its tensors and has no place for an empty stream: what there is, in order, goes with it as text.
    contents = {"params": list(params), "memory": {stream: list(tensors) for stream, tensors in memory.items()}}
    save_file(_separate_storages(flat), path, metadata={CONTENTS: json.dumps(contents)})
    follow_umask(path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _separate_storages(tensors: Tensors) -> Tensors:
    """Return the tensors on the CPU, contiguous, each with a storage of its own, as safetensors demands."""
    storages: set[int] = set()
    result: Tensors = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        storage = copy.untyped_storage()
        # A view of part of a storage is copied too: safetensors would otherwise refuse it or save the whole storage.
        if storage.data_ptr() in storages or storage.nbytes() != copy.nbytes:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        result[name] = copy
    return result


def _read_tensors(path: Path) -> tuple[Tensors, Streams]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            contents = json.loads(file.metadata()[CONTENTS])
            params = {name: file.get_tensor(_params_key(name)) for name in contents["params"]}
            memory = {
                stream: {name: file.get_tensor(_memory_key(stream, name)) for name in names}
                for stream, names in contents["memory"].items()
            }
            return params, memory
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedFile(f"{type(error).__name__}: {error}") from error


def _prune(
    run: RunDir, round: int, keep: int, keep_every: int, keep_most: int | None, keep_also: Collection[int]
) -> None:
    # A checkpoint of a later round was passed over as damaged, or belongs to what is being done again.
    committed = [path for path in _checkpoints(run) if _round_of(path) <= round and path.suffix != ".old"]
    milestones = [path for path in committed if keep_every > 0 and _round_of(path) % keep_every == 0]
    if keep_most is not None:
        milestones = milestones[max(len(milestones) - keep_most, 0) :]
    to_keep = {*committed[-keep:], *milestones, *(path for path in committed if _round_of(path) in keep_also)}
    for path in run.checkpoints.iterdir():
        if path not in to_keep and re.fullmatch(r"\.?round_\d+(\.old|\.tmp)?", path.name):
            shutil.rmtree(path)


def _checkpoints(run: RunDir) -> list[Path]:
    """Return the checkpoints, oldest first; one that was being replaced goes before what replaces it."""
    if not run.checkpoints.is_dir():
        return []
    paths = [path for path in run.checkpoints.iterdir() if re.fullmatch(r"round_\d+(\.old)?", path.name)]
    return sorted(paths, key=lambda path: (_round_of(path), path.suffix != ".old"))


def _memories(directory: Path) -> list[Path]:
    return sorted(directory.glob("memory_*.safetensors"), key=_round_of)


def _newest(paths: list[Path], round: int) -> Path | None:
    """Return the last of the sorted paths that is of `round` or before."""
    return next((path for path in reversed(paths) if _round_of(path) <= round), None)


def _round_of(path: Path) -> int:
    return int(path.name.partition(".")[0].rpartition("_")[2])
