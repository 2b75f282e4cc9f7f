"""One pool of instructions for all clients: each proposes texts, all score the pool, the best half stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.core.evolution import COMMON
from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm, LocalRule
from weft.core.texts import to_bytes, to_texts
from weft.core.types import SEARCH, LocalWork, RuleResult, ServerState, Streams, Task, Tensors, Total, Update
from weft.errors import BadUpdate

POOL, FILLED, SCORES, PROPOSALS = "pool", "filled", "scores", "proposals"


class _Score(LocalRule):
    """Score the pool, and send scores and proposals; of a common one, the scores alone."""

    def __init__(self, pool: Tensors, *, common: bool) -> None:
        self.pool, self.common = pool, common

    def search(self) -> Tensors:
        return self.pool | ({COMMON: torch.tensor(True)} if self.common else {})

    def finish(self, work: LocalWork) -> RuleResult:
        found = work.moments[SEARCH]
        if self.common:
            found = {SCORES: torch.where(self.pool[FILLED].bool(), found[SCORES], 0.0)}
        return RuleResult({SEARCH: found})


@dataclass(frozen=True)
class FedText(Algorithm):
    """The pool has `pool` texts, "" among them at first. The server sends the pool; each client returns a score per
    text, the mean loss of its answers after the text, and proposals. The better half by the weighted mean of the scores
    stays; proposals that were never in the pool fill the rest, clients in turn. The best text is the prompt.

    With `common` the server itself takes the texts of `prompt_candidates` into the pool, and clients send standardised
    scores alone: it needs their sum and nothing else, and what a client proposes tells nobody that it took part.
    """

    sums_with: ClassVar[str] = "common=true"
    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    local: ClassVar[str] = "words"
    streams: ClassVar[tuple[str, ...]] = (SEARCH,)
    pool: int = field(default=8, metadata={"key": "prompt_pool"})
    proposals: int = field(default=2, metadata={"key": "prompt_proposals"})
    length: int = field(default=200, metadata={"key": "prompt_length"})
    candidates: Sequence[str] = field(default=(), metadata={"key": "prompt_candidates"})
    common: bool = False

    @property
    def sums_updates(self) -> bool:  # type: ignore[override]
        """Where the server fills the pool."""
        return self.common

    def init(self, params: Tensors) -> ServerState:
        """Start with the empty instruction, and the initial text of the run."""
        (text,) = [""] if next(iter(params.values())).is_meta else to_texts(_bytes(params))
        texts = list(dict.fromkeys(["", text, *(self._own() if self.common else ())]))[: self.pool]
        filled = torch.arange(self.pool) < len(texts)
        search = {POOL: to_bytes(texts, self.pool, self.length), FILLED: filled, SCORES: torch.full((self.pool,), 1e30)}
        return ServerState(params, {SEARCH: search | {"tried": to_bytes(texts, len(texts), self.length)}})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send the pool."""
        search = state.memory[SEARCH]
        return Task(
            client, state.round, version, state.params, {SEARCH: {name: search[name] for name in (POOL, FILLED)}}
        )

    def task_like(self, params: Tensors) -> Streams:
        """Return the pool."""
        pool = torch.zeros(self.pool, self.length, dtype=torch.uint8)
        return {SEARCH: {POOL: pool, FILLED: torch.zeros(self.pool, dtype=torch.bool)}}

    def like(self, params: Tensors) -> Streams:
        """Return a score for every text, and proposals; with `common`, scores."""
        if self.common:
            return {SEARCH: {SCORES: torch.zeros(self.pool)}}
        shape = (self.proposals, self.length)
        return {SEARCH: {SCORES: torch.zeros(self.pool), PROPOSALS: torch.zeros(shape, dtype=torch.uint8)}}

    def check(self, update: Update) -> None:
        """Refuse an update whose proposals are invalid or unprintable."""
        if self.common:
            return
        try:
            to_texts(update.streams[SEARCH][PROPOSALS])
        except ValueError as error:
            raise BadUpdate(f"proposed {error}") from None

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Score the pool."""
        return _Score(task.extra[SEARCH], common=self.common)

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Take the mean of the scores, and the proposals of all clients in turn."""
        if self.common:
            return aggregator.combine(updates)
        proposals: list[Tensor] = []

        def scores_only() -> Iterable[Update]:
            for update in updates:
                proposals.append(update.streams[SEARCH][PROPOSALS])
                yield replace(update, streams={SEARCH: {SCORES: update.streams[SEARCH][SCORES]}})

        total = aggregator.combine(scores_only())
        if not total.clients:
            return total
        in_turn = torch.stack(proposals, dim=1).flatten(0, 1)
        return replace(total, streams={SEARCH: total.streams[SEARCH] | {PROPOSALS: in_turn}})

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Keep the better half, and fill the pool with new proposals."""
        search, results = state.memory[SEARCH], total.streams[SEARCH]
        pool, old_texts = to_texts(search[POOL]), to_texts(search["tried"])
        scores = torch.where(search[FILLED], results[SCORES], torch.full_like(results[SCORES], 1e30))
        order = torch.argsort(scores, stable=True)[: int(search[FILLED].sum())].tolist()
        survivors = order[: max(1, self.pool // 2)]
        texts = [pool[place] for place in survivors]
        # A text that left the pool never returns: it was scored and lost.
        proposals = self._own() if self.common else to_texts(results[PROPOSALS])
        fresh = [text for text in dict.fromkeys(proposals) if text and text not in old_texts]
        fresh = fresh[: self.pool - len(texts)]
        filled = torch.arange(self.pool) < len(texts) + len(fresh)
        new_scores = torch.full((self.pool,), 1e30)
        new_scores[: len(survivors)] = scores[survivors]
        memory = {
            POOL: to_bytes(texts + fresh, self.pool, self.length),
            FILLED: filled,
            SCORES: new_scores,
            "tried": to_bytes(old_texts + fresh, len(old_texts) + len(fresh), self.length),
        }
        (name,) = state.params
        best = to_bytes(texts[:1], 1, self.length)[0].float()
        return ServerState({name: best}, {SEARCH: memory}, state.round + 1)

    def _own(self) -> list[str]:
        """Return the instructions that the run names."""
        return [text.strip() for text in self.candidates if text.strip()]


def _bytes(params: Tensors) -> Tensor:
    (value,) = params.values()
    return value.round().to("cpu", torch.uint8)[None]
