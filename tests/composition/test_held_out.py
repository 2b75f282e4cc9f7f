"""What is measured on is not trained on: parts of data, files of their own, and how rows are dealt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weft
from support.rows import write_rows
from weft.cli import main
from weft.config import build
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.launch.population import Population, populate
from weft.models.load import load_tokenizer
from weft.sites.agreement import own_config
from weft.sites.local_federation import _deal_rows
from weft.sites.policy import read_policy


def rows(first: int, count: int, **more: str) -> list[dict[str, str]]:
    return [{"instruction": f"question {n}", "output": f"answer {n}"} | more for n in range(first, first + count)]


def people(keys: dict[str, Any], kind: str = "conversations") -> Population:
    config = build(keys)
    return populate(config, load_tokenizer(config), InMemory(), rows=kind, pool=False)


def sizes(found: Population) -> tuple[int, int]:
    return sum(map(len, found.trained.train)), sum(map(len, found.evaluated.held_out))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    made.mkdir()
    write_rows(made / "train.jsonl", rows(0, 12))
    write_rows(made / "test.jsonl", rows(12, 4))
    (made / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07\xff")
    return made


def test_only_the_training_part_of_a_set_is_trained_on(keys, folder: Path):
    keys |= {"dataset_name": str(folder), "eval_fraction": 0.0}
    found = people(keys)
    assert sizes(found) == (12, 0)
    assert tuple(found.account.notes) == (
        f"of '{folder}' the part 'train' is trained on (train.jsonl); not read: the part 'test' (test.jsonl).",
    )
    assert sizes(people(keys | {"dataset_split": "test"})) == (4, 0)
    assert sizes(people(keys | {"dataset_split": "train[:50%]"})) == (6, 0)


@pytest.mark.parametrize("by", ["eval_dataset_split", "eval_dataset_name", "clients"])
def test_with_eval_dataset_split_the_test_part_is_measured_on(keys, folder: Path, by: str):
    keys |= {"dataset_name": str(folder)}
    if by == "clients":
        keys = {key: value for key, value in keys.items() if key != "dataset_name"}
        keys |= {"clients": [{"name": "a", "data": str(folder)}], "eval_dataset_split": "test"}
    else:
        keys |= {by: "test" if by.endswith("split") else str(folder)}
    assert sizes(people(keys)) == (12, 4)


def test_a_run_trains_and_measures_on_parts(keys, folder: Path, capsys):
    run = weft.train(keys, dataset_name=str(folder), eval_dataset_split="test", num_rounds=1, quiet=True)
    assert run.summary["eval"]
    assert sum(one["rows"] for one in run.summary["clients"].values()) == 4
    said = capsys.readouterr().err
    assert said.count("not read: the part 'test'") == said.count("the part 'test' is measured on") == 1


@pytest.mark.parametrize("kind", ["conversations", "text", "scored"])
def test_the_same_rows_are_not_trained_on_and_measured_on(keys, tmp_path: Path, kind: str):
    more = {"text": "one text, number "} if kind == "text" else {"rejected": "no", "chosen": "yes"}

    def made(first: int, count: int) -> list[dict[str, str]]:
        return [row | {name: f"{word} {row['output']}" for name, word in more.items()} for row in rows(first, count)]

    train = write_rows(tmp_path / "a.jsonl", made(0, 20))
    copy = write_rows(tmp_path / "copy.jsonl", made(0, 20))
    some = write_rows(tmp_path / "some.jsonl", made(15, 10))
    apart = write_rows(tmp_path / "apart.jsonl", made(20, 10))
    keys |= {"dataset_name": str(train)}
    kinds = {"scored": "pairs"}
    for name in (train, copy):
        with pytest.raises(DataError, match=r"^20 of the 20 held-out rows .* none would be left to train on"):
            people(keys | {"eval_dataset_name": str(name)}, kinds.get(kind, kind))
    with pytest.raises(DataError, match=r"^5 of the 10 held-out rows .* write --held_out_overlap leave_out"):
        people(keys | {"eval_dataset_name": str(some)}, kinds.get(kind, kind))
    left = people(keys | {"eval_dataset_name": str(some), "held_out_overlap": "leave_out"}, kinds.get(kind, kind))
    assert sizes(left) == (15, 10)
    assert left.counts["held out too"] == 5
    assert sizes(people(keys | {"eval_dataset_name": str(apart)}, kinds.get(kind, kind))) == (20, 10)


def test_the_rows_of_another_client_are_not_measured_on(keys, tmp_path: Path):
    a, b = write_rows(tmp_path / "a.jsonl", rows(0, 10)), write_rows(tmp_path / "b.jsonl", rows(10, 10))
    exam = write_rows(tmp_path / "exam.jsonl", rows(18, 4))
    keys = {key: value for key, value in keys.items() if key != "dataset_name"}
    keys |= {"clients": [{"name": "a", "data": str(a), "eval": str(exam)}, {"name": "b", "data": str(b)}]}
    with pytest.raises(DataError, match="2 of the 4 held-out rows \\(eval of the clients\\)"):
        people(keys)
    found = people(keys | {"held_out_overlap": "leave_out"})
    assert [len(own) for own in found.trained.train] == [10, 7]  # of 8 that are left, one is held out
    assert people(keys | {"public_data": str(tmp_path / "a.jsonl"), "held_out_overlap": "leave_out"})


def test_repeats_in_one_set_are_counted_and_said(keys, tmp_path: Path):
    once, twice = write_rows(tmp_path / "a.jsonl", rows(0, 40)), write_rows(tmp_path / "b.jsonl", rows(0, 20) * 2)
    assert not people(keys | {"dataset_name": str(once), "eval_fraction": 0.25}).account.notes
    (said,) = people(keys | {"dataset_name": str(twice), "eval_fraction": 0.25, "num_clients": 1}).account.notes
    assert "held-out rows have the same content as a row that is trained on" in said


def test_folders_of_texts_are_read_by_part(keys, tmp_path: Path):
    for part, count in (("train", 6), ("validation", 3)):
        (tmp_path / part).mkdir()
        write_rows(tmp_path / part / "a.jsonl", [{"text": f"{part} text {n}"} for n in range(count)])
    keys |= {"dataset_name": str(tmp_path), "eval_fraction": 0.0}
    assert sizes(people(keys, "text")) == (6, 0)
    assert sizes(people(keys | {"eval_dataset_split": "validation"}, "text")) == (6, 3)
    assert sizes(people(keys | {"dataset_split": "train[:50%]"}, "text")) == (3, 0)


def test_rows_of_values_without_a_client_are_said_or_deal_rows(keys, tmp_path: Path):
    made = [row for n, topic in enumerate("abcd") for row in rows(n * 10, 10 - n, topic=topic)]
    path = write_rows(tmp_path / "a.jsonl", made)
    keys |= {"dataset_name": str(path), "split_strategy": "by", "split_column": "topic", "eval_fraction": 0.0}
    few = people(keys | {"num_clients": 2})
    assert sizes(few) == (19, 0)
    assert next(iter(few.account.notes)).startswith(
        "15 rows of 2 values beyond num_clients are left out: write --num_clients 4 "
    )
    assert sizes(people(keys | {"num_clients": 4})) == (34, 0)
    assert not people(keys | {"num_clients": 4}).account.notes
    rest = people(keys | {"num_clients": 2, "clients_of_rest": 1})
    assert rest.names == ["a", "b", "rest"]
    assert sizes(rest) == (34, 0)
    assert not rest.account.notes
    several = people(keys | {"num_clients": 1, "clients_of_rest": 2})
    assert several.names == ["a", "rest_0", "rest_1"]
    assert sizes(several) == (34, 0)
    with pytest.raises(DataError, match="each of the 4 values has a client"):
        people(keys | {"num_clients": 4, "clients_of_rest": 1})
    with pytest.raises(DataError, match=r"7 rows are left .* write 7 or less"):
        people(keys | {"num_clients": 3, "clients_of_rest": 8})


def test_keys_of_splits_that_would_have_no_effect_are_refused(keys):
    with pytest.raises(ConfigError, match=r"only the splits by and domain .* leave out --clients_of_rest"):
        build(keys | {"clients_of_rest": 1})
    given = {key: value for key, value in keys.items() if key != "dataset_name"}
    for key in ("dataset_split", "eval_dataset_split"):
        with pytest.raises(ConfigError, match=f"names its own data in site.yaml: leave out --{key}"):
            build(given | {"runtime": "nvflare", key: "test"})


def test_a_site_says_itself_which_part_is_used(folder: Path, tmp_path: Path):
    (tmp_path / "site.yaml").write_text("data: {path: set, split: test, eval_split: train}\naccept: {models: [m]}\n")
    policy = read_policy(tmp_path / "site.yaml")
    own = own_config(policy, {"model_name_or_path": "m", "dataset_split": "train", "eval_dataset_split": None}, "here")
    assert (own["dataset_split"], own["eval_dataset_split"]) == ("test", "train")


def test_every_file_of_the_training_part_is_a_client(keys, tmp_path: Path):
    for name in ("train/law", "train/news", "test/law", "train/old/law"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / f"{name}.jsonl", rows(len(name) * 10, 5))
    found = people(keys | {"dataset_name": str(tmp_path), "split_strategy": "domain", "num_clients": 0})
    assert found.names == ["train/law", "train/news", "train/old/law"]


def test_the_split_is_the_same_where_its_seed_is(keys, tmp_path: Path):
    keys |= {"dataset_name": str(write_rows(tmp_path / "a.jsonl", rows(0, 60))), "dataset_sample": 50}

    def dealt(**more: int) -> list[np.ndarray]:
        found = people(keys | more)
        return [np.asarray(own) for own in [*found.trained.train, *found.evaluated.held_out]]

    def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    begin = dealt(seed=1)
    assert same(begin, dealt(seed=1, split_seed=1))
    assert same(begin, dealt(seed=2, split_seed=1))
    assert not same(begin, dealt(seed=2))
    assert not same(begin, dealt(seed=1, split_seed=2))


def test_sites_of_this_machine_get_the_part_and_their_own_test_rows(keys, folder: Path, tmp_path: Path):
    config = build(keys | {"dataset_name": str(folder), "eval_dataset_split": "test"})
    made = _deal_rows(config, tmp_path / "sites", ["site_0", "site_1"])
    counts = {
        key: [len(Path(own[key] or "").read_text().splitlines()) for own in made.values()] for key in made["site_0"]
    }
    assert counts == {"path": [6, 6], "eval": [2, 2]}
    with pytest.raises(DataError, match="12 of the held-out rows"):
        _deal_rows(
            build(keys | {"dataset_name": str(folder), "eval_dataset_split": "train"}),
            tmp_path / "sites",
            ["site_0", "site_1"],
        )


@pytest.mark.parametrize(
    ("case", "more", "words"),
    [
        ("splits", [], "the part 'train' is trained on (train.jsonl); not read: the part 'test' (test.jsonl)"),
        ("splits", ["--dataset_split", "test"], "the part 'test' is trained on"),
        ("dict_test", ["--eval_dataset_name", "."], "the part 'test' is measured on"),
        ("dict_test", ["--eval_dataset_name", ".", "--dataset_split", "test"], "are also among"),
        ("appledouble", [], ""),
    ],
)
def test_inputs_that_once_went_wrong_are_refused_or_told(
    shared_data: Path, stories: Path, tmp_path, monkeypatch, capsys, case, more, words
):
    shutil.copytree(shared_data.parent / "cases" / case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    argv = f"sft --model_name_or_path {stories} --use_peft --template alpaca --num_rounds 1 --max_steps 1 --seq_length"
    argv += f" 128 --num_clients 1 --sample_clients 1 --dataset_name . --output_dir {tmp_path / 'run'} --quiet"
    refused = "also" in words
    assert main([*argv.split(), *more]) == (2 if refused else 0)
    assert words in capsys.readouterr().err
    if not refused:
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        trained = {"splits": 12, "dict_test": 16, "appledouble": 12}[case] if "test" not in more else 4
        assert summary["rows"]["rows"] == trained
