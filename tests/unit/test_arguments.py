"""What words a command takes, what it says of others, and its help."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from support.flags import flags
from weft import registry
from weft.cli import main
from weft.config import RESOLVED, RunConfig, build, read_file
from weft.errors import ConfigError
from weft.keys.names import FOREIGN
from weft.runs.layout import HEADER
from weft.verbs import parser, settings


def resolved(words: list[str]) -> RunConfig:
    return settings(parser("sft", "Fine-tune.").parse(words), lambda given: {})[0]


def refused(capsys, words: list[str]) -> str:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("key", ["num_rounds", "use_peft", "clients"])
def test_a_flag_given_twice_is_refused(key: str, capsys):
    value = {"use_peft": [], "clients": ["a=b"]}.get(key, ["3"])
    said = refused(capsys, ["sft", f"--{key}", *value, "--seed", "3", f"--{key.replace('_', '-')}", *value])
    assert f"--{key} is given twice" in said
    assert "--log_with is given twice" in refused(capsys, ["sft", "--report_to", "none", "--log_with", "none"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nnum_rounds: 3\nseed: 2\n", "'seed' is given twice, in lines 1 and 3"),
        ("fed_args:\n  mu: 1\n  mu: 2\n", "'mu' is given twice, in lines 2 and 3"),
        ("report_to: none\nlog_with: none\n", "report_to is given twice"),
        ("data: a\ndataset_name: b\n", "dataset_name is given twice"),
    ],
)
def test_a_key_twice_in_a_file_is_refused(text: str, words: str, tmp_path: Path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert words in refused(capsys, ["sft", str(file)])
    assert main(["split", str(file), "--dry_run"]) == 2


def test_the_run_file_may_come_first(tmp_path: Path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "d", "num_rounds": 7}))
    assert resolved([str(file), "--batch_size", "5"]).num_rounds == 7
    assert resolved(["--batch_size", "5", str(file), "--num_rounds", "8"]).num_rounds == 8
    assert "Two run files" in refused(capsys, ["sft", str(file), "--config", str(file)])
    assert "write the run file first" in refused(capsys, ["sft", "--use_peft", "run.yaml"])
    assert "write the run file first" in refused(capsys, ["sft", "--clients", "a=b", "run.yaml"])
    assert "no run file 'nowhere.yaml'" in refused(capsys, ["sft", "nowhere.yaml"])


def test_flags_take_back_what_the_file_says(tmp_path: Path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "d", "split_strategy": "dirichlet", "split_alpha": 0.1}))
    assert "split_alpha" in refused(capsys, ["sft", str(file), "--split_strategy", "iid"])
    assert resolved([str(file), "--split_strategy", "iid", "--split_alpha", "null"]).split_alpha == 0.5


def test_switches_are_turned_off(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "d", "use_peft": True, "eval_everybody": True}))
    for words in (["--no_use_peft"], ["--no-use-peft"], ["--use_peft", "false"], ["--use_peft=False"]):
        assert not resolved([str(file), "--no_eval_everybody", *words]).use_peft
    with pytest.raises(ConfigError, match="--no_seed"):
        resolved([str(file), "--no_seed"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("lr", "learning_rate"),
        ("model", "model_name_or_path"),
        ("per_device_train_batch_size", "batch_size"),
        ("per-device-train-batch-size", "batch_size"),
        ("epochs", "num_train_epochs, which counts beside max_steps -1"),
        ("max_seq_length", "seq_length"),
        ("max_length", "seq_length"),
        ("lora_alpha", "peft_lora_alpha"),
        ("lora_r", "peft_lora_r"),
        ("beta", "dpo_beta"),
        ("num_round", "num_rounds"),
    ],
)
def test_the_names_of_keys_in_other_tools_are_refused_with_ours(theirs: str, ours: str, capsys):
    assert f"--{ours}" in refused(capsys, ["sft", f"--{theirs}", "3"])
    assert ours in refused(capsys, ["sft", f"--{theirs}=3"])
    with pytest.raises(ConfigError, match=ours):
        build({theirs.replace("-", "_"): 3})


def test_no_key_has_a_name_that_is_listed_as_another_tools():
    assert not FOREIGN.keys() & RunConfig.model_fields.keys()
    assert set(FOREIGN.values()) <= RunConfig.model_fields.keys()


def test_the_help_is_short_and_names_the_parts(capsys):
    def printed(*words: str) -> str:
        with pytest.raises(SystemExit):
            main(list(words))
        return capsys.readouterr().out

    short, whole = printed("sft", "--help"), printed("sft", "--help_all")
    assert len(short.splitlines()) < 115 < len(whole.splitlines())
    assert all(f"--{key} " in whole for key in RunConfig.model_fields)
    assert "--fed_alg" in short
    assert "--tokenizer_noise" not in short
    assert short.index("The model:") < short.index("The data:") < short.index("The federation:") < short.index("names:")
    losses = get_args(RunConfig.model_fields["loss"].annotation)
    tables = (registry.ALGORITHMS, registry.LORA_AGGREGATIONS, registry.SPLITS, registry.TEMPLATES, losses)
    names = short[short.index("names:") :].replace(",", " ").split()
    assert all(name in names for table in tables for name in table)
    assert "--prompt_method" in printed("prompt", "--help")
    cleaning = printed("clean", "--help")
    assert all(f"--{key} " in cleaning for key in ("clean", "clean_args", "response_column", "seq_length"))
    assert not any(f"--{key} " in cleaning for key in ("fed_alg", "num_rounds", "output_dir", "help_all"))
    assert all(name in cleaning for name in registry.CLEANERS)
    assert main(["clean", "x.jsonl", "--out", "y.jsonl", "--clean", "repair", "--fed_alg", "scaffold"]) == 2
    assert "--dry_run" not in printed("submit", "--help")


def test_a_wrong_word_is_refused_at_once_and_without_torch(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("num_round: 3\n")
    good = tmp_path / "good.yaml"
    good.write_text("dataset_name: d\nprox_mu: 1\n")
    for words in (["sft", "--num_round", "3"], ["sft", str(file)], ["dpo", str(good)], ["submit", "--num_round", "3"]):
        code = (
            "import sys\nfrom weft.cli import main\n"
            f"code = main({words!r})\n"
            "print(code, [name for name in ('torch', 'transformers', 'nvflare') if name in sys.modules])"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout.strip() == "2 []"
        assert "Traceback" not in done.stderr
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_runs_own_file_is_a_run_file(keys, tmp_path: Path, capsys):
    """It holds every key; none of them was given."""
    assert HEADER.strip() == RESOLVED
    file = tmp_path / "config.yaml"
    file.write_text(HEADER + yaml.safe_dump(build(keys).model_dump(mode="json")))
    assert read_file(file)["prox_mu"] == 0.01
    assert resolved([str(file), "--output_dir", str(tmp_path / "again")]).num_rounds == 3
    assert "prox_mu" in refused(capsys, ["sft", str(file), "--prox_mu", "0.3"])
    file.write_text(yaml.safe_dump({key: value for key, value in read_file(file).items() if key != "seed"}))
    assert "no effect" in refused(capsys, ["sft", str(file)])


def test_a_dry_run_leaves_nothing(keys, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "the {n} dogs and the cat number {n}"}}\n' for n in range(60)))
    before = sorted(tmp_path.rglob("*"))
    assert main(["sft", *flags(keys), "--dry_run"]) == 0
    own = {key: value for key, value in keys.items() if key not in ("template", "dataset_name", "use_peft")}
    own |= {"dataset_name": str(text)}
    assert main(["pretrain", *flags(own), "--dry_run"]) == 0
    scratch = {key: value for key, value in own.items() if key != "model_name_or_path"}
    scratch |= {"size": "5m", "federated_tokenizer": "true", "vocab_size": 300, "tokenizer_min_count": 1}
    assert main(["pretrain", *flags(scratch), "--dry_run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    capsys.readouterr()
    # Where the text was tokenized before, the plan is made of that, and is the same.
    assert main(["pretrain", *flags(own), "--dry_run"]) == 0
    first = capsys.readouterr().out
    assert main(["pretrain", *flags(own | {"num_rounds": 1}), "--quiet"]) == 0
    kept = sorted((tmp_path / "cache").rglob("*"))
    assert kept
    capsys.readouterr()
    assert main(["pretrain", *flags(own), "--dry_run"]) == 0
    assert capsys.readouterr().out == first
    assert sorted((tmp_path / "cache").rglob("*")) == kept


def test_the_plan_comes_first_and_all_keys_are_asked_for(keys, capsys):
    assert main(["sft", *flags(keys), "--dry_run", "--all_keys"]) == 0
    out = capsys.readouterr().out
    plan, _, settings = out.partition("# Every key of the run.\n")
    assert plan.startswith("# The plan")
    assert yaml.safe_load(settings) == build(keys).model_dump(mode="json")
    assert "--dry_run" in refused(capsys, ["sft", *flags(keys), "--all_keys"])
