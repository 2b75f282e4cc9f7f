"""What Weft uses of the models that transformers and peft build, as classes that mypy checks.

mypy does not read these libraries, and `nn.Module.__getattr__` answers every name with "tensor or module". The classes
here only declare attributes: while a program runs, each is plain `nn.Module`, and no object is tested against them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from torch import Tensor, nn

Cache: TypeAlias = Any
"""The keys and values of earlier positions, or a recurrent state: every architecture of transformers has its own."""


class ModelConfig(Protocol):
    """transformers' configuration of an architecture. An attribute that only some have is read by `getattr`."""

    model_type: str
    name_or_path: str
    use_cache: bool
    tie_word_embeddings: bool
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    layer_types: list[str]

    def get_text_config(self) -> ModelConfig:
        """Return the configuration of the language part: the same one, unless the model also reads images or sound."""
        ...


class AdapterConfig(Protocol):
    """peft's configuration of a LoRA or of a prompt."""

    r: int
    lora_alpha: float
    use_rslora: bool
    fan_in_fan_out: bool
    target_modules: list[str] | str | None
    layers_to_transform: list[int] | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, int]
    inference_mode: bool
    is_prompt_learning: bool
    num_virtual_tokens: int
    num_layers: int
    num_attention_heads: int
    token_dim: int

    def save_pretrained(self, save_directory: str) -> None:
        """Write `adapter_config.json`."""
        ...


if TYPE_CHECKING:

    class WeightedLayer(nn.Module):
        """A linear layer of any library."""

        weight: Tensor

    class CausalModel(nn.Module):
        """A transformers model that predicts the next token; calling it returns outputs with `logits`."""

        config: ModelConfig
        generation_config: object
        name_or_path: str
        base_model_prefix: str

        def get_input_embeddings(self) -> nn.Embedding:
            """Return the layer that turns token ids into vectors."""
            ...

        def set_input_embeddings(self, value: nn.Module) -> None:
            """Replace that layer."""
            ...

        def get_output_embeddings(self) -> WeightedLayer:
            """Return the layer that computes logits, None where the model has none."""
            ...

        def set_output_embeddings(self, value: nn.Module) -> None:
            """Replace that layer."""
            ...

        def enable_input_require_grads(self) -> None:
            """Let gradients pass through the frozen embeddings, as recomputed activations need."""
            ...

        def gradient_checkpointing_enable(self, settings: dict[str, bool]) -> None:
            """Recompute activations in the backward pass."""
            ...

        def set_attn_implementation(self, name: str) -> None:
            """Compute attention by a function that is registered under this name."""
            ...

        def dequantize(self) -> CausalModel:
            """Return the model with its quantised weights in full precision."""
            ...

        def save_pretrained(
            self,
            save_directory: str | PathLike[str],
            *,
            state_dict: dict[str, Tensor] | None = None,
            save_embedding_layers: bool = ...,
        ) -> None:
            """Write the weights and their configuration."""
            ...

    class AdaptedModel(CausalModel):
        """peft's wrapper of a model: an adapter beside its layers, or a prompt before its rows."""

        base_model: AdaptedModel
        prefix: str
        peft_config: dict[str, AdapterConfig]
        prompt_encoder: MutableMapping[str, PromptEncoder]

        def get_base_model(self) -> CausalModel:
            """Return the transformers model inside."""
            ...

        def add_adapter(self, name: str, config: AdapterConfig) -> None:
            """Add a second adapter."""
            ...

        def set_adapter(self, names: str | list[str]) -> None:
            """Choose the adapters that compute."""
            ...

        def merge_and_unload(self, *, safe_merge: bool) -> CausalModel:
            """Return the model with the adapter added to its weights."""
            ...

        def get_prompt_embedding_to_save(self, name: str) -> Tensor:
            """Return the (n, width) vectors of a prompt."""
            ...

    class LoraLayer(nn.Module):
        """A layer with peft's LoRA beside it: factors A (r, k) and B (d, r) by the adapter's name."""

        lora_A: Mapping[str, nn.Linear]
        lora_B: Mapping[str, nn.Linear]

        def get_base_layer(self) -> WeightedLayer:
            """Return the layer without its LoRA."""
            ...

        def reset_lora_parameters(self, name: str, init_lora_weights: bool) -> None:
            """Give the factors of an adapter their initial values."""
            ...

    class PromptEncoder(nn.Module):
        """peft's module of a prompt, called with the numbers of its vectors."""

        embedding: nn.Embedding

else:
    WeightedLayer = CausalModel = AdaptedModel = LoraLayer = PromptEncoder = nn.Module


def base_model_of(model: CausalModel) -> CausalModel:
    """Return the transformers model inside peft's wrapper, or the model itself where there is no wrapper."""
    unwrap = getattr(model, "get_base_model", None)
    base: CausalModel = model if unwrap is None else unwrap()
    return base


def as_adapted(model: CausalModel) -> AdaptedModel:
    """Return a model that is inside peft's wrapper as what it is; nothing is checked."""
    return cast(AdaptedModel, model)
