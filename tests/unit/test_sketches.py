"""Near duplicates of other clients: by sketches that they tell, in a simulation, or in files that a secret keys."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasketch")
from support.rows import write_rows
from weft.cli import main
from weft.data.cleaning import sketches
from weft.data.cleaning.cleaner import Sample, Tools, clean
from weft.data.cleaning.duplicates import ELSEWHERE, NearDuplicates
from weft.errors import ConfigError

LOTS = random.Random(3)
WORDS = ["".join(LOTS.choices("abcdefghiklmnoprstu", k=6)) for _ in range(300)]
TEXTS = [" ".join(LOTS.choices(WORDS, k=60)) for _ in range(30)]
NEAR = [f"{text} {WORDS[place]}" for place, text in enumerate(TEXTS)]
"""The same with a word more."""


def samples(texts: list[str]) -> list[Sample]:
    return [Sample((), (text,)) for text in texts]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "secret.key").write_text("0123456789abcdef" * 4)
    return str(tmp_path / "secret.key")


def told(cleaner: NearDuplicates, owner: str, texts: list[str], folder: Path) -> str:
    form = sketches.Form(cleaner.hashes, cleaner.shingle, sketches.mark_of(sketches.read_secret(cleaner.key)))
    sketches.write(folder / f"{owner}.sketches", owner, form, cleaner.sketched(samples(texts)))
    return str(folder / f"{owner}.sketches")


def left(cleaner: NearDuplicates, texts: list[str], tools: Tools) -> list[int]:
    return sorted(clean(samples(texts), [("near_duplicates", cleaner)], tools).samples)


def test_clients_of_a_simulation_keep_a_row_once_and_only_where_asked():
    for across in (True, False):  # the second is the control
        cleaner, tools = NearDuplicates(across=across), Tools()
        assert left(cleaner, TEXTS[:20], tools) == list(range(20))
        assert left(cleaner, NEAR[10:], tools) == (list(range(10, 20)) if across else list(range(20)))
        assert bool(cleaner.tells) == across
        assert len(tools.sketches) == (2 if across else 0)


def test_files_of_sketches_do_the_same_and_a_row_stays_with_the_first_name(secret: str, tmp_path: Path):
    own = NearDuplicates(key=secret)
    a, b = told(own, "a", TEXTS[:20], tmp_path), told(own, "b", NEAR[10:], tmp_path)
    at_a, at_b = NearDuplicates(key=secret, against=b), NearDuplicates(key=secret, against=f"{a}+{b}")
    assert left(at_a, TEXTS[:20], Tools(client="a")) == list(range(20))
    assert left(at_b, NEAR[10:], Tools(client="b")) == list(range(10, 20))
    counts = clean(samples(NEAR[10:]), [("near_duplicates", at_b)], Tools(client="b")).steps["near_duplicates"]
    assert counts["counts"] == {ELSEWHERE: 10}


def test_without_the_secret_a_known_text_finds_no_sketch(secret: str, tmp_path: Path):
    """Who has the secret can test a text; who has another one, or none, finds nothing in common."""
    other = tmp_path / "other.key"
    other.write_text("f" * 40)
    with_it, without = NearDuplicates(key=secret), NearDuplicates(key=str(other))
    mine = with_it.sketched(samples(TEXTS))
    assert (mine == with_it.sketched(samples(TEXTS))).all()
    for foreign in (without.sketched(samples(TEXTS)), NearDuplicates().sketched(samples(TEXTS))):
        assert np.mean(mine == foreign) < 0.01


def test_rows_are_told_in_another_order(secret: str, tmp_path: Path):
    own = NearDuplicates(key=secret)
    form = sketches.Form(128, 3, sketches.mark_of(sketches.read_secret(secret)))
    _, values = sketches.read(told(own, "a", TEXTS, tmp_path), form)
    straight = own.sketched(samples(TEXTS))
    assert not (values == straight).all()
    assert sorted(map(bytes, values)) == sorted(map(bytes, straight))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": ""}, "are made with a secret"),
        ({"key": "{tmp}/none.key"}, "cannot be read"),
        ({"key": "{tmp}/short.key"}, "16 are the least"),
        ({"key": "{tmp}/other.key"}, "made with another secret"),
        ({"hashes": 64}, "use the same near_duplicates.hashes"),
        ({"against": "{tmp}/none.sketches"}, "holds no sketches"),
        ({"against": "{tmp}/short.key"}, "holds no sketches"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_in_words(secret: str, changes: dict, words: str, tmp_path: Path):
    (tmp_path / "short.key").write_text("abc")
    (tmp_path / "other.key").write_text("f" * 40)
    a = told(NearDuplicates(key=secret), "a", TEXTS[:3], tmp_path)
    given = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ConfigError) as refused:
        NearDuplicates(**{"key": secret, "against": a} | given).start()
    assert words in str(refused.value)


def test_the_command_writes_sketches_and_compares_with_them(secret: str, tmp_path: Path, capsys):
    rows = {"a": TEXTS[:20], "b": NEAR[10:]}
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", [{"instruction": text, "output": text[::-1]} for text in texts])
        for name, texts in rows.items()
    }
    common = ["--clean", "near_duplicates", "--clean_args", f"near_duplicates.key={secret}"]
    tell = ["--owner", "a", "--sketches", str(tmp_path / "a.sketches")]
    assert main(["clean", str(files["a"]), "--out", str(tmp_path / "a2.jsonl"), *common, *tell]) == 0
    assert "can tell whether 'a' has a text" in capsys.readouterr().err
    against = [f"near_duplicates.against={tmp_path / 'a.sketches'}", "--owner", "b", "--json"]
    assert main(["clean", str(files["b"]), "--out", str(tmp_path / "b2.jsonl"), *common, *against]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 10
    assert main(["clean", str(files["b"]), "--out", str(tmp_path / "b3.jsonl"), *common, *tell[2:]]) == 2
    assert "write --owner NAME" in capsys.readouterr().err
