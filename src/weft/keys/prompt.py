"""Keys of prompts that are learnt in front of a frozen model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import ALWAYS, Effect, flag, only

EMBEDDED = ("soft", "p_tuning", "black_box")
"""Methods whose vectors stand among the embeddings."""


class PromptKeys(BaseModel):
    """Prompts."""

    prompt_method: Literal["soft", "prefix", "p_tuning", "black_box", "text"] | None = Field(
        None,
        description="what `weft prompt` learns: vectors before the text (soft), keys and values of every layer "
        "(prefix), those that a small net makes (p_tuning), those found without gradients (black_box), or words (text)",
    )
    num_virtual_tokens: int = Field(20, ge=1, description="vectors of the shared prompt")
    private_tokens: int = Field(0, ge=0, description="vectors of each client's own, behind the shared ones; never sent")
    prompt_init_text: str | None = Field(
        None, description="text whose embeddings a soft prompt begins as (default: tokens drawn at random)"
    )
    prompt_candidates: list[str] = Field(
        [], description="instructions to begin with, dealt to the clients in turn: texts, or a file of one a line"
    )
    few_shot: int = Field(
        0,
        ge=0,
        description="of each client's own training rows, how many stand before each row as examples; never sent",
    )
    prompt_pool: int = Field(8, ge=2, description="instructions that are scored in a round")
    prompt_proposals: int = Field(2, ge=1, description="instructions that a client proposes in a round")
    prompt_length: int = Field(200, ge=8, description="longest instruction in bytes")
    black_box_dim: int = Field(
        100, ge=2, description="numbers that are searched for, projected to all vectors at random"
    )
    population: int = Field(
        20, ge=4, description="candidates a generation of the search; --max_steps counts generations"
    )
    endpoint: str | None = Field(
        None,
        description="URL of an OpenAI-compatible API (up to /v1) where the model is, for black_box and text; "
        "model_name_or_path then gives the tokenizer, and black_box's words",
    )
    endpoint_model: str | None = Field(None, description="the model's name there (default: model_name_or_path)")
    endpoint_key: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    endpoint_timeout: float = Field(60.0, gt=0, description="seconds for one answer of the endpoint")
    endpoint_retries: int = Field(4, ge=0, description="times that a failed request is sent again")
    endpoint_parallel: int = Field(4, ge=1, description="requests to the endpoint at a time")
    prompt_hidden_size: int = Field(128, ge=1, description="width of the net that makes the vectors of p_tuning")


VECTORS = only("prompt_method", "soft", "prefix", "p_tuning", "black_box")
WORDS = only("prompt_method", "text")
ENDPOINT = flag("endpoint", "URL")
WORKS: dict[str, Effect] = {
    "prompt_method": ALWAYS,
    "num_virtual_tokens": VECTORS,
    "private_tokens": VECTORS,
    "prompt_init_text": only("prompt_method", "soft", "black_box", "text"),
    "prompt_candidates": WORDS,
    "few_shot": ALWAYS,
    "prompt_pool": WORDS + only("fed_alg", "fedtext", warn_only=True),
    "prompt_proposals": WORDS,
    "prompt_length": WORDS,
    "black_box_dim": only("prompt_method", "black_box"),
    "population": only("prompt_method", "black_box"),
    "endpoint": ALWAYS,
    "endpoint_model": ENDPOINT,
    "endpoint_key": ENDPOINT,
    "endpoint_timeout": ENDPOINT,
    "endpoint_retries": ENDPOINT,
    "endpoint_parallel": ENDPOINT,
    "prompt_hidden_size": only("prompt_method", "p_tuning"),
}
"""When each key has an effect."""
