"""Loading a causal language model from the hub or a folder, and choosing what of it is trained.

Knows nothing of clients and rounds. transformers, peft and bitsandbytes are imported inside functions, because they are
slow to import and not every command needs them.
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
from weft.models.checkpoint import find_checkpoint
from weft.models.compat import recompute_activations
from weft.models.compiled import compile_layers
from weft.models.emulator import emulator_of, train_ends
from weft.models.fim_tokens import make_room
from weft.models.group import RankGroup
from weft.models.instruction import Instruction
from weft.models.kernels import use_kernels
from weft.models.memory import room
from weft.models.noise import silence_libraries
from weft.models.notes import Note, ignore_note
from weft.models.offload import delete_on_exit, offload_arguments, reset_lora
from weft.models.precision import choose_device, choose_dtype, use_tensor_cores
from weft.models.probes import check_computes
from weft.models.prompts import Front, add_prompt
from weft.models.quantised import advice, check_quantised, keep_unpacked, quantisation, quantised_bits, without_probing
from weft.models.recomputation import check_room, fits, recomputation_of
from weft.models.resident import Resident
from weft.models.shared_base import shared_base
from weft.models.source import model_source, readable_errors
from weft.models.starting import adapter_of, fill
from weft.models.tokenizer import load_tokenizer
from weft.models.vllm_engine import VllmEngine, check_adapter


def load_model_config(config: RunConfig) -> ModelConfig:
    """Return transformers' configuration of a run's model; no weights are read.

    Raises:
        ConfigError: there is no such model, it predicts no next token, or its quantisation is not supported.
        MissingExtra: bitsandbytes is needed and not installed.
    """
    from transformers import AutoConfig

    if config.from_scratch:
        from weft.models.scratch import llama_config

        tokenizer = load_tokenizer(config)
        ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        return llama_config(config, len(tokenizer), ends)
    source = model_source(config.model_name_or_path)
    with readable_errors(source):
        model_config: ModelConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, token=config.token or None
        )
    _check_kind(config, model_config)
    check_quantised(config, model_config)
    return model_config


def _check_kind(config: RunConfig, model_config: ModelConfig) -> None:
    """Refuse a model that is no causal decoder."""
    from transformers import AutoModelForCausalLM

    name, kind = config.model_name_or_path, model_config.model_type
    if getattr(model_config, "is_encoder_decoder", False):
        raise ConfigError(
            f"'{name}' is an encoder with a decoder ({kind}), and Weft trains decoders that predict the next token: "
            "name one, such as a Llama, a Qwen or a GPT-2."
        )
    remote = "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {})
    if not remote and type(model_config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"'{name}' is a {kind}, which is no model that predicts the next token: name one, such as a Llama, a Qwen "
            "or a GPT-2."
        )


def base_model(config: RunConfig, *, full_precision: bool = False, note: Note = ignore_note) -> CausalModel:
    """Load the model that a run starts from onto its device, in the precision of the run.

    Args:
        config: names model, device and precision.
        full_precision: load in float32 without quantisation, whatever the configuration and the checkpoint say.
        note: called with a sentence about each peculiarity of the checkpoint.

    Raises:
        ConfigError: there is no such model or device, or weights and configuration do not match.
        MissingExtra: bitsandbytes is needed and not installed.
    """
    from transformers import AutoModelForCausalLM

    silence_libraries()
    device = choose_device(config.device)
    if config.from_scratch:
        torch.manual_seed(derive(config.seed, "weights"))
        model: CausalModel = AutoModelForCausalLM.from_config(load_model_config(config), dtype=torch.float32)
        return model.to(device)
    model_config = load_model_config(config)
    is_quantised = quantised_bits(model_config) is not None
    dtype = torch.float32 if full_precision else arithmetic(config, device)
    there = {"device_map": {"": str(device)}}
    # The CPU need not hold what a GPU takes. Weights that a checkpoint lacks are drawn on the CPU: as everywhere.
    direct = device.type == "cuda" and not config.allow_missing
    extra: dict[str, Any] = there if is_quantised or direct else {}
    quantise = (config.load_in_8bit or config.load_in_4bit) and not full_precision and not is_quantised
    if quantise:
        extra = there | {"quantization_config": quantisation(config, dtype)}
    if config.model_offload != "none":
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)
        extra = offload_arguments(config, shell, device)
    # Full fine-tuning trains float32 masters, so the weights must not be rounded while they are loaded.
    load_dtype = dtype if config.adapts else torch.float32
    model = shared_base(
        model_source(config.model_name_or_path),
        seed=config.seed,
        allow_missing=config.allow_missing,
        note=note,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        dtype=load_dtype,
        **extra,
    )
    if "offload_folder" in extra:
        delete_on_exit(model, extra["offload_folder"])
    if quantise or is_quantised:
        keep_unpacked(model)
    if is_quantised and full_precision:
        model = model.dequantize().to(torch.float32)
    model = model if extra else model.to(device)
    if config.fills_middle:
        make_room(config, load_tokenizer(config), model)
    if not full_precision and config.parallel == "none" and use_kernels(model, config.kernels, device):
        note("Liger's kernels compute norms, rotary embeddings and gates (--kernels none: they do not).")
    return model


def has_pickle_files(config: RunConfig) -> bool:
    """Return whether a run's model, or its starting adapter, is in pickle files (.bin), which can hold code."""
    if config.from_scratch:
        return False
    adapter = adapter_of(config)
    if adapter is not None and not (adapter / "adapter_model.safetensors").is_file():
        return True
    return find_checkpoint(model_source(config.model_name_or_path), config.token).is_pickle


