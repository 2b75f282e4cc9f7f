"""The marks of fill-in-the-middle: three special tokens before the prefix, the suffix and the middle of a text.

A tokenizer that has such tokens keeps its own, which its model may know already. To another one they are added, and
the model's embeddings get a row for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel, ModelConfig
from weft.errors import ConfigError


class Marks(NamedTuple):
    """Ids of the tokens that stand before the parts of a text."""

    prefix: int
    suffix: int
    middle: int


KNOWN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
)
"""Of Qwen 2.5 and Weft, StarCoder, SantaCoder, Code Llama, DeepSeek Coder."""


def marks_of(tokenizer: Tokenizer) -> Marks | None:
    """Return the marks that a tokenizer has; None: it has none."""
    vocabulary = tokenizer.get_vocab()
    for names in KNOWN:
        if all(name in vocabulary for name in names):
            return Marks(*(vocabulary[name] for name in names))
    return None


def add_marks(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Add the marks to the tokenizer of a run that fills in middles, unless it has such.

    Raises:
        ConfigError: the run trains no embeddings, so that those of new tokens would say nothing.
    """
    if not config.fills_middle or marks_of(tokenizer) is not None:
        return
    if config.adapts:
        raise ConfigError(
            f"The tokenizer of '{config.start_name}' has no tokens for fill-in-the-middle, and an adapter trains no "
            "embeddings for new ones: train all parameters (--use_peft false), or start from a model that has them, "
            "such as Qwen 2.5."
        )
    tokenizer.add_tokens(list(KNOWN[0]), special_tokens=True)
    if marks_of(tokenizer) is None:
        raise ConfigError(
            f"The tokenizer of '{config.start_name}' takes no new tokens, which fill-in-the-middle needs: give another "
            "--tokenizer or model, or write --pretraining_task causal or prefix."
        )


def embeddings_needed(config: RunConfig, tokenizer: Tokenizer, model_config: ModelConfig) -> int:
    """Return how many embeddings a run's model must have: more than its checkpoint only where marks have no place."""
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    places = int(getattr(text, "vocab_size", 0) or 0)
    marks = marks_of(tokenizer) if config.fills_middle and not config.adapts else None
    return places if marks is None or not places else max(places, max(marks) + 1)


def marks_text(config: RunConfig, tokenizer: Tokenizer, model_config: ModelConfig) -> str | None:
    """Return a sentence part on the marks of a run and the embeddings that they add; None: it fills in no middles."""
    marks = marks_of(tokenizer) if config.fills_middle else None
    if marks is None:
        return None
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    more = embeddings_needed(config, tokenizer, model_config) - text.vocab_size
    added = f", for which the model gets {more} embeddings" if more else ", which have an embedding"
    return ", ".join(tokenizer.decode([mark]) for mark in marks) + added


@torch.no_grad()
def make_room(config: RunConfig, tokenizer: Tokenizer, model: CausalModel) -> None:
    """Give the model an embedding for each mark that has none: the mean of all others, input and output alike.

    A mean lies where no token stands out (Hewitt 2021, "Initializing new word embeddings"), and is the same for every
    party. Rows that a checkpoint holds in reserve are left as they are.
    """
    whole: Any = model
    before, needed = len(whole.get_input_embeddings().weight), embeddings_needed(config, tokenizer, model.config)
    if needed <= before:
        return
    whole.resize_token_embeddings(needed, mean_resizing=False)
    layers = (whole.get_input_embeddings(), whole.get_output_embeddings())
    for layer in layers:
        layer.weight[before:] = layer.weight[:before].mean(dim=0)
        if getattr(layer, "bias", None) is not None:
            layer.bias[before:] = layer.bias[:before].mean()
