"""Lines and chunks of text files, compressed or plain.

A file that is broken, truncated or forbidden raises a DataError of one sentence.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from weft.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_Frames(open(path, "rb")), 1 << 20)
    return open(path, "rb")


class _Frame(Protocol):
    """A zstd frame that is decompressed piece by piece."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Frames(io.RawIOBase):
    """The content of zstd frames; unlike the library's own reader, it reports a truncated file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.content = file, b""
        self.frame: _Frame | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        import zstandard

        while not self.content:
            # A file may hold several frames; bytes after the end of one belong to the next.
            compressed = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            compressed = compressed or self.file.read(1 << 17)
            if not compressed:
                if self.frame is not None and not self.frame.eof:
                    raise zstandard.ZstdError("the last frame is not whole")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.content = self.frame.decompress(compressed)
        view = memoryview(buffer).cast("B")
        chunk = self.content[: len(view)]
        view[: len(chunk)] = chunk
        self.content = self.content[len(chunk) :]
        return len(chunk)

    def close(self) -> None:
        self.file.close()
        super().close()


class NumberedLine(NamedTuple):
    """A numbered line of a text file."""

    number: int
    text: str
    bad_byte: int | None = None
    """The offset in the line of the first byte that is not UTF-8; such bytes are replaced in the text."""

    def refusal(self, path: Path) -> DataError:
        """Return the error for a line that is not UTF-8."""
        return DataError(f"Line {self.number} of '{path}' is not UTF-8 (byte {self.bad_byte}): save the file as UTF-8.")


def lines_of(path: Path) -> Iterator[NumberedLine]:
    """Yield the numbered lines of a text file, split at newlines only (JSON strings may hold U+2028)."""
    number = 0
    with _read_errors(path, lambda: f"after line {number}"), _open(path) as file:
        for number, line in enumerate(file, start=1):
            # The first line may begin with a byte order mark, which is no text.
            kind = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield NumberedLine(number, line.decode(kind))
            except UnicodeDecodeError as error:
                yield NumberedLine(number, line.decode(kind, "replace"), error.start)


@contextlib.contextmanager
def _read_errors(path: Path, where: Callable[[], str]) -> Iterator[None]:
    """Turn errors of reading a broken or forbidden file into a DataError."""
    import zstandard

    try:
        yield
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is cut short or broken {where()} ({error}): copy it again.") from None
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error.strerror or error}): check the file and its rights."
        ) from None


def text_chunks(path: Path, size: int = 1 << 20) -> Iterator[tuple[bytes, str]]:
    """Yield a text file in chunks, as bytes and as text; bytes that are not UTF-8 are replaced in the text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    bytes_read = 0
    with _read_errors(path, lambda: f"after byte {bytes_read}"), _open(path) as file:
        while raw := file.read(size):
            bytes_read += len(raw)
            yield raw, decoder.decode(raw)
        yield b"", decoder.decode(b"", final=True)


def text_of(path: Path) -> str:
    """Return the whole text of a file; DataError if it is not UTF-8."""
    texts = []
    for line in lines_of(path):
        if line.bad_byte is not None:
            raise line.refusal(path)
        texts.append(line.text)
    return "".join(texts)
