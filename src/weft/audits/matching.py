"""Matching of gradients: how far the gradient of a guess is from an update, and guesses that come nearer to it.

Deng et al. 2021, TAG (arXiv 2103.06819): the distance of two gradients is the sum of squares and alpha times that of
absolute values. Here both are scaled to a norm of 1, since the attacker does not know the learning rate. A vector found
is read as the token whose embedding points most nearly its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weft.core.types import Tensors
from weft.models.resident import Resident

ALPHA = 0.01
RATE = 0.05
SURE = 8.0
"""Logit of the label of a token that is taken for known."""


class Guess(NamedTuple):
    """A row as a search has it."""

    vectors: Tensor
    """(T, D): in place of the tokens' embeddings."""
    labels: Tensor
    """(T, V): logits of each token as the label of the one before; the first is of none."""


class Matching:
    """The update of a row, and the model that it was made with."""

    def __init__(self, model: Resident, values: Tensors, delta: Tensors, learn: np.ndarray) -> None:
        """Take an update.

        Args:
            model: of the run.
            values: of its parameters, that the update began from.
            delta: of one step.
            learn: (T,) bool: the tokens of the row that the loss is of, which the attacker is told.
        """
        self.model, self._values = model, values
        self.load()
        self.table = model.base.get_input_embeddings().weight.detach().float()
        shared = {id(model.base.get_input_embeddings().weight)}
        self._wanted = {name: p for name, p in model.params.items() if name in delta and id(p) not in shared}
        self._observed = _unit({name: -delta[name].float().to(model.device) for name in self._wanted})
        self._learn = torch.from_numpy(learn[1:].astype(np.float32)).to(model.device)
        self.length = len(learn)

    def load(self) -> None:
        """Give the model its values again: others may have trained it since."""
        self.model.load(self._values)
        self.model.model.eval()
        self.model.train_only(None)

    def start(self, seed: int) -> Guess:
        """Return a guess at random."""
        chance = torch.Generator().manual_seed(seed)
        size = self.table.std().cpu()
        vectors = torch.randn(self.length, self.table.shape[1], generator=chance) * size
        labels = torch.randn(self.length, len(self.table), generator=chance) * 0.1
        return Guess(vectors.to(self.model.device), labels.to(self.model.device))

    def of(self, tokens: Sequence[int]) -> Guess:
        """Return a guess of (T,) tokens."""
        ids = torch.tensor(tokens, device=self.model.device)
        return Guess(self.table[ids].clone(), SURE * torch.nn.functional.one_hot(ids, len(self.table)).float())

    def improved(self, guess: Guess, iterations: int) -> Guess:
        """Return what a search by the gradient of the distance makes of a guess."""
        vectors, labels = (part.clone().requires_grad_() for part in guess)
        optimizer = torch.optim.Adam([vectors, labels], lr=RATE)
        for _ in range(iterations):
            optimizer.zero_grad(set_to_none=True)
            distance, _ = self._distance(vectors, labels[1:].softmax(-1), graph=True)
            distance.backward(inputs=[vectors, labels])  # type: ignore[no-untyped-call]
            optimizer.step()
        return Guess(vectors.detach(), labels.detach())

    def distance(self, tokens: Sequence[int]) -> tuple[float, float]:
        """Return how far the gradient of (T,) tokens is from the update, and their mean loss (nats)."""
        ids = torch.tensor(tokens, device=self.model.device)
        labels = torch.nn.functional.one_hot(ids[1:], len(self.table)).float()
        distance, loss = self._distance(self.table[ids], labels, graph=False)
        return float(distance), float(loss)

    def read(self, guess: Guess, most: int = 1) -> Tensor:
        """Return (T, most): the tokens whose embeddings point most nearly the way of each vector."""
        directions = torch.nn.functional.normalize(guess.vectors, dim=1)
        return (directions @ torch.nn.functional.normalize(self.table, dim=1).T).topk(most, dim=1).indices.cpu()

    def _distance(self, vectors: Tensor, labels: Tensor, *, graph: bool) -> tuple[Tensor, Tensor]:
        """Return the distance, and the mean loss; `graph`: the distance can be derived."""
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            lines = vectors.to(next(iter(self._wanted.values())).dtype)[None]
            logits = self.model.base(inputs_embeds=lines, use_cache=False).logits[0, :-1].float()
            losses = -(labels * logits.log_softmax(-1)).sum(-1)
            loss = (losses * self._learn).sum() / self._learn.sum()
            values = list(self._wanted.values())
            gradients = torch.autograd.grad(loss, values, create_graph=graph, allow_unused=True)
            made = {name: grad.float() for name, grad in zip(self._wanted, gradients, strict=True) if grad is not None}
            return _between(_unit(made), self._observed), loss.detach()


def _unit(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm = torch.stack([value.square().sum() for value in values.values()]).sum().sqrt().clamp(min=1e-20)
    return {name: value / norm for name, value in values.items()}


def _between(made: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Tensor:
    parts = [made[name] - observed[name] for name in made]
    return torch.stack([part.square().sum() + ALPHA * part.abs().sum() for part in parts]).sum()
