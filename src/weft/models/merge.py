"""Merging an adapter into its model, and writing the result as one plain model that computes the same logits.

Tied embeddings are untied first: an adapter beside the output layer must not change the input embeddings, with which
the layer shares its weight. The written model is read back and compared.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from weft.core.libraries import Tokenizer
from weft.core.model_types import AdaptedModel, CausalModel
from weft.errors import ConfigError
from weft.models.checkpoint import load_weights
from weft.models.noise import quiet_libraries

NEAR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference of logits, relative to the largest logit, for each format in which a model is written."""


def write_merged(
    model: AdaptedModel, tokenizer: Tokenizer, dtype: str, out: Path, *, trust_remote_code: bool = False
) -> None:
    """Merge the adapter of a peft model, in float32, and write the whole model.

    Args:
        model: of peft, with a base that is not quantised; it is changed in place.
        tokenizer: written beside it.
        dtype: name of the format of the written weights.
        out: a folder of `new_folder`, which deletes its content if this function raises.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: the adapter cannot be merged, or the merged model computes other logits.
    """
    model.eval()
    reference = _logits(model)
    untie(model)
    try:
        with quiet_libraries():
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"The adapter cannot be merged ({str(error).splitlines()[0].rstrip('.')}): leave out --merge, and load "
            "the written adapter by peft."
        ) from None
    _record_untied(merged)
    _compare(reference, _logits(merged), "float32")
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    del model, merged
    from_disk = load_weights(str(out), dtype=torch.float32, trust_remote_code=trust_remote_code)
    _compare(reference, _logits(from_disk), dtype)


def untie(model: AdaptedModel) -> None:
    """Copy the weight of every layer with an adapter that shares it with another layer."""
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


def _record_untied(model: CausalModel) -> None:
    """Set `tie_word_embeddings` to false where the output layer has a weight of its own."""
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or output.weight is table.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def _logits(model: CausalModel) -> Tensor:
    """Return the logits (2, 12, V), float32 on the CPU, of two fixed rows of random tokens."""
    size = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(size, (2, 12), generator=torch.Generator().manual_seed(0))
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.float().cpu()


def _compare(reference: Tensor, logits: Tensor, dtype: str) -> None:
    """Refuse logits that differ from those of the model with its adapter."""
    off = float((reference - logits).abs().max())
    # `not <=` rather than `>`: a NaN must be refused too.
    if not off <= NEAR[dtype] * float(reference.abs().max()):
        raise ConfigError(
            f"The merged model would compute other logits than the model with its adapter (they differ by up to "
            f"{off:.3g}): leave out --merge, and load the written adapter by peft."
        )
