"""Keys of the model: its source, its arithmetic, its trained parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weft.json_types import JsonObject
from weft.keys.effects import ALWAYS, GRADIENTS, LOCAL_MODEL, NOT_SITES, PEFT, PRETRAINED, Condition, Effect, flag, only


class ModelKeys(BaseModel):
    """The model."""

    model_config = ConfigDict(protected_namespaces=())

    model_name_or_path: str = Field("meta-llama/Llama-2-7b-hf", description="name on the Hugging Face hub, or a folder")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    token: bool = Field(False, description="use the stored Hugging Face token")
    allow_missing: bool = Field(
        False,
        description="initialise weights that the checkpoint lacks from the seed, and ignore weights that the "
        "model lacks",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the model's arithmetic"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    load_in_8bit: bool = Field(False, description="8-bit base model (bitsandbytes)")
    load_in_4bit: bool = Field(False, description="4-bit base model (bitsandbytes)")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="recompute activations: less memory, about a third more time; auto: on a GPU whose memory does "
        "not suffice",
    )
    kernels: Literal["auto", "liger", "none"] = Field(
        "auto", description="fused kernels of Liger for norms, rotary embeddings and gates; auto: on CUDA, if installed"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "off",
        description="compile the decoder layers for training steps, and on CUDA the step of decoding "
        "(torch.compile); auto: on CUDA without fused kernels, in runs of 2,000 steps or more",
    )
    int8_threshold: float = Field(
        6.0, ge=0, description="with load_in_8bit: activations above it are multiplied in 16 bits; 0: none are"
    )
    parallel: Literal["none", "fsdp", "tensor", "pipeline"] = Field(
        "none",
        description="spread one model over torchrun's processes: sharded (fsdp), within layers (tensor), or "
        "by layers (pipeline)",
    )
    model_offload: Literal["none", "cpu", "disk"] = Field(
        "none", description="where idle layers of a frozen base model are stored"
    )
    cpu_offload: bool = Field(
        False, description="with fsdp: keep shards, gradients and moments on the CPU while unused"
    )
    size: Literal["5m", "15m", "60m", "150m"] | None = Field(
        None, description="train from scratch: a Llama of about this many parameters"
    )
    hidden_size: int | None = Field(None, ge=2, description="width of a model from scratch")
    num_layers: int | None = Field(None, ge=1, description="number of layers of a model from scratch")
    num_heads: int | None = Field(None, ge=1, description="number of attention heads of a model from scratch")
    tokenizer: str | None = Field(None, description="tokenizer of a model from scratch: name on the hub, or a folder")
    tokenizer_text: str | None = Field(None, description="file of public text to train a tokenizer on")
    federated_tokenizer: bool = Field(
        False, description="train the tokenizer on the clients' counts of frequent words; no text is sent"
    )
    tokenizer_min_count: int = Field(5, ge=1, description="occurrences at a client from which it sends a word")
    tokenizer_min_clients: int = Field(2, ge=1, description="clients that must send a word for it to be used")
    tokenizer_noise: float = Field(
        0.0,
        ge=0,
        description="scale of the discrete Laplace noise on the sum of a word's counts; epsilon is 1 / scale "
        "for one more occurrence; 0: none",
    )
    vocab_size: int = Field(8192, ge=259, description="largest vocabulary of a trained tokenizer, in tokens")
    use_peft: bool = Field(False, description="train a LoRA adapter instead of all parameters")
    peft_lora_r: int = Field(8, ge=1, description="LoRA rank")
    peft_lora_alpha: float = Field(16, gt=0, description="LoRA alpha; updates are scaled by alpha / rank")
    peft_lora_dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    peft_lora_target_modules: list[str] = Field(["auto"], description="modules with a LoRA: auto, all-linear, or names")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA (DoRA)")
    lora_aggregation: str = Field(
        "average", description="how the clients' LoRA factors are combined, such as average, ffa, svd"
    )
    lora_aggregation_args: JsonObject = Field({}, description="parameters of the LoRA aggregation: name=value ...")
    lora_side_rank: int | None = Field(
        None,
        ge=1,
        description="largest rank of the side adapter of stack, residual and merge (default: no limit, lossless)",
    )
    lora_merge_every: int = Field(
        10, ge=1, description="rounds between merges of the adapter into the side adapter, with merge"
    )
    product_error: Literal["auto", "always", "none"] = Field(
        "auto",
        description="rounds in which the error of averaged LoRA factors is computed; auto: those that are evaluated",
    )
    client_ranks: list[int] | None = Field(
        None, description="LoRA ranks of the clients in their order, repeated cyclically; at most peft_lora_r"
    )
    client_layers: list[int] | None = Field(
        None,
        description="number of decoder layers of each client in their order, repeated cyclically; the first "
        "and last layers are kept",
    )
    share: list[str] | None = Field(
        None, description="trained tensors that travel, as globs or parts of names; the others never leave the client"
    )


LOCAL_COMPUTATION = (
    Condition(
        lambda config: config.endpoint is None or config.prompt_method == "black_box",
        "the model is behind an endpoint",
        "leave out --endpoint",
    ),
)
TRAINS_TOKENIZER = (
    Condition(
        lambda config: config.trains_tokenizer,
        "no tokenizer is trained",
        "add --federated_tokenizer or --tokenizer_text FILE",
    ),
)
WORKS: dict[str, Effect] = {
    "model_name_or_path": PRETRAINED,
    "allow_missing": PRETRAINED + LOCAL_MODEL,
    "trust_remote_code": ALWAYS,
    "token": ALWAYS,
    "dtype": LOCAL_COMPUTATION,
    "device": LOCAL_MODEL,
    "load_in_8bit": LOCAL_MODEL,
    "load_in_4bit": LOCAL_MODEL,
    "gradient_checkpointing": LOCAL_MODEL + GRADIENTS,
    "kernels": LOCAL_MODEL,
    "compile": LOCAL_MODEL + GRADIENTS + NOT_SITES,
    "int8_threshold": flag("load_in_8bit"),
    "parallel": ALWAYS,
    "model_offload": ALWAYS,
    "cpu_offload": ALWAYS,
    "size": ALWAYS,
    "hidden_size": ALWAYS,
    "num_layers": ALWAYS,
    "num_heads": ALWAYS,
    "tokenizer": ALWAYS,
    "tokenizer_text": ALWAYS,
    "federated_tokenizer": ALWAYS,
    "tokenizer_min_count": flag("federated_tokenizer"),
    "tokenizer_min_clients": flag("federated_tokenizer"),
    "tokenizer_noise": flag("federated_tokenizer"),
    "vocab_size": TRAINS_TOKENIZER,
    "use_peft": ALWAYS,
    "peft_lora_r": PEFT,
    "peft_lora_alpha": PEFT,
    "peft_lora_dropout": PEFT,
    "peft_lora_target_modules": PEFT,
    "use_rslora": PEFT,
    "use_dora": PEFT,
    "lora_aggregation": ALWAYS,
    "lora_aggregation_args": PEFT,
    "lora_side_rank": PEFT + only("lora_aggregation", "stack", "residual", "merge"),
    "lora_merge_every": PEFT + only("lora_aggregation", "merge"),
    "product_error": PEFT,
    "client_ranks": ALWAYS,
    "client_layers": ALWAYS,
    "share": ALWAYS,
}
"""When each key has an effect."""
