"""Data sets whose README.md says which files are in which part."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_parts import lay

from weft.data.load import data_files, kind_of
from weft.data.parts import Selection, parts_of
from weft.errors import DataError

ONE = """configs:
- config_name: default
  data_files:
  - split: train
    path: [fold_a/*.jsonl, "deep/**"]
  - split: held
    path: fold_b/*
"""
TWO = """configs:
- config_name: main
  data_files: [{split: train, path: "main/train*"}, {split: test, path: "main/test*"}]
- config_name: socratic
  data_files: [{split: train, path: "socratic/train*"}]
"""
FILES = ["fold_a/1.jsonl", "fold_a/2.jsonl", "fold_a/in/3.jsonl", "fold_b/1.jsonl", "deep/er/1.jsonl", "test.jsonl"]
SETS = ["main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl"]


def described(folder: Path, names: list[str], head: str) -> Path:
    lay(folder, names)
    (folder / "README.md").write_text(f"---\n{head}---\n\n# A set\n")
    return folder


def test_declared_parts_are_those_of_datasets(tmp_path: Path):
    from datasets.data_files import DataFilesDict, sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    folder = described(tmp_path, FILES, ONE)
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(folder / "README.md").data)
    patterns = sanitize_patterns(configs["default"]["data_files"])
    theirs = {
        part: sorted(str(Path(file).relative_to(folder)) for file in files)
        for part, files in DataFilesDict.from_patterns(patterns, base_path=str(folder)).items()
    }
    found = parts_of(folder, kind_of)
    assert {part: sorted(str(p.relative_to(folder)) for p in own) for part, own in found.files.items()} == theirs
    assert sorted(str(path.relative_to(folder)) for path in found.unassigned) == ["fold_a/in/3.jsonl", "test.jsonl"]


def test_of_several_sets_the_usual_one_is_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds several data sets \('main', 'socratic'\)") as refused:
        data_files(described(tmp_path / "some", SETS, TWO))
    assert "name one of its files, or a folder" in str(refused.value)
    assert len(data_files(tmp_path / "some" / "main")) == 1  # the remedy
    known = described(tmp_path / "openai" / "gsm8k", SETS, TWO)
    assert data_files(known) == [known / "main/train.jsonl"]
    assert data_files(known, Selection("test")) == [known / "main/test.jsonl"]
    marked = described(tmp_path / "marked", SETS, TWO.replace("socratic\n", "socratic\n  default: true\n"))
    assert data_files(marked) == [marked / "socratic/train.jsonl"]


def test_a_set_that_declares_no_parts_is_read_by_the_names_of_its_files(tmp_path: Path):
    folder = described(tmp_path, ["train.jsonl", "test.jsonl"], "license: mit\n")
    assert data_files(folder) == [folder / "train.jsonl"]
    (folder / "README.md").write_text("---\nconfigs: [: broken\n---\n")
    assert data_files(folder) == [folder / "train.jsonl"]
    described(folder, [], ONE)
    with pytest.raises(DataError, match="none of them exists"):
        data_files(folder)
