"""Trainable prompts: vectors of peft before every row; the model itself is frozen.

The vectors of soft prompts and p-tuning take the place of token embeddings: rows begin with negative ids, -1 for the
first vector, and a hook on the embedding layer puts the vectors there, so that rows are packed and truncated as all
others. Prefixes are keys and values of every layer (Li & Liang 2021, arXiv 2101.00190), passed as a cache.
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
from weft.models.noise import quiet_libraries


def add_prompt(model: CausalModel, config: RunConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> AdaptedModel:
    """Return the model with a trainable prompt and everything else frozen.

    Args:
        model: a transformers model.
        config: names the method, the number of vectors, and their initial text.
        dtype: of the trained parameters.
        tokenizer: of the model.

    Raises:
        ConfigError: peft supports no such prompt for this model.
    """
    from peft import get_peft_model

    try:
        with quiet_libraries():
            peft_model: AdaptedModel = get_peft_model(
                model, _prompt_config(config, config.num_virtual_tokens, model), autocast_adapter_dtype=False
            )
            if config.private_tokens:
                peft_model.add_adapter(PERSONAL, _prompt_config(config, config.private_tokens, model))
                peft_model.set_adapter("default")
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"No {config.prompt_method} prompt can be put before this model ({str(error).splitlines()[0]}): write "
            "another --prompt_method."
        ) from None
    if config.prompt_method in ("soft", "black_box") and not next(peft_model.parameters()).is_meta:
        assert tokenizer is not None  # it is only left out for models on the meta device
        _initialise(peft_model, config, tokenizer)
    if config.prompt_method == "black_box":
        peft_model.prompt_encoder["default"] = ProjectedPrompt(
            peft_model.prompt_encoder["default"].embedding, config.black_box_dim, config.seed
        )
    for encoder in peft_model.prompt_encoder.values():
        for parameter in encoder.parameters():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(dtype)
        if isinstance(encoder, ProjectedPrompt):
            encoder.embedding.requires_grad_(False)
    return peft_model


def _prompt_config(config: RunConfig, count: int, model: CausalModel) -> AdapterConfig:
    """Return peft's configuration of a prompt of `count` vectors."""
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
        shape = {"num_attention_heads": 1}  # peft requires it, even of models without attention
    if config.prompt_method == "p_tuning":
        method, shape = PromptEncoderConfig, shape | {"encoder_hidden_size": config.prompt_hidden_size}
    return method(task_type="CAUSAL_LM", num_virtual_tokens=count, **shape)


