"""Answers drawn from the resident model, many at a time, with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.libraries import Tokenizer
from weft.models.layout import Batch
from weft.models.resident import Resident


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int
    """An answer that has not ended by then is cut."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""


class Answer(NamedTuple):
    """What was drawn for a prompt."""

    ids: np.ndarray
    """(T,) int32, the end token included where it came."""
    ended: bool


def end_tokens(model: Resident) -> set[int]:
    """Return the ids that end an answer: the tokenizer's, and those that the model says of itself."""
    config = getattr(model.model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    named = found if isinstance(found, (list, tuple)) else [found]
    return {int(one) for one in (model.tokenizer.eos_token_id, *named) if one is not None}


def generate(
    model: Resident, prompts: Sequence[np.ndarray], sampling: Sampling, *, copies: int = 1, seed: int = 0
) -> list[list[Answer]]:
    """Draw `copies` answers to every prompt, without dropout.

    Args:
        model: on its device.
        prompts: token ids (P,) of each.
        sampling: how.
        copies: answers a prompt.
        seed: of the draws; the same seed, prompts and model give the same answers on the same machine.
    """
    with model.evaluating():
        lines = _under_way(model, prompts, copies)
        chance = torch.Generator(device=model.device).manual_seed(seed)
        ends = end_tokens(model)
        drawn: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
        alive = list(range(len(drawn)))
        for step in range(sampling.max_new_tokens):
            tokens = _draw(lines.logits, sampling, chance)
            chosen = tokens.tolist()
            for row, token in zip(alive, chosen, strict=True):
                drawn[row].append(token)
            going = [place for place, token in enumerate(chosen) if token not in ends]
            if not going or step + 1 == sampling.max_new_tokens:
                break
            alive = [alive[place] for place in going]
            lines.advance(tokens, going)
    answers = [Answer(np.array(ids, dtype=np.int32), ids[-1] in ends) for ids in drawn]
    return [answers[at : at + copies] for at in range(0, len(answers), copies)]


class _Cached:
    """The answers under way: their prompts are computed once each, then a token of every answer at a time."""

    def __init__(self, model: Resident, prompts: Sequence[np.ndarray], copies: int) -> None:
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for line, prompt in enumerate(prompts):  # filled up on the left, so that all end at one place
            ids[line, width - len(prompt) :] = prompt
            mask[line, width - len(prompt) :] = 1
        self.model, self.mask = model, torch.from_numpy(mask).to(model.device)
        last = torch.arange(1, len(prompts) + 1, device=model.device) * width - 1
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        logits, self.cache = model.continued(torch.from_numpy(ids).to(model.device), self.mask, positions, None, last)
        self.logits: Tensor = logits.repeat_interleave(copies, dim=0)
        self.mask = self.mask.repeat_interleave(copies, dim=0)
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)

    def advance(self, tokens: Tensor, going: list[int]) -> None:
        """Compute the next logits; lines that have ended are let go."""
        if len(going) < len(tokens):
            kept = torch.tensor(going, device=tokens.device)
            tokens, self.mask = tokens[kept], self.mask[kept]
            self.cache.batch_select_indices(kept)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(going), 1)], dim=1)
        positions = self.mask.sum(dim=1, keepdim=True) - 1
        every = torch.arange(len(going), device=tokens.device)
        self.logits, self.cache = self.model.continued(tokens[:, None], self.mask, positions, self.cache, every)


class _Whole:
    """The same, computed from the beginning for every token: for models whose cache is of another kind."""

    def __init__(self, model: Resident, prompts: Sequence[np.ndarray], copies: int) -> None:
        self.model = model
        self.lines = [[int(token) for token in prompt] for prompt in prompts for _ in range(copies)]
        self.logits = self._compute()

    def advance(self, tokens: Tensor, going: list[int]) -> None:
        """Compute the next logits; lines that have ended are let go."""
        drawn = tokens.tolist()
        self.lines = [[*self.lines[place], drawn[place]] for place in going]
        self.logits = self._compute()

    def _compute(self) -> Tensor:
        width = max(len(line) for line in self.lines)
        ids = torch.tensor([line + [0] * (width - len(line)) for line in self.lines])  # no position sees a later one
        last = torch.tensor([number * width + len(line) - 1 for number, line in enumerate(self.lines)])
        batch = Batch(ids, None, None, last, last, len(self.lines), ids.numel())
        return self.model.logits(batch.to(self.model.device))


def _under_way(model: Resident, prompts: Sequence[np.ndarray], copies: int) -> _Cached | _Whole:
    if model.can_cache is None:
        model.can_cache = _cache_is_exact(model)
    return (_Cached if model.can_cache else _Whole)(model, prompts, copies)


def _cache_is_exact(model: Resident) -> bool:
    """Find out whether a cache, and lines filled up on the left, change nothing."""
    size = min(len(model.tokenizer), 256)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, size, length).astype(np.int32) for length in (3, 7)]
    tokens = torch.tensor(rng.integers(0, size, (2, 4)), device=model.device)
    found: list[Tensor] = []
    try:
        for kind in (_Whole, _Cached):
            lines = kind(model, prompts, 2)
            seen = [lines.logits]
            for step, going in enumerate([[0, 1, 2, 3], [0, 1, 3]]):
                lines.advance(tokens[step][: len(seen[-1])], going)
                seen.append(lines.logits)
            found.append(torch.cat(seen).float())
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    return bool((found[0] - found[1]).abs().max() <= tolerance * found[0].abs().max().clamp(min=1e-6))


def _draw(logits: Tensor, sampling: Sampling, chance: torch.Generator) -> Tensor:
    """Return (lines,): a token of each."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    chances = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, places = chances.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        chances = torch.zeros_like(chances).scatter(-1, places, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(chances, 1, generator=chance)[:, 0]


def decoded(tokenizer: Tokenizer, answer: Answer) -> str:
    """Return the text of an answer, without the end token and the spaces around it."""
    text: str = tokenizer.decode(answer.ids, skip_special_tokens=True)
    return text.strip()
