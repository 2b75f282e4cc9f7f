"""Local training of a text prompt: a client scores instructions on its rows, and proposes new ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from weft.core.evolution import COMMON, standardised
from weft.core.objective import Objective
from weft.core.parts import LocalRule
from weft.core.seeds import derive
from weft.core.texts import to_bytes, to_texts, unfit
from weft.core.types import SEARCH, LocalWork, Metrics
from weft.data.words import Words
from weft.models.generate import Sampling, answer_text, generate
from weft.models.instruction import NAME
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.training.job import Job, LocalResult, RowTable
from weft.training.loop import GradientSteps
from weft.training.order import rows_of_round

ASK = "Write this instruction in other words, in one sentence: {}\nInstruction:"
NEVER = 1e30
"""The score of an empty slot."""


@dataclass(frozen=True)
class InstructionSearch(GradientSteps):
    """Score every text of the pool: the mean loss of the answers of `steps * batch_size` rows behind it."""

    kind: ClassVar[str] = "words"
    candidates: tuple[str, ...] = ()
    """Instructions of the clients: the i-th belongs to client i modulo the number of clients."""
    clients: int = 1
    proposals: int = 2
    """Texts that a client adds per round: its own that the pool lacks, then the model's rewrites of the best."""
    length: int = 200
    """Most bytes of a text."""

    def rows_in_metrics(self, num_rows: int, reuse: int = 1) -> int:
        """Return the rows that each text is scored on."""
        return min(num_rows, self.num_steps(num_rows) * self.batch_size)

    def work(self, model: Resident, objective: Objective, rows: RowTable, rule: LocalRule, job: Job) -> LocalResult:
        """Score the pool, or in the first round the client's texts; the result is the text with the lowest loss."""
        shared = rule.begin(job.shared)
        model.load(job.personal | shared)
        client_texts = [text for i, text in enumerate(self.candidates) if i % self.clients == job.client % self.clients]
        current = to_texts(shared[NAME].round().to(torch.uint8)[None])[0]
        search_state = rule.search()
        seed = derive(self.seed, "words", job.client, job.round)
        proposed: list[str] = []
        refused = 0
        if search_state:
            pool = to_texts(search_state["pool"])
        else:
            pool = list(dict.fromkeys([current, "", *client_texts]))
            proposed, refused = self._propose(model, current, client_texts, pool, seed)
            pool += proposed
        filled_slots = search_state["filled"].bool().tolist() if search_state else [True] * len(pool)
        told = [text for text, filled in zip(pool, filled_slots, strict=True) if filled]
        found, counts = self.score_all(model, objective, rows, told, job)
        scores = np.full(len(pool), NEVER)
        scores[filled_slots] = found
        best = pool[int(np.argmin(scores))]  # ties: the first, on every client alike
        common = COMMON in search_state
        if search_state and not common:
            proposed, refused = self._propose(model, best, client_texts, pool, seed)
        metrics = {"steps": 1.0, "learning_rate": 0.0}
        if counts is not None:
            metrics |= {"texts_scored": float(len(told)), "texts_refused": float(refused)}
            metrics |= counts | model.remote_counts()
        if common:
            scores[filled_slots] = standardised(torch.from_numpy(found)).numpy()
        stream = {
            "scores": torch.from_numpy(scores).float(),
            "proposals": to_bytes(proposed, self.proposals, self.length),
        }
        end = {NAME: to_bytes([best], 1, self.length)[0].float()}
        return LocalResult(rule.finish(LocalWork(shared, shared | end, 1, 0.0, {SEARCH: stream})), metrics, {})

    def score_all(
        self, model: Resident, objective: Objective, rows: RowTable, pool: Sequence[str], job: Job
    ) -> tuple[np.ndarray, Metrics | None]:
        """Return (texts,) the scores of some texts, and counts and sums of the rows that they were scored on.

        Without counts (None) nothing at all is told of the rows.
        """
        words, seed = Words(model.tokenizer), derive(self.seed, "words", job.client, job.round)
        size = self.num_steps(len(rows)) * self.batch_size
        order = rows_of_round(len(rows), size, seed=self.seed, client=job.client, round=job.round, purpose="order")
        sample = [rows[int(row)] for row in order]
        scores = np.array([self._score(model, objective, words, sample, text, seed) for text in pool])
        tokens = sum(len(ids) for ids, _ in sample) * len(pool)
        counts = {"loss_sum": float(scores.min()) * size, "loss_tokens": float(size), "rows": float(size)}
        return scores, counts | {"tokens": float(tokens)}

    def _score(
        self, model: Resident, objective: Objective, words: Words, rows: Sequence[Row], text: str, seed: int
    ) -> float:
        """Return the mean loss of the rows' answers behind a text."""
        instruction = words.tokens(text)
        behind = [words.row(row, instruction) for row in rows]
        loss = objective.assess(model, behind, self.batch_size, seed)
        return loss if math.isfinite(loss) else NEVER

    def _propose(
        self, model: Resident, best: str, client_texts: Sequence[str], pool: Sequence[str], seed: int
    ) -> tuple[list[str], int]:
        """Return texts that the pool lacks, and how many rewrites were no use: too long, or not to be shown."""
        new_texts = [text for text in client_texts if text not in pool][: self.proposals]
        refused = 0
        if best and len(new_texts) < self.proposals:
            for answer in self._rewrites(model, ASK.format(best), self.proposals - len(new_texts), seed):
                text = " ".join(answer.strip().split("\n")[0].split())
                if not text or unfit(text) or len(text.encode()) > self.length:
                    refused += 1
                elif text not in pool and text not in new_texts:
                    new_texts.append(text)
        return new_texts, refused

    def _rewrites(self, model: Resident, prompt: str, count: int, seed: int) -> list[str]:
        """Return `count` continuations of a text by the model."""
        most = max(8, self.length // 4)
        texts = model.remote_texts(prompt, count, most, seed)
        if texts is not None:
            return texts
        sampling = Sampling(most, temperature=1.0, top_p=0.95)
        prompt_ids = np.array(model.tokenizer.encode(prompt), dtype=np.int32)
        (answers,) = generate(model, [prompt_ids], sampling, copies=count, seed=seed)
        return [answer_text(model.tokenizer, answer) for answer in answers]
