"""Logits at chosen positions alone: the output layer sees the hidden states of these, and of no others."""

from __future__ import annotations

from torch import Tensor, nn


class Selection:
    """A pre-hook on the output layer that passes on the hidden states of the listed positions alone.

    It works for every model whose output layer is a module, whatever follows it (scaling, soft caps); an argument for
    this (`logits_to_keep`) exists for some architectures only.
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None
        """Positions in the flattened (B * L), (N,), or (B, M) for each line; None: the hook does nothing."""
        self.takes = False
        """Store the hidden states in `hidden` and pass the first position on alone, so that logits cost nothing."""
        self.hidden: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Replace the hidden states (B, L, D) by those of the positions, (1, N, D), or (B, M, D) line by line."""
        if self.index is None:
            return None
        hidden = args[0]
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.index.flatten())
        if self.index.dim() > 1:
            return (chosen.view(*self.index.shape, -1), *args[1:])
        if self.takes:
            self.hidden, chosen = chosen, chosen[:1]
        return (chosen[None], *args[1:])
