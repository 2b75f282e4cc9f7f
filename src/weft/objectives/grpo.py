"""Group-relative policy optimisation with verifiable rewards (Shao et al. 2024, arXiv 2402.03300, section 4.1).

For every prompt, G answers o_i are sampled from the model and scored; A_i = (r_i - mean r) / (std r + 1e-4) over the
group (std with G - 1). With q_t = pi(o_t) / pi_old(o_t) and the reference the model that the run began from, all three
at the sampling temperature (as in trl; not renormalised for top_p):

    per token  -min(q A, clip(q, 1 - e, 1 + e) A) + beta (ref / pi - log(ref / pi) - 1)
    grpo       its mean over an answer's tokens, then over answers
    dapo       its mean over all tokens                                            (Yu et al. 2025, arXiv 2503.14476)
    dr_grpo    its sum over an answer's tokens / max_new_tokens, mean over answers, A not divided by the std
                                                                                   (Liu et al. 2025, arXiv 2503.20783)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.declarations import Metric
from weft.core.libraries import Tokenizer
from weft.core.metrics import plus
from weft.core.objective import Loss, Objective
from weft.core.types import Metrics
from weft.data.prompts import Prompt
from weft.models.generate import Answer, Sampling, answer_text, generate
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import batches_within, most_tokens, score_choices
from weft.rewards.answers import ANSWER_TOKENS, CUT, REWARD, count_answers
from weft.rewards.score import Claim, Judge, Scores, score_all

GROUPS_ALIKE = Metric(
    "groups_alike", "groups of equal rewards", "groups", ("alike",), sums_are_counts=True, share=True, shown="report"
)
"""The share of prompts of which nothing is learnt: all their answers are worth the same."""
LINE = 4096
"""Longest line, in tokens, that a prompt's answers share in a training batch."""


class AnswerGroup(NamedTuple):
    """The G answers to one prompt."""

    prompt: np.ndarray
    answers: list[np.ndarray]
    """Token ids (T_i,) of each."""
    advantages: np.ndarray
    """(G,) float32."""
    old: np.ndarray
    """(sum T_i,) float32: log-probabilities (nats) at sampling time; empty where the answers serve one step only."""
    reference: np.ndarray
    """(sum T_i,) float32: log-probabilities of the starting model; empty without a KL term."""
    counts: Metrics