@torch.no_grad()
def _initialise(model: AdaptedModel, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Initialise the vectors to the embeddings of a text, repeated, or of random tokens."""
    for name, encoder in model.prompt_encoder.items():
        weight = encoder.embedding.weight
        ids = tokenizer.encode(config.prompt_init_text or "", add_special_tokens=False)
        if not ids or name != "default":
            ids = torch.randint(len(tokenizer), (len(weight),)).tolist()
        ids = (ids * -(-len(weight) // len(ids)))[: len(weight)]
        table = model.get_base_model().get_input_embeddings()
        weight.copy_(table(torch.tensor(ids, device=weight.device)).to(weight.dtype))


class ProjectedPrompt(PromptEncoder):
    """Vectors P = P0 + A z, of which only z (d,) is searched; P0 is the initial prompt, A is drawn from the seed.

    A's entries have the standard deviation of P0's divided by the root of d (Sun et al. 2022, arXiv 2201.03514, 3.3).
    """

    def __init__(self, embedding: nn.Embedding, dimension: int, seed: int) -> None:
        super().__init__()
        self.embedding = embedding
        initial = self.embedding.weight
        self.z = nn.Parameter(torch.zeros(dimension, device=initial.device))
        random = torch.randn(
            initial.numel(), dimension, generator=torch.Generator().manual_seed(derive(seed, "projection"))
        )
        deviation = 1.0 if initial.is_meta else float(initial.detach().float().std())
        self.projection: Tensor
        self.register_buffer("projection", (random * deviation / dimension**0.5).to(initial.device), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the vectors (lines, n, width) of their numbers (lines, n)."""
        initial: Tensor = self.embedding.weight
        offset = (self.projection @ self.z.float()).view_as(initial)
        return (initial + offset.to(initial.dtype))[numbers]


class Front:
    """The prompt before every row: vectors among the embeddings, or a prefix in the cache."""

    def __init__(self, model: AdaptedModel, method: str) -> None:
        self._encoders = list(model.prompt_encoder.values())
        self._base = model.get_base_model()
        self._virtual: Tensor | None = None
        # A prompt that was saved is its vectors; what made them is not saved.
        self._saved = bool(model.peft_config["default"].inference_mode)
        self.by_line: Callable[[Tensor], Tensor] | None = None
        """Returns the vectors (lines, n, width) for every line by itself; None: all lines share them."""
        self.length = 0
        """Positions of the prefix in the cache; 0 where the prompt is among the embeddings."""
        if method == "prefix":
            self.length = sum(encoder.embedding.num_embeddings for encoder in self._encoders)
            self._shape = model.peft_config["default"]
        else:
            table = self._base.get_input_embeddings()
            table.register_forward_pre_hook(self._take)
            table.register_forward_hook(self._put)

    def vectors(self) -> Tensor:
        """Return the vectors (n, width) of all encoders, the shared prompt's first."""
        vectors = []
        for encoder in self._encoders:
            table = encoder.embedding
            numbers = torch.arange(table.num_embeddings, device=table.weight.device)
            vectors.append(table(numbers) if self._saved else encoder(numbers[None])[0])
        return torch.cat(vectors)

    def cache(self, lines: int) -> Cache | None:
        """Return a cache with the prefix for `lines` lines; None where the prompt is among the embeddings."""
        if not self.length:
            return None
        from transformers import DynamicCache

        shape = self._shape
        layers, heads = shape.num_layers, shape.num_attention_heads
        # A vector of peft holds all layers' keys and values, head by head; the cache wants (lines, heads, n, width).
        if self.by_line is not None:
            each = self.by_line(self.vectors()).view(lines, self.length, layers, 2, heads, shape.token_dim // heads)
            values = each.permute(2, 3, 0, 4, 1, 5)
        else:
            values = self.vectors().view(self.length, layers, 2, heads, shape.token_dim // heads)
            values = values.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, lines, -1, -1, -1)
        cache = DynamicCache(config=self._base.config.get_text_config())
        for layer, (key, value) in enumerate(values):
            cache.update(key, value, layer)
        return cache

    def _take(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The embedding layer has no vector for a negative id: it looks up 0 there, and `_put` overwrites the result.
        ids = args[0]
        self._virtual = ids
        return (ids.clamp(min=0), *args[1:])

    def _put(self, module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
        ids, self._virtual = self._virtual, None
        assert ids is not None
        places = ids < 0
        numbers = (-ids[places] - 1).long()
        if self.by_line is not None:
            virtual = self.by_line(self.vectors()).to(output.dtype)[places.nonzero()[:, 0], numbers]
        else:
            virtual = self.vectors().to(output.dtype)[numbers]
        return output.masked_scatter(places[..., None], virtual)


def save_prompt(model: AdaptedModel, params: Tensors, folder: Path) -> None:
    """Write a prompt in peft's format: its vectors, and a configuration with their number.

    Args:
        model: of peft; its prompts are set to `params`.
        params: by the names of the model's parameters; with those of a private prompt if it is to be written too.
        folder: exists.
    """
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in params.items():
            parameters[name].copy_(value)
        kinds = [kind for kind in model.prompt_encoder if any(f".{kind}." in name for name in params)]
        vectors = torch.cat([model.get_prompt_embedding_to_save(kind).float() for kind in kinds])
    saved_config = copy.deepcopy(model.peft_config["default"])
    saved_config.num_virtual_tokens, saved_config.inference_mode = len(vectors), True
    saved_config.save_pretrained(str(folder))
    save_file({"prompt_embeddings": vectors.contiguous()}, folder / "adapter_model.safetensors", {"format": "pt"})
