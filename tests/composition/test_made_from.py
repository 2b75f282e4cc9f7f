"""A run knows what it was made from: what changed is named and refused, and goes on where that is accepted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import weft
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import build
from weft.core import digests
from weft.errors import ConfigError
from weft.launch import provenance


def rows_of(name: str, seed: int) -> list[dict[str, str]]:
    """Rows that no file of another name has."""
    return [row | {"instruction": f"{row['instruction']} ({name})"} for row in colour_rows(24, seed)]


@pytest.fixture
def own(keys, tiny_model, tmp_path) -> dict[str, object]:
    """A run with a base, clients' files and held-out rows of its own, which may be changed."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for number, name in enumerate("abc"):
        write_rows(tmp_path / f"{name}.jsonl", rows_of(name, number))
    clients = [{"name": "a", "data": str(tmp_path / "a.jsonl"), "eval": str(tmp_path / "c.jsonl")}]
    clients += [{"name": "b", "data": str(tmp_path / "b.jsonl")}]
    return keys | {
        "model_name_or_path": str(base),
        "dataset_name": None,
        "num_clients": None,
        "clients": clients,
        "num_rounds": 1,
    }


def change_weight(tmp_path: Path) -> None:
    """Change one weight of one, without a trace in size or time."""
    file = tmp_path / "base" / "model.safetensors"
    seen = file.stat()
    values = load_file(file)
    next(iter(values.values())).view(-1)[7] += 1e-3
    save_file(values, file, metadata={"format": "pt"})
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert file.stat().st_size == seen.st_size


def change_config(tmp_path: Path) -> None:
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 1e-3}))


def change_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "base" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<pad>"', '"<gap>"'))
    file = tmp_path / "base" / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"<pad>"', '"<gap>"'))


def change_rows(name: str):
    return lambda tmp_path: write_rows(tmp_path / f"{name}.jsonl", rows_of(name, 9))


