"""The command line: what it imports, what it accepts, what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import weft
from support.flags import flags
from weft.cli import main
from weft.config import RunConfig, build
from weft.verbs import parser, settings

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "numpy", "pandas", "matplotlib")
OPENFEDLLM = (
    "--fed_alg fedavg --num_rounds 2 --num_clients 2 --sample_clients 2 --split_strategy iid --prox_mu 0.01 "
    "--fedopt_tau 1e-3 --fedopt_eta 1e-3 --fedopt_beta1 0.9 --fedopt_beta2 0.99 --save_model_freq 50 "
    "--model_name_or_path m --dataset_name d --log_with none --learning_rate 2e-5 --batch_size 16 --seq_length 512 "
    "--gradient_accumulation_steps 1 --load_in_8bit False --load_in_4bit False --use_peft --trust_remote_code False "
    "--output_dir output --peft_lora_r 8 --peft_lora_alpha 16 --logging_steps 100 --use_auth_token False "
    "--num_train_epochs 3 --max_steps 10 --save_steps 1000 --save_total_limit 10 --push_to_hub False "
    "--gradient_checkpointing True --template alpaca --seed 2023 --dpo_beta 0.1 --dataset_sample 20000 "
    "--local_data_dir here"
).split()


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["--version"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]):
    code = (
        "import sys, contextlib, io\nfrom weft.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def resolved(words: list[str]) -> RunConfig:
    """Return the configuration that words of `weft sft` stand for."""
    return settings(parser("sft", "Fine-tune.").parse(words), lambda given: {})[0]


def test_importing_weft_imports_nothing_heavy():
    code = f"import sys, weft, weft.config; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_flag_of_openfedllm_is_accepted():
    config = resolved(OPENFEDLLM)
    assert config.use_peft
    assert config.gradient_checkpointing
    assert config.report_to == ["none"]
    assert config.fedopt_tau == 1e-3


def test_flags_override_the_file_in_every_spelling(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "d", "num_rounds": 7, "batch_size": 3}))
    words = ["--config", str(file), "--batch-size", "5", "--seq_length=99", "--use_peft", "--report_to", "none"]
    config = resolved(words)
    assert (config.num_rounds, config.batch_size, config.seq_length, config.use_peft) == (7, 5, 99, True)
    assert resolved([*(word for word in words if word != "--use_peft"), "--no-use-peft"]).use_peft is False


def test_dry_run_prints_the_plan_and_writes_nothing(keys, capsys):
    assert main(["sft", *flags(keys), "--dry_run"]) == 0
    out = capsys.readouterr().out
    plan, _, settings = out.partition("# What differs from the defaults")
    assert plan.startswith("# The plan")
    shown = yaml.safe_load(settings.partition("\n")[2])
    assert shown["num_clients"] == 3
    assert "seed" not in shown
    assert "2 of 3 per round" in plan
    # r=8 on q (32 to 32) and v (32 to 16) of two layers, 4 bytes each.
    assert "trained" in plan
    assert str(2 * 8 * (32 + 32 + 32 + 16)) in plan
    assert not Path(str(keys["output_dir"])).exists()


def test_with_json_every_event_is_an_object_on_its_line(keys, capsys):
    assert main(["sft", *flags(keys), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["split", "round", "round", "eval", "round", "eval", "done"]
    assert events[1]["bytes_up"] > 0


def test_a_run_can_be_compared_exported_and_talked_to(keys, tmp_path: Path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = weft.train(keys, quiet=True)
    assert main(["compare", str(run.path), str(run.path), "--json"]) == 0
    assert main(["compare", str(run.path)]) == 0
    assert "shared model, everybody's rows" in capsys.readouterr().out
    assert main(["chat", str(run.path), "--prompt", "What colour is the sky?", "--max_new_tokens", "4"]) == 0
    merged = tmp_path / "merged"
    assert main(["export", str(run.path), "--merge", "--out", str(merged)]) == 0
    assert main(["export", str(run.path), "--merge", "--out", str(merged)]) == 2
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(str(keys["model_name_or_path"]), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(run.path / "adapter")).eval()(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(str(keys["model_name_or_path"]), dtype=torch.float32)(ids).logits
    torch.testing.assert_close(adapted, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, whole, atol=1e-5)


def test_full_fine_tuning_writes_a_model_that_transformers_loads(keys):
    from transformers import AutoModelForCausalLM

    run = weft.train(build(keys | {"use_peft": False}), quiet=True)
    loaded = AutoModelForCausalLM.from_pretrained(run.path / "model")
    base = AutoModelForCausalLM.from_pretrained(str(keys["model_name_or_path"]))
    changed = [n for n, p in loaded.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert len(changed) == len(list(loaded.parameters()))
    assert isinstance(run.config, RunConfig)
    assert run.model.config.vocab_size == loaded.config.vocab_size


def test_with_report_to_tensorboard_a_run_writes_its_events(keys):
    pytest.importorskip("tensorboard")
    run = weft.train(keys | {"report_to": "tensorboard"}, quiet=True)
    assert list(run.path.rglob("events.out.tfevents*"))


def test_output_cut_off_by_its_reader_prints_no_traceback():
    words = f"{sys.executable} -m weft --help | true"
    ended = subprocess.run(
        ["bash", "-c", words + "; exit ${PIPESTATUS[0]}"], capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
