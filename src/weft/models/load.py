"""Loading a causal language model, from the hub or from a folder, with what of it is trained.

Knows nothing of clients and rounds. transformers, peft and bitsandbytes are imported where they are used.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel, ModelConfig, as_adapted, base_model_of
from weft.core.parts import LoraAggregation
from weft.core.seeds import derive
from weft.errors import ConfigError
from weft.models.adapters import add_lora, fixed_factors
from weft.models.checkpoint import find_checkpoint, load_weights
from weft.models.compat import recompute_activations
from weft.models.emulator import emulator_of, train_ends
from weft.models.group import RankGroup
from weft.models.instruction import Instruction
from weft.models.noise import hush
from weft.models.notes import Note, unsaid
from weft.models.offload import away, revive, tidy
from weft.models.precision import choose_device, choose_dtype
from weft.models.probes import check_computes
from weft.models.prompts import Front, add_prompt
from weft.models.quantised import check_stored, keep_unpacked, quantisation, stored_bits
from weft.models.resident import Resident
from weft.models.source import in_words, model_source
from weft.models.starting import adapter_of, fill
from weft.models.tokenizer import load_tokenizer


def load_model_config(config: RunConfig) -> ModelConfig:
    """Return the model's own configuration, without its weights.

    Raises:
        ConfigError: no such model, or none that predicts the next token, or one quantised in a way that is not read.
        MissingExtra: bitsandbytes is needed and absent.
    """
    from transformers import AutoConfig

    if config.from_scratch:
        from weft.models.scratch import llama_config

        tokenizer = load_tokenizer(config)
        ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        return llama_config(config, len(tokenizer), ends)
    source = model_source(config.model_name_or_path)
    with in_words(source):
        own: ModelConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, token=config.token or None
        )
    _check_kind(config, own)
    check_stored(config, own)
    return own


def _check_kind(config: RunConfig, own: ModelConfig) -> None:
    """Refuse what is no decoder."""
    from transformers import AutoModelForCausalLM

    name, kind = config.model_name_or_path, own.model_type
    if getattr(own, "is_encoder_decoder", False):
        raise ConfigError(
            f"'{name}' is an encoder with a decoder ({kind}), and Weft trains decoders that predict the next token: "
            "name one, such as a Llama, a Qwen or a GPT-2."
        )
    remote = "AutoModelForCausalLM" in (getattr(own, "auto_map", None) or {})
    if not remote and type(own) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"'{name}' is a {kind}, which is no model that predicts the next token: name one, such as a Llama, a Qwen "
            "or a GPT-2."
        )


def base_model(config: RunConfig, *, full_precision: bool = False, note: Note = unsaid) -> CausalModel:
    """Load the model that a run starts from onto its device, in the precision that it trains in.

    Args:
        config: names model, device and precision.
        full_precision: float32 and not quantised, whatever the configuration and the checkpoint say.
        note: told what is not as it seems of the checkpoint.

    Raises:
        ConfigError: no such model or device, or a checkpoint that is not of the model that it describes.
        MissingExtra: bitsandbytes is needed and absent.
    """
    from transformers import AutoModelForCausalLM

    hush()
    device = choose_device(config.device)
    if config.from_scratch:
        torch.manual_seed(derive(config.seed, "weights"))
        model: CausalModel = AutoModelForCausalLM.from_config(load_model_config(config), dtype=torch.float32)
        return model.to(device)
    own = load_model_config(config)
    stored = stored_bits(own) is not None
    dtype = torch.float32 if full_precision else arithmetic(config, device)
    extra: dict[str, Any] = {"device_map": {"": str(device)}} if stored else {}
    quantised = (config.load_in_8bit or config.load_in_4bit) and not full_precision and not stored
    if quantised:
        extra = {"quantization_config": quantisation(config, dtype), "device_map": {"": str(device)}}
    if config.model_offload != "none":
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(own, trust_remote_code=config.trust_remote_code)
        extra = away(config, shell, device)
    # Full fine-tuning keeps its masters in float32, so the weights must not lose bits on the way in.
    loaded = dtype if config.adapts else torch.float32
    model = load_weights(
        model_source(config.model_name_or_path),
        seed=config.seed,
        allow_missing=config.allow_missing,
        note=note,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        dtype=loaded,
        **extra,
    )
    if "offload_folder" in extra:
        tidy(model, extra["offload_folder"])
    if quantised or stored:
        keep_unpacked(model)
    if stored and full_precision:
        model = model.dequantize().to(torch.float32)
    return model if extra else model.to(device)


def pickled(config: RunConfig) -> bool:
    """Say whether a run's model, or the adapter that it begins from, is in files that can hold code (.bin)."""
    if config.from_scratch:
        return False
    adapter = adapter_of(config)
    if adapter is not None and not (adapter / "adapter_model.safetensors").is_file():
        return True
    return find_checkpoint(model_source(config.model_name_or_path), config.token).pickled


