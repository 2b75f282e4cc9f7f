"""One pool of instructions for all clients: they propose, everybody scores everything, the best survive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.core.exchange import Aggregator
from weft.core.parts import Algorithm, LocalRule
from weft.core.texts import to_bytes, to_texts
from weft.core.types import SEARCH, Finished, LocalWork, ServerState, Streams, Task, Tensors, Total, Update
from weft.errors import BadUpdate

POOL, FILLED, SCORES, PROPOSALS = "pool", "filled", "scores", "proposals"


class _Score(LocalRule):
    """Score the pool, and send scores and proposals."""

    def __init__(self, given: Tensors) -> None:
        self.given = given

    def search(self) -> Tensors:
        return self.given

    def finish(self, work: LocalWork) -> Finished:
        return Finished({SEARCH: work.moments[SEARCH]})


@dataclass(frozen=True)
class FedText(Algorithm):
    """The pool holds `pool` texts, "" among them at first. What travels is the pool, and a score for each text and
    client: the mean loss of the client's answers behind it. The better half by the weighted mean of the scores stays;
    proposals that were never in the pool fill the rest, clients in turn. The best that was scored is the prompt.
    """

    sums_updates: ClassVar[bool] = False
    adds_mean: ClassVar[bool] = False
    remembers_coordinates: ClassVar[bool] = True
    local: ClassVar[str] = "words"
    streams: ClassVar[tuple[str, ...]] = (SEARCH,)
    pool: int = field(default=8, metadata={"key": "prompt_pool"})
    proposals: int = field(default=2, metadata={"key": "prompt_proposals"})
    length: int = field(default=200, metadata={"key": "prompt_length"})

    def init(self, params: Tensors) -> ServerState:
        """Begin with no instruction, and the text that the run begins with."""
        (text,) = [""] if next(iter(params.values())).is_meta else to_texts(_bytes(params))
        begun = list(dict.fromkeys(["", text]))
        filled = torch.arange(self.pool) < len(begun)
        kept = {POOL: to_bytes(begun, self.pool, self.length), FILLED: filled, SCORES: torch.full((self.pool,), 1e30)}
        return ServerState(params, {SEARCH: kept | {"tried": to_bytes(begun, len(begun), self.length)}})

    def task(self, state: ServerState, client: str, version: int) -> Task:
        """Send the pool."""
        kept = state.memory[SEARCH]
        return Task(client, state.round, version, state.params, {SEARCH: {name: kept[name] for name in (POOL, FILLED)}})

    def like(self, params: Tensors) -> Streams:
        """A score for every text, and proposals."""
        shape = (self.proposals, self.length)
        return {SEARCH: {SCORES: torch.zeros(self.pool), PROPOSALS: torch.zeros(shape, dtype=torch.uint8)}}

    def check(self, update: Update) -> None:
        """Refuse an update whose proposals are not to be shown."""
        try:
            to_texts(update.streams[SEARCH][PROPOSALS])
        except ValueError as error:
            raise BadUpdate(f"proposed {error}") from None

    def rule(self, task: Task, memory: Streams) -> LocalRule:
        """Score the pool."""
        return _Score(task.extra[SEARCH])

    def combine(self, updates: Iterable[Update], aggregator: Aggregator) -> Total:
        """Take the mean of the scores, and the proposals of all clients in turn."""
        proposed: list[Tensor] = []

        def scored() -> Iterable[Update]:
            for update in updates:
                proposed.append(update.streams[SEARCH][PROPOSALS])
                yield replace(update, streams={SEARCH: {SCORES: update.streams[SEARCH][SCORES]}})

        total = aggregator.combine(scored())
        if not total.clients:
            return total
        in_turn = torch.stack(proposed, dim=1).flatten(0, 1)
        return replace(total, streams={SEARCH: total.streams[SEARCH] | {PROPOSALS: in_turn}})

    def step(self, state: ServerState, total: Total) -> ServerState:
        """Keep the better half, and let the rest of the pool be new."""
        kept, found = state.memory[SEARCH], total.streams[SEARCH]
        pool, tried = to_texts(kept[POOL]), to_texts(kept["tried"])
        scores = torch.where(kept[FILLED], found[SCORES], torch.full_like(found[SCORES], 1e30))
        order = torch.argsort(scores, stable=True)[: int(kept[FILLED].sum())].tolist()
        stay = order[: max(1, self.pool // 2)]
        texts = [pool[place] for place in stay]
        fresh = [text for text in dict.fromkeys(to_texts(found[PROPOSALS])) if text and text not in tried]
        fresh = fresh[: self.pool - len(texts)]
        filled = torch.arange(self.pool) < len(texts) + len(fresh)
        known = torch.full((self.pool,), 1e30)
        known[: len(stay)] = scores[stay]
        memory = {
            POOL: to_bytes(texts + fresh, self.pool, self.length),
            FILLED: filled,
            SCORES: known,
            "tried": to_bytes(tried + fresh, len(tried) + len(fresh), self.length),
        }
        (name,) = state.params
        best = to_bytes(texts[:1], 1, self.length)[0].float()
        return ServerState({name: best}, {SEARCH: memory}, state.round + 1)


def _bytes(params: Tensors) -> Tensor:
    (value,) = params.values()
    return value.round().to("cpu", torch.uint8)[None]
