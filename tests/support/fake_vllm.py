"""A stand-in for the package vllm that samples with transformers from the weights that it was handed.

Its names, arguments and refusals are those of vLLM 0.33 (`vllm.LLM`, `vllm.SamplingParams`). As vLLM it seeds all
global random numbers when it starts, knows weights by the names of the checkpoint, and refuses several greedy answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

LOG: list[str] = []
"""What was asked of the engines, in order."""


@dataclass
class SamplingParams:
    """The arguments of a request."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: Sequence[int] = ()
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")


class Inside(nn.Module):
    """The model as vLLM holds it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def load_weights(self, pairs: Iterable[tuple[str, Tensor]]) -> set[str]:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        handed = dict(pairs)
        with torch.no_grad():
            for name, value in handed.items():
                own[name].copy_(value)
        LOG.append(f"load {len(handed)}")
        return set(handed)


class LLM:
    """An engine."""

    def __init__(self, model: str, **settings: Any) -> None:
        if settings["gpu_memory_utilization"] > 0.9:
            raise ValueError("No available memory for the cache blocks. Try increasing gpu_memory_utilization.")
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.inside, self.settings = Inside(model), settings
        LOG.append("start")

    def apply_model(self, function: Callable[[nn.Module], object]) -> list[object]:
        return [function(self.inside)]

    def reset_prefix_cache(self) -> bool:
        LOG.append("reset")
        return True

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], parameters: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[SimpleNamespace]:
        assert not use_tqdm
        LOG.append(f"generate {len(prompts)}")
        return [
            SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], how, copy) for copy in range(how.n)])
            for prompt, how in zip(prompts, parameters, strict=True)
        ]

    @torch.no_grad()
    def _one(self, prompt: list[int], how: SamplingParams, copy: int) -> SimpleNamespace:
        chance = torch.Generator().manual_seed((how.seed or 0) + copy)
        ids: list[int] = []
        while len(ids) < how.max_tokens and not (ids and ids[-1] in how.stop_token_ids):
            logits = self.inside.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
            if how.temperature == 0:
                ids.append(int(logits.argmax()))
            else:
                ids.append(int(torch.multinomial(torch.softmax(logits / how.temperature, -1), 1, generator=chance)))
        return SimpleNamespace(token_ids=ids)


def module() -> ModuleType:
    """Return the package."""
    package = ModuleType("vllm")
    package.LLM, package.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    return package
