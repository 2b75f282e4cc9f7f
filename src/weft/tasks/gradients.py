"""Token swaps that the gradient of the margin proposes (HotFlip, 1712.06751)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.errors import ConfigError
from weft.models.layout import Question
from weft.tasks.local_model import LocalModel
from weft.tasks.perturbations import WORD, Edit
from weft.tasks.requests import Choices

TRIED = 24
"""Swaps whose true margin is computed, of all that the gradient ranks."""


class Swaps:
    """Proposes swaps of one token each, by their first-order effect on the margin."""

    def __init__(self, model: LocalModel) -> None:
        """Read the vocabulary.

        Raises:
            ConfigError: the tokenizer does not tell where tokens stand in a text, or a learnt prompt stands before it.
        """
        self.model = model
        tokenizer: Any = model.model.tokenizer
        if not getattr(tokenizer, "is_fast", False) or len(model.lead) or model.place is not None:
            raise ConfigError(
                "The attack 'tokens' needs a fast tokenizer and a model without a learnt prompt: leave tokens out of "
                "--attacks."
            )
        self.tokenizer = tokenizer
        self.table = model.model.base.get_input_embeddings().weight.detach().float()
        count = min(len(tokenizer), len(self.table))
        marks = tokenizer.convert_ids_to_tokens(list(range(count)))
        self.texts = [tokenizer.decode([number]).strip() for number in range(count)]
        self.begins = np.array([str(mark)[:1] in ("\u0120", "\u2581") for mark in marks])
        # Words that differ in capitals alone are one form.
        self.forms = np.unique([text.lower() for text in self.texts], return_inverse=True)[1]
        self.is_word = np.array([bool(WORD.fullmatch(text)) for text in self.texts])

    def of(self, request: Choices, right: int, text: str) -> list[Edit]:
        """Return edits of a text within the prompt of a request, the most promising ones."""
        context = self.model.encoder.prompt_text(request.prompt).rstrip()
        first = context.rfind(text)
        bos = self.tokenizer.decode([self.model.encoder.prefix])
        encoded = self.tokenizer(
            context, return_offsets_mapping=True, add_special_tokens=not (bos and context.startswith(bos))
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if first < 0 or len(ids) + 8 > self.model.longest:
            return []
        places = [
            place
            for place, (begin, end) in enumerate(offsets)
            if first <= begin < end <= first + len(text) and WORD.fullmatch(context[begin:end].strip())
        ]
        if not places:
            return []
        gradient = self._gradient(request, context, ids, right)
        edits = []
        for place, token in self._best(gradient, ids, places):
            begin, end = offsets[place]
            piece = context[begin:end]
            begin += len(piece) - len(piece.lstrip())
            edits.append(Edit(begin - first, end - first, self.texts[token]))
        return edits

    def _best(self, gradient: Tensor, ids: list[int], places: list[int]) -> list[tuple[int, int]]:
        """Return the (place, token) with the greatest first-order effect."""
        rows = gradient[places]
        current = (rows * self.table[[ids[place] for place in places]]).sum(1, keepdim=True)
        effects = rows @ self.table.T - current
        allowed = torch.from_numpy(np.array([self._allowed(ids[place]) for place in places])).to(effects.device)
        effects = effects[:, : allowed.shape[1]].masked_fill(~allowed, float("-inf"))
        values, order = effects.flatten().topk(min(TRIED, effects.numel()))
        width = effects.shape[1]
        return [
            (places[int(at) // width], int(at) % width)
            for value, at in zip(values.tolist(), order.tolist(), strict=True)
            if value > 0
        ]

    def _allowed(self, token: int) -> np.ndarray:
        """Return which tokens may take a token's place: other words, and those that begin a word where it does."""
        allowed: np.ndarray = self.is_word & (self.begins == self.begins[token]) & (self.forms != self.forms[token])
        return allowed

    def _gradient(self, request: Choices, context: str, ids: list[int], right: int) -> Tensor:
        """Return (prompt tokens, D): the gradient at the input embeddings of how far the margin falls."""
        from weft.objectives.choices import choice_logps

        model, encoder = self.model.model, self.model.encoder
        delimiter = "" if self.model.chat else request.delimiter
        choices = [np.array(encoder.pair(context, delimiter + choice)[1], dtype=np.int32) for choice in request.choices]
        with model.evaluating(), torch.enable_grad(), _watched(model.base.get_input_embeddings()) as seen:
            logps = choice_logps(model, [Question(np.array(ids, dtype=np.int32), choices)])
            others = torch.cat([logps[:right], logps[right + 1 :]])
            loss = others.max() - logps[right]
            (gradient,) = torch.autograd.grad(loss, seen)
        # Where every choice has a line of its own, each line holds the prompt.
        return gradient[:, : len(ids)].float().sum(0)


@contextmanager
def _watched(embeddings: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the input embeddings give, as leaves of the graph."""
    seen: list[Tensor] = []

    def hook(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_(True)
        seen.append(leaf)
        return leaf

    handle = embeddings.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