@dataclass(frozen=True)
class GroupBatch:
    """A batch of groups: A answers of N tokens in total."""

    questions: list[Question]
    advantages: Tensor
    """(A,) float32."""
    lengths: Tensor
    """(A,) int64, tokens of each answer."""
    old: Tensor
    """(N,) float32, as in `AnswerGroup`, or empty."""
    reference: Tensor
    """(N,) float32, as in `AnswerGroup`, or empty."""
    targets: Tensor
    """(A,) or (N,): the loss is a mean over answers, or over tokens."""
    rows: int
    tokens: int
    counts: Metrics

    def to(self, device: torch.device) -> GroupBatch:
        """Return the batch on a device."""
        parts = ("advantages", "lengths", "old", "reference", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


@dataclass(frozen=True)
class GRPO(Objective):
    """The losses above."""

    rows: ClassVar[str] = "prompts"
    evaluator: ClassVar[str] = "rewards"
    metrics: ClassVar[tuple[Metric, ...]] = (REWARD, ANSWER_TOKENS, CUT, GROUPS_ALIKE)
    loss_name: str = field(default="grpo", metadata={"key": "grpo_loss"})
    beta: float = field(default=0.04, metadata={"key": "grpo_kl"})
    clip: float = field(default=0.2, metadata={"key": "grpo_clip"})
    iterations: int = field(default=1, metadata={"key": "grpo_iterations"})
    generations: int = field(default=8, metadata={"key": "num_generations"})
    max_new_tokens: int = field(default=256, metadata={"key": "max_new_tokens"})
    temperature: float = field(default=1.0, metadata={"key": "temperature"})
    top_p: float = field(default=1.0, metadata={"key": "top_p"})
    rewards: list[str] = field(default_factory=lambda: ["exact"], metadata={"key": "reward"})
    weights: list[float] | None = field(default=None, metadata={"key": "reward_weights"})
    seconds: float = field(default=5.0, metadata={"key": "reward_seconds"})
    pattern: str | None = field(default=None, metadata={"key": "reward_pattern"})
    form: str = field(default="", metadata={"key": "reward_format"})
    length: int = field(default=200, metadata={"key": "reward_length"})

    @property
    def needs_start(self) -> bool:  # type: ignore[override]
        """Always: evaluation reports the divergence from the starting model even without a KL term."""
        return True

    @property
    def reuse(self) -> int:  # type: ignore[override]
        """Optimizer steps on the same answers."""
        return self.iterations

    @cached_property
    def judges(self) -> list[Judge]:
        """The reward functions, each with the process that it runs in."""
        settings = {"pattern": self.pattern, "format": self.form, "length": self.length}
        return [Judge(name, self.seconds, settings) for name in self.rewards]

    def start(self) -> None:
        """Start the rewards' processes; ConfigError for a reward that cannot be used."""
        for judge in self.judges:
            judge.start()

    def score(self, tokenizer: Tokenizer, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> Scores:
        """Return the rewards of all answers to all prompts, in order."""
        claims = [
            Claim(prompt.question, answer_text(tokenizer, answer), prompt.answer)
            for prompt, group in zip(prompts, answers, strict=True)
            for answer in group
        ]
        return score_all(self.judges, self.weights or [1.0] * len(self.rewards), claims)

    def act(self, model: Resident, rows: Sequence[Prompt], seed: int) -> list[AnswerGroup]:
        """Sample answers to the prompts from the current model, and score them."""
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        answers = generate(model, [row.ids for row in rows], sampling, copies=self.generations, seed=seed)
        totals, faults = self.score(model.tokenizer, rows, answers)
        questions = [
            Question(row.ids, [answer.ids for answer in group]) for row, group in zip(rows, answers, strict=True)
        ]
        old = self._logps(model, questions) if self.iterations > 1 else []
        reference: list[np.ndarray] = []
        if self.beta:
            with model.as_reference():
                reference = self._logps(model, questions)
        nothing = np.zeros(0, dtype=np.float32)
        groups = []
        for place, (question, group) in enumerate(zip(questions, answers, strict=True)):
            rewards = np.array(totals[place * self.generations : (place + 1) * self.generations])
            groups.append(
                AnswerGroup(
                    question.prompt,
                    list(question.choices),
                    self.advantages(rewards),
                    old[place] if old else nothing,
                    reference[place] if reference else nothing,
                    count_answers(rewards, group) | {"groups": 1.0, "alike": float(np.ptp(rewards) == 0)},
                )
            )
        groups[0].counts.update({f"reward_{fault}": float(count) for fault, count in faults.items()})
        return groups

    def assess(self, model: Resident, rows: Sequence[Prompt], batch_size: int, seed: int) -> float:
        """Return minus the mean reward of one answer to each prompt."""
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        total = 0.0
        for at in range(0, len(rows), batch_size):
            batch = rows[at : at + batch_size]
            answers = generate(model, [row.ids for row in batch], sampling, seed=seed)
            total += sum(self.score(model.tokenizer, batch, answers).totals)
        return -total / len(rows)

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Return the advantages (G,): rewards (G,) less their mean, over their std except for dr_grpo."""
        above: np.ndarray = rewards - rewards.mean()
        if self.loss_name != "dr_grpo":
            above = above / (rewards.std(ddof=1) + 1e-4)
        return above.astype(np.float32)

    def _logps(self, model: Resident, questions: Sequence[Question]) -> list[np.ndarray]:
        """Return, for every question, the log-probabilities (nats) of its choices' tokens, concatenated."""
        lines = [line for question in questions for line in _lines(question)]
        with model.evaluating():
            parts = [
                self._token_logps(model, batch).cpu().numpy() for batch in batches_within(lines, most_tokens(model))
            ]
        sizes = [sum(len(choice) for choice in question.choices) for question in questions]
        return [np.asarray(part) for part in np.split(np.concatenate(parts), np.cumsum(sizes)[:-1])]

    def collate(self, groups: Sequence[AnswerGroup]) -> GroupBatch:  # type: ignore[override]
        """Return the batch."""
        lengths = torch.tensor([len(answer) for group in groups for answer in group.answers])
        counts: Metrics = {}
        for group in groups:
            counts = plus(counts, group.counts)
        tokens = int(lengths.sum())
        return GroupBatch(
            [line for group in groups for line in _lines(Question(group.prompt, group.answers))],
            torch.from_numpy(np.concatenate([group.advantages for group in groups])),
            lengths,
            torch.from_numpy(np.concatenate([group.old for group in groups])),
            torch.from_numpy(np.concatenate([group.reference for group in groups])),
            torch.arange(tokens if self.loss_name == "dapo" else len(lengths)),
            len(groups),
            tokens + sum(len(group.prompt) for group in groups),
            counts,
        )

    def counts(self, batch: GroupBatch) -> Metrics:
        """Return sums over the answers: rewards, lengths, faults of reward functions."""
        return batch.counts

    def loss(self, model: Resident, batch: GroupBatch) -> Loss:
        """Return the summed loss of a batch."""
        return Loss(self.of_tokens(self._token_logps(model, batch.questions), batch), len(batch.targets))

    def _token_logps(self, model: Resident, questions: Sequence[Question]) -> Tensor:
        """Return (N,): the log-probability (nats) of every token of all choices at the sampling temperature."""
        return score_choices(model, questions).at(self.temperature).logps

    def of_tokens(self, logps: Tensor, batch: GroupBatch) -> Tensor:
        """Return the summed loss, a scalar, for the log-probabilities (N,) of all tokens of all answers."""
        owner = torch.repeat_interleave(batch.lengths)
        advantage = batch.advantages[owner]
        # Without stored log-probabilities the answers are the current model's: the ratio is 1, with logps' gradient.
        ratio = (logps - (batch.old if len(batch.old) else logps.detach())).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
        if self.beta:
            # exp(x) - x - 1 >= 0 estimates the KL term without bias and with little variance (Schulman 2020).
            behind = batch.reference - logps
            losses = losses + self.beta * (behind.exp() - behind - 1)
        if self.loss_name == "grpo":
            return (losses / batch.lengths[owner]).sum()
        return losses.sum() / (self.max_new_tokens if self.loss_name == "dr_grpo" else 1)


def _lines(question: Question) -> list[Question]:
    """Split a question's choices into questions that fit on a line each."""
    room = max(1, (LINE - len(question.prompt)) // max(len(choice) for choice in question.choices))
    choices = iter(question.choices)
    lines = []
    while part := list(islice(choices, room)):
        lines.append(Question(question.prompt, part))
    return lines
