"""Keys of prompts that are learnt in front of a frozen model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class PromptKeys(BaseModel):
    """Prompts."""

    prompt_method: Literal["soft", "prefix", "p_tuning", "black_box"] | None = Field(
        None,
        description="what `weft prompt` learns: vectors before the text (soft), keys and values of every layer "
        "(prefix), vectors that a small net makes (p_tuning), or vectors found without gradients (black_box)",
    )
    num_virtual_tokens: int = Field(20, ge=1, description="vectors of the shared prompt")
    private_tokens: int = Field(0, ge=0, description="vectors of each client's own, behind the shared ones; never sent")
    prompt_init_text: str | None = Field(
        None, description="text whose embeddings a soft prompt begins as (default: tokens drawn at random)"
    )
    black_box_dim: int = Field(
        100, ge=2, description="numbers that are searched for, projected to all vectors at random"
    )
    population: int = Field(
        20, ge=4, description="candidates a generation of the search; --max_steps counts generations"
    )
    prompt_hidden_size: int = Field(128, ge=1, description="width of the net that makes the vectors of p_tuning")
