"""Random models of some architectures, and rows for them."""

from __future__ import annotations

import numpy as np
import torch

SIZE = 97
SHAPE = {"vocab_size": SIZE, "max_position_embeddings": 64}


def causal_model(kind: str, *, tied: bool = False):
    """Return a random model of 2 layers: "llama", "qwen3", or "gpt2" (whose embeddings are always tied)."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

    torch.manual_seed(0)
    if kind == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
        return AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, **quiet)
        )
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[kind](
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        **SHAPE,
    )
    return AutoModelForCausalLM.from_config(config)


def rows_of(lengths: list[int], seed: int = 0, lead: int = 0):
    """Return rows of random ids, learnt from the third token on, behind `lead` vectors of a prompt."""
    rng = np.random.default_rng(seed)
    front = -np.arange(1, lead + 1, dtype=np.int32)
    rows = []
    for length in lengths:
        ids = np.concatenate([front, rng.integers(3, SIZE, length).astype(np.int32)])
        rows.append((ids, np.arange(len(ids)) >= lead + 2))
    return rows


def pairs_of(lengths: list[tuple[int, int, int]], seed: int = 0, lead: int = 0):
    """Return pairs of answers: (prompt, answer, other answer) have so many tokens; every other one is a bad answer."""
    from weft.data.pairs import Pair

    rng = np.random.default_rng(seed)
    front = -np.arange(1, lead + 1, dtype=np.int32)

    def ids(count: int):
        return rng.integers(3, SIZE, count).astype(np.int32)

    return [
        Pair(
            np.concatenate([front, ids(prompt)]),
            (ids(answer), ids(other)),
            np.array([-3.0 * answer, -3.0 * other], dtype=np.float32),
            number % 2 == 0,
        )
        for number, (prompt, answer, other) in enumerate(lengths)
    ]
