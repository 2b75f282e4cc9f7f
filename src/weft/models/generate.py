"""Sampling answers from the resident model in batches, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.libraries import Tokenizer
from weft.core.seeds import derive
from weft.models.layout import Batch
from weft.models.probes import rounding
from weft.models.resident import Resident
from weft.models.static_decoding import StaticDecoder, probe_static


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled."""

    max_new_tokens: int
    """An answer without an end token after so many tokens is cut off."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""


LOOK_EVERY = 8
"""Tokens after which a GPU's answers are looked at for their ends: each look makes the CPU wait for the GPU."""


class Answer(NamedTuple):
    """A sampled answer to a prompt."""

    ids: np.ndarray
    """(T,) int32, with the end token if the answer ended."""
    ended: bool


def end_tokens(model: Resident) -> set[int]:
    """Return the ids that end an answer: the tokenizer's and those of the model's generation_config."""
    config = getattr(model.model, "generation_config", None)
    end = getattr(config, "eos_token_id", None)
    model_ends = end if isinstance(end, (list, tuple)) else [end]
    return {int(token) for token in (model.tokenizer.eos_token_id, *model_ends) if token is not None}


def generate(
    model: Resident,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    copies: int = 1,
    seed: int = 0,
    look_every: int | None = None,
    static: bool | None = None,
    stop: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[Answer]]:
    """Sample `copies` answers to every prompt, without dropout.

    Args:
        model: on its device.
        prompts: token ids (P,) of each.
        sampling: length limit, temperature and top_p.
        copies: answers per prompt.
        seed: of the sampling; the same seed, prompts and model give the same answers on the same machine.
        look_every: tokens after which lines that have ended are dropped; None: 1 on a CPU, `LOOK_EVERY` on a GPU.
        static: use a cache of fixed size; None: on a GPU, where the run compiles.
        stop: tells of an answer's tokens so far whether they are enough; it is asked whenever lines are looked at.

    Returns:
        For every prompt, in order, its answers.
    """
    if model.engine is not None:
        ends = end_tokens(model)
        texts: list[list[list[int]]] = model.engine.sample(model, prompts, sampling, copies, seed, ends)
        return [[_answer(_until_enough(ids, stop), ends) for ids in group] for group in texts]
    if static is None:
        static = model.compiled and model.device.type == "cuda"
    every = look_every or (LOOK_EVERY if model.device.type == "cuda" else 1)
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    # While a dynamic cache is copied into a static one, both are in memory.
    size = max(1, most_lines(model, longest) // (2 * copies if static else copies))
    groups = [prompts[at : at + size] for at in range(0, len(prompts), size)]
    seeds = [seed, *(derive(seed, "group", number) for number in range(1, len(groups)))]
    return [
        answers
        for group, own in zip(groups, seeds, strict=True)
        for answers in _generate(model, group, sampling, copies, own, every, static, stop)
    ]


def most_lines(model: Resident, length: int, free: int | None = None) -> int:
    """Return how many lines of `length` positions may be decoded at a time: their caches fill half of a GPU.

    Args:
        model: on its device.
        length: positions of a line, its answer included.
        free: bytes; None: those of the GPU. A CPU has no limit.
    """
    if free is None:
        if model.device.type != "cuda":
            return 1 << 30
        free = torch.cuda.mem_get_info(model.device)[0]
    config = model.base.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    groups = int(getattr(config, "num_key_value_heads", heads) or heads)
    width = int(getattr(config, "head_dim", 0) or int(getattr(config, "hidden_size", 1)) // heads)
    cache = 2 * int(getattr(config, "num_hidden_layers", 1)) * groups * width * length * model.dtype.itemsize
    logits = 3 * 4 * model.vocabulary  # in float32: logits, their softmax, and a sorted copy
    return max(1, free // (2 * (cache + logits)))


def _generate(
    model: Resident,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    copies: int,
    seed: int,
    every: int,
    static: bool,
    stop: Callable[[Sequence[int]], bool] | None,
) -> list[list[Answer]]:
    """Return the answers to prompts that are decoded together."""
    with model.evaluating():
        lines = _start_decoder(model, prompts, copies, sampling.max_new_tokens if static else 0)
        chance = torch.Generator(device=model.device).manual_seed(seed)
        ends = end_tokens(model)
        token_lists: list[list[int]] = [[] for _ in range(len(prompts) * copies)]
        alive = list(range(len(token_lists)))
        recent: list[Tensor] = []
        for step in range(sampling.max_new_tokens):
            recent.append(_draw(lines.logits, sampling, chance))
            is_last = step + 1 == sampling.max_new_tokens
            unfinished = list(range(len(alive)))
            if len(recent) == every or is_last:
                for row, tokens in zip(alive, torch.stack(recent, dim=1).tolist(), strict=True):
                    token_lists[row] += _until_end(tokens, ends)
                unfinished = [place for place, row in enumerate(alive) if token_lists[row][-1] not in ends]
                if stop is not None:
                    unfinished = [place for place in unfinished if not stop(token_lists[alive[place]])]
                if not unfinished or is_last:
                    break
            latest = recent[-1]
            recent = [] if len(recent) == every else recent
            alive = [alive[place] for place in unfinished]
            lines.advance(latest, unfinished)
    answers = [_answer(ids, ends) for ids in token_lists]
    return [answers[at : at + copies] for at in range(0, len(answers), copies)]


def _answer(ids: Sequence[int], ends: set[int]) -> Answer:
    return Answer(np.array(ids, dtype=np.int32), bool(ids) and ids[-1] in ends)


def _until_enough(ids: list[int], stop: Callable[[Sequence[int]], bool] | None) -> list[int]:
    """Return the tokens of an answer that was sampled whole up to where `stop`, asked now and then, says enough."""
    if stop is None:
        return ids
    looks = range(LOOK_EVERY, len(ids), LOOK_EVERY)
    return ids[: next((length for length in looks if stop(ids[:length])), len(ids))]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens up to the first one that ends an answer, itself included."""
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: first + 1]


class _CachedDecoder:
    """Decodes with a cache: every prompt is computed once, then one token of every unfinished answer at a time."""

    def __init__(self, model: Resident, prompts: Sequence[np.ndarray], copies: int) -> None:
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for line, prompt in enumerate(prompts):  # padded on the left, so that all prompts end at one position
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

    def advance(self, tokens: Tensor, unfinished: list[int]) -> None:
        """Append a token (lines,) to every line, drop the finished lines, and compute the next logits (lines, V)."""
        if len(unfinished) < len(tokens):
            remaining = torch.tensor(unfinished, device=tokens.device)
            tokens, self.mask = tokens[remaining], self.mask[remaining]
            self.cache.batch_select_indices(remaining)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(unfinished), 1)], dim=1)
        positions = self.mask.sum(dim=1, keepdim=True) - 1
        index = torch.arange(len(unfinished), device=tokens.device)
        self.logits, self.cache = self.model.continued(tokens[:, None], self.mask, positions, self.cache, index)


class _UncachedDecoder:
    """Decodes by recomputing whole lines for every token: for models with a cache of another kind."""

    def __init__(self, model: Resident, prompts: Sequence[np.ndarray], copies: int) -> None:
        self.model = model
        self.lines = [[int(token) for token in prompt] for prompt in prompts for _ in range(copies)]
        self.logits = self._compute()

    def advance(self, tokens: Tensor, unfinished: list[int]) -> None:
        """Append a token (lines,) to every line, drop the finished lines, and compute the next logits (lines, V)."""
        new_tokens = tokens.tolist()
        self.lines = [[*self.lines[place], new_tokens[place]] for place in unfinished]
        self.logits = self._compute()

    def _compute(self) -> Tensor:
        width = max(len(line) for line in self.lines)
        ids = torch.tensor(
            [line + [0] * (width - len(line)) for line in self.lines]
        )  # padding on the right: causal attention hides it
        last = torch.tensor([number * width + len(line) - 1 for number, line in enumerate(self.lines)])
        batch = Batch(ids, None, None, last, last, len(self.lines), ids.numel())
        return self.model.logits(batch.to(self.model.device))


def _start_decoder(
    model: Resident, prompts: Sequence[np.ndarray], copies: int, static: int
) -> _CachedDecoder | _UncachedDecoder | StaticDecoder:
    """Return a decoder that has computed the prompts; `static` is the number of new tokens of a static cache, or 0."""
    if model.can_cache is None:
        model.can_cache = _cache_is_exact(model)
    if not model.can_cache:
        return _UncachedDecoder(model, prompts, copies)
    if static and model.decoding is None:
        probe_static(model, lambda few, count: _CachedDecoder(model, few, count))
    lines = _CachedDecoder(model, prompts, copies)
    if not static or model.decoding is False:
        return lines
    return StaticDecoder(model, lines.cache, lines.mask, lines.logits, static)


def _cache_is_exact(model: Resident) -> bool:
    """Test whether a cache and padding on the left leave the logits of this model unchanged."""
    size = min(len(model.tokenizer), 256)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, size, length).astype(np.int32) for length in (3, 7)]
    tokens = torch.tensor(rng.integers(0, size, (2, 4)), device=model.device)
    logits: list[Tensor] = []
    try:
        for kind in (_UncachedDecoder, _CachedDecoder):
            lines = kind(model, prompts, 2)
            steps = [lines.logits]
            for step, unfinished in enumerate([[0, 1, 2, 3], [0, 1, 3]]):
                lines.advance(tokens[step][: len(steps[-1])], unfinished)
                steps.append(lines.logits)
            logits.append(torch.cat(steps).float())
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False
    return bool((logits[0] - logits[1]).abs().max() <= rounding(model) * logits[0].abs().max().clamp(min=1e-6))


def _draw(logits: Tensor, sampling: Sampling, chance: torch.Generator) -> Tensor:
    """Return (lines,): a token for each line of logits (lines, V)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    chances = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, places = chances.sort(dim=-1, descending=True)
        # A token stays if those before it have less than top_p together, so the first one always stays.
        beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        chances = torch.zeros_like(chances).scatter(-1, places, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(chances, 1, generator=chance)[:, 0]


def answer_text(tokenizer: Tokenizer, answer: Answer) -> str:
    """Return the text of an answer, without the end token and the spaces around it."""
    text: str = tokenizer.decode(answer.ids, skip_special_tokens=True)
    return text.strip()
