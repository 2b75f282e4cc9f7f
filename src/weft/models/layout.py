"""Laying out rows of tokens as one batch of a causal language model.

Rows are packed into few lines (first fit, longest first), each as long as the longest row, so that little is padding.
Rows that share a line do not attend to each other: a mask keeps attention inside each row, and positions restart at 0.
The loss is that of a padded batch of the same rows. Only positions whose next token is a target are listed, so that
logits are computed there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Row = tuple[np.ndarray, np.ndarray]
"""Token ids (int32) and the mask of those that are targets of the loss (bool), both (length,)."""


@dataclass(frozen=True)
class Batch:
    """One forward pass. B lines of L positions, N targets."""

    input_ids: Tensor
    """(B, L) int64; padding is 0."""
    position_ids: Tensor | None
    """(B, L) int64, or None where every line holds one row."""
    mask: Tensor | None
    """(B, 1, L, L) bool, True where attention is allowed, or None where plain causal attention does."""
    index: Tensor
    """(N,) int64, positions in the flattened (B * L) whose next token is a target; (B, M) of `lay_out_lines`."""
    targets: Tensor
    """(N,) int64, the ids of these next tokens."""
    rows: int
    tokens: int
    offsets: Tensor | None = None
    """(R + 1,) int32: where each row begins on the only line, and the end of the last; None: `mask` holds."""
    longest: int = 0
    """Length of the longest row, where there are offsets."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""

        # From pinned memory the copy does not wait for the work that the GPU still has to do.
        batch = self.pinned() if device.type == "cuda" and self.input_ids.device.type == "cpu" else self
        return batch._map(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU copies from by itself; one that is there already stays."""
        # Tensors that are expanded along an axis cannot be pinned as they are.
        return self._map(lambda value: value.contiguous().pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=None if self.position_ids is None else change(self.position_ids),
            mask=None if self.mask is None else change(self.mask),
            index=change(self.index),
            targets=change(self.targets),
            offsets=None if self.offsets is None else change(self.offsets),
        )

    def first_targets(self, count: int) -> Batch:
        """Return the batch with its first targets alone."""
        return replace(self, index=self.index[:count], targets=self.targets[:count])


def place(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the row numbers of each line of `width` positions: first fit, longest first."""
    lines: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for line, free in enumerate(room):
            if lengths[row] <= free:
                lines[line].append(row)
                room[line] -= lengths[row]
                break
        else:
            lines.append([row])
            room.append(width - lengths[row])
    return lines


STEP = 64
"""On a GPU lines are filled up to a multiple of this, so that the sizes of matrices differ little between steps."""


def line_step(device: torch.device, model_config: object) -> int:
    """Return what the length of padded lines is a multiple of: `STEP` on a GPU, where the model has that many
    positions, else 1."""
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    positions = getattr(text, "max_position_embeddings", None)
    # A line of the longest rows must not become longer than the positions that the model knows.
    return STEP if device.type == "cuda" and positions and positions % STEP == 0 else 1


WORTH = 16
"""Positions that offsets must save for each row, compared with a mask, to be faster on a CPU. It computes attention row
by row there, some 0.1 to 0.3 ms a row and layer, as much as so many positions of a small model take."""
LONG = 512
"""Lines beyond it have no mask where there can be offsets: attention with a mask computes the whole square."""


def lay_out(rows: Sequence[Row], *, pack: bool, offsets: str = "", step: int = 1) -> Batch:
    """Lay rows out as a batch; without `pack` every row has a line of its own, padded on the right.

    Args:
        rows: token ids and targets.
        pack: several rows share a line.
        offsets: "always": all rows share one line, filled up by a row of padding, and have offsets instead of a mask;
            "where shorter": they do, without padding, where that saves `WORTH` positions for each row, or where a mask
            would have more than `LONG`; empty: they do not.
        step: lines have a multiple of so many positions, those with offsets always of `STEP`.
    """
    lengths = [len(ids) for ids, _ in rows]
    if pack and offsets == "always":
        return _one_line(rows, lengths, -sum(lengths) % STEP)
    width = -(-max(lengths) // step) * step
    lines = place(lengths, width) if pack else [[row] for row in range(len(rows))]
    saved = len(lines) * width - sum(lengths)
    if pack and offsets and (saved >= WORTH * len(rows) or (len(lines) < len(rows) and width > LONG)):
        return _one_line(rows, lengths, 0)
    packed = len(lines) < len(rows)
    ids = np.zeros((len(lines), width), dtype=np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, -1)
    index: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for number, line in enumerate(lines):
        at = 0
        for row in line:
            tokens, learn = rows[row]
            end = at + len(tokens)
            ids[number, at:end] = tokens
            positions[number, at:end] = np.arange(len(tokens))
            segments[number, at:end] = row
            learnt_positions = np.flatnonzero(learn[1:])
            index.append(number * width + at + learnt_positions)
            targets.append(tokens[1:][learnt_positions])
            at = end
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions) if packed else None,
        _causal_within(torch.from_numpy(segments)) if packed else None,
        torch.from_numpy(np.concatenate(index)),
        torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        len(rows),
        sum(lengths),
    )


