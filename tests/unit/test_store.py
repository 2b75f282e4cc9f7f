"""Tokenized text on disk: what is in it, and that it is kept, checked and gone on with."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from support.rows import write_rows
from weft.data import store as stores
from weft.data.documents import Documents
from weft.data.store import open_store
from weft.data.texts import PASSAGE, TextSource
from weft.data.tokens import TextTokenizer
from weft.errors import DataError
from weft.training.order import LARGE, rows_of_round, shuffled_places

WORDS = ["apple", "leaf", "sky", "brick", "grass", "sea"]


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[(n * k) % 6] for k in range(1, 3 + n % 40)) for n in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    return TextSource(str(write_rows(tmp_path / "text.jsonl", [{"text": text} for text in texts(300)])))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few documents."""
    monkeypatch.setattr(stores, "CHARACTERS", 1000)


def ids(store: stores.Store) -> list[int]:
    return [int(token) for shard in store.tokens for token in shard]


def expected(tokenizer, found: list[str]) -> list[int]:
    return [token for text in found for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]


def test_every_document_is_there_with_its_end_and_its_bytes(source, tiny_tokenizer, tmp_path: Path, small):
    store = open_store(source, TextTokenizer(tiny_tokenizer), tmp_path / "cache", shard=1000)
    assert len(store.tokens) > 3
    assert ids(store) == expected(tiny_tokenizer, texts(300))
    assert store.tokens[0].dtype == np.uint16
    # Without a token in front of it, the first token of a text cannot be predicted: its bytes do not count.
    first = [len(tiny_tokenizer.decode(tiny_tokenizer.encode(text)[:1])) for text in texts(300)]
    assert list(store.documents[:, 1]) == [len(t) - f for t, f in zip(texts(300), first, strict=True)]


class Counting(TextTokenizer):
    """Counts the texts that it was given, and may end in the middle."""

    seen = 0
    most = 10**9

    def encode(self, texts):
        Counting.seen += len(texts)
        if Counting.seen > Counting.most:
            raise KeyboardInterrupt
        return super().encode(texts)


def test_a_killed_run_goes_on_with_the_next_shard(source, tiny_tokenizer, tmp_path: Path, small):
    counting = Counting(tiny_tokenizer)
    Counting.seen, Counting.most = 0, 200
    with pytest.raises(KeyboardInterrupt):
        open_store(source, counting, tmp_path / "cache", shard=1000)
    Counting.seen, Counting.most = 0, 10**9
    store = open_store(source, counting, tmp_path / "cache", shard=1000)
    assert 0 < Counting.seen < 200
    assert ids(store) == expected(tiny_tokenizer, texts(300))
    Counting.seen = 0
    open_store(source, counting, tmp_path / "cache", shard=1000)
    assert Counting.seen == 0


@pytest.mark.parametrize("how", ["cut short", "changed", "gone", "no manifest"])
def test_a_shard_that_is_not_whole_is_made_again(source, tiny_tokenizer, tmp_path: Path, small, how: str):
    counting = Counting(tiny_tokenizer)
    whole = ids(open_store(source, counting, tmp_path / "cache", shard=1000))
    (folder,) = (tmp_path / "cache").iterdir()
    path = folder / "000002.tokens"
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-2])
    elif how == "changed":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif how == "gone":
        path.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    Counting.seen = 0
    assert ids(open_store(source, counting, tmp_path / "cache", shard=1000)) == whole
    assert (Counting.seen >= 300) == (how == "no manifest")
    assert Counting.seen > 0


def test_a_copied_store_is_read_and_believed(source, tiny_tokenizer, tmp_path: Path):
    import shutil

    counting = Counting(tiny_tokenizer)
    whole = ids(open_store(source, counting, tmp_path / "cache"))
    shutil.copytree(tmp_path / "cache", tmp_path / "copy", copy_function=shutil.copyfile)
    Counting.seen = 0
    assert ids(open_store(source, counting, tmp_path / "copy")) == whole
    assert Counting.seen == 0


