"""Every training command of the pages is one that is accepted: no key of it is unknown or without effect."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT
from weft.config import build, read_file
from weft.runs.layout import HEADER
from weft.verbs import parser, settings

VERBS = ("sft", "dpo", "grpo", "prompt", "pretrain")
OPENFEDLLM = {
    "sft": "--learning_rate 5e-5 --model_name_or_path meta-llama/Llama-2-7b-hf --dataset_name vicgalle/alpaca-gpt4 "
    "--dataset_sample 20000 --fed_alg fedavg --num_clients 20 --sample_clients 2 --max_steps 10 --num_rounds 200 "
    "--batch_size 16 --gradient_accumulation_steps 1 --seq_length 512 --peft_lora_r 32 --peft_lora_alpha 64 --use_peft "
    "--load_in_8bit --output_dir ./output --template alpaca",
    "dpo": "--model_name_or_path ehartford/Wizard-Vicuna-7B-Uncensored --dataset_name Anthropic/hh-rlhf "
    "--dataset_sample 20000 --fed_alg fedavg --num_clients 5 --sample_clients 2 --learning_rate 5e-4 --max_steps 10 "
    "--num_rounds 200 --batch_size 16 --gradient_accumulation_steps 1 --seq_length 512 --use_peft --load_in_8bit "
    "--output_dir ./output --template vicuna_v1.1",
}
"""What its training_scripts/run_sft.sh and run_dpo.sh come to."""


def commands() -> list[tuple[str, str, str]]:
    """Return (page, verb, words) of every command in a block of a page, and of every example's first comment."""
    found = []
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*.yaml")),
    ):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            match = re.match(r"(?:# (?:[^:]*: )?)?(?:torchrun .* -m )?weft (\w+) (.*)$", line.strip())
            if match and match[1] in VERBS:
                found.append((page.name, match[1], match[2]))
    return found


def write_run(folder: Path, file: Path) -> None:
    """Write what a run that was begun by a run file has: its configuration."""
    folder.mkdir()
    config = build(read_file(file) | {"output_dir": str(folder)})
    (folder / "config.yaml").write_text(HEADER + yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")


def configured(verb: str, words: list[str]) -> list[str]:
    module = importlib.import_module(f"weft.commands.{verb}")
    return settings(parser(verb, "").parse(words), getattr(module, "defaults", lambda given: {}))[1]


@pytest.mark.parametrize(("page", "verb", "words"), commands())
def test_every_command_in_the_pages_is_accepted(
    page: str, verb: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(ROOT)
    run = ROOT / "examples" / "sft.yaml"
    if "--output_dir RUN --resume" in words:  # of a run that is there
        write_run(tmp_path / "RUN", run)
        monkeypatch.chdir(tmp_path)
    configured(verb, [str(run) if word == "run.yaml" else word for word in shlex.split(words, comments=True)])


def test_commands_are_found_in_the_pages_for_every_verb():
    assert len(commands()) > 25
    assert {verb for _, verb, _ in commands()} == set(VERBS)


@pytest.mark.parametrize("verb", OPENFEDLLM)
def test_openfedllms_scripts_are_accepted(verb: str):
    assert configured(verb, OPENFEDLLM[verb].split()) == []
    (said,) = configured(verb, [*OPENFEDLLM[verb].split(), "--prox_mu", "0.01", "--logging_steps", "100"])
    assert "prox_mu" in said
    assert "logging_steps" in said