def arithmetic(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the number format that the model of a configuration computes in."""
    own = load_model_config(config)
    text = own.get_text_config() if hasattr(own, "get_text_config") else own
    return choose_dtype(config.dtype, device, getattr(text, "hidden_size", 0))


def load_resident(
    config: RunConfig,
    tokenizer: Tokenizer,
    lora: LoraAggregation | None = None,
    group: RankGroup | None = None,
    note: Note = unsaid,
) -> Resident:
    """Load the model, make trainable what the configuration and the aggregation say, and return it ready to train.

    Args:
        config: names the model.
        tokenizer: of the model.
        lora: how its adapter is shaped.
        group: the processes that it is spread over.
        note: told what is not as it seems of the checkpoint.

    Raises:
        ConfigError: no such model or device, or one that cannot be spread so.
        MissingExtra: bitsandbytes is needed and absent.
    """
    if group is not None:
        return _spread(config, tokenizer, lora, group, note)
    device = choose_device(config.device)
    dtype = arithmetic(config, device)
    trained = _trainable(base_model(config, note=note), config, dtype, lora, tokenizer, note)
    vectors = config.prompt_method not in (None, "text")
    resident = Resident(
        trained, tokenizer, device, dtype, Front(as_adapted(trained), config.prompt_method or "") if vectors else None
    )
    resident.fixed = fixed_factors(trained)
    exact = not (config.load_in_4bit or config.load_in_8bit or getattr(trained.config, "quantization_config", None))
    check_computes(resident, config.start_name, exact=exact)
    return resident


def _trainable(
    model: CausalModel,
    config: RunConfig,
    dtype: torch.dtype,
    lora: LoraAggregation | None,
    tokenizer: Tokenizer | None = None,
    note: Note = unsaid,
) -> CausalModel:
    """Return the model with its adapter, if it has one, and with its activations recomputed, if they are."""
    model.config.use_cache = False
    torch.manual_seed(derive(config.seed, "adapter"))
    emulator = None if config.from_scratch else emulator_of(model_source(config.model_name_or_path))
    if emulator is not None and not config.use_peft and config.prompt_method is None:
        train_ends(model, emulator)
    where = None if emulator is None else emulator.trained
    trained = add_lora(model, config, dtype, lora, where, note) if config.use_peft else model
    if config.prompt_method == "text":
        model.requires_grad_(False)
        model.instruction = Instruction(config.prompt_length, config.prompt_init_text or "")
    elif config.prompt_method is not None:
        trained = add_prompt(model, config, dtype, tokenizer)
    adapter = adapter_of(config)
    if adapter is not None:
        fill(as_adapted(trained), adapter, note)
    if config.model_offload != "none":
        revive(trained, choose_device(config.device), config.seed)
    # Without recomputation, the layers that a backward pass needs would all stay on the device until then.
    if config.gradient_checkpointing or config.model_offload != "none":
        recompute_activations(model)
        model.enable_input_require_grads()
    return trained


def _spread(
    config: RunConfig, tokenizer: Tokenizer, lora: LoraAggregation | None, group: RankGroup, note: Note
) -> Resident:
    """Load the model at the leader, and spread it over the processes of a group."""
    from transformers import AutoModelForCausalLM

    from weft.models.spread import SpreadModel, shard, split
    from weft.models.stages import Staged

    def empty(dtype: torch.dtype = torch.float32) -> CausalModel:
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
        whole = _trainable(base_model(home, full_precision=True, note=note), config, torch.float32, lora)
    base = base_model_of(shell) if config.use_peft else shell
    if config.parallel == "pipeline":
        staged = Staged(whole, shell, empty(), tokenizer, group, dtype)
        check_computes(staged, config.start_name)
        return staged
    if config.parallel == "fsdp":
        if config.batch_size < group.size:
            raise ConfigError(
                f"batch_size is {config.batch_size}, too few rows for {group.size} processes: write --batch_size "
                f"{group.size} or more."
            )
        shard(base, group, dtype, offload=config.cpu_offload)
    else:
        split(base, group)
    spread = SpreadModel(whole, shell, empty(), tokenizer, group, dtype, splits_batch=config.parallel == "fsdp")
    check_computes(spread, config.start_name)
    return spread