def test_another_text_or_tokenizer_makes_another_store(source, tiny_tokenizer, tmp_path: Path):
    from weft.data.vocabulary import train_tokenizer

    other = train_tokenizer(texts(20), 300)
    first = ids(open_store(source, TextTokenizer(tiny_tokenizer), tmp_path / "cache"))
    assert ids(open_store(source, TextTokenizer(other), tmp_path / "cache")) != first
    write_rows(Path(source.name), [{"text": "sea"}])
    assert ids(open_store(source, TextTokenizer(tiny_tokenizer), tmp_path / "cache")) == expected(
        tiny_tokenizer, ["sea"]
    )


def test_text_files_of_every_kind_make_the_same_store(tiny_tokenizer, tmp_path: Path, small):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text} for text in texts(50)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = [zstandard.compress(lines[:500]), zstandard.compress(lines[500:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\n" + "".join(row["text"] + "\n" for row in rows))
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "a.csv"):
        store = open_store(TextSource(str(tmp_path / name)), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
        assert ids(store) == expected(tiny_tokenizer, texts(50)), name


def test_a_saved_data_set_is_stored_as_its_texts(tiny_tokenizer, tmp_path: Path):
    import datasets

    datasets.Dataset.from_list([{"text": text} for text in texts(20)]).save_to_disk(tmp_path / "set")
    store = open_store(TextSource(str(tmp_path / "set")), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
    assert ids(store) == expected(tiny_tokenizer, texts(20))


def test_a_plain_file_is_cut_at_blank_lines(tiny_tokenizer, tmp_path: Path):
    paragraphs = [f"{n} " + "leaf " * (n * 37 % 400) for n in range(60)]
    (tmp_path / "book.txt").write_text("\r\n\r\n".join(paragraphs) + "\n")
    found = [document.text for document in TextSource(str(tmp_path / "book.txt")).documents()]
    assert [part.strip() for part in "\n\n".join(found).split("\n\n")] == [text.strip() for text in paragraphs]
    assert all(PASSAGE <= len(text) <= PASSAGE + 2100 for text in found[:-1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab é\n\U0001f600"), max_size=60), max_size=12))
def test_nothing_of_a_plain_file_is_lost(tmp_path_factory, parts: list[str]):
    path = tmp_path_factory.mktemp("plain") / "a.txt"
    text = "\n\n".join(part * 200 for part in parts)
    path.write_text(text, encoding="utf-8", newline="")
    found = [] if not text else [document.text or "" for document in TextSource(str(path)).documents()]
    assert "".join("".join(found).split()) == "".join(text.split())


def test_bytes_that_are_no_text_are_replaced_and_counted(tiny_tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "sea \xff sky"}\n{"text": "leaf"}\n{"text": ""}\n{"text": null}\n')
    store = open_store(TextSource(str(tmp_path / "a.jsonl")), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
    assert ids(store) == expected(tiny_tokenizer, ["sea \ufffd sky", "leaf"])
    assert store.counts == {"empty text": 2, "broken encoding": 1}
    # The sign of a replacement may be in a text by itself.
    write_rows(tmp_path / "c.jsonl", [{"text": "sea \ufffd"}])
    (tmp_path / "d.jsonl").write_text('{"text": "sea \ufffd"}\n', encoding="utf-8")
    for name in ("c.jsonl", "d.jsonl"):
        store = open_store(TextSource(str(tmp_path / name)), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
        assert store.counts["broken encoding"] == 0
    (tmp_path / "b.txt").write_bytes(b"sea \xfe sky")
    store = open_store(TextSource(str(tmp_path / "b.txt")), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
    assert store.counts["broken encoding"] == 1


def test_rows_without_text_at_the_end_of_a_shard_count(tiny_tokenizer, tmp_path: Path, small):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "sea " * 400}, *[{"text": ""}] * 7])
    store = open_store(TextSource(str(path)), TextTokenizer(tiny_tokenizer), tmp_path / "cache", shard=1)
    assert store.counts["empty text"] == 7
    assert Documents([store], 16, 1)[3][0].tolist() == ids(store)[45:61]


def test_names_of_special_tokens_are_text(tiny_tokenizer, tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a </s> b"}])
    store = open_store(TextSource(str(path)), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
    assert ids(store).count(tiny_tokenizer.eos_token_id) == 1


BAD = {
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": (b'{"text": " "}\n', "no row that can be used"),
    "other.jsonl": (b'{"words": "a"}\n', "has the columns 'words', but plain text is read from a column 'text'"),
    "cut.jsonl.zst": (zstandard.compress(b'{"text": "a"}\n' * 9000)[:-9], "cut short or broken"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 9000)[:-9], "cut short or broken"),
    "line.jsonl": (b'{"text": "a"}\n{"text"\n', "Line 2 of"),
    "empty.txt": (b"", "is empty"),
    "half.parquet": (b"PAR1", "damaged or not a parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_text_that_cannot_be_read_is_refused_in_words(tiny_tokenizer, tmp_path: Path, name: str):
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_store(TextSource(str(tmp_path / name)), TextTokenizer(tiny_tokenizer), tmp_path / "cache")


@pytest.mark.parametrize("begin", [False, True])
def test_rows_of_long_documents_overlap_by_a_token(source, tiny_tokenizer, tmp_path: Path, small, begin: bool):
    from weft.data.vocabulary import train_tokenizer

    tokenizer = TextTokenizer(train_tokenizer(texts(20), 300) if begin else tiny_tokenizer)
    store = open_store(source, tokenizer, tmp_path / "cache", shard=1000)
    table = Documents([store, store], 8, len(tokenizer.begin))
    rows = table.rows_of(np.array([5, 301, 39]))
    assert len(list(rows)) == len(rows) == table.pieces[[5, 301, 39]].sum()
    with pytest.raises(IndexError):
        rows[len(rows)]
    learnt: list[int] = []
    for row in rows:
        found, learn = table[row]
        assert len(found) <= 8
        assert not learn[0]
        assert learn[1:].all()
        learnt += [int(token) for token in found[learn]]
    documents = [tokenizer.encode([texts(300)[n]])[0] for n in (5, 1, 39)]
    assert learnt == [int(token) for tokens in documents for token in tokens[1:]]
    assert sum(table.text_bytes(row) for row in rows) == sum(store.documents[n, 1] for n in (5, 1, 39))
    assert [int(t) for t in table.document(39)] == [int(t) for t in documents[2]]


def test_zstd_is_read_a_part_at_a_time(tmp_path: Path):
    """A file whose content is far larger than what is held of it."""
    from weft.data.text_files import _Frames

    packed = zstandard.compress(b"0123456789abcdef" * (1 << 20))
    reader = io.BufferedReader(_Frames(io.BytesIO(packed * 2)), 1 << 16)
    size = 0
    while block := reader.read(1 << 16):
        size += len(block)
    assert size == 2 << 24


@pytest.mark.parametrize("size", [LARGE + 1, 5_000_000_000])
def test_orders_of_many_rows_are_permutations_without_being_drawn(size: int):
    drawn = rows_of_round(size, 1000, seed=1, client=2, round=3)
    assert len(set(drawn.tolist())) == 1000
    assert 0 <= drawn.min() <= drawn.max() < size
    assert abs(drawn.mean() / size - 0.5) < 0.05
    assert (rows_of_round(size, 2000, seed=1, client=2, round=1)[1000:] == drawn).all()


@given(st.integers(2, 3000), st.integers(0, 2**62))
def test_a_shuffled_order_has_every_place_once(size: int, key: int):
    assert sorted(shuffled_places(np.arange(size, dtype=np.uint64), size, key)) == list(range(size))


def test_a_column_goes_with_every_document(tiny_tokenizer, tmp_path: Path):
    rows = [{"text": "sea", "who": "a"}, {"text": "sky", "who": ""}, {"text": "leaf", "who": "a"}, {"text": "ice"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    store = open_store(TextSource(str(path), column="who"), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
    assert [store.values[code] for code in store.documents[:, 2]] == ["a", "(none)", "a", "(none)"]
    with pytest.raises(
        DataError, match=r"no column 'whom' to split by, but the columns 'text', 'who'.*Did you mean 'who'"
    ):
        open_store(TextSource(str(path), column="whom"), TextTokenizer(tiny_tokenizer), tmp_path / "cache")
