"""A user's mistake costs one sentence with the remedy and exit code 2, no traceback, and nothing that was there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from support.flags import flags
from support.rows import colour_rows, write_rows
from weft import config as configuration
from weft import open_run
from weft.cli import main
from weft.core import exchange, parts
from weft.errors import ConfigError
from weft.federation.compatibility import check
from weft.federation.plan import Plan
from weft.federation.sharing import Sharing
from weft.launch import compose


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Run the command line and return its one sentence."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert err.startswith("weft: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name_or_path": "./no/such/model"}, ["./no/such/model", "check the path"]),
        ({"model_name_or_path": "no-such-org/no-such-model"}, ["no-such-org/no-such-model", "hub name"]),
        ({"dataset_name": "missing.jsonl"}, ["missing.jsonl", "check the path"]),
        ({"dataset_name": "no-such-org/no-such-set"}, ["no-such-org/no-such-set", "check the name"]),
        ({"fed_alg": "fedavgg"}, ["fedavgg", "Did you mean 'fedavg'?"]),
        ({"fed_alg": "local7"}, ["local7", "3 clients", "local2"]),
        ({"template": "alpacca"}, ["alpacca", "Did you mean 'alpaca'?"]),
        ({"template": "chat"}, ["no chat template", "--template alpaca"]),
        ({"objective": "sfft"}, ["sfft", "Did you mean 'sft'?"]),
        ({"split_strategy": "ild"}, ["ild", "iid"]),
        ({"num_rounds": "many"}, ["many", "num_rounds"]),
        ({"batch_size": "0"}, ["0", "batch_size"]),
        ({"dtype": "float8"}, ["float8", "dtype"]),
        ({"load_in_8bit": "true", "load_in_4bit": "true"}, ["8 bits", "4"]),
        ({"load_in_8bit": "true", "use_peft": "false"}, ["quantised", "--use_peft"]),
        ({"seq_length": "5000"}, ["5000", "--seq_length 256"]),
        ({"num_clients": "500"}, ["500 clients", "120 rows"]),
        ({"peft_lora_target_modules": "no_such_module"}, ["no_such_module", "q_proj"]),
        ({"device": "abacus"}, ["abacus", "cpu"]),
        ({"report_to": "tensorbord"}, ["tensorbord", "tensorboard"]),
        ({"instruction_column": "question"}, ["question", "'instruction'"]),
        ({"push_to_hub": "true"}, ["--push_to_hub", "weft export"]),
    ],
)
def test_a_mistaken_key_is_refused_in_one_sentence(keys, changes, words, capsys: pytest.CaptureFixture[str]):
    said = refusal(capsys, ["sft", *flags(keys | changes)])
    for word in words:
        assert word in said


def test_a_broken_line_of_data_is_named(keys, tmp_path: Path, capsys):
    rows = [json.dumps(row) for row in colour_rows(5)]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*rows[:2], '{"instruction": "half', *rows[2:]]))
    assert "Line 3 of" in refusal(capsys, ["sft", *flags(keys | {"dataset_name": broken})])


def test_missing_columns_are_refused_with_those_found(keys, tmp_path: Path, capsys):
    path = write_rows(tmp_path / "odd.jsonl", [{"frage": "a", "antwort": "b"}] * 10)
    said = refusal(capsys, ["sft", *flags(keys | {"dataset_name": path})])
    assert "'frage'" in said
    assert "'antwort'" in said
    assert "--instruction_column" in said


def test_an_empty_client_is_refused(keys, tmp_path: Path, capsys):
    good, empty = write_rows(tmp_path / "good.jsonl", colour_rows(20)), write_rows(tmp_path / "empty.jsonl", [])
    del keys["dataset_name"], keys["num_clients"]
    assert "empty" in refusal(capsys, ["sft", *flags(keys | {"clients": [f"a={good}", f"b={empty}"]})])


def test_unknown_keys_and_flags_get_the_nearest(keys, tmp_path: Path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(keys | {"batchsize": 4}))
    assert "Did you mean 'batch_size'?" in refusal(capsys, ["sft", "--config", str(file)])
    assert "Did you mean '--num_rounds'?" in refusal(capsys, ["sft", *flags(keys), "--num_round", "3"])
    assert "Did you mean 'sft'?" in refusal(capsys, ["sftt"])
    file.write_text("a: [b\nc: d")
    assert "line" in refusal(capsys, ["sft", "--config", str(file)])
    assert "no run file" in refusal(capsys, ["sft", "--config", str(tmp_path / "none.yaml")])


def test_a_directory_that_holds_a_run_is_not_written_over(keys, capsys):
    run = Path(str(keys["output_dir"]))
    assert main(["sft", *flags(keys), "--quiet"]) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert "--resume" in refusal(capsys, ["sft", *flags(keys)])
    said = refusal(capsys, ["sft", *flags(keys | {"learning_rate": 0.5, "seed": 1}), "--resume"])
    assert "learning_rate was 0.001 and is now 0.5" in said
    assert "seed was 2023 and is now 1" in said
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert main(["sft", *flags(keys), "--overwrite", "--quiet"]) == 0


def test_resume_of_nothing_is_refused(keys, capsys):
    assert "no run" in refusal(capsys, ["sft", *flags(keys), "--resume"])
    assert not Path(str(keys["output_dir"])).exists()


def test_other_commands_refuse_what_is_no_run(tmp_path: Path, capsys):
    for verb in ("compare", "chat", "export"):
        assert "no run" in refusal(capsys, [verb, str(tmp_path)])


def test_more_sampled_clients_than_there_are_is_said_once(keys, capsys):
    assert main(["sft", *flags(keys | {"sample_clients": 9}), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("all take part") == 1


def test_a_model_without_a_pad_token_is_trained(keys, tiny_model: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "nopad"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["sft", *flags(keys | {"model_name_or_path": folder}), "--quiet"]) == 0


def test_rows_that_are_cut_or_dropped_are_counted(keys, tmp_path: Path, capsys):
    rows = colour_rows(30)
    for row in rows[:4]:
        row["instruction"] = "word " * 300
    rows[5]["output"] = ""
    path = write_rows(tmp_path / "long.jsonl", rows)
    assert main(["sft", *flags(keys | {"dataset_name": path, "max_steps": 1}), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "4 of 29 rows are longer than 128 tokens and were cut on the right" in said
    assert "4 rows were left out (no answer within seq length)" in said
    assert "1 row was left out (empty answer)" in said
    rows = open_run(keys["output_dir"]).summary["rows"]
    assert rows["no_answer_within_seq_length"] == 4
    assert "no answer within seq length" not in rows  # which would be the same count once more


class _SumOnly(exchange.Protection):
    sum_only: ClassVar[bool] = True


@dataclass(frozen=True)
class _Peeks(parts.Algorithm):
    sums_updates: ClassVar[bool] = False


@dataclass(frozen=True)
class _Pools(parts.Algorithm):
    pools_data: ClassVar[bool] = True


class _Bounded(exchange.Privacy):
    bounded: ClassVar[bool] = True


class _Sparse(exchange.Codec):
    addable: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"protection": _SumOnly(), "algorithm": _Peeks()}, "--protection none"),
        ({"protection": _SumOnly(), "aggregator": exchange.Aggregator()}, "--aggregator mean"),
        ({"protection": _SumOnly(), "codec": _Sparse()}, "another codec"),
        ({"protection": _SumOnly(), "sharing": Sharing(ranks=(2, 4))}, "leave out --client_ranks"),
        ({"protection": _SumOnly(), "over_selected": True}, "leave out --over_selection"),
        ({"privacy": _Bounded(), "aggregator": exchange.Aggregator()}, "--aggregator mean"),
        ({"privacy": _Bounded(), "algorithm": _Pools()}, "a federated algorithm"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_their_traits(changes, remedy: str):
    good = vars(compose.plan(configuration.build({"dataset_name": "any"})))
    check(Plan(**good))
    with pytest.raises(ConfigError, match=remedy):
        check(Plan(**good | changes))
