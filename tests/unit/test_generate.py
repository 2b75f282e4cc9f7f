"""Answers drawn many at a time, against the plain ways of drawing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from weft.models import static_decoding
from weft.models.generate import Sampling, _draw, answer_text, generate, most_lines
from weft.models.probes import rounding
from weft.models.resident import Resident

SMALL = {"vocab_size": 640, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
HIDDEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, HIDDEN),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config,
        HIDDEN | {"num_key_value_heads": 1, "head_dim": 16},
    ),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "bloom": (transformers.BloomForCausalLM, transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        HIDDEN | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 6},
    ),
    "mamba": (
        transformers.MambaForCausalLM,
        transformers.MambaConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}


def resident(kind: str, tokenizer, seed: int = 0) -> Resident:
    model, config, sizes = KINDS[kind]
    torch.manual_seed(seed)
    made = model(config(**SMALL, **sizes)).eval()
    for parameter in made.parameters():  # enough for one token to be likelier than the others
        parameter.data *= 3
    return Resident(made, tokenizer, torch.device("cpu"), torch.float32)


@pytest.fixture
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 600, length).astype(np.int32) for length in (3, 9, 5)]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_many_prompts_at_once_equal_those_to_each_alone(
    kind: str, tiny_tokenizer, prompts: list[np.ndarray]
):
    model = resident(kind, tiny_tokenizer)
    together = generate(model, prompts, Sampling(8, temperature=0.0))
    assert model.can_cache is (kind != "mamba")
    for prompt, (answer,) in zip(prompts, together, strict=True):
        line = [int(token) for token in prompt]
        for token in answer.ids:
            with torch.no_grad():
                expected = int(model.model(torch.tensor([line]), use_cache=False).logits[0, -1].argmax())
            assert int(token) == expected
            line.append(expected)
        assert len(answer.ids) == 8 or answer.ended


def test_a_seed_gives_the_same_answers(tiny_tokenizer, prompts: list[np.ndarray]):
    model = resident("llama", tiny_tokenizer)

    def drawn(seed: int) -> list[list[list[int]]]:
        return [
            [one.ids.tolist() for one in group] for group in generate(model, prompts, Sampling(6), copies=4, seed=seed)
        ]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({tuple(ids) for ids in drawn(1)[0]}) > 1  # copies differ


def test_answers_end_and_are_cut(tiny_tokenizer, prompts: list[np.ndarray]):
    model = resident("llama", tiny_tokenizer)
    answers = [one for group in generate(model, prompts, Sampling(200, 3.0), copies=8) for one in group]
    ended = [one for one in answers if one.ended]
    assert ended
    assert all(one.ids[-1] == 1 and 1 not in one.ids[:-1] for one in ended)
    assert all(len(one.ids) == 200 for one in answers if not one.ended)
    assert "</s>" not in answer_text(tiny_tokenizer, ended[0])


def test_only_the_likeliest_tokens_are_drawn():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(2000, -1)
    chance = torch.Generator().manual_seed(0)
    assert set(_draw(logits, Sampling(1, top_p=0.75), chance).tolist()) == {0, 1}
    every = torch.bincount(_draw(logits, Sampling(1), chance), minlength=4) / 2000
    assert torch.allclose(every, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.04)
    cold = torch.bincount(_draw(logits, Sampling(1, temperature=0.5), chance), minlength=4) / 2000
    squares = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert torch.allclose(cold, squares / squares.sum(), atol=0.04)


@pytest.mark.parametrize("every", [2, 8, 100])
def test_answers_that_are_looked_at_rarely_are_the_same(every: int, tiny_tokenizer, prompts: list[np.ndarray]):
    model = resident("llama", tiny_tokenizer)
    end = int(generate(model, prompts[:1], Sampling(5, temperature=0.0))[0][0].ids[3])
    model.model.generation_config.eos_token_id = end  # so that one answer ends before the others
    plain = generate(model, prompts, Sampling(21, temperature=0.0))
    rare = generate(model, prompts, Sampling(21, temperature=0.0), look_every=every)
    assert plain[0][0].ended
    assert len(plain[0][0].ids) <= 4
    for (one,), (other,) in zip(plain, rare, strict=True):
        assert (one.ids.tolist(), one.ended) == (other.ids.tolist(), other.ended)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 8])
def test_a_static_cache_draws_the_same_answers(kind: str, every: int, tiny_tokenizer, prompts: list[np.ndarray]):
    """Lines that end early too, of which half are then dropped from the cache."""
    model = resident(kind, tiny_tokenizer)
    for end in generate(model, prompts, Sampling(5, temperature=0.0))[0][0].ids[2:4]:
        model.model.generation_config.eos_token_id = int(end)
        for sampling in (Sampling(30, temperature=0.0), Sampling(30)):
            plain = generate(model, prompts, sampling, copies=3, seed=4, look_every=every)
            static = generate(model, prompts, sampling, copies=3, seed=4, look_every=every, static=True)
            assert [[one.ids.tolist() for one in group] for group in static] == [
                [one.ids.tolist() for one in group] for group in plain
            ]
    # A cache of a window or of a state is none of fixed size for all positions; a model without a cache is not asked.
    assert {"llama": True, "qwen3": True, "gpt2": True, "bloom": True, "gemma2": False, "mamba": None}[kind] is (
        None if model.decoding is None else bool(model.decoding)
    )


def test_a_static_cache_that_is_not_exact_is_not_used(tiny_tokenizer, monkeypatch: pytest.MonkeyPatch):
    """The control: a step that forgets the mask gives other logits, which the test of the model finds."""
    model = resident("llama", tiny_tokenizer)
    step = static_decoding.make_step(model)
    monkeypatch.setattr(
        static_decoding,
        "make_step",
        lambda model: lambda ids, mask, positions, cache: step(ids, torch.ones_like(mask), positions, cache),
    )
    generate(model, [np.array([3, 4, 5], np.int32)], Sampling(4), static=True)
    assert model.decoding is False


def test_a_gpus_memory_limits_the_lines_that_are_decoded_at_a_time(tiny_tokenizer):
    model = resident("llama", tiny_tokenizer)
    # 2 layers of keys and values of 32 numbers in float32, and 3 copies of 640 logits.
    line = 2 * 2 * 32 * 4 * 10 + 3 * 4 * 640
    assert most_lines(model, 10, free=2 * 5 * line) == 5
    assert most_lines(model, 10, free=2 * 5 * line - 1) == 4
    assert most_lines(model, 10, free=0) == 1
    assert most_lines(model, 10) > 1 << 20  # a CPU has no limit


def test_rounding_is_measured_in_sixteen_bits(tiny_tokenizer):
    model = resident("llama", tiny_tokenizer)
    assert rounding(model) == 1e-4
    model.model.bfloat16()
    model.dtype = torch.bfloat16
    assert 0.03 <= rounding(model) <= 0.1
