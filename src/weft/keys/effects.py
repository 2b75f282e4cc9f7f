"""The conditions under which keys have an effect; a key that a user sets without effect is refused.

The table WORKS beside the keys has a tuple of conditions for each key, which all must hold; ALWAYS is empty. A key is
set if it is in a flag, a file or a dict, even with its default value; null, false and an empty list unset it.
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
"""Flags of OpenFedLLM's programs: a command with these alone runs unchanged, and none of them is refused."""

VERBS = {"sft": "sft", "causal_lm": "pretrain", "preference": "dpo", "grpo": "grpo"}
"""The verb of each objective."""


@dataclass(frozen=True)
class Condition:
    """A condition without which a key has no effect."""

    holds: Callable[[RunConfig], bool]
    """Evaluates the condition for a configuration."""
    reason: str
    """The rest of the sentence after "because", if it does not hold; {c.KEY} is the value of a key."""
    remedy: str = ""
    """What to write so that it holds; empty: only leaving the key out helps."""
    warn_only: bool = False
    """Warn instead of refusing: the run file may serve several runs, some of which do not use the key."""


Effect = tuple[Condition, ...]
ALWAYS: Effect = ()
"""Of a key that has an effect in every run, or has a check of its own in `weft.keys.checks`."""


def only(key: str, *values: str, warn_only: bool = False) -> Effect:
    """Return the effect of a key that works with these values of another key, and with any part outside Weft."""
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
    """Return the effect of a key that works if another key is set."""
    return (
        Condition(
            lambda config: bool(getattr(config, key)), f"it works with {key} alone", f"add --{key} {value}".strip()
        ),
    )


def verbs(*objectives: str) -> Effect:
    """Return the effect of a key of the verbs with these objectives, and of any objective outside Weft."""
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


NEVER = (Condition(lambda config: False, "it is accepted only for OpenFedLLM's scripts", warn_only=True),)
PEFT = flag("use_peft")
NOT_SITES = (
    Condition(lambda config: config.runtime != "nvflare", "every site has its own data and its own site.yaml"),
)
ONE_SOURCE = (
    *NOT_SITES,
    Condition(
        lambda config: not config.clients,
        "clients have their own data, and it concerns the split of one source",
        "name one source by --dataset_name instead of clients",
    ),
)
FEDERATED = (
    Condition(
        lambda config: not _is_baseline(config),
        "it concerns clients that train together, and fed_alg is {c.fed_alg}",
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
        "a text prompt is found without optimizer steps",
        "choose another --prompt_method",
    ),
)
SCHEDULE = (
    *NOT_WORDS,
    Condition(
        lambda config: config.fed_alg != "fedbpt",
        "fedbpt adapts the width of its search by itself",
        "choose another --fed_alg",
    ),
)
LOCAL_MODEL = (
    Condition(lambda config: config.endpoint is None, "the model is behind an endpoint", "leave out --endpoint"),
)
WHOLE_SHARED = (
    Condition(
        lambda config: config.fed_alg != "local" and config.cluster <= 1,
        "every client has a model of its own or chooses one, and none is there for a client that takes no part",
        "leave out --fed_alg local and --cluster",
    ),
    Condition(
        lambda config: not (config.share or config.private_tokens or config.lora_aggregation in ("fedsa", "dual")),
        "a part of the model stays with each client, and one that takes no part has none",
        "leave out --share, --private_tokens and --lora_aggregation",
    ),
    Condition(
        lambda config: not config.federated_tokenizer,
        "the tokenizer is made from the texts of all clients",
        "leave out --federated_tokenizer",
    ),
)
NOT_SPREAD = (
    Condition(
        lambda config: config.parallel == "none",
        "the model is spread over processes by --parallel {c.parallel}, and tasks are put to a model of one process",
        "leave out --parallel",
    ),
)
SERVERS_OWN = (
    Condition(
        lambda config: config.runtime != "nvflare",
        "the server of sites opens no folder that a run names: its own are in its variable WEFT_TASK_DATA",
    ),
)
PRETRAINED = (
    Condition(
        lambda config: not config.from_scratch,
        "the model is trained from scratch",
        "leave out --size, --hidden_size, --num_layers and --num_heads",
    ),
)
HOLDS_OUT = (
    Condition(
        lambda config: (
            not all(client.eval for client in config.clients) if config.clients else not config.eval_dataset_name
        ),
        "the held-out rows have a source of their own",
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
        "there are no personal models",
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
    """Refuse keys that are set without effect; return a sentence about those that only deserve a warning, or None.

    Args:
        config: the whole configuration.
        keys: the keys that the user set.
        effects: the conditions of every key.
        command: all keys are flags; if they are OpenFedLLM's flags only, nothing is refused.
        exempt: keys that are not checked.

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
