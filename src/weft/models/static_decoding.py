"""Decoding with a cache of fixed size, whose step has the same shapes every time and can be compiled.

On a GPU a step of decoding is a few hundred small kernels, and starting them takes longer than computing them. A step
of fixed shapes can be recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weft.core.model_types import Cache
from weft.models.compat import cache_arguments
from weft.models.probes import FAULTS, rounding
from weft.models.resident import Resident

ROUND = 256
"""The cache's length is a multiple of this, so that a step is compiled for few lengths."""


class StaticDecoder:
    """Continues lines that a dynamic cache holds. Finished lines stay until half of all are finished."""

    def __init__(self, model: Resident, cache: Cache, mask: Tensor, logits: Tensor, new_tokens: int) -> None:
        """Copy a dynamic cache.

        Args:
            model: without a prefix.
            cache: of the prompts, one line for each answer.
            mask: (lines, P) 1 for tokens, 0 for padding on the left.
            logits: (lines, V) of the first token of each answer.
            new_tokens: tokens that are appended to a line at most.

        Raises:
            ValueError: the model has layers whose cache is no tensor of all positions.
        """
        self.model, self.logits = model, logits
        self.length = -(-(mask.shape[1] + new_tokens) // ROUND) * ROUND
        self.filled = mask.shape[1]
        self.mask = torch.zeros(len(mask), self.length, dtype=mask.dtype, device=mask.device)
        self.mask[:, : self.filled] = mask
        self.cache = self._copy([(layer.keys, layer.values) for layer in cache.layers])
        self.rows = torch.arange(len(mask), device=mask.device)
        """Place in the cache of each unfinished line."""
        self.step: Step = model.decoding or make_step(model)

    def advance(self, tokens: Tensor, unfinished: Sequence[int]) -> None:
        """Append a token (lines,) to every line, drop the finished lines, and compute the next logits (lines, V)."""
        if len(unfinished) < len(tokens):
            remaining = torch.tensor(unfinished, device=tokens.device)
            tokens, self.rows = tokens[remaining], self.rows[remaining]
            if 2 * len(self.rows) <= len(self.mask):
                self._shrink()
        ids = torch.zeros(len(self.mask), 1, dtype=torch.long, device=tokens.device)
        ids[self.rows, 0] = tokens
        self.mask[:, self.filled] = 1
        self.filled += 1
        positions = self.mask.sum(dim=1, keepdim=True) - 1
        self.logits = self.step(ids, self.mask, positions, self.cache)[self.rows]

    def _shrink(self) -> None:
        """Drop the finished lines from the cache."""
        parts = [(layer.keys, layer.values) for layer in self.cache.layers]
        self.mask = self.mask[self.rows].contiguous()
        self.cache = self._copy([(k[self.rows, :, : self.filled], v[self.rows, :, : self.filled]) for k, v in parts])
        self.rows = torch.arange(len(self.mask), device=self.mask.device)

    def _copy(self, parts: list[tuple[Tensor, Tensor]]) -> Cache:
        """Return a static cache with these keys and values (lines, K, filled, D) of each layer."""
        from transformers.cache_utils import StaticCache, StaticLayer

        cache = StaticCache(config=self.model.base.config, max_cache_len=self.length)
        if len(cache.layers) != len(parts) or any(type(layer) is not StaticLayer for layer in cache.layers):
            raise ValueError("a layer's cache does not hold all positions")
        for layer, (keys, values) in zip(cache.layers, parts, strict=True):
            if keys.shape[2] != self.filled:
                raise ValueError("a layer's cache does not hold all positions")
            layer.update(keys, values)
        return cache


Step = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
"""(ids (lines, 1), mask (lines, length), positions (lines, 1), cache) -> logits (lines, V)."""


def make_step(model: Resident) -> Step:
    """Return a model's step of decoding: compiled on a GPU."""
    base = model.base

    def plain(ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        arguments: dict[str, Any] = cache_arguments(base, cache)
        out = base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **arguments)
        logits: Tensor = out.logits[:, -1]
        return logits

    if model.device.type != "cuda":
        return plain
    step = torch.compile(plain, mode="reduce-overhead", dynamic=False)

    def compiled(ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        # Replayed steps write their outputs to the same memory.
        with torch.compiler.set_stance("default"):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return step(ids, mask, positions, cache).clone()

    return compiled


class DynamicDecoder(Protocol):
    """What a static cache begins from."""

    cache: Cache
    mask: Tensor
    logits: Tensor

    def advance(self, tokens: Tensor, unfinished: list[int]) -> None:
        """Append a token to every line, drop the finished lines, and compute the next logits."""
        ...


def probe_static(model: Resident, start: Callable[[Sequence[np.ndarray], int], DynamicDecoder]) -> None:
    """Set `model.decoding`: the step of decoding, or False where a static cache gives other logits than a dynamic one.

    Args:
        model: whose dynamic cache is exact.
        start: returns a dynamic decoder of prompts with a number of copies.
    """
    model.decoding = False
    if model.front is not None:
        return
    rng, size = np.random.default_rng(3), min(model.vocabulary, 256)
    prompts = [rng.integers(0, size, length).astype(np.int32) for length in (3, 7)]
    tokens = torch.tensor(rng.integers(0, size, (2, 4)), device=model.device)
    differences: list[float] = []
    try:
        dynamic = start(prompts, 2)
        static = StaticDecoder(model, dynamic.cache, dynamic.mask, dynamic.logits, 2)
        for step, unfinished in enumerate([[0, 1, 2, 3], [0, 3]]):
            for decoder in (dynamic, static):
                decoder.advance(tokens[step], unfinished)
            differences.append(float((dynamic.logits - static.logits).abs().max()))
        largest = max(float(dynamic.logits.abs().max()), 1e-6)
    except FAULTS:
        return
    if max(differences) <= rounding(model) * largest:
        model.decoding = static.step