def arithmetic(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the number format that a run's model computes in."""
    model_config = load_model_config(config)
    text = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    return choose_dtype(config.dtype, device, getattr(text, "hidden_size", 0))


def load_resident(
    config: RunConfig,
    tokenizer: Tokenizer,
    lora: LoraAggregation | None = None,
    group: RankGroup | None = None,
    note: Note = ignore_note,
) -> Resident:
    """Load a run's model, add its adapter or prompt, and return it ready to train.

    Args:
        config: names the model and what of it is trained.
        tokenizer: of the model.
        lora: decides on the factors of the adapter.
        group: the processes that the model is spread over; None: it is in this one.
        note: called with a sentence about each peculiarity of the checkpoint.

    Raises:
        ConfigError: there is no such model or device, or the model cannot be spread in this way.
        MissingExtra: bitsandbytes is needed and not installed.
    """
    if group is not None:
        return _load_spread(config, tokenizer, lora, group, note)
    engine = VllmEngine(config, lora) if config.generation_engine == "vllm" else None
    device = choose_device(config.device)
    dtype = arithmetic(config, device)
    if use_tensor_cores(device, dtype):
        note("The GPU multiplies float32 matrices in TF32, whose factors have 10 bits of mantissa.")
    model = _trainable(base_model(config, note=note), config, dtype, lora, tokenizer, note)
    vectors = config.prompt_method not in (None, "text")
    resident = Resident(
        model, tokenizer, device, dtype, Front(as_adapted(model), config.prompt_method or "") if vectors else None
    )
    if engine is not None:
        check_adapter(resident.base)
    resident.engine = engine
    resident.fixed = fixed_factors(model)
    resident.recomputation = recomputation_of(config, resident.base, note)
    trained = sum(master.numel() for master in resident.masters.values())
    check_room(config, resident.recomputation, trained, dtype, device)
    if device.type == "cuda" and config.load_in_8bit:
        sixteen = config.model_copy(update={"load_in_8bit": False})
        sentence = advice(config, fits(sixteen, resident.base, trained, dtype, room(device)))
        if sentence is not None:
            note(sentence)
    exact = not (config.load_in_4bit or config.load_in_8bit or getattr(model.config, "quantization_config", None))
    check_computes(resident, config.start_name, exact=exact)
    steps = config.num_rounds * config.sample_clients * max(0, config.max_steps)
    resident.compiled = compile_layers(resident.base, config, device, note, steps=steps)
    return resident


@without_probing()
def _trainable(
    model: CausalModel,
    config: RunConfig,
    dtype: torch.dtype,
    lora: LoraAggregation | None,
    tokenizer: Tokenizer | None = None,
    note: Note = ignore_note,
) -> CausalModel:
    """Return the model with its adapter or prompt, and with activation recomputation switched on, as the run says."""
    model.config.use_cache = False
    # The same seed on every client and the server: adapters start from the same factors.
    torch.manual_seed(derive(config.seed, "adapter"))
    emulator = None if config.from_scratch else emulator_of(model_source(config.model_name_or_path))
    if emulator is not None and not config.use_peft and config.prompt_method is None:
        train_ends(model, emulator)
    layers = None if emulator is None else emulator.trained
    trainable = add_lora(model, config, dtype, lora, layers, note) if config.use_peft else model
    if config.prompt_method == "text":
        model.requires_grad_(False)
        model.instruction = Instruction(config.prompt_length, config.prompt_init_text or "")
    elif config.prompt_method is not None:
        trainable = add_prompt(model, config, dtype, tokenizer)
    adapter = adapter_of(config)
    if adapter is not None:
        fill(as_adapted(trainable), adapter, note)
    if config.model_offload != "none":
        reset_lora(trainable, choose_device(config.device), config.seed)
    # Without recomputation, all offloaded layers would stay on the device until the backward pass has used them.
    if config.gradient_checkpointing is True or config.model_offload != "none":
        recompute_activations(model)
    return trainable


def _load_spread(
    config: RunConfig, tokenizer: Tokenizer, lora: LoraAggregation | None, group: RankGroup, note: Note
) -> Resident:
    """Load the model at the leader, and spread it over the processes of a rank group."""
    from transformers import AutoModelForCausalLM

    from weft.models.spread import SpreadModel, shard, split
    from weft.models.stages import PipelineModel

    def empty(dtype: torch.dtype = torch.float32) -> CausalModel:
        with torch.device("meta"):
            model_config = load_model_config(config)
            model = AutoModelForCausalLM.from_config(
                model_config, dtype=dtype, trust_remote_code=config.trust_remote_code
            )
            make_room(config, tokenizer, model)
            return _trainable(model, config, dtype, lora)

    silence_libraries()
    dtype = arithmetic(config, group.device)
    # FSDP keeps shards in float32 and rounds a layer's weights when it gathers them.
    whole, shell = None, empty(torch.float32 if config.parallel == "fsdp" else dtype)
    if group.is_leader:
        home = config.model_copy(update={"device": "cpu"})
        whole = _trainable(base_model(home, full_precision=True, note=note), config, torch.float32, lora)
    base = base_model_of(shell) if config.use_peft else shell
    if config.parallel == "pipeline":
        staged = PipelineModel(whole, shell, empty(), tokenizer, group, dtype)
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
    model = SpreadModel(whole, shell, empty(), tokenizer, group, dtype, splits_batch=config.parallel == "fsdp")
    check_computes(model, config.start_name)
    return model
