"""Splits: every row goes to one client, skew is what was asked for, and impossible splits are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weft
from support.flags import flags
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.data import partition, splits
from weft.data.partition import hold_out
from weft.data.skew import describe_split, gini, split_text
from weft.data.splits import SplitRows, SplitSettings
from weft.data.topics import cluster_texts
from weft.errors import DataError

WORDS = {"sea": "ship wave sailor harbour anchor", "wood": "oak forest timber leaf branch"}


def rows(count: int, labels: Sequence[str] | None = None, seed: int = 0) -> SplitRows:
    rng = random.Random(seed)
    found = list(labels) if labels is not None else [rng.choice("abc") for _ in range(count)]
    texts = [" ".join(rng.choices(WORDS[("sea", "wood")[n % 2]].split(), k=6)) for n in range(count)]
    lengths = np.array([rng.randint(1, 100) for _ in range(count)])
    return SplitRows(lengths, lambda: found, lambda: texts, [f"file{n % 3}" for n in range(count)], found)


WHOLE = (splits.iid, splits.dirichlet, splits.quantity, splits.length, splits.cluster, splits.shards)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(WHOLE), st.integers(12, 200), st.integers(1, 6), st.integers(0, 5), st.floats(0.3, 10))
def test_every_row_goes_to_one_client(split, count: int, clients: int, seed: int, alpha: float):
    known, how = rows(count), SplitSettings(clients, seed, alpha)
    found = split(known, how).rows
    assert len(found) == clients
    assert sorted(np.concatenate(found)) == list(range(count))
    assert all(len(own) >= 1 and (np.diff(own) > 0).all() for own in found)
    again = split(known, how).rows
    assert all((one == two).all() for one, two in zip(found, again, strict=True))


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20))
def test_iid_parts_are_even(count: int, clients: int):
    if clients > count:
        with pytest.raises(DataError, match=f"{clients} clients and {count} rows"):
            splits.iid(rows(count), SplitSettings(clients, 0))
        return
    sizes = [len(own) for own in splits.iid(rows(count), SplitSettings(clients, 0)).rows]
    assert max(sizes) - min(sizes) <= 1


def skew_of(found: list[np.ndarray], known: SplitRows) -> dict[str, float]:
    names = [str(n) for n in range(len(found))]
    return describe_split(names, found, known.lengths, known.labels())["skew"]


def test_small_alphas_are_more_skewed():
    known = rows(2000)
    labels = [
        skew_of(splits.dirichlet(known, SplitSettings(8, 0, a)).rows, known)["label_js"] for a in (0.1, 1.0, 100.0)
    ]
    assert labels[0] > 2 * labels[1] > 10 * labels[2]
    sizes = [
        skew_of(splits.quantity(known, SplitSettings(8, 0, a)).rows, known)["size_gini"] for a in (0.2, 2.0, 1000.0)
    ]
    assert sizes[0] > 1.5 * sizes[1] > 10 * sizes[2]
    lengths = [skew_of(splits.length(known, SplitSettings(8, 0, a)).rows, known)["length_ks"] for a in (0.1, 100.0)]
    assert lengths[0] > 3 * lengths[1]


def test_a_least_number_of_rows_is_drawn_for():
    known = rows(300)
    least = [min(map(len, splits.dirichlet(known, SplitSettings(10, seed, 0.3, 10)).rows)) for seed in range(5)]
    assert min(least) >= 10
    with pytest.raises(DataError, match="write a larger --split_alpha"):
        splits.dirichlet(known, SplitSettings(10, 0, 0.01, 25))


def test_shards_hold_few_labels():
    known = rows(400, labels=[str(n % 10) for n in range(400)])
    found = splits.shards(known, SplitSettings(10, 0, shards=2)).rows
    labels = known.labels()
    assert all(len({labels[int(row)] for row in own}) <= 3 for own in found)


def test_texts_are_clustered_by_topic_without_a_model():
    known = rows(200)
    found = cluster_texts(known.texts(), 2, seed=0)
    assert set(found[::2]) != set(found[1::2])
    assert len(set(found[::2])) == len(set(found[1::2])) == 1
    assert (found == cluster_texts(known.texts(), 2, seed=0)).all()
    assert set(cluster_texts(["the same words"] * 9, 4, seed=0)) == {0}


def test_splits_by_column_and_by_domain_make_one_client_a_value():
    known = rows(100, labels=["big"] * 70 + ["small"] * 10 + ["middle"] * 20)
    found = splits.by(known, SplitSettings(0, 0))
    assert found.names == ["big", "middle", "small"]
    assert [len(own) for own in found.rows] == [70, 20, 10]
    assert splits.by(known, SplitSettings(2, 0)).names == ["big", "middle"]
    assert splits.domain(known, SplitSettings(0, 0)).names == ["file0", "file1", "file2"]
    with pytest.raises(DataError, match="the column has 3 values: write --num_clients 3"):
        splits.by(known, SplitSettings(4, 0))


def js_divergence(left: np.ndarray, right: np.ndarray) -> float:
    """The divergence of two counts, in bits, by its definition."""
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    return float((_relative(p, middle) + _relative(q, middle)) / 2)


def _relative(p: np.ndarray, q: np.ndarray) -> float:
    support = p > 0  # 0 log 0 is 0
    return float((p[support] * np.log2(p[support] / q[support])).sum())


def ks_distance(left: np.ndarray, right: np.ndarray) -> float:
    """The distance of two samples, both sorted, at all points of both."""
    points = np.unique(np.concatenate([left, right]))
    of_left = np.searchsorted(left, points, side="right") / len(left)
    of_right = np.searchsorted(right, points, side="right") / len(right)
    return float(np.abs(of_left - of_right).max())


@pytest.mark.parametrize(("clients", "count", "kinds"), [(5, 100, 3), (40, 300, 25), (6, 6, 6), (300, 900, 40)])
def test_measures_of_all_clients_at_once_equal_those_of_one_after_the_other(clients: int, count: int, kinds: int):
    rng = np.random.default_rng(clients)
    lengths = rng.integers(1, 30, count)
    labels = [f"label {code}" for code in rng.zipf(1.5, count) % kinds]
    cuts = np.sort(rng.choice(np.arange(1, count), clients - 1, replace=False))
    own = np.split(rng.permutation(count), cuts)
    found = describe_split([str(number) for number in range(clients)], own, lengths, labels, others=count)
    distances = [ks_distance(np.sort(lengths[one]), np.sort(lengths)) for one in own]
    assert found["skew"]["length_ks"] == np.mean(distances)
    assert found["skew"]["length_ks_max"] == np.max(distances)
    codes = np.unique(labels, return_inverse=True)[1]
    counts = [np.bincount(codes[one], minlength=codes.max() + 1) for one in own]
    divergences = [js_divergence(one, sum(counts)) for one in counts]
    assert found["skew"]["label_js"] == pytest.approx(np.mean(divergences), rel=1e-12)
    assert found["skew"]["label_js_max"] == pytest.approx(np.max(divergences), rel=1e-12)
    for client, one in zip(found["clients"].values(), own, strict=True):
        assert client["tokens"] == np.quantile(lengths[one], (0.1, 0.5, 0.9)).tolist()
        assert sum(client["labels"]) == client["rows"] == len(one)


def test_measures_of_skew_equal_those_worked_by_hand():
    assert js_divergence(np.array([5, 0]), np.array([0, 3])) == pytest.approx(1.0)
    assert js_divergence(np.array([1, 1]), np.array([4, 4])) == pytest.approx(0.0)
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): half of log2(4/3) + (log2(2/3) + log2 2) / 2
    expected = (np.log2(4 / 3) + (np.log2(2 / 3) + np.log2(2)) / 2) / 2
    assert js_divergence(np.array([2, 0]), np.array([3, 3])) == pytest.approx(expected)
    assert gini(np.array([5, 5, 5])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert ks_distance(np.array([1, 2]), np.array([3, 4])) == 1.0
    assert ks_distance(np.array([1, 2, 3, 4]), np.array([2, 4])) == pytest.approx(0.25)


def test_a_run_stores_its_split_and_its_page_shows_it(keys):
    changes = {"split_strategy": "dirichlet", "split_alpha": 0.2, "num_clients": 4, "num_rounds": 1, "max_steps": 1}
    run = weft.train(keys | changes | {"report": True})
    found = json.loads((run.path / "split.json").read_text())
    assert set(found["labels"]) == {"blue", "green", "red"}
    assert sum(one["rows"] for one in found["clients"].values()) == 120
    assert all(sum(one["labels"]) == one["rows"] for one in found["clients"].values())
    assert found["skew"]["label_js"] == run.summary["skew"]["label_js"] > 0.1
    page = (run.path / "report.html").read_text()
    assert "labels JS" in page
    assert page.count('class="bar"') == 4


def test_weft_split_shows_and_writes_the_clients_of_a_split(keys, tmp_path: Path, capsys):
    rows = [row | {"user": ["ann", "bob", "eve"][n % 3 if n >= 30 else 0]} for n, row in enumerate(colour_rows(90))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    given = flags({k: v for k, v in keys.items() if k not in ("num_clients", "use_peft")} | {"dataset_name": str(data)})
    by = ["--split_strategy", "by", "--split_column", "user"]
    assert main(["split", *given, *by, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "ann" in shown
    assert "split by  3 clients, 20 to 50 rows each" in shown
    assert not Path(str(keys["output_dir"])).exists()
    assert main(["split", *given, *by, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["clients"]) == {"ann", "bob", "eve"}
    assert {path.name for path in Path(str(keys["output_dir"])).iterdir()} == {"split.json", "split.svg"}
    # A run may follow in the same directory.
    assert main(["sft", *given, *by, "--use_peft", "--quiet"]) == 0


def test_with_the_split_domain_every_file_is_a_client(keys, tmp_path: Path):
    folder = tmp_path / "domains"
    folder.mkdir()
    write_rows(folder / "colours.jsonl", colour_rows(30))
    questions = [{"question": row["instruction"], "answer": row["output"]} for row in colour_rows(20, 1)]
    write_rows(folder / "more.v2.jsonl", questions)
    changes = {"split_strategy": "domain", "dataset_name": str(folder), "num_rounds": 1, "max_steps": 1}
    run = weft.train({k: v for k, v in keys.items() if k != "num_clients"} | changes)
    assert set(run.summary["clients"]) == {"colours", "more"}


BAD = {
    "no such column": (
        {"split_strategy": "by", "split_column": "usr"},
        "no column 'usr' to split by.*Did you mean 'user'",
    ),
    "no column": ({"split_strategy": "by"}, "write --split_column NAME"),
    "open answers": ({"split_strategy": "dirichlet", "response_column": "long"}, "write --split_column NAME"),
    "more clients than rows": ({"num_clients": 100}, "100 clients and 30 rows: write --num_clients 30"),
    "more clients than values": (
        {"split_strategy": "by", "split_column": "user", "num_clients": 9},
        "write --num_clients 2",
    ),
    "not a folder": ({"split_strategy": "domain"}, "name a folder of several files"),
    "an empty client": (
        {"split_strategy": "dirichlet", "split_alpha": 0.001, "num_clients": 9},
        "larger --split_alpha",
    ),
    "too many shards": ({"split_strategy": "shards", "num_clients": 20}, "need 40 rows, and there are 30"),
    "an unknown split": ({"split_strategy": "dirichlett"}, "Did you mean 'dirichlet'"),
    "no alpha": ({"split_alpha": 0}, "split_alpha.*greater than 0"),
    "no clients": ({"num_clients": 0}, "write how many clients there are"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_impossible_splits_are_refused_in_a_sentence(keys, changes: dict[str, object], said: str, tmp_path: Path):
    found = [row | {"user": "ab"[n % 2], "long": f"answer {n}"} for n, row in enumerate(colour_rows(30))]
    data = write_rows(tmp_path / "rows.jsonl", found)
    given = {k: v for k, v in keys.items() if k != "num_clients"} | {"dataset_name": str(data)} | changes
    with pytest.raises(weft.errors.ConfigError, match=said) as refused:
        weft.train(given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [[], ["one"], ["a", 'b\n"c', "Zürich"]])
def test_a_description_is_written_with_a_line_for_each_client(names: list[str]):
    """What `json` itself would write, read back; its own lines took 3 seconds for 100,000 clients."""
    clients = {name: {"rows": 2, "tokens": [1.0, 2.5, 3e-9], "labels": [1, 0]} for name in names}
    split = {"strategy": "iid", "column": None, "clients": clients, "skew": {"size_gini": 0.25}, "labels": ["x", "y"]}
    text = split_text(split)
    assert json.loads(text) == split
    assert list(json.loads(text)) == list(split)
    assert text.count("\n") == len(split) + 2 + (len(names) + 1 if names else 0)


def test_nobody_holds_out_rows_where_the_fraction_is_zero(monkeypatch: pytest.MonkeyPatch):
    """Nothing is drawn for it: a generator for each of 100,000 clients takes seconds."""
    rows = np.array([4, 7, 9])
    expected = hold_out(rows, 0.34, seed=1, client=0)
    assert sorted(np.concatenate(expected).tolist()) == [4, 7, 9]
    monkeypatch.setattr(partition, "generator", None)
    kept, held = hold_out(rows, 0.0, seed=1, client=0)
    assert kept.tolist() == [4, 7, 9]
    assert held.tolist() == []