CHANGES = {
    "the weights of the base": change_weight,
    "the configuration of the base": change_config,
    "the tokenizer": change_tokenizer,
    "the data of the client 'b'": change_rows("b"),
    "the held-out rows of the client 'a'": change_rows("c"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_named_and_refused_until_it_is_accepted(own, tmp_path, capsys, what):
    run = weft.train(own)
    weft.train(own, resume=True)  # nothing changed
    record = (run.path / "fingerprints.json").read_bytes()
    CHANGES[what](tmp_path)
    with pytest.raises(ConfigError, match=what) as refused:
        weft.train(own, resume=True, num_rounds=2)
    others = [other for other in CHANGES if other != what and other in str(refused.value)]
    assert others == []
    assert (run.path / "fingerprints.json").read_bytes() == record
    assert weft.open_run(run.path).config.num_rounds == 1
    capsys.readouterr()
    again = ["sft", "--output_dir", str(run.path), "--resume", "--num_rounds", "2"]
    assert main([*again, "--accept_changed"]) == 0
    assert f"{what}" in capsys.readouterr().err
    (change,) = json.loads((run.path / "fingerprints.json").read_text())["changes"]
    assert change["after_round"] == 1
    assert what in next(iter(change["before"]))
    # It is accepted once, for what is there now.
    assert "accept_changed: false" in (run.path / "config.yaml").read_text()
    assert main(again) == 0


def test_weights_are_not_put_on_another_base(own, tmp_path, capsys):
    run = weft.train(own)
    words = ["--out", str(tmp_path / "out")]
    change_rows("b")(tmp_path)
    assert main(["export", str(run.path), "--merge", *words]) == 0  # data is not what a model is used with
    shutil.rmtree(tmp_path / "out")
    change_weight(tmp_path)
    chat = ["chat", str(run.path), "--prompt", "What?", "--max_new_tokens", "2"]
    for verb in (chat, ["export", str(run.path), *words], ["export", str(run.path), "--merge", *words]):
        capsys.readouterr()
        assert main(verb) == 2
        assert "the weights of the base" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert main([*verb, "--accept_changed"]) == 0
        assert "changed since the run was made" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    # A base that is gone is no reason to keep the adapter back.
    shutil.rmtree(tmp_path / "base")
    assert main(["export", str(run.path), *words]) == 0


def test_a_whole_model_stands_by_itself(own, tmp_path):
    run = weft.train(own | {"use_peft": False})
    change_weight(tmp_path)
    assert main(["export", str(run.path), "--out", str(tmp_path / "out")]) == 0
    assert main(["chat", str(run.path), "--prompt", "What?", "--max_new_tokens", "2"]) == 0
    with pytest.raises(ConfigError, match="the weights of the base"):
        weft.train(own | {"use_peft": False}, resume=True)


def test_the_adapter_that_a_run_begins_from_is_a_part_of_it(own, tmp_path):
    first = weft.train(own)
    second = own | {"model_name_or_path": str(first.path), "output_dir": str(tmp_path / "second")}
    weft.train(second)
    weft.train(second, resume=True)
    weft.train(own, resume=True, num_rounds=2)  # the first run goes on, and its adapter is another
    with pytest.raises(ConfigError, match="the adapter '"):
        weft.train(second, resume=True)


def test_a_run_of_an_older_version_is_said_to_be_unknown(own, capsys):
    run = weft.train(own)
    (run.path / "fingerprints.json").unlink()
    weft.train(own, resume=True)
    assert "recorded no fingerprints" in capsys.readouterr().err
    assert (run.path / "fingerprints.json").exists()
    (run.path / "fingerprints.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read: restore the file, or delete it"):
        weft.train(own, resume=True)


def test_an_unchanged_large_file_is_read_once_for_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 100)
    file, kept = tmp_path / "large", tmp_path / "kept"
    file.write_bytes(b"x" * 1000)
    first = digests.file_digest(file, kept)
    assert first == digests.file_digest(file)
    read = []
    monkeypatch.setattr(digests, "_read", lambda path: read.append(path) or "f" * 32)
    assert digests.file_digest(file, kept) == first
    assert not read
    seen = file.stat()
    file.write_bytes(b"x" * 999 + b"y")
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert digests.file_digest(file, kept) != first  # its time of change cannot be set back
    assert read == [file]
    small = tmp_path / "small"
    small.write_bytes(b"x" * 99)
    digests.file_digest(small, kept)
    digests.file_digest(small, kept)
    assert read[1:] == [small, small]


def test_a_base_of_the_hub_is_known_by_its_commit(tiny_model, tmp_path):
    """In a process of its own: where the cache is, is read once."""
    cache = tmp_path / "models--some--model"
    shutil.copytree(tiny_model, cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    program = (
        "from weft.config import build\n"
        "from weft.launch import provenance\n"
        "from weft.models.tokenizer import load_tokenizer\n"
        "config = build({'model_name_or_path': 'some/model', 'dataset_name': 'none'})\n"
        "print({**provenance.base_of(config), **provenance.tokenizer_of(config, load_tokenizer(config))})"
    )
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    names = ("the base", "the tokenizer")
    assert said.stdout.strip() == str({f"{name} 'some/model'": f"commit {'a' * 40}" for name in names})


def test_the_digest_of_a_data_set_depends_only_on_its_rows(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(colour_rows(2500))
    rows.save_to_disk(tmp_path / "set")
    first = provenance._of_hub(rows)
    assert provenance._of_hub(datasets.load_from_disk(tmp_path / "set")) == first
    assert (
        provenance._of_hub(datasets.concatenate_datasets([rows.select(range(700)), rows.select(range(700, 2500))]))
        == first
    )
    assert provenance._of_hub(rows.select(range(2499))) != first


def test_what_the_former_base_said_of_preferences_is_not_gone_on_with(own, tmp_path):
    for name in "abc":
        rows = [
            {"prompt": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in rows_of(name, 0)[:9]
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    keys = own | {"objective": "preference", "loss": "dpo"}
    run = weft.train(keys)
    former = (run.path / "reference.npy").read_bytes()
    change_weight(tmp_path)
    again = weft.train(keys, resume=True, num_rounds=2, accept_changed=True)
    fresh = weft.train(keys | {"output_dir": str(tmp_path / "fresh")})
    assert (again.path / "reference.npy").read_bytes() == (fresh.path / "reference.npy").read_bytes() != former


@pytest.mark.parametrize(("objective", "parts"), [("preference", "prefs"), ("grpo", "sft"), ("sft", "sft")])
def test_only_the_parts_that_a_run_reads_are_compared_on_resume(tmp_path, objective: str, parts: str):
    """Of a set with several, as HuggingFaceH4/ultrafeedback_binarized; what is not read may change."""
    folder = tmp_path / "HuggingFaceH4" / "ultrafeedback_binarized"
    (folder / "data").mkdir(parents=True)
    every = [f"{part}_{kind}" for part in ("train", "test") for kind in ("prefs", "sft")]
    files = {part: folder / "data" / f"{part}-00000-of-00001.jsonl" for part in every}
    for file in files.values():
        write_rows(file, rows_of(file.name, 0))
    keys = {"dataset_name": str(folder), "objective": objective, "token_cache": str(tmp_path / "tokens")}
    config = build(keys)
    before = provenance.data_of(config)
    assert len(before) == 2
    changed = {}
    for part, file in files.items():
        text = file.read_bytes()
        write_rows(file, rows_of(file.name, 1))
        changed[part] = {what for what, mark in provenance.data_of(config).items() if before[what] != mark}
        file.write_bytes(text)
    read = {f"train_{parts}": {f"the data '{folder}'"}, f"test_{parts}": {f"the held-out rows of '{folder}'"}}
    assert changed == {part: set() for part in files} | read


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_changed_adapter_to_begin_from_is_noticed(tiny_model, tmp_path, name: str):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    (adapter / name).write_bytes(b"one")
    config = build({"model_name_or_path": str(adapter), "dataset_name": "none", "token_cache": str(tmp_path / "t")})
    before = provenance.base_of(config)[f"the adapter '{adapter}'"]
    (adapter / name).write_bytes(b"two")
    assert provenance.base_of(config)[f"the adapter '{adapter}'"] != before
