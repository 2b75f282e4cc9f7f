"""Parts of data sets: files sorted as `datasets` sorts them, and which part is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weft.data.load import data_files, kind_of, read_rows
from weft.data.parts import Selection, choose, parts_of, span
from weft.data.texts import text_sources
from weft.errors import DataError

ROWS = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(20)]

TREES = [
    ["train.jsonl", "test.jsonl"],
    ["train.jsonl", "dev.jsonl", "eval.jsonl"],
    ["my_train.csv", "my_val.csv", "notes.csv"],
    ["training.json", "valid.json", "evaluation.json", "testing.json"],
    ["train/a.jsonl", "train/deep/b.jsonl", "test/a.jsonl"],
    ["set-train-v1/a.jsonl", "set-validation/a.jsonl"],
    ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"],
    ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/notes.jsonl"],
    ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001-abc.parquet"],
    ["data/train.jsonl", "data/test.jsonl"],
    ["train/test.jsonl", "other.jsonl"],
    ["train1.jsonl", "test 2.jsonl", "retest.jsonl", "trainer.jsonl"],
    ["a.jsonl", "b.jsonl"],
    ["latest.jsonl", "contest.jsonl", "devices.jsonl"],
    [".train.jsonl", "._test.jsonl", "a.jsonl", ".git/test.jsonl", "__pycache__/train.jsonl"],
    ["dataset_infos.json", "train.jsonl"],
    ["2023/a.jsonl", "2024/b.jsonl"],
]


def lay(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"instruction": name, "output": str(number)}) + "\n")
    return folder


@pytest.mark.parametrize("names", TREES, ids=" ".join)
def test_files_are_in_the_parts_that_datasets_puts_them_in(tmp_path: Path, names: list[str]):
    from datasets.data_files import DataFilesDict, get_data_patterns

    folder = lay(tmp_path / "set [1]" if "2023/a.jsonl" not in names else tmp_path / "set", names)
    plain = lay(tmp_path / "plain", names)  # the library takes [1] for a pattern
    found = DataFilesDict.from_patterns(get_data_patterns(str(plain)), base_path=str(plain))
    theirs = {part: sorted(str(Path(file).relative_to(plain)) for file in files) for part, files in found.items()}
    ours = {
        name or "train": sorted(str(path.relative_to(folder)) for path in files)
        for name, files in parts_of(folder, kind_of).files.items()
    }
    assert ours == theirs


def test_a_file_in_two_parts_is_refused(tmp_path: Path):
    lay(tmp_path, ["train-test.jsonl", "train.jsonl"])
    with pytest.raises(DataError, match=r"'train-test.jsonl' .* 'train', 'test' at once"):
        data_files(tmp_path)


def test_what_is_read_and_what_is_not_is_said(tmp_path: Path):
    lay(tmp_path, ["train.jsonl", "dev.jsonl", "notes.jsonl"])
    said: list[str] = []
    assert [row["instruction"] for row in read_rows(str(tmp_path), Selection(log=said.append))] == ["train.jsonl"]
    assert said == [
        f"of '{tmp_path}' the part 'train' is trained on (train.jsonl); not read: the part 'validation' (dev.jsonl), "
        "notes.jsonl, in no part."
    ]
    assert [row["instruction"] for row in read_rows(str(tmp_path), Selection("val"))] == ["dev.jsonl"]


def test_files_below_are_read_only_where_none_is_at_the_top(tmp_path: Path):
    said: list[str] = []
    lay(tmp_path, ["a.jsonl", "deep/b.jsonl"])
    assert [path.name for path in data_files(tmp_path, Selection(log=said.append))] == ["a.jsonl"]
    assert said == [f"of '{tmp_path}' a.jsonl is read; not read: deep/b.jsonl in folders below."]


def test_runs_and_models_in_the_folder_are_no_data(tmp_path: Path):
    lay(tmp_path, ["a.jsonl", "runs/train-1/metrics.jsonl", "runs/train-1/config.yaml", "runs/train-1/summary.json"])
    lay(tmp_path, ["test-model/tokenizer_config.json", "test-model/tokenizer.json"])
    assert [path.name for path in data_files(tmp_path)] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("names", "wanted", "part"),
    [
        (["train", "test"], Selection(), "train"),
        (["train", "test"], Selection("test"), "test"),
        (["train", "validation", "test"], Selection(held_out=True), "validation"),
        (["train", "test"], Selection(held_out=True), "test"),
        (["train", "dev"], Selection("validation[:3]"), "dev"),
        (["train"], Selection(held_out=True), "train"),
        (["everything"], Selection(), "everything"),
        (["train_prefs", "test_prefs"], Selection(preferences=True, held_out=True), "test_prefs"),
        (["train", "test"], Selection(preferences=True), "train"),
        (["train", "test"], Selection(preferences=True, held_out=True), "test"),
    ],
)
def test_the_part_that_fits_what_is_wanted_is_chosen(names: list[str], wanted: Selection, part: str):
    assert choose(names, wanted, "some/set") == part


@pytest.mark.parametrize("folder", ["", "/data/"])
def test_the_part_of_a_known_set_is_that_of_what_is_trained(folder: str):
    names, source = ["train_gen", "train_prefs", "train_sft", "test_prefs", "test_sft"], "ultrafeedback_binarized"
    known = f"{folder}HuggingFaceH4/{source}"
    assert choose(names, Selection(), known) == "train_sft"
    assert choose(names, Selection(held_out=True), known) == "test_sft"
    for name in (known, f"{folder}{source}"):
        assert choose(names, Selection(preferences=True), name) == "train_prefs"
        assert choose(names, Selection(preferences=True, held_out=True), name) == "test_prefs"


@pytest.mark.parametrize(
    ("names", "wanted", "words"),
    [
        (["test"], Selection(), "none is clearly to train on: write --dataset_split test"),
        (["train_a", "train_b"], Selection(), "write --dataset_split train_a"),
        (["train_a", "train_b"], Selection(held_out=True), "write --eval_dataset_split train_a"),
        (["train", "test"], Selection("dev"), "has no part 'dev', but the parts 'train', 'test'"),
        (["train", "test"], Selection("train+test"), "no name of a part with a slice"),
    ],
)
def test_what_is_not_clear_is_refused_with_a_remedy_that_works(names: list[str], wanted: Selection, words: str):
    with pytest.raises(DataError, match=words.replace("+", r"\+")) as refused:
        choose(names, wanted, "some/set")
    if "write --" in (said := str(refused.value)):
        remedy = said.rstrip(".").rpartition(" ")[2]
        if remedy in names:
            assert choose(names, Selection(remedy, wanted.held_out), "some/set") == remedy


@pytest.mark.parametrize(
    "split", ["train[:10%]", "train[3:7]", "train[-5:]", "train[25%:75%]", "train[10:]", "train[5:30]", "train"]
)
def test_slices_are_those_of_datasets(tmp_path: Path, split: str):
    import datasets

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    theirs = datasets.load_dataset("json", data_files=str(path), split=split, cache_dir=str(tmp_path / "cache"))
    assert read_rows(str(path), Selection(split)) == list(theirs)
    assert len(theirs) < 20 or split == "train"


@pytest.mark.parametrize("split", ["train[:1%]", "train[a]", "train[7:3]", "test", "train[:5%](odd)"])
def test_slices_that_cannot_be_are_refused_in_a_sentence(tmp_path: Path, split: str):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DataError) as refused:
        read_rows(str(path), Selection(split))
    assert "\n" not in str(refused.value)
    assert ": " in str(refused.value)


def test_saved_sets_and_those_of_the_hub_have_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    made = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:12]), dev=datasets.Dataset.from_list(ROWS[12:]))
    made.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, *, token: made)
    for source in (str(tmp_path / "saved"), "some-org/some-set"):
        said: list[str] = []
        assert read_rows(source, Selection(log=said.append)) == ROWS[:12]
        assert said == [f"of '{source}' the part 'train' is trained on; not read: 'dev'."]
        assert read_rows(source, Selection(held_out=True)) == ROWS[12:]
        assert read_rows(source, Selection("validation[:25%]")) == ROWS[12:14]
        assert len(list(text_sources(source, Selection("dev"))[0]._hub())) == 8
        with pytest.raises(DataError, match="has no part 'test', but the parts 'train', 'dev'"):
            read_rows(source, Selection("test"))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "plain"))
    assert read_rows(str(tmp_path / "plain"), Selection("train[:2]")) == ROWS[:2]
    with pytest.raises(DataError, match="has no parts, so it has no 'test'"):
        read_rows(str(tmp_path / "plain"), Selection("test"))


def test_a_slice_counts_as_the_data_set_does():
    assert span(7, "[:50%]", "x") == range(4)
    assert span(10, "[20%:]", "x") == range(2, 10)
