"""Log-probabilities of the choices of many questions, whose shared beginnings are computed once.

Prompts of one task begin alike: with an instruction, or with the same worked examples. Questions are grouped by how
they begin; the beginning of a group goes through the model once, and its cache stands before all lines of the group. A
choice's last token is only predicted, so it takes no place, and questions share lines, so that little is padding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.models.layout import Question, place
from weft.models.probes import FAULTS, rounding
from weft.models.resident import Resident
from weft.objectives.choices import choice_logps_and_greed

if TYPE_CHECKING:
    from transformers import Cache

SHORTEST = 4
"""Tokens of a shared beginning that is worth a pass of its own."""
WIDEST = 192
"""Positions up to which a line may be longer than its longest question: attention grows with the square."""
Score = tuple[float, bool]
"""The log-probability of a choice (nats), and whether its tokens are the likeliest."""


class Group(NamedTuple):
    """Questions whose prompts share their first tokens."""

    members: list[int]
    shared: int
    """Tokens of the beginning; less than any prompt has, since its last token predicts the choices."""


class Lines(NamedTuple):
    """Questions behind a shared beginning, on B lines of L positions, as a forward pass takes them."""

    input_ids: Tensor
    """(B, L)."""
    positions: Tensor
    """(B, L)."""
    mask: Tensor
    """(B, 1, L, shared + L) bool."""
    places: Tensor
    """(U,) positions in the flattened (B * L) that predict tokens, each once."""
    predictor: Tensor
    """(N,) for each token of all choices the number of its predictor in `places`."""
    tokens: Tensor
    """(N,)."""
    owner: Tensor
    """(N,) number of each token's choice, counted through all lines."""


def scores(model: Resident, questions: Sequence[Question], most_lines: int, most_tokens: int) -> list[list[Score]]:
    """Return the scores of every choice of every question; the model is evaluating.

    Args:
        model: one that computes lines behind a cache exactly (`is_exact`).
        questions: with prompts of one token or more.
        most_lines: of a pass.
        most_tokens: of a pass, padding and beginnings included.
    """
    results: list[list[Score]] = [[] for _ in questions]
    for group in groups([question.prompt for question in questions]):
        cache = None
        if group.shared:
            cache = _cache_of(model, questions[group.members[0]].prompt[: group.shared])
        sizes = {number: _own_length(questions[number], group.shared) for number in group.members}
        for batch in _batches(sizes, group.shared, most_lines, most_tokens):
            lines = lay_out([questions[number] for number in batch], group.shared)
            count = sum(len(questions[number].choices) for number in batch)
            values = iter(_scored(model, lines, count, cache))
            for number in batch:
                results[number] = [next(values) for _ in questions[number].choices]
    return results


def groups(prompts: Sequence[np.ndarray]) -> list[Group]:
    """Return groups of prompts by their beginnings, so that most tokens are saved by computing these once."""
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].tolist())
    # In this order what a range of prompts shares is the least that neighbours in it share.
    alike = [_shared(prompts[one], prompts[other]) for one, other in pairwise(order)]
    found, todo = [], [(0, len(order))]
    while todo:
        begin, end = todo.pop()
        inside = alike[begin : end - 1]
        least = min(inside, default=0)
        cut = begin + 1 + inside.index(least) if inside else end
        # Two halves save the beginnings that each of them shares, which are as long or longer.
        halves = sum(_saved(alike[at : stop - 1]) for at, stop in ((begin, cut), (cut, end)))
        if inside and (halves > _saved(inside) or least < SHORTEST):
            todo += [(cut, end), (begin, cut)]
        else:
            found.append(Group(order[begin:end], least if len(inside) else 0))
    return _joined(found)


def _joined(found: Sequence[Group]) -> list[Group]:
    """Return the groups, those that share nothing as one."""
    alone = [number for group in found if not group.shared for number in group.members]
    return [group for group in found if group.shared] + ([Group(alone, 0)] if alone else [])


