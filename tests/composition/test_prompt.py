"""Prompts before a frozen model: against peft's own forward pass, on the wire, and whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import build
from weft.core.types import Task, Update
from weft.data.words import lead_of
from weft.errors import ConfigError
from weft.models.generate import Sampling, generate
from weft.models.layout import lay_out
from weft.models.load import load_resident
from weft.models.tokenizer import load_tokenizer

METHODS = ["soft", "prefix", "p_tuning"]

# peft's own forward pass, which hands over its cache by a name that transformers 5.24 renamed.
OF_PEFT = pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")


@OF_PEFT
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_peft(prompted, method: str):
    """Two rows on one line, behind a lead or a prefix, against peft's forward pass of each row alone."""
    config = build(prompted | {"prompt_method": method})
    resident = load_resident(config, load_tokenizer(config))
    assert resident.can_pack
    lead = lead_of(config)
    assert len(lead) == (0 if method == "prefix" else 6)
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 200, length).astype(np.int32) for length in (12, 5, 6)]
    rows = [(np.concatenate([lead, ids]), np.arange(len(lead) + len(ids)) > len(lead)) for ids in texts]
    resident.model.eval()
    with torch.no_grad():
        together = resident.logits(lay_out(rows, pack=True))
        at = 0
        order = sorted(range(3), key=lambda i: (-len(texts[i]), i))
        for number in order:
            ids = torch.from_numpy(texts[number].astype(np.int64))[None]
            alone = resident.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            alone = alone[-len(texts[number]) :][:-1]  # what is before the text is not shown by all methods
            found = together[at : at + len(alone)]
            assert torch.allclose(found, alone, atol=2e-4), method
            at += len(alone)


@OF_PEFT
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_peft(prompted, method: str):
    config = build(prompted | {"prompt_method": method})
    resident = load_resident(config, load_tokenizer(config))
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, 200, length).astype(np.int32) for length in (9, 4)]
    found = generate(resident, [np.concatenate([lead_of(config), ids]) for ids in texts], Sampling(6, 0.0))
    assert resident.can_cache
    resident.model.eval()
    for ids, (answer,) in zip(texts, found, strict=True):
        line = torch.from_numpy(ids.astype(np.int64))[None]
        for token in answer.ids:
            with torch.no_grad():
                best = resident.model(input_ids=line, attention_mask=torch.ones_like(line)).logits[0, -1].argmax()
            assert int(token) == int(best)
            line = torch.cat([line, best[None, None]], dim=1)


