"""Keys of prompts, which are trained for a frozen model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.keys.effects import ALWAYS, Effect, flag, only

EMBEDDED = ("soft", "p_tuning", "black_box")
"""Methods whose vectors are inserted among the input embeddings."""


class PromptKeys(BaseModel):
    """Prompts."""

    prompt_method: Literal["soft", "prefix", "p_tuning", "black_box", "text"] | None = Field(
        None,
        description="what `weft prompt` trains: input vectors (soft), keys and values of every layer "
        "(prefix), input vectors from a small network (p_tuning), input vectors without "
        "gradients (black_box), or a text (text)",
    )
    num_virtual_tokens: int = Field(20, ge=1, description="vectors of the shared prompt")
    private_tokens: int = Field(
        0, ge=0, description="vectors of each client's private prompt, behind the shared one; never sent"
    )
    prompt_init_text: str | None = Field(
        None, description="text whose embeddings initialise a soft prompt (default: random tokens)"
    )
    prompt_candidates: list[str] = Field(
        [], description="initial instructions, dealt to the clients in turn: texts, or a file with one a line"
    )
    few_shot: int = Field(
        0,
        ge=0,
        description="training rows of each client that precede each of its rows as examples; never sent",
    )
    prompt_pool: int = Field(8, ge=2, description="instructions that are scored in a round")
    prompt_proposals: int = Field(2, ge=1, description="instructions that a client proposes in a round")
    prompt_length: int = Field(200, ge=8, description="longest instruction in bytes")
    black_box_dim: int = Field(
        100, ge=2, description="dimension of the search; a random projection maps it to all vectors"
    )
    population: int = Field(
        20, ge=4, description="candidates per generation of the search; --max_steps counts generations"
    )
    endpoint: str | None = Field(
        None,
        description="URL of an OpenAI-compatible API (up to /v1) that runs the model, for black_box and "
        "text; model_name_or_path then names the tokenizer, and the embeddings of black_box",
    )
    endpoint_model: str | None = Field(
        None, description="name of the model at the endpoint (default: model_name_or_path)"
    )
    endpoint_key: str = Field("OPENAI_API_KEY", description="environment variable with the endpoint's API key")
    endpoint_timeout: float = Field(60.0, gt=0, description="seconds to wait for an answer of the endpoint")
    endpoint_retries: int = Field(4, ge=0, description="retries of a failed request to the endpoint")
    endpoint_parallel: int = Field(4, ge=1, description="concurrent requests to the endpoint")
    prompt_hidden_size: int = Field(128, ge=1, description="width of p_tuning's network")


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
