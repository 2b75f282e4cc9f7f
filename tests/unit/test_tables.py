"""Files as people have them: marks between cells, broken lines, tables by columns, and the place of every row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from weft.data.load import data_files, read_rows
from weft.data.rows import PlacedRows, concatenate
from weft.data.texts import TextSource
from weft.errors import DataError

ROWS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(12)]
LINES = [json.dumps(row) for row in ROWS]


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def cells(mark: str, end: str = "\n") -> str:
    return end.join(["question" + mark + "answer", *(row["question"] + mark + row["answer"] for row in ROWS), ""])


COLUMNS = {"question": {str(n): f"q{n}" for n in range(12)}, "answer": {str(n): f"a{n}" for n in range(12)}}
READ = {
    "comma.csv": cells(","),
    "bom_and_crlf.csv": "\ufeff" + cells(",", "\r\n"),
    "semicolon.csv": cells(";"),
    "excel.csv": "sep=;\r\n" + cells(";", "\r\n"),
    "tab.tsv": cells("\t"),
    "tab.csv": cells("\t"),
    "one_line.json": json.dumps(ROWS),
    "data.json": json.dumps({"version": 1, "data": ROWS}),
    "train.json": json.dumps({"train": ROWS}),
    "columns.json": json.dumps(COLUMNS),
    "lists.json": json.dumps({name: list(column.values()) for name, column in COLUMNS.items()}),
    "split.json": json.dumps(
        {"columns": ["question", "answer"], "index": [], "data": [list(r.values()) for r in ROWS]}
    ),
    "bom.jsonl": "\ufeff" + "\n".join(LINES),
    "crlf.jsonl": "\r\n".join(LINES),
    "lines.json": "\n".join(LINES),
}


@pytest.mark.parametrize("name", READ)
def test_tables_of_every_kind_give_the_same_rows(tmp_path: Path, name: str):
    assert read_rows(written(tmp_path, name, READ[name])) == ROWS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "half', "line that is not JSON"),
        ("[1]", "line that is no object with columns"),
        (b'{"question": "\xff"}', "line that is not UTF-8"),
    ],
)
def test_one_broken_line_is_left_out_and_its_place_is_kept(tmp_path: Path, line: str | bytes, reason: str):
    raw = line if isinstance(line, bytes) else line.encode()
    content = b"\n".join([*(one.encode() for one in LINES[:6]), b"", raw, *(one.encode() for one in LINES[6:])])
    path = written(tmp_path, "a.jsonl", content)
    found = read_rows(path)
    assert found == ROWS
    assert found.omissions == {reason: (1, f"line 8 of '{path}'")}
    assert [found.place(row) for row in (0, 6)] == [f"line 1 of '{path}'", f"line 9 of '{path}'"]
    assert found.num_read() == 13
    written(tmp_path, "a.jsonl", b"\n".join([content, raw]))
    with pytest.raises(DataError, match="Line 8 of"):  # two of 14 are more than a tenth
        read_rows(path)


def test_a_line_with_other_cells_is_left_out_and_cells_may_be_long_or_have_lines(tmp_path: Path):
    long = "word " * 60_000
    path = written(tmp_path, "a.csv", f'question,answer\n"{long}",a\n"two\nlines",b\n\nx,y,z\n' + "q,a\n" * 12)
    found = read_rows(path)
    assert found[0]["question"] == long
    assert found.omissions == {"line with more or fewer cells than columns": (1, f"line 6 of '{path}'")}
    assert [found.place(row).split(" of")[0] for row in (0, 1, 2)] == ["line 2", "line 3", "line 7"]


def test_a_stray_quote_costs_the_lines_that_it_breaks_and_no_more(tmp_path: Path):
    path = written(tmp_path, "a.csv", cells(",") + '"q" x,a\nq12,a12\n')
    found = read_rows(path)
    assert found == [*ROWS, {"question": "q12", "answer": "a12"}]
    assert found.omissions == {"line that is not CSV": (1, f"line 14 of '{path}'")}
    with pytest.raises(DataError, match=r"Line 14 of .* is not CSV .unexpected end"):
        read_rows(written(tmp_path, "a.csv", cells(",") + '"q,a\nq12,a12\n'))


def test_names_of_columns_that_are_there_twice_are_refused_and_missing_ones_are_numbered(tmp_path: Path):
    with pytest.raises(DataError, match="names the column 'answer' twice: rename"):
        read_rows(written(tmp_path, "a.csv", "question,answer,answer\na,b,c\n"))
    assert list(read_rows(written(tmp_path, "a.csv", ",question,answer,\n0,a,b,\n"))[0]) == [
        "column 1",
        "question",
        "answer",
        "column 4",
    ]


def test_what_is_beside_the_rows_of_a_JSON_file_is_told(tmp_path: Path):
    found = read_rows(written(tmp_path, "a.json", json.dumps({"train": ROWS, "test": ROWS})))
    assert found == ROWS
    assert found.notes == [f"of '{tmp_path / 'a.json'}' the rows under 'train' are read, and not what is under 'test'."]


def test_hidden_files_are_passed_over(tmp_path: Path):
    written(tmp_path, "rows.jsonl", "\n".join(LINES))
    written(tmp_path, "._rows.jsonl", b"\x00\x05\x16\x07\xff")
    assert [path.name for path in data_files(tmp_path)] == ["rows.jsonl"]
    assert read_rows(str(tmp_path)) == ROWS


def test_rows_of_several_files_keep_their_places_for_a_few_bytes(tmp_path: Path):
    parts = [read_rows(written(tmp_path, f"{n}.jsonl", "\n\n".join(LINES[: n + 2]))) for n in range(2)]
    both = concatenate(parts)
    assert both == ROWS[:2] + ROWS[:3]
    assert [both.place(row).split("/")[-1] for row in (1, 4)] == ["0.jsonl'", "1.jsonl'"]
    assert both.place(4).startswith("line 5")
    picked = both.pick([4, 0])
    assert [picked.place(row) for row in (0, 1)] == [both.place(4), both.place(0)]
    many = PlacedRows([{"question": "q", "answer": "a"}] * 10_000)
    assert (sys.getsizeof(many.numbers) + sys.getsizeof(many.file_index)) / len(many) < 20


def test_text_is_read_row_by_row_and_mended(tmp_path: Path):
    lines = [
        '{"Text": "a", "source": 1}',
        '{"Text": "half \\ud83d"}',
        '{"content": "b"}',
        '{"Text": 5}',
        '{"Text": " "}',
    ]
    path = written(tmp_path, "a.jsonl", "\n".join([*lines, *['{"text": "c"}'] * 9, "{"]))
    source = TextSource(path)
    found = list(source.documents())
    assert [one.text for one in found][:3] == ["a", "half \ufffd", "b"]
    assert [one.broken for one in found[:3]] == [False, True, False]
    left = [(one.reason, one.place) for one in found if one.text is None]
    assert left == [("text that is no text", 4), ("empty text", 5), ("line that is not JSON", 15)]
    assert source.columns == {"read": ["Text", "content", "text"], "unused": ["source"]}
    written(tmp_path, "a.jsonl", "\n".join([*lines, "{"]))
    with pytest.raises(DataError, match="Line 6 of"):
        list(source.documents())
