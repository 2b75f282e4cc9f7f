"""When a key has an effect, declared in the table WORKS beside the keys; one that was given in vain is refused.

A key's entry is a tuple of conditions, which all must hold: ALWAYS is none of them. What was given is what a user wrote
in a flag, a file or a dict, equal to the default or not; null, false and an empty list take a key back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft import kinds
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.keys import RunConfig

OPENFEDLLM = frozenset(
    "fed_alg num_rounds num_clients sample_clients split_strategy prox_mu fedopt_tau fedopt_eta fedopt_beta1 "
    "fedopt_beta2 save_model_freq model_name_or_path dataset_name report_to learning_rate batch_size seq_length "
    "gradient_accumulation_steps load_in_8bit load_in_4bit use_peft trust_remote_code output_dir peft_lora_r "
    "peft_lora_alpha logging_steps token num_train_epochs max_steps save_steps save_total_limit push_to_hub "
    "hub_model_id gradient_checkpointing template seed dpo_beta dataset_sample local_data_dir".split()
)
"""The keys that OpenFedLLM's programs have flags for: a command of these alone runs as it stands."""

VERBS = {"sft": "sft", "causal_lm": "pretrain", "preference": "dpo", "grpo": "grpo"}
"""Objectives, and the verbs that have them."""


@dataclass(frozen=True)
class Condition:
    """A condition without which a key does nothing."""

    holds: Callable[[RunConfig], bool]
    """Of a configuration."""
    reason: str
    """What to say behind "because" where it does not hold; {c.KEY} is the value of a key."""
    remedy: str = ""
    """What to write so that it holds, where leaving the key out is not all that there is."""
    warn_only: bool = False
    """Told in a sentence, not refused: what makes the key idle is often changed for a comparison."""


Effect = tuple[Condition, ...]
ALWAYS: Effect = ()
"""Of a key that has an effect in every run, or is refused by a check of its own where it has none."""


def only(key: str, *values: str, warn_only: bool = False) -> Effect:
    """Return the effect of a key that works with some values of another, and with any part that is not Weft's own."""
    alternatives = " or ".join(str(value) for value in values)
    return (
        Condition(
            lambda config: getattr(config, key) in values or kinds.is_outside(key, getattr(config, key)),
            f"it works with {key} {alternatives}, and {key} is {{c.{key}}}",
            f"write --{key} {values[0]}",
            warn_only,
        ),
    )


def flag(key: str, value: str = "") -> Effect:
    """Return the effect of a key that works where another is set."""
    return (
        Condition(
            lambda config: bool(getattr(config, key)), f"it works with {key} alone", f"add --{key} {value}".strip()
        ),
    )


def verbs(*objectives: str) -> Effect:
    """Return the effect of a key that some verbs have, and any objective that is not Weft's own."""
    commands = " and ".join(f"`weft {VERBS[objective]}`" for objective in objectives)
    return (
        Condition(
            lambda config: config.objective in objectives or kinds.is_outside("objective", config.objective),
            f"it is a key of {commands}, and the objective is {{c.objective}}",
            f"use `weft {VERBS[objectives[0]]}`",
        ),
    )


def _is_baseline(config: RunConfig) -> bool:
    name: str = config.fed_alg
    return name == "central" or kinds.is_local(name)


