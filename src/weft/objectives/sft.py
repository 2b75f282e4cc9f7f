"""Supervised fine-tuning on instructions: next-token prediction on the answers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.objectives.causal_lm import CausalLM


@dataclass(frozen=True)
class SFT(CausalLM):
    """-sum log p(answer_t | question, answer_<t); the chat template's rendering marks the answers' tokens."""

    rows: ClassVar[str] = "conversations"
