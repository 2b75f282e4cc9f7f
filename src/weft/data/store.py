"""Tokenized text on disk: written once in shards, verified, resumed, and read through memory maps.

A folder holds `manifest.json` and for each shard `N.tokens` (uint16 or uint32 ids, documents one behind the other) and
`N.docs` (int64, (documents, 3): tokens, bytes of text that the learnt tokens stand for, code of the column's value).
The manifest is written after each shard, so that a run that was killed continues with the next shard.
"""

from __future__ import annotations

import fcntl
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from weft.core.files import write_atomic
from weft.data.rows import Account, Omissions, first
from weft.data.texts import Document, TextSource
from weft.data.tokens import TextTokenizer
from weft.errors import DataError
from weft.json_types import JsonObject

SHARD = 1 << 26
"""Tokens of a shard at least, but for the last."""
BROKEN_ENCODING = "broken encoding"
CHARACTERS = 1 << 21
"""Text that is tokenized at a time."""

Report = Callable[[str, int, int, int], None]
"""Progress: called with the source, the bytes read, the bytes in all (0: unknown) and the tokens written so far."""


@dataclass(frozen=True)
class Store:
    """The tokens of one source."""

    tokens: Sequence[np.ndarray]
    """Of each shard (tokens,), mapped."""
    documents: np.ndarray
    """(documents, 3) int64: tokens, bytes, code of the value."""
    shard_of: np.ndarray
    """(shards,) the first document of each shard."""
    values: list[str] = field(default_factory=list)
    """What the codes stand for."""
    counts: dict[str, int] = field(default_factory=dict)
    """Reason -> how many documents were left out or repaired for it."""
    first: dict[str, int] = field(default_factory=dict)
    """Reason -> the line or row of the first document, where it is known."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """The columns that were `read`, and those that were `unused`."""

    def report_to(self, source: TextSource, account: Account) -> None:
        """Add to an account how many documents were read, left out and repaired."""
        read = len(self.documents)
        for reason, count in self.counts.items():
            place = source.file().place(self.first[reason]) if reason in self.first else ""
            if count and reason == BROKEN_ENCODING:
                problem = f"{count} documents hold bytes that are no UTF-8, or halves of characters; they were replaced"
                account.note(f"{problem}{first(count, place)}.")
            elif count:
                account.omissions.add(reason, place, count)
                read += count
        account.row_counts[source.name] = account.row_counts.get(source.name, 0) + read
        if self.columns:
            account.note_columns("text", self.columns["read"])
            account.unread_columns.update(dict.fromkeys(self.columns["unused"]))


def open_store(
    source: TextSource, tokenizer: TextTokenizer, folder: Path, report: Report = lambda *_: None, *, shard: int = SHARD
) -> Store:
    """Return the tokens of a source; they are written first where they are missing or damaged.

    Args:
        source: of the text.
        tokenizer: of the model.
        folder: the cache; each store has its own folder in it.
        report: called as text is tokenized.
        shard: tokens of a shard at least.

    Raises:
        DataError: the text cannot be read, or holds nothing.
    """
    store_folder = place_of(source, tokenizer, folder)
    store_folder.mkdir(parents=True, exist_ok=True)
    with open(store_folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs on the same text, one writes the tokens and the other waits
        manifest = _valid_manifest(store_folder)
        if not manifest["done"]:
            manifest = _make(source, tokenizer, store_folder, manifest, report, shard)
    if not sum(part["documents"] for part in manifest["shards"]):
        raise DataError(
            f"'{source.name}' has no row that can be used ({_reasons(source, manifest)}): check its columns."
        )
    return _load(store_folder, manifest)


def store_in_memory(texts: Sequence[str], tokenizer: TextTokenizer) -> Store:
    """Return the tokens of a few texts, without files."""
    ids = [tokens for tokens in tokenizer.encode(texts) if tokens is not None]
    sizes = [(len(tokens), tokenizer.bytes_of(text, tokens), 0) for text, tokens in zip(texts, ids, strict=True)]
    documents = np.array(sizes, dtype=np.int64).reshape(-1, 3)
    return Store([np.concatenate(ids).astype(tokenizer.dtype)], documents, np.zeros(1, dtype=np.int64))


def _reasons(source: TextSource, manifest: JsonObject) -> str:
    omissions = Omissions()
    for part in manifest["shards"]:
        for reason, count in part["counts"].items():
            if count:
                place = part.get("first", {}).get(reason)
                omissions.add(reason, source.file().place(place) if place else "", count)
    return omissions.reasons()


def place_of(source: TextSource, tokenizer: TextTokenizer, folder: Path) -> Path:
    """Return the folder of the tokens of a source."""
    return folder / f"{source.path.name[:40]}-{tokenizer.fingerprint[:12]}-{source.fingerprint()[:24]}"


def _valid_manifest(folder: Path) -> JsonObject:
    """Return the manifest with its shards up to the first damaged one."""
    try:
        manifest: JsonObject = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {"shards": [], "values": [], "done": False}
    for number, part in enumerate(manifest["shards"]):
        if not all(_is_unchanged(folder / name, record) for name, record in part["files"].items()):
            manifest |= {"shards": manifest["shards"][:number], "done": False}
            break
    return manifest


def _is_unchanged(path: Path, record: dict[str, int]) -> bool:
    """Return whether a file is as it was written; its content is read only if its time of change differs."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != record["size"]:
        return False
    return status.st_mtime_ns == record["mtime_ns"] or _checksum(path) == record["crc32"]


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def _make(
    source: TextSource,
    tokenizer: TextTokenizer,
    folder: Path,
    manifest: JsonObject,
    report: Report,
    shard: int,
) -> JsonObject:
    """Tokenize the documents after those of the manifest; return the new manifest."""
    shards, codes = list(manifest["shards"]), {value: code for code, value in enumerate(manifest["values"])}
    num_tokens = sum(part["tokens"] for part in shards)
    documents_before = shards[-1]["read"] if shards else 0
    writer = _Writer(folder, tokenizer.dtype, len(shards))

    def close(complete: bool) -> JsonObject:
        if writer.documents or any(writer.counts.values()):
            shards.append(writer.close())  # before the manifest, which names only finished shards
        current = {"shards": shards, "values": list(codes), "done": complete, "columns": source.columns}
        write_atomic(folder / "manifest.json", json.dumps(current).encode())
        return current

    try:
        for batch, ids in _batches_ahead(islice(source.documents(), documents_before, None), tokenizer):
            for document, tokens in zip(batch, ids, strict=True):
                size = 0 if tokens is None else tokenizer.bytes_of(document.text, tokens)
                writer.add(document, tokens, size, codes.setdefault(document.value, len(codes)))
            num_tokens += sum(len(tokens) for tokens in ids if tokens is not None)
            documents_before += len(batch)
            writer.read = documents_before
            report(source.name, batch[-1].bytes_read, source.size(), num_tokens)
            if writer.tokens >= shard:
                close(False)
                writer = _Writer(folder, tokenizer.dtype, len(shards))
        return close(True)
    finally:
        writer.file.close()


