"""A resident model in lm-eval's hands: any of its tasks, with the adapter, prompt and instruction of a run.

Imported only where lm-eval is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-untyped, import-not-found, unused-ignore]

from weft.errors import ConfigError
from weft.tasks.local_model import LocalModel
from weft.tasks.prompts import Prompt
from weft.tasks.requests import Text, Writing

LONGEST = 256
"""Tokens of an answer, where a task does not say: lm-eval's own number."""
SAMPLING = frozenset({"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature"})
"""What a task may say of generation."""


class HarnessModel(LM):  # type: ignore[misc, unused-ignore]
    """Answers lm-eval's requests by Weft's own scoring and generation."""

    def __init__(self, model: LocalModel, seed: int = 0) -> None:
        """Take over a model that is asked without a chat template: lm-eval applies that itself."""
        super().__init__()
        self.model, self.seed = model, seed

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's cache of requests."""
        return str(self.model.model.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the tokenizer's template."""
        return str(self.model.model.tokenizer.chat_template or "")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return turns as the model's own text."""
        text: str = self.model.model.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability (nats) of each continuation, and whether it is the likeliest one."""
        return self.model.score_pairs([(str(one.args[0]), str(one.args[1])) for one in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability (nats) of each text."""
        return [reply.logp for reply in self.model.score_texts([Text(str(one.args[0])) for one in requests])]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what continues each prompt.

        Raises:
            ConfigError: a task asks for a way of sampling that Weft has not.
        """
        return [reply.first for reply in self.model.write([_writing(one) for one in requests], self.seed)]


def _writing(request: Any) -> Writing:
    context, settings = request.args
    samples = bool(settings.get("do_sample")) and float(settings.get("temperature", 1.0)) > 0
    other = sorted(settings.keys() - SAMPLING) if samples else []
    if other:
        raise ConfigError(
            f"The task '{request.task_name}' samples by {', '.join(other)}, and Weft by temperature alone: run it by "
            "lm-eval itself, or write a task of your own."
        )
    until = settings.get("until") or ()
    return Writing(
        Prompt(str(context)),
        (until,) if isinstance(until, str) else tuple(map(str, until)),
        int(settings.get("max_gen_toks", settings.get("max_new_tokens", LONGEST))),
        float(settings.get("temperature", 1.0)) if samples else 0.0,
    )
