"""Loading a causal language model, from the hub or from a folder, with what of it is trained.

Knows nothing of clients and rounds. transformers, peft and bitsandbytes are imported where they are used.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.config import RunConfig
from weft.core.parts import LoraAggregation
from weft.core.seeds import derive
from weft.errors import ConfigError
from weft.models.adapters import add_lora, fixed_factors
from weft.models.emulator import emulator_of, train_ends
from weft.models.group import Group
from weft.models.instruction import Instruction
from weft.models.offload import away, revive, tidy
from weft.models.precision import choose_device, choose_dtype
from weft.models.prompts import Front, add_prompt
from weft.models.quantised import quantisation
from weft.models.resident import Resident
from weft.models.source import hush, in_words, model_source
from weft.models.starting import fill, starting_adapter
from weft.models.tokenizer import load_tokenizer


def load_model_config(config: RunConfig) -> Any:
    """Return the model's own configuration, without its weights."""
    from transformers import AutoConfig

    if config.from_scratch:
        from weft.models.scratch import llama_config

        tokenizer = load_tokenizer(config)
        ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        return llama_config(config, len(tokenizer), ends)
    with in_words(config.model_name_or_path):
        return AutoConfig.from_pretrained(
            model_source(config.model_name_or_path),
            trust_remote_code=config.trust_remote_code,
            token=config.token or None,
        )


def base_model(config: RunConfig, *, full_precision: bool = False) -> Any:
    """Load the model that a run starts from onto its device, in the precision that it trains in.

    Args:
        config: names model, device and precision.
        full_precision: float32 and not quantised, whatever the configuration says.

    Raises:
        ConfigError: no such model or device.
        MissingExtra: bitsandbytes is needed and absent.
    """
    from transformers import AutoModelForCausalLM

    hush()
    device = choose_device(config.device)
    if config.from_scratch:
        torch.manual_seed(derive(config.seed, "weights"))
        return AutoModelForCausalLM.from_config(load_model_config(config), dtype=torch.float32).to(device)
    dtype = torch.float32 if full_precision else arithmetic(config, device)
    extra: dict[str, Any] = {}
    quantised = (config.load_in_8bit or config.load_in_4bit) and not full_precision
    if quantised:
        extra = {"quantization_config": quantisation(config, dtype), "device_map": {"": str(device)}}
    if config.model_offload != "none":
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(
                load_model_config(config), trust_remote_code=config.trust_remote_code
            )
        extra = away(config, shell, device)
    # Full fine-tuning keeps its masters in float32, so the weights must not lose bits on the way in.
    loaded = dtype if config.adapts else torch.float32
    with in_words(config.model_name_or_path):
        model = AutoModelForCausalLM.from_pretrained(
            model_source(config.model_name_or_path),
            dtype=loaded,
            trust_remote_code=config.trust_remote_code,
            token=config.token or None,
            **extra,
        )
    if "offload_folder" in extra:
        tidy(model, extra["offload_folder"])
    return model if extra else model.to(device)


def arithmetic(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the number format that the model of a configuration computes in."""
    own = load_model_config(config)
    text = own.get_text_config() if hasattr(own, "get_text_config") else own
    return choose_dtype(config.dtype, device, getattr(text, "hidden_size", 0))


def load_resident(
    config: RunConfig, tokenizer: Any, lora: LoraAggregation | None = None, group: Group | None = None
) -> Resident:
    """Load the model, make trainable what the configuration and the aggregation say, and return it ready to train.

    Args:
        config: names the model.
        tokenizer: of the model.
        lora: how its adapter is shaped.
        group: the processes that it is spread over.

    Raises:
        ConfigError: no such model or device, or one that cannot be spread so.
        MissingExtra: bitsandbytes is needed and absent.
    """
    if group is not None:
        return _spread(config, tokenizer, lora, group)
    device = choose_device(config.device)
    dtype = arithmetic(config, device)
    trained = _trainable(base_model(config), config, dtype, lora, tokenizer)
    vectors = config.prompt_method not in (None, "text")
    resident = Resident(
        trained, tokenizer, device, dtype, Front(trained, config.prompt_method or "") if vectors else None
    )
    resident.fixed = fixed_factors(trained)
    return resident


def _trainable(
    model: Any, config: RunConfig, dtype: torch.dtype, lora: LoraAggregation | None, tokenizer: Any = None
) -> Any:
    """Return the model with its adapter, if it has one, and with its activations recomputed, if they are."""
    model.config.use_cache = False
    torch.manual_seed(derive(config.seed, "adapter"))
    emulator = None if config.from_scratch else emulator_of(model_source(config.model_name_or_path))
    if emulator is not None and not config.use_peft and config.prompt_method is None:
        train_ends(model, emulator)
    where = None if emulator is None else emulator.trained
    trained = add_lora(model, config, dtype, lora, where) if config.use_peft else model
    if config.prompt_method == "text":
        model.requires_grad_(False)
        model.instruction = Instruction(config.prompt_length, config.prompt_init_text or "")
    elif config.prompt_method is not None:
        trained = add_prompt(model, config, dtype, tokenizer)
    adapter = None if config.from_scratch else starting_adapter(config.model_name_or_path)
    if adapter is not None:
        fill(trained, adapter)
    if config.model_offload != "none":
        revive(trained, choose_device(config.device), config.seed)
    # Without recomputation, the layers that a backward pass needs would all stay on the device until then.
    if config.gradient_checkpointing or config.model_offload != "none":
        # Transformers 5 has another name for it, and warns of the former.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return trained


def _spread(config: RunConfig, tokenizer: Any, lora: LoraAggregation | None, group: Group) -> Resident:
    """Load the model at the leader, and spread it over the processes of a group."""
    from transformers import AutoModelForCausalLM

    from weft.models.spread import Spread, shard, split
    from weft.models.stages import Staged

    def empty(dtype: torch.dtype = torch.float32) -> Any:
        with torch.device("meta"):
            own = load_model_config(config)
            made = AutoModelForCausalLM.from_config(own, dtype=dtype, trust_remote_code=config.trust_remote_code)
            return _trainable(made, config, dtype, lora)

    hush()
    dtype = arithmetic(config, group.device)
    # FSDP keeps shards in float32 and rounds on the way to a layer.
    whole, shell = None, empty(torch.float32 if config.parallel == "fsdp" else dtype)
    if group.leads:
        home = config.model_copy(update={"device": "cpu"})
        whole = _trainable(base_model(home, full_precision=True), config, torch.float32, lora)
    base = shell.get_base_model() if config.use_peft else shell
    if config.parallel == "pipeline":
        return Staged(whole, shell, empty(), tokenizer, group, dtype)
    if config.parallel == "fsdp":
        if config.batch_size < group.size:
            raise ConfigError(
                f"batch_size is {config.batch_size}, too few rows for {group.size} processes: write --batch_size "
                f"{group.size} or more."
            )
        shard(base, group, dtype, offload=config.cpu_offload)
    else:
        split(base, group)
    return Spread(whole, shell, empty(), tokenizer, group, dtype, splits_batch=config.parallel == "fsdp")
