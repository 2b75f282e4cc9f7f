"""Preferences beyond those of a reference model: what trl's trainer logs of the same log-probabilities."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from support.own_tasks import own_task
from weft.cli import main

TASK = own_task("pairs", 'preference: {chosen: "{{ good }}", rejected: "{{ bad }}", delimiter: " "}', file="pairs")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pairs.yaml").write_text(TASK)
    answers = [[f"red {n}", f"dark green {n}"][:: 1 - 2 * (n % 2)] for n in range(12)]
    choice = "choice: {choices: [red 1, dark green 1], answer: '0'}"
    other = own_task("chosen", choice, file="pairs")
    (tmp_path / "own" / "chosen.yaml").write_text(other)
    rows = [{"thing": f"thing {n}", "good": good, "bad": bad} for n, (good, bad) in enumerate(answers)]
    (tmp_path / "own" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = str(tmp_path / "own")
    return ["--tasks", "pairs", "--include_path", own, "--task_data", own, "--quiet"]


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def trl_logs(own: torch.Tensor, reference: torch.Tensor, beta: float) -> tuple[float, float]:
    """Return the rewards/accuracies and /margins that trl logs of log-probabilities (N, 2) of chosen and rejected."""
    from trl.trainer.dpo_trainer import DPOTrainer

    class Outputs:
        log_probs, aux_loss = own.t().reshape(-1, 1), None

        def __getattr__(self, name: str) -> torch.Tensor:
            return torch.zeros_like(self.log_probs, dtype=torch.bool if name == "is_top1" else None)

    trainer = MagicMock()
    trainer.beta, trainer.label_smoothing, trainer.model.training = beta, 0.0, False
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda value: value
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.precompute_ref_logps = True
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    trainer.ld_alpha, trainer.f_divergence_type = None, "reverse_kl"
    mask = torch.tensor([[0, 1]] * 2 * len(own))
    inputs = {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    inputs |= {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    DPOTrainer._compute_loss(trainer, lambda **_: Outputs(), inputs, False)
    logged = trainer._metrics["eval"]
    return logged["rewards/accuracies"][0], logged["rewards/margins"][0]


@pytest.mark.filterwarnings("ignore")
def test_margins_and_accuracies_are_those_of_trl(words, tiny_model: Path, other_model: Path, tmp_path: Path):
    pytest.importorskip("trl")
    out, alone = tmp_path / "out", tmp_path / "alone"
    flags = [*words, "--dtype", "float32", "--device", "cpu"]
    assert main(["evaluate", str(other_model), *flags, "--reference", str(tiny_model), "--output_dir", str(out)]) == 0
    replies = [json.loads(line)["reply"] for line in (out / "items" / "pairs.jsonl").read_text().splitlines()[1:]]
    own, reference = (torch.tensor([reply[key] for reply in replies]) for key in ("logps", "reference"))
    scores = json.loads((out / "results.json").read_text())["results"]["pairs"]
    accuracy, margin = trl_logs(own, reference, 0.5)
    assert 0 < accuracy < 1
    assert scores["reward_accuracy,none"] == pytest.approx(accuracy)
    assert scores["reward_margin,none"] == pytest.approx(margin / 0.5, rel=1e-4)
    # The reference's numbers are those of that model alone.
    assert main(["evaluate", str(tiny_model), *flags, "--output_dir", str(alone)]) == 0
    lines = [json.loads(line) for line in (alone / "items" / "pairs.jsonl").read_text().splitlines()[1:]]
    assert [line["reply"]["logps"] for line in lines] == [reply["reference"] for reply in replies]
    assert "reward_margin" not in lines[0]["scores"]


def test_another_reference_and_other_tasks_are_refused(words, tiny_model: Path, other_model: Path, tmp_path, capsys):
    flags = ["evaluate", str(tiny_model), *words, "--output_dir", str(tmp_path / "out")]
    assert main([*flags, "--reference", str(tiny_model)]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["pairs"]
    assert (scores["reward_margin,none"], scores["reward_accuracy,none"]) == (0.0, 0.0)
    assert main([*flags, "--reference", str(other_model)]) == 2
    assert "holds results of another evaluation: reference was" in capsys.readouterr().err
    flags[flags.index("pairs")] = "chosen"
    assert main([*flags, "--reference", str(tiny_model)]) == 2
    assert "--reference is of preference tasks" in capsys.readouterr().err
