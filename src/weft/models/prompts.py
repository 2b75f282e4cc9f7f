"""Prompts that are learnt: vectors in front of every row, made by peft; the model itself is frozen.

Soft prompts and p-tuning stand where embeddings of tokens would: rows begin with negative ids, -1 for the first vector,
and a hook on the embedding layer puts the vectors there, so that rows are packed, cut and answered as any others.
Prefixes are keys and values of every layer (Li & Liang 2021, arXiv 2101.00190): they come as a cache that is not empty.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.lowrank import PERSONAL
from weft.core.model_types import AdaptedModel, AdapterConfig, Cache, CausalModel, PromptEncoder
from weft.core.seeds import derive
from weft.core.types import Tensors
from weft.errors import ConfigError
from weft.models.noise import hushed


def add_prompt(model: CausalModel, config: RunConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> AdaptedModel:
    """Return the model behind a trainable prompt, everything else frozen.

    Args:
        model: a transformers model.
        config: says the method, how many vectors, and the text that they begin as.
        dtype: of the trained parameters.
        tokenizer: of the model.

    Raises:
        ConfigError: peft cannot put such a prompt before this model.
    """
    from peft import get_peft_model

    try:
        with hushed():
            made: AdaptedModel = get_peft_model(
                model, _wanted(config, config.num_virtual_tokens, model), autocast_adapter_dtype=False
            )
            if config.private_tokens:
                made.add_adapter(PERSONAL, _wanted(config, config.private_tokens, model))
                made.set_adapter("default")
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"No {config.prompt_method} prompt can be put before this model ({str(error).splitlines()[0]}): write "
            "another --prompt_method."
        ) from None
    if config.prompt_method in ("soft", "black_box") and not next(made.parameters()).is_meta:
        assert tokenizer is not None  # only a model without content comes without one
        _begin(made, config, tokenizer)
    if config.prompt_method == "black_box":
        made.prompt_encoder["default"] = Projected(
            made.prompt_encoder["default"].embedding, config.black_box_dim, config.seed
        )
    for encoder in made.prompt_encoder.values():
        for parameter in encoder.parameters():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(dtype)
        if isinstance(encoder, Projected):
            encoder.embedding.requires_grad_(False)
    return made


def _wanted(config: RunConfig, count: int, model: CausalModel) -> AdapterConfig:
    """Return peft's configuration of a prompt of so many vectors."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    method: Callable[..., AdapterConfig] = PromptTuningConfig
    shape: dict[str, int] = {}
    text = model.config.get_text_config()
    if config.prompt_method == "prefix":
        method = PrefixTuningConfig
        if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
            # All heads share one key and one value, which peft does not see by itself.
            shape = {"num_attention_heads": 1, "token_dim": text.hidden_size // text.num_attention_heads}
    elif not any(hasattr(text, name) for name in ("num_attention_heads", "n_head", "num_heads")):
        shape = {"num_attention_heads": 1}  # peft asks for it, even where there are none and none are needed
    if config.prompt_method == "p_tuning":
        method, shape = PromptEncoderConfig, shape | {"encoder_hidden_size": config.prompt_hidden_size}
    return method(task_type="CAUSAL_LM", num_virtual_tokens=count, **shape)


@torch.no_grad()
def _begin(model: AdaptedModel, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Let vectors begin as the embeddings of a text, over and over, or of tokens drawn from the vocabulary."""
    for name, encoder in model.prompt_encoder.items():
        weight = encoder.embedding.weight
        ids = tokenizer.encode(config.prompt_init_text or "", add_special_tokens=False)
        if not ids or name != "default":
            ids = torch.randint(len(tokenizer), (len(weight),)).tolist()
        ids = (ids * -(-len(weight) // len(ids)))[: len(weight)]
        table = model.get_base_model().get_input_embeddings()
        weight.copy_(table(torch.tensor(ids, device=weight.device)).to(weight.dtype))


class Projected(PromptEncoder):
    """Vectors P = P0 + A z: z (d,) is all that is searched for, A is drawn from the seed, P0 is where it begins.

    A's entries have the standard deviation of P0's over the root of d (Sun et al. 2022, arXiv 2201.03514, section 3.3).
    """

    def __init__(self, embedding: nn.Embedding, dimension: int, seed: int) -> None:
        super().__init__()
        self.embedding = embedding
        begun = self.embedding.weight
        self.z = nn.Parameter(torch.zeros(dimension, device=begun.device))
        drawn = torch.randn(
            begun.numel(), dimension, generator=torch.Generator().manual_seed(derive(seed, "projection"))
        )
        spread = 1.0 if begun.is_meta else float(begun.detach().float().std())
        self.projection: Tensor
        self.register_buffer("projection", (drawn * spread / dimension**0.5).to(begun.device), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the vectors (lines, n, width) of these numbers."""
        begun: Tensor = self.embedding.weight
        moved = (self.projection @ self.z.float()).view_as(begun)
        return (begun + moved.to(begun.dtype))[numbers]


class Front:
    """What stands before every row of a model with a prompt."""

    def __init__(self, model: AdaptedModel, method: str) -> None:
        self._encoders = list(model.prompt_encoder.values())
        self._base = model.get_base_model()
        self._virtual: Tensor | None = None
        self.length = 0
        """Positions that a cache has taken before a row begins."""
        if method == "prefix":
            self.length = sum(encoder.embedding.num_embeddings for encoder in self._encoders)
            self._shape = model.peft_config["default"]
        else:
            table = self._base.get_input_embeddings()
            table.register_forward_pre_hook(self._take)
            table.register_forward_hook(self._put)

    def vectors(self) -> Tensor:
        """Return (n, width): what the encoders make of their numbers, the shared ones first."""
        made = []
        for encoder in self._encoders:
            numbers = torch.arange(encoder.embedding.num_embeddings, device=encoder.embedding.weight.device)
            made.append(encoder(numbers[None])[0])
        return torch.cat(made)

    def cache(self, lines: int) -> Cache | None:
        """Return the cache that so many lines begin with; None where the prompt is among the embeddings."""
        if not self.length:
            return None
        from transformers import DynamicCache

        shape = self._shape
        layers, heads = shape.num_layers, shape.num_attention_heads
        values = self.vectors().view(self.length, layers, 2, heads, shape.token_dim // heads)
        values = values.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, lines, -1, -1, -1)
        cache = DynamicCache(config=self._base.config.get_text_config())
        for layer, (key, value) in enumerate(values):
            cache.update(key, value, layer)
        return cache

    def _take(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0]
        self._virtual = ids
        return (ids.clamp(min=0), *args[1:])

    def _put(self, module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        ids, self._virtual = self._virtual, None
        assert ids is not None
        places = ids < 0
        vectors = self.vectors().to(output.dtype)
        chosen = vectors[(-ids[places] - 1).long()]
        return output.masked_scatter(places[..., None], chosen)


def save_prompt(model: AdaptedModel, params: Tensors, folder: Path) -> None:
    """Write a prompt as peft loads it: its vectors, and a configuration that says how many there are.

    Args:
        model: of peft; its prompts take over the values.
        params: by the names of the model's parameters; those of a private prompt only where it is to be written too.
        folder: there already.
    """
    from safetensors.torch import save_file

    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in params.items():
            named[name].copy_(value)
        kinds = [kind for kind in model.prompt_encoder if any(f".{kind}." in name for name in params)]
        vectors = torch.cat([model.get_prompt_embedding_to_save(kind).float() for kind in kinds])
    written = copy.deepcopy(model.peft_config["default"])
    written.num_virtual_tokens, written.inference_mode = len(vectors), True
    written.save_pretrained(str(folder))
    save_file({"prompt_embeddings": vectors.contiguous()}, folder / "adapter_model.safetensors", {"format": "pt"})
