"""Alignment with preferences in whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from support.flags import flags
from support.preferences import LOSSES
from support.rows import write_rows
from weft.cli import main
from weft.errors import ConfigError
from weft.pages.report import write_report


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_every_loss_learns_what_is_preferred(preference_keys, judged_keys, name: str):
    run = weft.train(
        (judged_keys if name == "kto" else preference_keys) | {"loss": name, "num_rounds": 6, "max_steps": 8}
    )
    found = run.summary["eval"]
    # KTO saturates at 1 and learns slowly from batches of four; it begins at a loss of 1/2.
    assert found["preference_accuracy"] >= (0.6 if name == "kto" else 0.9)
    assert name != "kto" or found["loss"] < 0.49
    assert found["reward_margin"] > 0
    assert found["perplexity"] is None
    assert all(np.isfinite(found[key]) for key in ("loss", "chosen_logp", "rejected_logp"))
    assert (run.path / "reference.npy").exists() == (name not in ("simpo", "orpo"))


def test_the_reference_is_the_starting_model_and_is_computed_once(preference_keys, monkeypatch: pytest.MonkeyPatch):
    from weft.launch import reference

    run = weft.train(preference_keys | {"num_rounds": 1, "learning_rate": 0.0})
    # Nothing was learnt: the policy is the reference, every margin is 0 and the loss log 2.
    assert run.summary["eval"]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert run.summary["eval"]["reward_margin"] == pytest.approx(0, abs=1e-4)
    kept = np.load(run.path / "reference.npy")
    assert kept.shape == (60, 2)
    assert np.isfinite(kept).all()

    def twice(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(reference, "choice_logps", twice)
    (run.path / "summary.json").unlink()
    weft.train(preference_keys | {"num_rounds": 1, "learning_rate": 0.0}, resume=True)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_resumed_run_ends_bit_identical(preference_keys, judged_keys, tmp_path: Path, name: str):
    import shutil

    from safetensors.torch import load_file

    given = (judged_keys if name == "kto" else preference_keys) | {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given)
    broken = tmp_path / "broken"
    shutil.copytree(one.path, broken)
    for path in (*broken.glob("checkpoints/round_00000[34]"), broken / "adapter"):
        shutil.rmtree(path)
    (broken / "summary.json").unlink()
    again = weft.train(given | {"output_dir": str(broken)}, resume=True)
    left, right = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (one, again))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert (one.path / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("alg", ["scaffold", "ditto", "diloco", "fedadam", "local", "central", "fedbuff"])
def test_preferences_are_learnt_by_other_algorithms_and_by_personal_models(preference_keys, alg: str):
    run = weft.train(preference_keys | {"fed_alg": alg, "num_rounds": 2})
    assert run.summary["eval"]["preference_accuracy"] is not None
    if alg in ("local", "ditto"):
        assert "reward_margin" in run.summary["models"]["own"]


def test_weft_dpo_trains_all_parameters_and_reports_preference_accuracy(preference_keys, tmp_path: Path):
    keys = {k: v for k, v in preference_keys.items() if k not in ("objective", "use_peft", "peft_lora_dropout")}
    assert main(["dpo", *flags(keys | {"num_rounds": 1, "output_dir": str(tmp_path / "full")}), "--quiet"]) == 0
    run = weft.open_run(str(tmp_path / "full"))
    assert (run.path / "model" / "config.json").exists()
    assert run.config.peft_lora_dropout == 0.0
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all("preference_accuracy" in line for line in lines if line["event"] == "eval")
    page = write_report(run.path).read_text()
    assert "preference accuracy" in page


def test_preferences_in_several_processes_are_refused(preference_keys):
    with pytest.raises(ConfigError, match="write --parallel none"):
        weft.train(preference_keys | {"parallel": "fsdp"})


OPENFEDLLM = (
    "--model_name_or_path {model} --dataset_name Anthropic/hh-rlhf --dataset_sample 20000 --fed_alg fedavg "
    "--num_clients 5 --sample_clients 2 --learning_rate 5e-4 --max_steps 10 --num_rounds 200 --batch_size 16 "
    "--gradient_accumulation_steps 1 --seq_length 512 --use_peft --output_dir {out} --template vicuna_v1.1"
)
"""training_scripts/run_dpo.sh, but for the model, the folder and --load_in_8bit."""


def test_openfedllms_command_trains(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "data" / "Anthropic" / "hh-rlhf"
    folder.mkdir(parents=True)
    dialogues = [
        {
            "chosen": f"\n\nHuman: what of {n}?\n\nAssistant: red",
            "rejected": f"\n\nHuman: what of {n}?\n\nAssistant: no",
        }
        for n in range(40)
    ]
    write_rows(folder / "train.jsonl", dialogues)
    words = OPENFEDLLM.format(model=tiny_model, out=tmp_path / "output").split()
    words += ["--local_data_dir", str(tmp_path / "data")]
    for flag, value in (("--num_rounds", "2"), ("--seq_length", "256")):
        words[words.index(flag) + 1] = value
    assert main(["dpo", *words, "--quiet"]) == 0
    run = weft.open_run(tmp_path / "output")
    assert (run.config.template, run.config.dpo_beta, run.config.min_learning_rate) == ("vicuna_v1.1", 0.1, 1e-5)
    assert run.summary["eval"]["preference_accuracy"] is not None


def test_training_begins_from_an_adapter_which_is_the_reference(keys, preference_keys, tmp_path: Path, capsys):
    first = weft.train(keys | {"peft_lora_r": 4, "learning_rate": 1e-2, "output_dir": str(tmp_path / "first")})
    again = preference_keys | {"model_name_or_path": str(first.path), "num_rounds": 1, "learning_rate": 0.0}
    run = weft.train(again | {"output_dir": str(tmp_path / "again")})
    # Nothing was learnt: the adapter is the one that the run began from, and that is the reference.
    name = "adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (first.path / name).read_bytes()
    assert (run.config.peft_lora_r, run.config.peft_lora_target_modules) == (4, ["q_proj", "v_proj"])
    assert run.summary["eval"]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert run.summary["eval"]["kl"] == pytest.approx(0, abs=1e-6)
    bare = weft.train(
        again | {"model_name_or_path": preference_keys["model_name_or_path"], "output_dir": str(tmp_path / "bare")}
    )
    assert run.summary["eval"]["chosen_logp"] > bare.summary["eval"]["chosen_logp"]  # it was fine-tuned on such answers
    assert run.model is not None
    folder = weft.train(again | {"model_name_or_path": str(first.path / "adapter"), "output_dir": str(tmp_path / "f")})
    assert (folder.path / name).read_bytes() == (first.path / name).read_bytes()
    capsys.readouterr()
    for changes, words in (
        ({"use_peft": "false"}, "add --use_peft"),
        ({"lora_aggregation": "dual"}, "its own factors"),
    ):
        assert main(["dpo", *flags(again | changes | {"output_dir": str(tmp_path / "no")})]) == 2
        assert words in capsys.readouterr().err
    (first.path / name).write_bytes(b"broken")
    assert main(["dpo", *flags(again | {"output_dir": str(tmp_path / "no")})]) == 2
    assert "are damaged" in capsys.readouterr().err