def _saved(alike: Sequence[int]) -> int:
    return len(alike) * min(alike, default=0)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many first tokens two prompts share, without the last one of either."""
    length = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _own_length(question: Question, shared: int) -> int:
    return len(question.prompt) - shared + sum(len(choice) - 1 for choice in question.choices if len(choice))


def _batches(sizes: dict[int, int], shared: int, most_lines: int, most_tokens: int) -> Iterator[list[int]]:
    """Yield numbers in batches, longest first."""
    batch: list[int] = []
    for number in sorted(sizes, key=lambda one: -sizes[one]):
        width = shared + sizes[batch[0]] if batch else 0
        if batch and (len(batch) == most_lines or (len(batch) + 1) * width > most_tokens):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def lay_out(questions: Sequence[Question], shared: int) -> Lines:
    """Lay out what each question has of its own: the rest of its prompt, then its choices without their last tokens.

    Questions share lines. None attends to another one, and no choice to another choice.
    """
    lengths = [_own_length(question, shared) for question in questions]
    width = _width(lengths)
    lines = place(lengths, width)
    ids = np.zeros((len(lines), width), dtype=np.int64)
    positions, parts = np.zeros_like(ids), np.zeros_like(ids)
    roots = np.full_like(ids, -1)
    firsts = np.cumsum([0, *(len(question.choices) for question in questions)]).tolist()
    index: list[int] = []
    tokens: list[tuple[int, int, int]] = []
    for line, members in enumerate(lines):
        at = 0
        for member in members:
            question = questions[member]
            rest = question.prompt[shared:]
            roots[line, at : at + lengths[member]] = member
            ids[line, at : at + len(rest)] = rest
            positions[line, at : at + len(rest)] = shared + np.arange(len(rest))
            at += len(rest)
            prompt_end = len(index)  # the prompt's last token predicts the first one of every choice
            index.append(line * width + at - 1)
            for number, choice in enumerate(question.choices):
                inner = max(0, len(choice) - 1)
                ids[line, at : at + inner] = choice[:inner]
                parts[line, at : at + inner] = number + 1
                positions[line, at : at + inner] = len(question.prompt) + np.arange(inner)
                predictors = [prompt_end, *range(len(index), len(index) + inner)]
                owner = firsts[member] + number
                tokens += [(by, token, owner) for by, token in zip(predictors, choice.tolist(), strict=False)]
                index += range(line * width + at, line * width + at + inner)
                at += inner
    root, part = torch.from_numpy(roots), torch.from_numpy(parts)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    related = (part[:, :, None] == part[:, None, :]) | (part == 0)[:, None, :]
    mask = (root[:, :, None] == root[:, None, :]) & related & causal
    mask = torch.nn.functional.pad(mask[:, None], (shared, 0), value=True)
    columns = torch.tensor(tokens, dtype=torch.int64).reshape(-1, 3).T
    return Lines(torch.from_numpy(ids), torch.from_numpy(positions), mask, torch.tensor(index), *columns)


def _width(lengths: Sequence[int]) -> int:
    """Return the length of lines that leaves the least padding: that of the longest question, or somewhat more."""
    longest = max(lengths)
    widths = [longest, *(longest + longest * step // 8 for step in range(1, 17) if longest * (8 + step) // 8 <= WIDEST)]
    return min(widths, key=lambda width: len(place(lengths, width)) * width)


def _scored(model: Resident, lines: Lines, count: int, cache: Cache | None) -> list[Score]:
    """Return the scores of all `count` choices of lines."""
    lines = Lines(*(part.to(model.device) for part in lines))
    if cache is not None:
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(lines.input_ids))
    logits, _ = model.continued(lines.input_ids, lines.mask, lines.positions, cache, lines.places)
    logits = logits.float()
    logps = logits[lines.predictor, lines.tokens] - torch.logsumexp(logits, dim=-1)[lines.predictor]
    misses = (logits.argmax(dim=-1)[lines.predictor] != lines.tokens).float()
    zeros = torch.zeros(count, device=model.device)
    totals, wrong = zeros.index_add(0, lines.owner, logps), zeros.index_add(0, lines.owner, misses)
    return list(zip(totals.tolist(), (wrong == 0).tolist(), strict=True))


def _cache_of(model: Resident, beginning: np.ndarray) -> Cache:
    """Return the cache of a beginning, on one line."""
    ids = torch.from_numpy(beginning.astype(np.int64))[None].to(model.device)
    positions = torch.arange(ids.shape[1], device=model.device)[None]
    last = torch.tensor([ids.shape[1] - 1], device=model.device)
    return model.continued(ids, torch.ones_like(ids), positions, None, last)[1]


def is_exact(model: Resident) -> bool:
    """Test whether lines behind a shared beginning have the log-probabilities that each question has alone."""
    text = model.base.config.get_text_config()
    if not model.can_pack or getattr(text, "sliding_window", None):  # a cache holds the window alone
        return False
    rng = np.random.default_rng(0)
    size = min(int(text.vocab_size), 256)
    begin = rng.integers(0, size, 6)
    questions = []
    for length in (2, 5, 3):
        prompt = np.concatenate([begin, rng.integers(0, size, length)]).astype(np.int32)
        questions.append(Question(prompt, [rng.integers(0, size, n).astype(np.int32) for n in (1, 3, 2)]))
    try:
        alone = choice_logps_and_greed(model, questions)[0].tolist()
        found = scores(model, questions, len(questions), 1 << 10)
    except FAULTS:
        return False
    together = [logp for own in found for logp, _ in own]
    most = max(map(abs, alone))
    gap = max(abs(one - other) for one, other in zip(alone, together, strict=True))
    return bool(gap <= rounding(model) * most)