NEVER = (Condition(lambda config: False, "it is accepted for OpenFedLLM's sake alone", warn_only=True),)
PEFT = flag("use_peft")
NOT_SITES = (
    Condition(lambda config: config.runtime != "nvflare", "every site has its own data and its own site.yaml"),
)
ONE_SOURCE = (
    *NOT_SITES,
    Condition(
        lambda config: not config.clients,
        "clients have data of their own, and it deals rows of one source",
        "name one source by --dataset_name instead of clients",
    ),
)
FEDERATED = (
    Condition(
        lambda config: not _is_baseline(config),
        "it is about clients that learn together, and fed_alg is {c.fed_alg}",
        "choose a federated --fed_alg",
        warn_only=True,
    ),
)
GRADIENTS = (
    Condition(
        lambda config: config.prompt_method not in ("black_box", "text") and config.fed_alg != "fedkseed",
        "there are no gradients: fed_alg is {c.fed_alg}, prompt_method {c.prompt_method}",
        "choose another --prompt_method or --fed_alg",
    ),
)
NOT_WORDS = (
    Condition(
        lambda config: config.prompt_method != "text",
        "a prompt in words is learnt without steps",
        "choose another --prompt_method",
    ),
)
SCHEDULE = (
    *NOT_WORDS,
    Condition(lambda config: config.fed_alg != "fedbpt", "fedbpt fits its width by itself", "choose another --fed_alg"),
)
LOCAL_MODEL = (
    Condition(lambda config: config.endpoint is None, "the model is behind an endpoint", "leave out --endpoint"),
)
PRETRAINED = (
    Condition(
        lambda config: not config.from_scratch,
        "the model begins from nothing",
        "leave out --size, --hidden_size, --num_layers and --num_heads",
    ),
)
HOLDS_OUT = (
    Condition(
        lambda config: (
            not all(client.eval for client in config.clients) if config.clients else not config.eval_dataset_name
        ),
        "held-out rows are named apart",
        "leave out --eval_dataset_name, or the eval of clients",
    ),
)
OWN_MODELS = (
    Condition(
        lambda config: bool(
            config.personal_steps
            or config.share
            or config.private_tokens
            or config.cluster > 1
            or config.fed_alg in ("ditto", "local")
            or config.lora_aggregation in ("fedsa", "dual")
            or any(kinds.is_outside(key, getattr(config, key)) for key in ("fed_alg", "lora_aggregation"))
        ),
        "no client has a model of its own",
        "add such as --personal_steps 10",
    ),
)


def check(
    config: RunConfig,
    keys: Collection[str],
    effects: Mapping[str, Effect],
    *,
    command: bool = False,
    exempt: Collection[str] = (),
) -> str | None:
    """Refuse keys that were given and have no effect; return what is only to be said, in one sentence, or None.

    Args:
        config: the whole configuration.
        idle_keys: keys that the user wrote.
        effects: of every key.
        command: they are all flags; of OpenFedLLM's flags alone it is one of its commands, where nothing is refused.
        exempt: keys that are not judged.

    Raises:
        ConfigError: with the reason and the remedy.
    """
    is_openfedllm_command = command and OPENFEDLLM.issuperset(keys)
    idle: dict[Condition, list[str]] = {}
    for key in keys:
        value = getattr(config, key)
        if key in exempt or value is None or value is False or value == [] or value == {}:
            continue
        failing = next((condition for condition in effects[key] if not condition.holds(config)), None)
        if failing is not None:
            idle.setdefault(failing, []).append(key)
    failures = [] if is_openfedllm_command else [condition for condition in idle if not condition.warn_only]
    if failures:
        condition, *further = failures
        other_keys = [key for condition_ in further for key in idle[condition_]]
        nor = f" ({_series(other_keys)} {_have(other_keys)} none either)" if other_keys else ""
        instead = f", or {condition.remedy}" if condition.remedy else ""
        idle_keys = idle[condition]
        raise ConfigError(
            f"{_series(idle_keys)} {_have(idle_keys)} no effect in this run, because "
            f"{condition.reason.format(c=config)}: leave {'it' if len(idle_keys) == 1 else 'them'} out{instead}{nor}."
        )
    if not idle:
        return None
    parts = [f"{_series(idle_keys)} ({condition.reason.format(c=config)})" for condition, idle_keys in idle.items()]
    return f"without effect in this run: {'; '.join(parts)}."


def _series(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def _have(keys: list[str]) -> str:
    return "has" if len(keys) == 1 else "have"
