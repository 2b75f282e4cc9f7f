"""Checks of a run's keys, alone and together, before anything is loaded."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import TYPE_CHECKING

from weft import kinds, registry
from weft.errors import ConfigError
from weft.keys import audits, clean_checks, leaving, pretraining, privacy, secrets
from weft.keys.prompt_checks import check_prompt

if TYPE_CHECKING:
    from weft.keys import RunConfig


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot be run.

    Raises:
        ConfigError: with the remedy.
    """
    _check_secrets(config)
    _check_pairs(config)
    _check_numbers(config)
    _check_names(config)
    _check_rewards(config)
    check_prompt(config)
    privacy.check(config)
    pretraining.check(config)
    audits.check(config)
    _check_finite(config)


UNBOUNDED = ("max_grad_norm", "max_update_norm", "clip_norm", "mixture_temperature", "checkpoint_seconds")
"""Keys that may be infinite: no bound, equal shares, no checkpoint but the last. With no other can be computed."""


def _check_finite(config: RunConfig) -> None:
    """Refuse what is not a number, and infinities, which no bound of a key refuses in a list or beside a word."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for number in values:
            if not isinstance(number, float) or math.isfinite(number) or (key in UNBOUNDED and number > 0):
                continue
            raise ConfigError(f"{key} holds {number}, with which nothing can be computed: write a finite number.")


def _check_secrets(config: RunConfig) -> None:
    """Refuse API keys and passwords among the keys."""
    clients = [{"dataset_name": client.data, "eval_dataset_name": client.eval} for client in config.clients or ()]
    for values in (dict(config), *clients):
        if (why := secrets.fault(values)) is not None:
            raise ConfigError(why)


def _check_rewards(config: RunConfig) -> None:
    """Check the keys of rewards, which other verbs than `weft grpo` ignore."""
    if config.objective != "grpo":
        return
    if config.max_new_tokens >= config.seq_length:
        raise ConfigError(
            f"max_new_tokens is {config.max_new_tokens}, which leaves no room for a prompt in seq_length "
            f"({config.seq_length}): write a larger --seq_length, or a smaller --max_new_tokens."
        )
    if not config.reward:
        raise ConfigError(f"No reward is named: write --reward {', '.join(registry.REWARDS)}, or a Python file.")
    for name in config.reward:
        kinds.check_part("reward", name)
    if "regex" in config.reward and config.reward_pattern is None:
        raise ConfigError("The reward 'regex' needs a pattern: write --reward_pattern PATTERN.")
    if config.reward_weights is not None and len(config.reward_weights) != len(config.reward):
        raise ConfigError(
            f"There are {len(config.reward)} rewards and {len(config.reward_weights)} reward_weights: write one for "
            "each."
        )


def _check_pairs(config: RunConfig) -> None:
    if config.load_in_8bit and config.load_in_4bit:
        raise ConfigError(
            "The base model is loaded in 8 bits or in 4, not both: leave out --load_in_8bit or --load_in_4bit."
        )
    if (config.load_in_8bit or config.load_in_4bit) and not config.use_peft:
        raise ConfigError(
            "The weights of a quantised base model cannot be trained: add --use_peft, or leave out --load_in_8bit/4bit."
        )
    if config.from_scratch and (config.use_peft or config.load_in_8bit or config.load_in_4bit):
        raise ConfigError(
            "A model from scratch trains all its parameters: leave out --use_peft, --load_in_8bit and --load_in_4bit, "
            "or --size."
        )
    ways = [config.tokenizer is not None, config.tokenizer_text is not None, config.federated_tokenizer]
    if config.from_scratch and sum(ways) != 1:
        raise ConfigError(
            "A model from scratch needs a tokenizer: write either --tokenizer NAME_OR_PATH, or "
            "--tokenizer_text FILE with public text to train one on, or --federated_tokenizer."
        )
    if not config.from_scratch and any(ways):
        raise ConfigError(
            "A pretrained model has its own tokenizer: leave out --tokenizer, or train from scratch by --size."
        )
    if config.federated_tokenizer and config.split_strategy == "length" and not config.clients:
        raise ConfigError(
            "The split 'length' counts tokens, and federated_tokenizer makes the tokenizer after the split: choose "
            "another one."
        )
    _check_placement(config)
    if config.optimizer == "muon" and config.prompt_method is not None:
        raise ConfigError(
            f"optimizer is muon, which steps the matrices inside a model, and prompt_method {config.prompt_method} "
            "trains none of them: write --optimizer adamw."
        )
    if config.push_to_hub:
        raise ConfigError(
            "Weft sends nothing to the hub during a run: leave out --push_to_hub, then use `weft export`."
        )
    if config.runtime == "nvflare":
        _check_sites(config)
    elif config.dataset_name is None and not config.clients:
        raise ConfigError("No data is named: write --dataset_name NAME_OR_PATH, or clients with their own files.")
    if config.clients and config.dataset_name is not None:
        raise ConfigError("Both dataset_name and clients are given, and either names the data: leave one of them out.")
    if config.clients and len({client.name for client in config.clients}) < len(config.clients):
        raise ConfigError("Two clients have the same name: give them different ones.")
    if config.public_share and config.public_data is None:
        raise ConfigError("public_share is given, but no public_data to take it from: write --public_data FILE.")


def _check_sites(config: RunConfig) -> None:
    """Check a run of sites with their own data."""
    sites_own = ("dataset_name", "clients", "public_data", "eval_dataset_name", "dataset_split", "eval_dataset_split")
    site_keys = [key for key in sites_own if getattr(config, key)]
    if site_keys:
        raise ConfigError(
            f"With --runtime nvflare every site names its own data in site.yaml: leave out --{site_keys[0]}."
        )
    if config.client_failure_rate or config.client_speed or config.availability:
        raise ConfigError(
            "Failures and speeds are simulated for clients in one place, not for sites: leave out "
            "--client_failure_rate, --client_speed and --availability."
        )
    if config.fed_alg == "central" or kinds.is_local(config.fed_alg) or config.personal_steps:
        raise ConfigError(
            "Baselines and personal steps need all data at one place: with --runtime nvflare write --fed_alg "
            "fedavg or another that is federated, and leave out --personal_steps."
        )
    for name in config.peft_lora_target_modules:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"peft_lora_target_modules holds '{name}', and sites take no regular expressions, which can be made to "
                "run for ever: write names of modules, auto or all-linear."
            )
    for key in ("eval_tasks", "contamination"):
        if files := [name for name in getattr(config, key) if name.endswith((".yaml", ".yml"))]:
            raise ConfigError(
                f"{key} names the file '{files[0]}', and in a run of sites nobody opens a file that a run names: "
                "write names of Weft's tasks."
            )
    if config.federated_tokenizer or config.tokenizer_text:
        raise ConfigError("Sites need an existing tokenizer: write --tokenizer NAME_OR_PATH.")


def _check_placement(config: RunConfig) -> None:
    """Check quantisation, offloading and parallelism."""
    quantised = config.load_in_8bit or config.load_in_4bit
    if config.model_offload != "none" and (not config.use_peft or config.use_dora or quantised):
        raise ConfigError(
            "Offloaded layers must be frozen, without DoRA or quantisation: add --use_peft (without --use_dora, "
            "--load_in_8bit and --load_in_4bit), or leave out --model_offload."
        )
    if config.parallel != "none" and (config.model_offload != "none" or quantised):
        raise ConfigError(
            "A model spread over processes can be neither quantised nor offloaded by layers: leave out "
            "--load_in_8bit/4bit and --model_offload; with --parallel fsdp, --cpu_offload may help."
        )
    if config.compile == "on" and (config.parallel != "none" or config.model_offload != "none" or quantised):
        raise ConfigError(
            "Compiled layers must be whole, in this process and not quantised: leave out --compile, or --parallel, "
            "--model_offload and --load_in_8bit/4bit."
        )
    if config.cpu_offload and config.parallel != "fsdp":
        raise ConfigError("cpu_offload moves shards: add --parallel fsdp, or leave out --cpu_offload.")
    if config.parallel in ("tensor", "pipeline") and config.use_peft:
        raise ConfigError("Tensor and pipeline parallelism train all parameters: leave out --use_peft, or write fsdp.")
    if config.parallel != "none" and config.runtime != "inprocess":
        raise ConfigError(
            "A model is spread over the processes of torchrun, with --runtime inprocess only: leave out --parallel or "
            "--runtime."
        )
    if config.parallel != "none" and (config.dtype == "float16" or config.optimizer not in ("adamw", "sgd")):
        raise ConfigError(
            "A model spread over processes needs --dtype float32 or bfloat16, and --optimizer adamw or sgd: write "
            "these."
        )


def _check_numbers(config: RunConfig) -> None:
    if config.clients_of_rest and (config.clients or config.split_strategy not in registry.NATURAL_SPLITS):
        raise ConfigError(
            "clients_of_rest is given, but only the splits by and domain can leave values without a client: write "
            "--split_strategy by, or leave out --clients_of_rest."
        )
    outside = kinds.is_outside("split_strategy", config.split_strategy)
    natural = config.split_strategy in registry.NATURAL_SPLITS or outside
    if config.num_clients == 0 and not natural and not config.clients:
        raise ConfigError("num_clients is 0: write how many clients there are, 1 or more.")
    for rank in config.client_ranks or ():
        if not 1 <= rank <= config.peft_lora_r:
            raise ConfigError(
                f"A client's rank is {rank}, but ranks go from 1 to peft_lora_r ({config.peft_lora_r}): write a "
                "larger --peft_lora_r."
            )
    if not config.num_rounds and (config.personal_steps or config.best_metric):
        given = "personal_steps" if config.personal_steps else "best_metric"
        raise ConfigError(f"num_rounds is 0, so nothing is trained: leave out --{given}, or write how many rounds.")
    if config.privacy != "none" and (config.contamination or config.data_statistics):
        given = "contamination" if config.contamination else "data_statistics"
        raise ConfigError(
            f"{given} sends counts of rows beside what privacy bounds: leave it out, or count without --privacy_unit."
        )
    if config.num_rounds and config.evaluated_run:
        raise ConfigError("evaluated_run names a model that is evaluated, and not trained: add --num_rounds 0.")
    if any(speed <= 0 for speed in config.client_speed or ()):
        raise ConfigError("client_speed holds a speed that is not above 0: write 0.5 for a client half as fast.")
    if isinstance(config.fedopt_tau, float) and config.fedopt_tau <= 0:
        raise ConfigError(f"fedopt_tau is {config.fedopt_tau}, but must be above 0, or auto.")
    if config.max_update_norm is not None and 0 < config.max_update_norm < 1:
        raise ConfigError(
            f"max_update_norm is {config.max_update_norm:g}, so that the median update itself is refused: write 1 or "
            "more, or 0 for no limit."
        )
    if config.attack != "none" and config.runtime == "nvflare":
        raise ConfigError(
            f"attack is {config.attack}, but attacks are simulated, and sites are never asked to lie: leave out "
            "--attack, or write --runtime inprocess."
        )
    if config.num_malicious >= 1 and not float(config.num_malicious).is_integer():
        raise ConfigError(
            f"num_malicious is {config.num_malicious:g}, and that is neither a share of the clients below 1 nor a "
            "whole number of them: write such as --num_malicious 0.2 or 2."
        )
    if config.min_clients > config.sample_clients:
        raise ConfigError(
            f"min_clients is {config.min_clients}, but a round has {config.sample_clients} clients: write a smaller "
            "--min_clients, or a larger --sample_clients."
        )


def _check_names(config: RunConfig) -> None:
    kinds.check_algorithm(config.fed_alg)
    for key in kinds.PARTS:
        if key not in ("fed_alg", *kinds.LISTS) and (key, getattr(config, key)) != ("template", "auto"):
            kinds.check_part(key, getattr(config, key))
    clean_checks.check(config)
    leaving.read(config.leave_when)
    # Whether the file is there is seen when it is read: a site checks runs of others, and looks for no file of theirs.
    if config.prompt_template is not None and config.template not in ("auto", "chat"):
        raise ConfigError(f"template is {config.template}, and prompt_template is given too: leave one of them out.")
    if config.template_date is not None and not _is_day(config.template_date):
        raise ConfigError(f"template_date is '{config.template_date}', which is no date: write one such as 2026-01-31.")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
