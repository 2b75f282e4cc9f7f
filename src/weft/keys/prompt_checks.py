"""Values of keys that cannot be, or cannot be together: those of prompts and of models behind an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.keys import RunConfig


def check_prompt(config: RunConfig) -> None:
    """Check the keys of prompts and of endpoints; raises as `weft.keys.checks.check` does."""
    if config.few_shot and config.objective != "sft":
        raise ConfigError(
            "few_shot puts examples before questions with answers: use it with `weft sft` or `weft prompt`, or leave "
            "it out."
        )
    if config.few_shot and config.fed_alg == "central":
        raise ConfigError(
            "few_shot takes examples from each client's rows, and central has no clients: leave out --few_shot."
        )
    _check_endpoint(config)
    if config.prompt_method is None:
        if config.private_tokens:
            raise ConfigError("private_tokens are part of a prompt: write --prompt_method soft, prefix or p_tuning.")
        return
    count = config.num_virtual_tokens + config.private_tokens
    if config.use_peft or config.from_scratch:
        raise ConfigError(
            f"A prompt is trained for a frozen model: leave out {'--use_peft' if config.use_peft else '--size'}, or "
            "--prompt_method."
        )
    if config.objective == "causal_lm":
        raise ConfigError("Prompts are trained on questions and answers: use `weft prompt`, not `weft pretrain`.")
    if config.prompt_method not in ("prefix", "text") and count >= config.seq_length - 1:
        raise ConfigError(
            f"A prompt of {count} vectors leaves no room for text in seq_length ({config.seq_length}): write a larger "
            "--seq_length, or fewer --num_virtual_tokens."
        )
    if config.prompt_method == "black_box" and config.learning_rate == 0:
        raise ConfigError("learning_rate is 0, so the search of black_box has no width: write one above 0, such as 1.")
    if config.prompt_method == "prefix" and config.gradient_checkpointing is True:
        raise ConfigError(
            "A prefix is a cache of keys and values, which recomputation does not support: leave out "
            "--gradient_checkpointing."
        )
    if config.prompt_method == "text" and (config.objective != "sft" or config.private_tokens):
        raise ConfigError(
            "A text prompt is scored by the likelihood of answers: use `weft prompt`, without --private_tokens."
        )
    if config.prompt_init_text is not None and config.prompt_method not in ("soft", "black_box", "text"):
        raise ConfigError(
            "prompt_init_text initialises soft, black_box and text prompts only: write --prompt_method soft, or leave "
            "it out."
        )
    if config.parallel != "none" or config.model_offload != "none":
        raise ConfigError("A prompt needs the whole model in one process: leave out --parallel and --model_offload.")


def _check_endpoint(config: RunConfig) -> None:
    if config.endpoint is None:
        return
    if config.prompt_method not in ("black_box", "text"):
        raise ConfigError(
            "A model behind an endpoint has no gradients: write --prompt_method black_box or text with `weft prompt`, "
            "or leave out --endpoint."
        )
    if config.objective != "sft":
        raise ConfigError(
            "A model behind an endpoint can only score given answers: use `weft prompt`, or leave out --endpoint."
        )
    if not config.endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"endpoint is '{config.endpoint}', which is no URL: write one such as http://127.0.0.1:8000/v1."
        )