@OF_PEFT
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_a_trained_prompt_lowers_the_loss_and_loads_with_peft(prompted, method: str, tmp_path: Path):
    keys = prompted | {"prompt_method": method, "num_rounds": 6, "max_steps": 6, "sample_clients": 3, "batch_size": 8}
    keys |= {"learning_rate": 1e-2 if method == "p_tuning" else 1e-1}
    first = weft.train(keys | {"num_rounds": 1, "learning_rate": 0.0, "output_dir": str(tmp_path / "first")})
    run = weft.train(keys)
    # A model of random weights can be told little.
    assert run.summary["eval"]["loss"] < first.summary["eval"]["loss"] - (0.3 if method == "prefix" else 0.03)
    written = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert list(written) == ["prompt_embeddings"]
    assert len(written["prompt_embeddings"]) == 6
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(prompted["model_name_or_path"], dtype=torch.float32), run.path / "adapter"
    ).eval()
    ids = run.tokenizer("What colour is the sky?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = run.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert main(["chat", str(run.path), "--prompt", "What colour is the sky?", "--max_new_tokens", "4"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_only_the_prompt_travels(prompted, method: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever crosses between server and clients is the prompt's parameters and sums of numbers."""
    from weft.runtimes.inprocess import InProcess

    crossed: list[object] = []
    exchange = InProcess.exchange

    def watched(self, messages):
        crossed.extend(messages)
        for reply in exchange(self, messages):
            crossed.append(reply)
            yield reply

    monkeypatch.setattr(InProcess, "exchange", watched)
    run = weft.train(prompted | {"prompt_method": method, "num_rounds": 2}, quiet=True)
    own = set(load_resident(run.config, run.tokenizer).masters)
    assert own
    assert all(name.startswith("prompt_encoder.") for name in own)
    tasks = [message for message in crossed if isinstance(message, Task)]
    updates = [message for message in crossed if isinstance(message, Update)]
    assert len(tasks) == len(updates) == 4
    for task in tasks:
        assert set(task.params) == own
        assert task.extra == {}
    for update in updates:
        assert {stream: set(values) for stream, values in update.streams.items()} == {"delta": own}
        assert all(isinstance(value, float) for value in update.metrics.values())
    size = sum(value.numel() * 4 for value in tasks[0].params.values())
    assert run.summary["bytes_up"] == run.summary["bytes_down"] == 4 * size
    if method == "soft":
        assert size == 6 * 32 * 4


@pytest.mark.parametrize("method", METHODS)
def test_private_vectors_of_a_prompt_stay_with_their_client(prompted, method: str):
    keys = prompted | {"prompt_method": method, "private_tokens": 3, "sample_clients": 3, "num_rounds": 2}
    run = weft.train(keys, quiet=True)
    shared = load_file(run.path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    assert len(shared) == 6
    own = {
        name: load_file(run.path / "clients" / name / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
        for name in ("client_0", "client_1")
    }
    for value in own.values():
        assert len(value) == 9
        assert torch.allclose(value[:6], shared, atol=1e-6)
    assert not torch.equal(own["client_0"][6:], own["client_1"][6:])
    plain = weft.train(keys | {"private_tokens": 0, "output_dir": str(run.path) + "-plain"}, quiet=True)
    assert run.summary["bytes_up"] == plain.summary["bytes_up"]  # what is private does not travel


def test_a_prompt_begins_as_a_text(prompted):
    config = build(prompted | {"prompt_init_text": "What colour is it?", "num_virtual_tokens": 9})
    resident = load_resident(config, load_tokenizer(config))
    ids = resident.tokenizer.encode("What colour is it?", add_special_tokens=False)
    table = resident.model.get_base_model().get_input_embeddings().weight
    (weight,) = resident.masters.values()
    for place in range(9):
        assert torch.equal(weight[place], table[ids[place % len(ids)]])


@pytest.mark.parametrize("objective", ["preference", "grpo"])
def test_prompts_are_trained_by_preferences_and_by_rewards(prompted, objective: str, tmp_path: Path):
    asked = [row | {"prompt": row["instruction"], "chosen": row["output"]} for row in colour_rows(40)]
    rows = [row | {"rejected": "none"} for row in asked]
    changes = {"objective": objective, "dataset_name": str(write_rows(tmp_path / "rows.jsonl", rows)), "num_rounds": 1}
    changes |= {"reward": "length", "max_new_tokens": 4, "num_generations": 2} if objective == "grpo" else {}
    run = weft.train(prompted | changes | {"batch_size": 2}, quiet=True)
    assert run.summary["failures"] == {}
    assert run.summary["eval"]["kl"] >= -1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_peft": True}, "leave out --use_peft"),
        ({"num_virtual_tokens": 128}, "leaves no room"),
        ({"prompt_method": "prefix", "num_virtual_tokens": 200}, "longer than the model's context"),
        ({"prompt_method": "prefix", "gradient_checkpointing": True}, "leave out --gradient_checkpointing"),
        ({"prompt_method": "prefix", "prompt_init_text": "x"}, "initialises soft, black_box and text"),
        ({"prompt_method": "sofd"}, "prompt_method"),
        ({"lora_aggregation": "stack"}, "add --use_peft"),
        ({"prompt_method": None, "private_tokens": 2}, "private_tokens are part of a prompt"),
        ({"objective": "causal_lm"}, "weft prompt"),
    ],
)
def test_keys_that_a_prompt_cannot_have_are_refused(prompted, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(prompted | changes, quiet=True)


def test_weft_prompt_shows_its_plan_trains_and_exports_unmerged(prompted, tmp_path: Path, capsys):
    keys = {k: v for k, v in prompted.items() if k not in ("use_peft", "prompt_method", "learning_rate")}
    assert main(["prompt", *flags(keys), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "192 parameters in 1 tensors (soft prompt of 6 vectors)" in out
    assert "768 B down and 768 B up" in out
    assert main(["prompt", *flags(keys | {"num_rounds": 1}), "--quiet"]) == 0
    run = weft.open_run(keys["output_dir"])
    assert (run.config.prompt_method, run.config.learning_rate) == ("soft", 3e-2)
    assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "merged")]) == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert main(["export", str(run.path), "--out", str(tmp_path / "written")]) == 0
    assert (tmp_path / "written" / "adapter_config.json").exists()


@pytest.mark.parametrize("method", ["soft", None])
def test_examples_of_a_clients_own_stand_before_its_rows(prompted, method: str | None, tmp_path: Path):
    from weft.data.encode import begin_and_end_ids
    from weft.federation.clients import InMemory
    from weft.launch import compose
    from weft.launch.few_shot import choose_few_shot
    from weft.launch.population import populate

    keys = prompted | {"prompt_method": method, "few_shot": 1, "seq_length": 64, "use_peft": method is None}
    keys |= {"num_virtual_tokens": 6 if method else None}
    config = build(keys | {"template": "vicuna"})
    tokenizer = load_tokenizer(config)
    population = populate(config, tokenizer, InMemory(), rows="conversations", pool=False)
    plain = [population.trained[i].train[0] for i in range(3)]
    model, plan = load_resident(config, tokenizer), compose.plan(config)
    choose_few_shot(config, population, plan.objective, model, print)
    lead = 0 if method is None else 6
    for number, (ids, learn) in enumerate(plain):
        longer, also = population.trained[number].train[0]
        more = len(longer) - len(ids)
        assert more > 0
        start = lead + len(
            begin_and_end_ids(tokenizer)[0]
        )  # the prompt's vectors, and what the tokenizer puts before a text
        assert longer[:start].tolist() == ids[:start].tolist()
        assert longer[start + more :].tolist() == ids[start:].tolist()
        assert not also[: start + more].any()
        assert also[start + more :].tolist() == learn[start:].tolist()
        example = tokenizer.decode(longer[start : start + more])
        own = [tokenizer.decode(row[0][row[0] >= 0]) for row in (_plain(population, number))]
        assert any(example.strip() in text for text in own)  # it is one of the client's own rows
    run = weft.train(keys | {"template": "vicuna", "output_dir": str(tmp_path / "shown"), "num_rounds": 2}, quiet=True)
    bare = weft.train(keys | {"template": "vicuna", "few_shot": 0, "num_rounds": 2}, quiet=True)
    assert run.summary["bytes_up"] == bare.summary["bytes_up"]  # nothing of them travels
    assert run.summary["eval"]["loss"] != bare.summary["eval"]["loss"]
    assert run.summary["failures"] == {}


def _plain(population, number: int) -> list:
    site = population.trained[number]
    return [site.train.table[int(row)] for row in site.train.index]