def _batches_ahead(
    documents: Iterator[Document], tokenizer: TextTokenizer
) -> Iterator[tuple[list[Document], list[np.ndarray | None]]]:
    """Yield documents and their ids in batches; a thread tokenizes the next batch while the caller writes one."""

    def batch() -> tuple[list[Document], list[np.ndarray | None]]:
        chunk, size = [], 0
        for document in documents:
            chunk.append(document)
            size += len(document.text or "")
            if size >= CHARACTERS:
                break
        return chunk, tokenizer.encode([document.text for document in chunk])

    # The pool has one thread and at most one pending batch: the iterator of documents is never shared.
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(batch)
        while (next_batch := pending.result())[0]:
            pending = pool.submit(batch)
            yield next_batch


class _Writer:
    """The files of one shard."""

    def __init__(self, folder: Path, dtype: np.dtype[np.generic], number: int) -> None:
        self.folder, self.dtype, self.name = folder, dtype, f"{number:06d}"
        self.documents: list[tuple[int, int, int]] = []
        self.tokens = self.read = 0
        self.counts = {"empty text": 0, BROKEN_ENCODING: 0}
        self.first: dict[str, int] = {}
        self.file = open(folder / f"{self.name}.tokens", "wb")  # noqa: SIM115

    def add(self, document: Document, tokens: np.ndarray | None, size: int, code: int) -> None:
        """Write a document."""
        if tokens is None:
            self._count(document.reason, document.place)
            return
        if document.broken:
            self._count(BROKEN_ENCODING, document.place)
        self.file.write(tokens.astype(self.dtype).tobytes())
        self.documents.append((len(tokens), size, code))
        self.tokens += len(tokens)

    def _count(self, reason: str, place: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if place:
            self.first.setdefault(reason, place)

    def close(self) -> JsonObject:
        """Finish the shard; return its part of the manifest."""
        self.file.close()
        docs = self.folder / f"{self.name}.docs"
        docs.write_bytes(np.array(self.documents, dtype=np.int64).tobytes())
        files = {}
        for path in (self.folder / f"{self.name}.tokens", docs):
            status = path.stat()
            files[path.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "crc32": _checksum(path)}
        part = {"tokens": self.tokens, "documents": len(self.documents), "read": self.read, "counts": self.counts}
        part["first"] = self.first
        return part | {"dtype": self.dtype.name, "files": files}


def _load(folder: Path, manifest: JsonObject) -> Store:
    tokens, documents, first_documents = [], [], [0]
    counts: dict[str, int] = {}
    first_places: dict[str, int] = {}
    for number, part in enumerate(manifest["shards"]):
        for reason, count in part["counts"].items():
            counts[reason] = counts.get(reason, 0) + count
        first_places = part.get("first", {}) | first_places
        if part["tokens"]:
            name = f"{number:06d}"
            tokens.append(np.memmap(folder / f"{name}.tokens", part["dtype"], "r"))
            documents.append(np.fromfile(folder / f"{name}.docs", dtype=np.int64).reshape(-1, 3))
            first_documents.append(first_documents[-1] + part["documents"])
    return Store(
        tokens,
        np.concatenate(documents),
        np.array(first_documents[:-1]),
        manifest["values"],
        counts,
        first_places,
        manifest.get("columns", {}),
    )