def _one_line(rows: Sequence[Row], lengths: list[int], padding: int) -> Batch:
    """Lay all rows out on one line with offsets."""
    total = sum(lengths)
    begins = np.cumsum([0, *lengths])
    learnt = [np.flatnonzero(learn[1:]) for _, learn in rows]
    ends = [*begins, total + padding] if padding else begins
    return Batch(
        torch.from_numpy(np.concatenate([*(ids for ids, _ in rows), np.zeros(padding)]).astype(np.int64)[None]),
        torch.from_numpy(np.concatenate([np.arange(length) for length in (*lengths, padding)])[None]),
        None,
        torch.from_numpy(np.concatenate([begin + at for begin, at in zip(begins, learnt, strict=False)])),
        torch.from_numpy(
            np.concatenate([ids[1:][at] for (ids, _), at in zip(rows, learnt, strict=True)]).astype(np.int64)
        ),
        len(rows),
        total,
        torch.tensor(ends, dtype=torch.int32),
        max(*lengths, padding),
    )


def _causal_within(segments: Tensor) -> Tensor:
    """Return (B, 1, L, L) bool: a position attends to earlier ones of its own segment and to itself. So does padding:
    a softmax over no position would be NaN."""
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (same & causal)[:, None]


@dataclass(frozen=True)
class Question:
    """A prompt and its possible answers, all as token ids (int32)."""

    prompt: np.ndarray
    choices: Sequence[np.ndarray]

    def rows(self) -> list[Row]:
        """Return a row for every choice: the prompt, then the choice, whose tokens alone are targets."""
        rows = [np.concatenate([self.prompt, choice]) for choice in self.choices]
        return [(ids, np.arange(len(ids)) >= len(self.prompt)) for ids in rows]


def lay_out_choices(questions: Sequence[Question]) -> tuple[Batch, Tensor]:
    """Lay out each prompt once, followed by all its choices, which do not attend to each other.

    Returns:
        The batch, whose targets are all tokens of all choices, and (N,) int64: the number of each target's choice,
        counted through all questions.
    """
    width = max(len(q.prompt) + sum(len(choice) for choice in q.choices) for q in questions)
    ids = np.zeros((len(questions), width), dtype=np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, -1)
    index: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    choice_number = 0
    for line, question in enumerate(questions):
        start = len(question.prompt)
        ids[line, :start] = question.prompt
        positions[line, :start] = np.arange(start)
        segments[line, :start] = 0
        at = start
        for number, choice in enumerate(question.choices):
            end = at + len(choice)
            ids[line, at:end] = choice
            positions[line, at:end] = start + np.arange(len(choice))
            segments[line, at:end] = number + 1
            # A choice's first token is predicted by the prompt's last, its others by the choice's own.
            index += [line * width + start - 1, *(line * width + p for p in range(at, end - 1))]
            targets += choice.tolist()
            owner += [choice_number] * len(choice)
            choice_number += 1
            at = end
    segment_ids = torch.from_numpy(segments)
    mask = _causal_within(segment_ids) | ((segment_ids == 0)[:, None, None, :] & (segment_ids > 0)[:, None, :, None])
    batch = Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        mask,
        torch.tensor(index),
        torch.tensor(targets),
        len(questions),
        int((segments >= 0).sum()),
    )
    return batch, torch.tensor(owner)
