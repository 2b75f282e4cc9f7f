"""Alignment with preferences: the losses against trl's, and whole runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import weft
from conftest import flags, write_rows
from weft.cli import main
from weft.data.pairs import Pair
from weft.data.preferences import to_preferences
from weft.errors import ConfigError, DataError
from weft.objectives.preference import Preference

LOSSES = ["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"]


def rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Short answers are preferred."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        question = f"What colour is the {rng.choice(['sky', 'sea', 'leaf', 'rose'])}?"
        made.append({"prompt": question, "chosen": rng.choice(["red", "blue"]), "rejected": "green green leaf"})
    return made


def judged(count: int) -> list[dict[str, object]]:
    found = []
    for number, row in enumerate(rows(count)):
        good = number % 2 == 0
        found.append({"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good})
    return found


@pytest.fixture
def pairs(keys, tmp_path: Path) -> dict[str, object]:
    data = write_rows(tmp_path / "pairs.jsonl", rows(60))
    own = {"objective": "preference", "dataset_name": str(data), "peft_lora_dropout": 0.0, "learning_rate": 1e-2}
    return keys | own | {"num_rounds": 4, "max_steps": 4, "dtype": "float32", "eval_every": 0}


@pytest.fixture
def labels(pairs, tmp_path: Path) -> dict[str, object]:
    return pairs | {"loss": "kto", "dataset_name": str(write_rows(tmp_path / "labels.jsonl", judged(60)))}


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


def test_losses_worked_by_hand():
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


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_every_loss_learns_what_is_preferred(pairs, labels, name: str):
    run = weft.train((labels if name == "kto" else pairs) | {"loss": name, "num_rounds": 6, "max_steps": 8})
    found = run.summary["eval"]
    # KTO saturates at 1 and learns slowly from batches of four; it begins at a loss of 1/2.
    assert found["preference_accuracy"] >= (0.6 if name == "kto" else 0.9)
    assert name != "kto" or found["loss"] < 0.49
    assert found["reward_margin"] > 0
    assert found["perplexity"] is None
    assert all(np.isfinite(found[key]) for key in ("loss", "chosen_logp", "rejected_logp"))
    assert (run.path / "reference.npy").exists() == (name not in ("simpo", "orpo"))


def test_the_reference_is_the_starting_model_and_is_computed_once(pairs, monkeypatch: pytest.MonkeyPatch):
    from weft.launch import reference

    run = weft.train(pairs | {"num_rounds": 1, "learning_rate": 0.0})
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
    weft.train(pairs | {"num_rounds": 1, "learning_rate": 0.0}, resume=True)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_resumed_run_is_the_same(pairs, labels, tmp_path: Path, name: str):
    import shutil

    from safetensors.torch import load_file

    given = (labels if name == "kto" else pairs) | {"save_model_freq": 1, "checkpoint_seconds": 0}
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
def test_other_algorithms(pairs, alg: str):
    run = weft.train(pairs | {"fed_alg": alg, "num_rounds": 2})
    assert run.summary["eval"]["preference_accuracy"] is not None
    if alg in ("local", "ditto"):
        assert "reward_margin" in run.summary["models"]["own"]


def test_full_training_and_the_command(pairs, tmp_path: Path):
    keys = {k: v for k, v in pairs.items() if k not in ("objective", "use_peft", "peft_lora_dropout")}
    assert main(["dpo", *flags(keys | {"num_rounds": 1, "output_dir": str(tmp_path / "full")}), "--quiet"]) == 0
    run = weft.open_run(str(tmp_path / "full"))
    assert (run.path / "model" / "config.json").exists()
    assert run.config.peft_lora_dropout == 0.0
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all("preference_accuracy" in line for line in lines if line["event"] == "eval")
    page = (run.path / "report.html").read_text()
    assert "preference accuracy" in page


HUMAN = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: which?\n\nAssistant:"


def test_preferences_of_every_kind_are_read():
    message = lambda role, text: {"role": role, "content": text}  # noqa: E731
    talk = [message("user", "hi"), message("assistant", "hello"), message("user", "which?")]
    kinds = [
        {"chosen": HUMAN + " this", "rejected": HUMAN + " that"},
        {"prompt": HUMAN, "chosen": "this", "rejected": "that"},
        {"prompt": talk, "chosen": [message("assistant", "this")], "rejected": [message("assistant", "that")]},
        {
            "prompt": "hi",
            "chosen": [*talk, message("assistant", "this")],
            "rejected": [*talk, message("assistant", "that")],
        },
    ]
    for row in kinds:
        (found,) = to_preferences([row], source="x", judged=False).examples
        assert [(turn.role, turn.text.strip()) for turn in found.turns] == [
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "which?"),
        ]
        assert (found.answer.strip(), found.other.strip()) == ("this", "that")


DROPPED = {
    "equal answers": {"prompt": "q", "chosen": "a", "rejected": " a"},
    "no prompt": {"prompt": "", "chosen": "a", "rejected": "b"},
    "empty chosen answer": {"prompt": "q", "chosen": " ", "rejected": "b"},
    "answer or prompt that is no text": {"prompt": "q", "chosen": 3, "rejected": "b"},
    "dialogues that differ before the last answer": {
        "prompt": None,
        "chosen": "\n\nHuman: x\n\nAssistant: a",
        "rejected": "\n\nHuman: y\n\nAssistant: b",
    },
}


def test_rows_that_cannot_be_used_are_dropped_and_counted():
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    found = to_preferences([good, *DROPPED.values()], source="x", judged=False)
    assert len(found.examples) == 1
    assert found.dropped == dict.fromkeys(DROPPED, 1)
    labels = [{"prompt": "q", "completion": "a", "label": value} for value in (True, "false", 0, "perhaps")]
    made = to_preferences(labels, source="x", judged=True)
    assert [one.good for one in made.examples] == [True, False, False]
    assert made.dropped == {"label that is neither true nor false": 1}


BAD = {
    "labels for pairs": ([{"prompt": "q", "completion": "a", "label": True}], "dpo", "labels go with --loss kto"),
    "neither": ([{"prompt": "q", "output": "a"}], "dpo", "preferences are read from 'chosen' and 'rejected'"),
    "nothing": ([], "dpo", "is empty"),
}


@pytest.mark.parametrize(("data", "loss", "said"), BAD.values(), ids=BAD.keys())
def test_other_data_is_refused_in_words(pairs, tmp_path: Path, data, loss: str, said: str):
    path = write_rows(tmp_path / "bad.jsonl", data)
    with pytest.raises(DataError, match=said):
        weft.train(pairs | {"dataset_name": str(path), "loss": loss})


def test_answers_that_do_not_fit_are_dropped_and_prompts_are_cut(pairs, tmp_path: Path, capsys):
    data = [*rows(40), {"prompt": "q", "chosen": "leaf " * 300, "rejected": "b"}]
    data += [{"prompt": "sea " * 300, "chosen": "a", "rejected": "b"}]
    path = write_rows(tmp_path / "long.jsonl", data)
    run = weft.train(pairs | {"dataset_name": str(path), "num_rounds": 1, "seq_length": 128})
    assert run.summary["rows"]["no_answer_within_seq_length"] == 1
    assert run.summary["rows"]["prompts_cut"] == 1


def test_judged_answers_are_compared_with_those_of_the_same_client(labels, tmp_path: Path):
    from weft.config import build
    from weft.federation.clients import InMemory
    from weft.launch.population import populate
    from weft.models.tokenizer import load_tokenizer

    alone = write_rows(tmp_path / "alone.jsonl", judged(1))
    clients = {"many": labels["dataset_name"], "one": str(alone)}
    given = {k: v for k, v in labels.items() if k not in ("dataset_name", "num_clients")}
    config = build(given | {"clients": clients, "eval_fraction": 0.0})
    people = populate(config, load_tokenizer(config), InMemory(), rows="judged", pool=False)
    for site in people.trained:
        mine = {tuple(site.train.table.answers[int(row)].tolist()) for row in site.train.index}
        for row in range(len(site.train)):
            own, other = site.train[row].answers
            assert len(own)
            assert tuple(other.tolist()) in mine
    run = weft.train(given | {"clients": clients, "eval_fraction": 0.0, "num_rounds": 1})
    assert run.summary["failures"] == {}


def test_several_processes_are_for_next_tokens(pairs):
    with pytest.raises(ConfigError, match="write --parallel none"):
        weft.train(pairs | {"parallel": "fsdp"})


def test_the_divergence_from_the_reference_by_hand(pairs):
    """KL over the vocabulary at every token of both answers, from two models loaded whole."""
    run = weft.train(pairs | {"num_rounds": 2, "use_peft": False, "peft_lora_dropout": None, "learning_rate": 1e-3})
    assert weft.open_run(run.path).summary["eval"]["kl"] > 0
    still = weft.train(pairs | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": f"{pairs['output_dir']}0"})
    assert still.summary["eval"]["kl"] == pytest.approx(0, abs=1e-6)

    from transformers import AutoModelForCausalLM

    from weft.evaluation.divergence import divergence
    from weft.models.layout import Question
    from weft.models.resident import Resident

    first = AutoModelForCausalLM.from_pretrained(pairs["model_name_or_path"], dtype=torch.float32).eval()
    second = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
    resident = Resident(first, run.tokenizer, torch.device("cpu"), torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(pairs["model_name_or_path"], dtype=torch.float32).eval()
    resident.remember()
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


def test_swapped_columns_are_found():
    row = {"prompt": "Why?", "rejected": "so", "chosen": "because"}
    with pytest.raises(DataError, match="look swapped"):
        to_preferences([row], source="x", judged=False, chosen_column="rejected", rejected_column="chosen")
    named = {"prompt": "Why?", "loser": "so", "winner": "because"}
    found = to_preferences([named], source="x", judged=False, chosen_column="winner", rejected_column="loser")
    assert (found.examples[0].answer, found.examples[0].other) == ("because", "so")
    with pytest.raises(DataError, match=r"'winer'.*Did you mean 'winner'"):
        to_preferences([named], source="x", judged=False, chosen_column="winer", rejected_column="loser")
    scored = [row | {"score_chosen": 1.0, "score_rejected": 8.0}] * 3 + [row | {"score_chosen": 9, "score_rejected": 8}]
    with pytest.raises(DataError, match="In 3 of 4 scored rows"):
        to_preferences(scored, source="x", judged=False)
    assert len(to_preferences(scored[2:], source="x", judged=False).examples) == 2  # as many either way


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


def test_it_goes_on_from_an_adapter(keys, pairs, tmp_path: Path, capsys):
    first = weft.train(keys | {"peft_lora_r": 4, "learning_rate": 1e-2, "output_dir": str(tmp_path / "first")})
    again = pairs | {"model_name_or_path": str(first.path), "num_rounds": 1, "learning_rate": 0.0}
    run = weft.train(again | {"output_dir": str(tmp_path / "again")})
    # Nothing was learnt: the adapter is the one that the run began from, and that is the reference.
    name = "adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (first.path / name).read_bytes()
    assert (run.config.peft_lora_r, run.config.peft_lora_target_modules) == (4, ["q_proj", "v_proj"])
    assert run.summary["eval"]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert run.summary["eval"]["kl"] == pytest.approx(0, abs=1e-6)
    bare = weft.train(again | {"model_name_or_path": pairs["model_name_or_path"], "output_dir": str(tmp_path / "bare")})
    assert run.summary["eval"]["chosen_logp"] > bare.summary["eval"]["chosen_logp"]  # it was fine-tuned on such answers
    assert run.model is not None
    folder = weft.train(again | {"model_name_or_path": str(first.path / "adapter"), "output_dir": str(tmp_path / "f")})
    assert (folder.path / name).read_bytes() == (first.path / name).read_bytes()
    capsys.readouterr()
    for changes, words in (
        ({"use_peft": "false"}, "add --use_peft"),
        ({"lora_aggregation": "dual"}, "factors of its own"),
    ):
        assert main(["dpo", *flags(again | changes | {"output_dir": str(tmp_path / "no")})]) == 2
        assert words in capsys.readouterr().err
    (first.path / name).write_bytes(b"broken")
    assert main(["dpo", *flags(again | {"output_dir": str(tmp_path / "no")})]) == 2
    assert "are damaged" in capsys.readouterr().err
