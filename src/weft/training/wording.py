"""Local work in words: a client scores instructions on its own rows, and proposes others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.texts import to_bytes, to_texts, unfit
from weft.core.types import SEARCH, LocalWork
from weft.data.words import Words
from weft.models.generate import Sampling, decoded, generate
from weft.models.instruction import NAME
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.training.loop import GradientSteps, Job, RowTable, Trained
from weft.training.order import rows_of_round

ASK = "Write this instruction in other words, in one sentence: {}\nInstruction:"
NEVER = 1e30
"""The score of an empty slot."""


@dataclass(frozen=True)
class Wording(GradientSteps):
    """Score every text of the pool on `steps * batch_size` rows: the mean loss of their answers behind it."""

    kind: ClassVar[str] = "words"
    candidates: tuple[str, ...] = ()
    """Instructions of the clients' own: the i-th is known to client i modulo the number of clients."""
    clients: int = 1
    proposals: int = 2
    """Texts that a client adds in a round: its own that the pool lacks, then rewrites by the model."""
    length: int = 200
    """Most bytes of a text."""

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> Trained:
        """Score the pool, or the client's own texts where there is none; the best is where the work ends."""
        shared = rule.begin(job.shared)
        model.load(job.own | shared)
        words = Words(model.tokenizer)
        own = [text for i, text in enumerate(self.candidates) if i % self.clients == job.client % self.clients]
        now = to_texts(shared[NAME].round().to(torch.uint8)[None])[0]
        given = rule.search()
        seed = derive(self.seed, "words", job.client, job.round)
        proposed: list[str] = []
        refused = 0
        if given:
            pool = to_texts(given["pool"])
        else:
            pool = list(dict.fromkeys([now, "", *own]))
            proposed, refused = self._propose(model, now, own, pool, seed)
            pool += proposed
        there = given["filled"].bool().tolist() if given else [True] * len(pool)
        size = self.num_steps(len(rows)) * self.batch_size
        order = rows_of_round(len(rows), size, seed=self.seed, client=job.client, round=job.round, purpose="order")
        some = [rows[int(row)] for row in order]
        scores = [
            self._score(model, objective, words, some, text, seed) if filled else NEVER
            for text, filled in zip(pool, there, strict=True)
        ]
        best = pool[int(np.argmin(scores))]
        if given:
            proposed, refused = self._propose(model, best, own, pool, seed)
        count = sum(there)
        tokens = sum(len(ids) for ids, _ in some) * count
        metrics = {
            "loss_sum": min(scores) * size,
            "loss_tokens": float(size),
            "rows": float(size),
            "tokens": float(tokens),
            "steps": 1.0,
            "learning_rate": 0.0,
            "texts_scored": float(count),
            "texts_refused": float(refused),
            **model.asked_tally(),
        }
        sent = {
            "scores": torch.tensor(scores, dtype=torch.float32),
            "proposals": to_bytes(proposed, self.proposals, self.length),
        }
        end = {NAME: to_bytes([best], 1, self.length)[0].float()}
        return Trained(rule.finish(LocalWork(shared, shared | end, 1, 0.0, {SEARCH: sent})), metrics, {})

    def _score(
        self, model: Resident, objective: Objective, words: Words, rows: Sequence[Row], text: str, seed: int
    ) -> float:
        """Return the mean loss of the rows' answers behind a text."""
        said = words.tokens(text)
        behind = [words.row(row, said) for row in rows]
        loss = objective.assess(model, behind, self.batch_size, seed)
        return loss if math.isfinite(loss) else NEVER

    def _propose(
        self, model: Resident, best: str, own: Sequence[str], pool: Sequence[str], seed: int
    ) -> tuple[list[str], int]:
        """Return texts that the pool lacks, and how many rewrites were no use: too long, or not to be shown."""
        found = [text for text in own if text not in pool][: self.proposals]
        refused = 0
        if best and len(found) < self.proposals:
            for answer in self._rewrites(model, ASK.format(best), self.proposals - len(found), seed):
                text = " ".join(answer.strip().split("\n")[0].split())
                if not text or unfit(text) or len(text.encode()) > self.length:
                    refused += 1
                elif text not in pool and text not in found:
                    found.append(text)
        return found, refused

    def _rewrites(self, model: Resident, prompt: str, count: int, seed: int) -> list[str]:
        """Return what the model writes behind a text, so many times."""
        most = max(8, self.length // 4)
        told = model.asked_texts(prompt, count, most, seed)
        if told is not None:
            return told
        how = Sampling(most, temperature=1.0, top_p=0.95)
        asked = np.array(model.tokenizer.encode(prompt), dtype=np.int32)
        (answers,) = generate(model, [asked], how, copies=count, seed=seed)
        return [decoded(model.tokenizer, answer) for answer in answers]
