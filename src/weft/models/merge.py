"""A model with its adapter, written as one plain model that computes the same.

Tied embeddings are untied first: an adapter beside the output layer is not one beside the input embeddings, so that
what is merged into the one must not change the other. What was written is read again and compared.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from weft.core.libraries import Tokenizer
from weft.core.model_types import AdaptedModel, CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint import load_weights
from weft.models.noise import hushed

NEAR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""How far logits may be from the adapter's, relative to the largest, for the format that is written."""


def write_merged(
    model: AdaptedModel, tokenizer: Tokenizer, dtype: str, out: Path, *, trust_remote_code: bool = False
) -> None:
    """Merge the adapter of a peft model, in float32, and write the whole model.

    Args:
        model: of peft, with a base that is not quantised; it is used up.
        tokenizer: written beside it.
        dtype: of what is written.
        out: a folder of `new_folder`, which deletes what is written where this fails.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigError: the adapter cannot be merged, or the merged model computes something else.
    """
    model.eval()
    wanted = _logits(model)
    untie(model)
    try:
        with hushed():
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"The adapter cannot be merged ({str(error).splitlines()[0].rstrip('.')}): leave out --merge, and load "
            "what is written by peft."
        ) from None
    _say_untied(merged)
    _compare(wanted, _logits(merged), "float32")
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    del model, merged
    again = load_weights(str(out), dtype=torch.float32, trust_remote_code=trust_remote_code)
    _compare(wanted, _logits(again), dtype)


def untie(model: AdaptedModel) -> None:
    """Give every layer with an adapter a weight of its own, where it shares it with another layer."""
    base = model.get_base_model()
    places: dict[int, list[nn.Module]] = {}
    for module in base.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                places.setdefault(id(parameter), []).append(module)
    for module in base.modules():
        unwrap = getattr(module, "get_base_layer", None)
        layer = None if unwrap is None else unwrap()
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and len(places.get(id(weight), ())) > 1:
            assert layer is not None
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _say_untied(model: CausalModel) -> None:
    """Let a model's configuration say whether its output layer is its embeddings."""
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or output.weight is table.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def _logits(model: CausalModel) -> Tensor:
    """Return the logits of some rows of tokens."""
    size = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(size, (2, 12), generator=torch.Generator().manual_seed(0))
    found: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return found.float().cpu()


def _compare(wanted: Tensor, found: Tensor, dtype: str) -> None:
    """Refuse what computes something else than the model with its adapter."""
    off = float((wanted - found).abs().max())
    if not off <= NEAR[dtype] * float(wanted.abs().max()):
        raise ConfigError(
            f"The merged model would compute something else than the model with its adapter (logits differ by up to "
            f"{off:.3g}): leave out --merge, and load what is written by peft."
        )
