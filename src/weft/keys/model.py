"""Keys of the model: what it is, how it computes, what of it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weft.json_types import JsonObject
from weft.keys.effects import ALWAYS, GRADIENTS, LOCAL_MODEL, PEFT, PRETRAINED, Condition, Effect, flag, only


class ModelKeys(BaseModel):
    """The model."""

    model_config = ConfigDict(protected_namespaces=())

    model_name_or_path: str = Field("meta-llama/Llama-2-7b-hf", description="a hub name or a folder")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    token: bool = Field(False, description="use the stored Hugging Face token")
    allow_missing: bool = Field(
        False, description="draw weights that the checkpoint lacks from the seed, and leave out those without a place"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the model's arithmetic"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    load_in_8bit: bool = Field(False, description="8-bit base (bitsandbytes)")
    load_in_4bit: bool = Field(False, description="4-bit base (bitsandbytes)")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    parallel: Literal["none", "fsdp", "tensor", "pipeline"] = Field(
        "none",
        description="one model in the processes that torchrun starts: sharded, split within layers, or by layers",
    )
    model_offload: Literal["none", "cpu", "disk"] = Field(
        "none", description="where the layers of a frozen base wait while they do not compute"
    )
    cpu_offload: bool = Field(False, description="with fsdp: shards, gradients and moments on the CPU between uses")
    size: Literal["5m", "15m", "60m", "150m"] | None = Field(
        None, description="begin from nothing: a Llama of about so many parameters"
    )
    hidden_size: int | None = Field(None, ge=2, description="width of a model that begins from nothing")
    num_layers: int | None = Field(None, ge=1, description="layers of a model that begins from nothing")
    num_heads: int | None = Field(None, ge=1, description="attention heads of a model that begins from nothing")
    tokenizer: str | None = Field(None, description="its tokenizer: a hub name or a folder")
    tokenizer_text: str | None = Field(None, description="public text that a tokenizer is trained on")
    federated_tokenizer: bool = Field(
        False, description="train the tokenizer from the clients' counts of frequent words; no text is sent"
    )
    tokenizer_min_count: int = Field(5, ge=1, description="a client sends only words that it has at least so often")
    tokenizer_min_clients: int = Field(2, ge=1, description="only words that so many clients sent are used")
    tokenizer_noise: float = Field(
        0.0,
        ge=0,
        description="scale of the discrete Laplace noise on a word's sum: epsilon is 1 / scale for one word more",
    )
    vocab_size: int = Field(8192, ge=259, description="tokens of a trained tokenizer, at most")
    use_peft: bool = Field(False, description="train a LoRA adapter; without it all parameters")
    peft_lora_r: int = Field(8, ge=1, description="LoRA rank")
    peft_lora_alpha: float = Field(16, gt=0, description="LoRA alpha")
    peft_lora_dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    peft_lora_target_modules: list[str] = Field(["auto"], description="auto, all-linear, or names of modules")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA")
    lora_aggregation: str = Field("average", description="how clients' factors become one, such as average, ffa, svd")
    lora_aggregation_args: JsonObject = Field({}, description="the LoRA aggregation's own parameters: name=value ...")
    lora_side_rank: int | None = Field(
        None, ge=1, description="largest rank of what stack and residual keep aside (default: nothing is lost)"
    )
    lora_merge_every: int = Field(10, ge=1, description="rounds after which merge puts the adapter aside, rank by rank")
    client_ranks: list[int] | None = Field(
        None, description="LoRA ranks of the clients in their order, repeated; at most peft_lora_r"
    )
    client_layers: list[int] | None = Field(
        None, description="how many of the decoder's layers the clients have, in their order, repeated; the ends stay"
    )
    share: list[str] | None = Field(
        None, description="which trained tensors travel: globs or parts of their names; others stay with the client"
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
    "client_ranks": ALWAYS,
    "client_layers": ALWAYS,
    "share": ALWAYS,
}
"""When each key has an effect."""
