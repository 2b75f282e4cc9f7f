"""Models of 7 B width made on the device, rows, and clocks of the GPU benchmark."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Size:
    """A Llama's shape, and the rows of a step."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    batch: int
    length: int


WIDE = Size(4096, 11008, 32, 32, 8, 32000, 16, 512)
"""Llama-2-7B's width, with 8 of its 32 layers."""
TINY = Size(64, 172, 4, 4, 2, 512, 4, 32)


class Ends:
    """What a tokenizer is asked for in a benchmark that reads no text."""

    eos_token_id, bos_token_id, pad_token_id = 1, 0, 2

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return self.vocabulary


def bare_model(
    size: Size, device: torch.device, dtype: torch.dtype, *, bits: int = 16, layers: int = 0, threshold: float = 6.0
) -> Any:
    """Return a Llama with random weights, made on the device layer by layer where it is quantised."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    count = layers or size.layers
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=count,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():  # also those that replace others on the way
        if type(module).__module__.startswith("bitsandbytes"):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            value = value.normal_(0, 0.02) if value.dim() > 1 else value.fill_(1.0)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        if bits != 16:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and name != "lm_head":
                    # Quantised one by one: the whole model in 16 bits need not fit.
                    setattr(module, name, _quantised(child, device, dtype, bits, threshold))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    if bits != 16:
        from transformers import BitsAndBytesConfig

        model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
        model.is_loaded_in_8bit, model.is_loaded_in_4bit = bits == 8, bits == 4
        model.quantization_method = "bitsandbytes"
    return model


def _quantised(layer: nn.Linear, device: torch.device, dtype: torch.dtype, bits: int, threshold: float) -> nn.Module:
    import bitsandbytes as bnb

    weight = torch.empty(layer.weight.shape, dtype=dtype, device=device).normal_(0, 0.02)
    made: Any
    if bits == 8:
        made = bnb.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=False,
            has_fp16_weights=False,
            threshold=threshold,
            device="meta",
        )
        made.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        made.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
    return made.to(device)


def resident_of(size: Size, device: torch.device, dtype: torch.dtype, *, bits: int = 16, layers: int = 0, **keys: Any):
    """Return Weft's resident model with a LoRA of rank 32, as a run has it."""
    from weft import config as configuration
    from weft.models import load
    from weft.models.kernels import use_kernels
    from weft.models.recomputation import recomputation_of
    from weft.models.resident import Resident

    settings: dict[str, Any] = {
        "model_name_or_path": "none",
        "dataset_name": "none",
        "use_peft": True,
        "peft_lora_r": 32,
        "peft_lora_alpha": 64,
        "batch_size": size.batch,
        "seq_length": size.length,
    } | keys
    config = configuration.build(settings)
    model = bare_model(size, device, dtype, bits=bits, layers=layers, threshold=config.int8_threshold)
    use_kernels(model, config.kernels, device)
    model.config.use_cache = False
    torch.manual_seed(1)
    adapted = load.add_lora(model, config, dtype)
    if config.gradient_checkpointing is True:
        load.recompute_activations(model)
    resident = Resident(adapted, Ends(size.vocabulary), device, dtype)
    resident.recomputation = recomputation_of(config, resident.base, lambda sentence: print("   note:", sentence))
    return resident


def rows_of(size: Size, count: int, *, same: bool = False, seed: int = 0) -> list[Any]:
    """Return rows of random tokens; half of each row's tokens are targets."""
    rng = np.random.default_rng(seed)
    lengths = [size.length if same else int(rng.integers(size.length // 4, size.length + 1)) for _ in range(count)]
    return [
        (rng.integers(3, size.vocabulary, length).astype(np.int32), np.arange(length) >= length // 2)
        for length in lengths
    ]


def local_steps(steps: int, size: Size) -> Any:
    """Return Weft's local training of a round."""
    from weft.training.loop import GradientSteps
    from weft.training.schedules import Schedule

    return GradientSteps(Schedule("constant", 1e-4, 0.0, 10), seed=0, steps=steps, batch_size=size.batch)


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(action: Callable[[], Any], device: torch.device, times: int, warm: int = 1) -> float:
    """Return the mean seconds of an action, after warming up."""
    for _ in range(warm):
        action()
    wait(device)
    begin = time.perf_counter()
    for _ in range(times):
        action()
    wait(device)
    return (time.perf_counter() - begin) / times


@contextmanager
def counted_waits(device: torch.device) -> Iterator[list[str]]:
    """Collect the places where the CPU waits for the GPU."""
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places += [
        f"{warning.filename.rsplit('/', 2)[-1]}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    ]


def peak(device: torch.device) -> float:
    """Return the most GB allocated since the last call."""
    if device.type != "cuda":
        return 0.0
    value = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return value


def empty(device: torch.device) -> None:
    """Free what nothing refers to."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
