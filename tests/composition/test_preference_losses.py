"""The losses of preferences: against trl's trainers, and worked by hand; and how far a model is from its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weft
from support.preferences import LOSSES
from weft.data.pairs import Pair
from weft.objectives.preference import Preference


def batch_of(objective: Preference, count: int = 5):
    rng = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return rng.integers(3, 200, n).astype(np.int32)

    made = [
        Pair(ids(4 + n), (ids(3 + n), ids(6 - n)), -rng.random(2).astype(np.float32) * 20, bool(n % 2))
        for n in range(count)
    ]
    return objective.collate(made)


class Outputs:
    """What trl's trainers take from a model: log-probabilities of tokens; all else is nought."""

    def __init__(self, per_token: torch.Tensor) -> None:
        self.log_probs, self.aux_loss = per_token, None

    def __getattr__(self, name: str) -> torch.Tensor:
        return torch.zeros_like(self.log_probs, dtype=torch.bool if name == "is_top1" else None)


def spread_out(logps: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, T) log-probabilities of tokens that add up to `logps` (N,), and (N, T + 1) which tokens they are."""
    longest = int(lengths.max())
    there = torch.arange(longest)[None] < lengths[:, None]
    mask = torch.cat([torch.zeros(len(lengths), 1, dtype=torch.long), there.long()], dim=1)
    return there * (logps / lengths)[:, None], mask


def theirs(name: str, logps: torch.Tensor, objective: Preference, batch) -> torch.Tensor:
    """Return the mean loss that trl's own trainer makes of the same log-probabilities."""
    from collections import defaultdict
    from unittest.mock import MagicMock

    trainer = MagicMock()
    trainer.beta, trainer.alpha, trainer.label_smoothing = objective.beta, 0.0, objective.smoothing
    trainer.simpo_gamma, trainer.loss_type, trainer.model.training = objective.gamma, name, False
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda value: value
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.precompute_ref_logps = trainer.calculate_KL = True
    if name in ("simpo", "orpo"):
        mean = logps / batch.lengths
        if name == "orpo":
            from trl.experimental.orpo.orpo_trainer import ORPOTrainer

            return (-mean[:, 0] - ORPOTrainer.odds_ratio_loss(trainer, mean[:, 0], mean[:, 1])[0]).mean()
        from trl.experimental.cpo.cpo_trainer import CPOTrainer

        trainer.label_smoothing = 0.0
        return CPOTrainer.cpo_loss(trainer, mean[:, 0], mean[:, 1])[0].mean()
    if name == "kto":
        from trl.trainer.kto_trainer import KTOTrainer

        per_token, mask = spread_out(logps[:, 0], batch.lengths[:, 0])
        trainer.desirable_weight = trainer.undesirable_weight = 1.0
        trainer._compute_kl_logps = lambda model, batch: logps[:, 1]
        inputs = {"label": batch.good, "ref_logps": batch.reference[:, 0], "ref_KL_logps": batch.reference[:, 1]}
        kind = KTOTrainer
    else:
        from trl.trainer.dpo_trainer import DPOTrainer

        per_token, mask = spread_out(logps.t().reshape(-1), batch.lengths.t().reshape(-1))
        trainer.loss_types, trainer.loss_weights = [{"dpo": "sigmoid", "robust_dpo": "robust"}.get(name, name)], [1.0]
        trainer.ld_alpha, trainer.f_divergence_type = None, "reverse_kl"
        inputs = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), batch.reference.unbind(1), strict=True))
        kind = DPOTrainer
    inputs |= {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return kind._compute_loss(trainer, lambda **_: Outputs(per_token), inputs, False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_trl(name: str):
    pytest.importorskip("trl")
    torch.manual_seed(0)
    objective = Preference(loss_name=name, beta=0.7, gamma=0.3)
    batch = batch_of(objective)
    logps = (-torch.rand(5, 2) * 10 - 1).requires_grad_()
    ours, other = objective.losses(logps, batch).mean(), theirs(name, logps, objective, batch)
    torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    first, second = (torch.autograd.grad(loss, logps, allow_unused=True)[0] for loss in (ours, other))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_losses_equal_those_worked_by_hand():
    """h = (-1 + 3) - (-4 + 5) = 1; with beta 0.5 and answers of 3 and 6 tokens."""
    sigma = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    logps, reference = torch.tensor([[-1.0, -4.0]]), torch.tensor([[-3.0, -5.0]])
    expected = {
        "dpo": -np.log(sigma(0.5)),
        "robust_dpo": (-0.9 * np.log(sigma(0.5)) + 0.1 * np.log(sigma(-0.5))) / 0.8,
        "ipo": (2 / 3 - 1 / 6 - 1) ** 2,
        "simpo": -np.log(sigma(0.5 * (-1 / 3 + 4 / 6) - 0.5)),
        "orpo": 1 / 3
        - 0.5 * np.log(sigma((-1 / 3 + 4 / 6) - (np.log(1 - np.exp(-1 / 3)) - np.log(1 - np.exp(-4 / 6))))),
        "kto": 1 - sigma(0.5 * (2 - 1)),  # z is the other answer's log-ratio, 1
    }
    for name, value in expected.items():
        objective = Preference(loss_name=name, beta=0.5)
        pair = Pair(np.array([5]), (np.array([1, 2, 3]), np.arange(6)), reference[0].numpy(), True)
        found = objective.losses(logps, objective.collate([pair]))
        assert float(found[0]) == pytest.approx(float(value), rel=1e-5), name
    bad = Preference(loss_name="kto", beta=0.5)
    pair = pair._replace(good=False)
    assert float(bad.losses(logps, bad.collate([pair]))[0]) == pytest.approx(1 - float(sigma(0.5 * (1 - 2))))


def test_the_divergence_from_the_reference_equals_that_worked_by_hand(preference_keys):
    """KL over the vocabulary at every token of both answers, from two models loaded whole."""
    run = weft.train(
        preference_keys | {"num_rounds": 2, "use_peft": False, "peft_lora_dropout": None, "learning_rate": 1e-3}
    )
    assert weft.open_run(run.path).summary["eval"]["kl"] > 0
    still = weft.train(
        preference_keys | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": f"{preference_keys['output_dir']}0"}
    )
    assert still.summary["eval"]["kl"] == pytest.approx(0, abs=1e-6)

    from transformers import AutoModelForCausalLM

    from weft.evaluation.divergence import divergence
    from weft.models.layout import Question
    from weft.models.resident import Resident

    first = AutoModelForCausalLM.from_pretrained(preference_keys["model_name_or_path"], dtype=torch.float32).eval()
    second = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
    resident = Resident(first, run.tokenizer, torch.device("cpu"), torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(preference_keys["model_name_or_path"], dtype=torch.float32).eval()
    resident.store_reference()
    resident.load({name: value.detach() for name, value in second.named_parameters() if name in resident.masters})
    rng = np.random.default_rng(0)
    questions = [
        Question(rng.integers(3, 200, 5).astype(np.int32), [rng.integers(3, 200, n).astype(np.int32) for n in (3, 4)])
        for _ in range(3)
    ]
    expected = 0.0
    for question in questions:
        for choice in question.choices:
            line = torch.tensor([[*map(int, question.prompt), *map(int, choice)]])
            with torch.no_grad():
                ours, theirs_ = (model(line).logits[0, 4:-1].log_softmax(-1) for model in (second, reference))
            expected += float((ours.exp() * (ours - theirs_)).sum())
    total, tokens = divergence(resident, questions)
    assert tokens == 21
    assert total == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(resident.masters[n], p) for n, p in second.named_parameters() if n in resident.masters)


def test_no_pass_of_an_evaluation_has_more_rows_than_its_batch(tiny_model, tiny_tokenizer):
    """Nor the one for the divergence, whose sums do not depend on the size of the batch."""
    from transformers import AutoModelForCausalLM

    from weft.evaluation.preferred import Preferred
    from weft.models.resident import Resident

    class Counted(Resident):
        passes: tuple[int, ...] = ()

        def logits(self, batch):
            self.passes += (batch.rows,)
            return super().logits(batch)

    model = Counted(
        AutoModelForCausalLM.from_pretrained(tiny_model), tiny_tokenizer, torch.device("cpu"), torch.float32
    )
    model.store_reference()
    model.load({name: value + 0.01 for name, value in model.values().items()})
    rng = np.random.default_rng(0)
    rows = [
        Pair(
            rng.integers(3, 200, 4 + n).astype(np.int32), (np.array([5, 1]), np.array([6, 1])), np.zeros(2, np.float32)
        )
        for n in range(5)
    ]
    sums = {}
    for size in (2, 8):
        model.passes = ()
        sums[size] = Preferred(Preference(), size).evaluate(model, rows)
        assert max(model.passes) == min(size, 5)
    assert sums[2] == pytest.approx(sums[8], rel=1e-4)
    assert sums[2]["kl_sum"] > 0
    assert sums[2]["kl_tokens"] == 20
