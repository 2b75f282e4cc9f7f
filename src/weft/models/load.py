"""Loading a causal language model and its tokenizer, from the hub or from a folder.

Knows nothing of clients and rounds. transformers, peft and bitsandbytes are imported where they are used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from weft.config import RunConfig
from weft.core.parts import LoraAggregation
from weft.core.seeds import derive
from weft.errors import ConfigError, MissingExtra
from weft.models.adapters import add_lora, fixed_factors
from weft.models.compat import recompute_activations
from weft.models.emulator import emulator_of, train_ends
from weft.models.group import Group
from weft.models.instruction import Instruction
from weft.models.noise import hush
from weft.models.offload import away, revive, tidy
from weft.models.precision import choose_device, choose_dtype
from weft.models.prompts import Front, add_prompt
from weft.models.resident import Resident
from weft.models.starting import fill, read_adapter, starting_adapter


@contextlib.contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Turn what a loader raises into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        kind = "folder" if Path(name).is_dir() else "model"
        raise ConfigError(
            f"The {kind} '{name}' cannot be loaded ({lines[0].strip().rstrip('.')}): "
            "give a hub name that is reachable, or a folder with config.json and weights."
        ) from None


def model_source(name: str) -> str:
    """Return where a model lies: a finished run's `model/`, the base of an adapter, else the name as it is.

    Raises:
        ConfigError: a path that is not there.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")):
            raise ConfigError(f"There is no model folder '{name}': check the path, or give a hub name.")
        return name
    if (path / "model" / "config.json").exists():
        return str(path / "model")
    adapter = starting_adapter(name)
    return model_source(read_adapter(adapter)["base"]) if adapter is not None else str(path)


def load_tokenizer(config: RunConfig) -> Any:
    """Return the tokenizer, with an end token; ConfigError if there is none."""
    from transformers import AutoTokenizer

    hush()
    source = (config.tokenizer or "") if config.from_scratch else model_source(config.model_name_or_path)
    adapter = None if config.from_scratch else starting_adapter(config.model_name_or_path)
    if adapter is not None and (adapter / "tokenizer_config.json").exists():
        source = str(adapter)
    with _in_words(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, token=config.token or None
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer of '{source}' has no end token (eos_token): set one in its folder.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_config(config: RunConfig) -> Any:
    """Return the model's own configuration, without its weights."""
    from transformers import AutoConfig

    if config.from_scratch:
        from weft.models.scratch import llama_config

        tokenizer = load_tokenizer(config)
        ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        return llama_config(config, len(tokenizer), ends)
    with _in_words(config.model_name_or_path):
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
        extra = {"quantization_config": _quantisation(config, dtype), "device_map": {"": str(device)}}
    if config.model_offload != "none":
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(
                load_model_config(config), trust_remote_code=config.trust_remote_code
            )
        extra = away(config, shell, device)
    # Full fine-tuning keeps its masters in float32, so the weights must not lose bits on the way in.
    loaded = dtype if config.adapts else torch.float32
    with _in_words(config.model_name_or_path):
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
        recompute_activations(model)
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


def check_fits(config: RunConfig, tokenizer: Any, model_config: Any) -> None:
    """Refuse rows longer than the model's context, and a tokenizer with ids that the model has no embedding for."""
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    places = getattr(text, "vocab_size", None)
    if places is not None and max(tokenizer.get_vocab().values()) >= places:
        raise ConfigError(
            f"The tokenizer of '{config.model_name_or_path}' has the id {max(tokenizer.get_vocab().values())}, but the "
            f"model has {places} embeddings: give a folder whose tokenizer and model belong together."
        )
    limit = getattr(model_config, "max_position_embeddings", None)
    ahead = {"prefix": config.num_virtual_tokens + config.private_tokens, "text": config.prompt_length}
    before = ahead.get(config.prompt_method or "", 0)
    if limit is not None and before + config.seq_length > limit > config.seq_length:
        raise ConfigError(
            f"A prompt of up to {before} tokens and rows of {config.seq_length} are longer than the model's context "
            f"({limit}): write --seq_length {max(2, limit - before)}, or a shorter prompt."
        )
    if limit is not None and config.seq_length > limit:
        raise ConfigError(
            f"seq_length is {config.seq_length}, but the model's context ends at {limit}: write --seq_length {limit}."
        )


def _quantisation(config: RunConfig, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtra("bitsandbytes", "quant", "A base in 8 or 4 bits") from None
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
