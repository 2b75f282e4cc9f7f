"""What a loaded model is asked before it is trained: does it compute, does it look ahead, do rows share a line exactly.

Nothing here is looked up by architecture: a few tokens are computed twice, and compared.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from weft.core.model_types import CausalModel
from weft.errors import ConfigError
from weft.models.layout import Batch, Row, lay_out
from weft.models.prompts import Front

FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a library raises where a model cannot be computed as it stands."""


class LoadedModel(Protocol):
    """What is used here of a resident model, which itself asks whether it packs exactly while it is constructed."""

    model: CausalModel
    base: CausalModel
    """The model inside peft's wrapper."""
    front: Front | None
    device: torch.device
    dtype: torch.dtype

    def evaluating(self) -> AbstractContextManager[None]:
        """Compute without gradients and without dropout."""
        ...

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return (N, V): the logits that predict the batch's N targets."""
        ...


def _row(rng: np.random.Generator, size: int, length: int) -> Row:
    return rng.integers(0, size, length).astype(np.int32), np.ones(length, dtype=bool)


def _vocabulary(model: LoadedModel) -> int:
    return min(int(model.base.config.get_text_config().vocab_size), 256)


def packing_is_exact(model: LoadedModel) -> bool:
    """Find out whether rows that share a line are computed as if they were alone.

    A model may ignore a mask or positions, carry state along the line (Mamba), or have positions of its own.
    Two rows are computed alone and on one line, and must agree; and another first row must change nothing.
    """
    if getattr(model.base.config, "_attn_implementation", None) != "sdpa":
        return False
    size, rng = _vocabulary(model), np.random.default_rng(0)
    one, two, other, filler = (_row(rng, size, length) for length in (6, 6, 6, 12))
    with model.evaluating():
        try:
            alone = model.logits(lay_out([filler, one, two], pack=False).to(model.device)).float()[-5:]
            shared = model.logits(lay_out([filler, one, two], pack=True).to(model.device)).float()[-5:]
            changed = model.logits(lay_out([filler, other, two], pack=True).to(model.device)).float()[-5:]
        except FAULTS:
            return False
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    close = (alone - shared).abs().max() <= tolerance * alone.abs().max().clamp(min=1e-6)
    return bool(close) and torch.equal(shared, changed)


def check_computes(model: LoadedModel, name: str, *, exact: bool = True) -> None:
    """Refuse a model that cannot be trained to predict the next token.

    Two rows that differ in their later half must have the same logits in the former one: a model that looks ahead,
    as BERT does, would be shown what it is to predict. And a prefix must make a difference.

    Args:
        model: as it is to be trained.
        name: of the model, for the sentence.
        exact: the base is not quantised.

    Raises:
        ConfigError: it looks ahead, cannot be computed, computes NaN, or does not see its prefix.
    """
    size, rng, half = _vocabulary(model), np.random.default_rng(1), 6
    row, other = _row(rng, size, 2 * half), _row(rng, size, half)
    changed = (np.concatenate([row[0][:half], other[0]]), row[1])
    kind = getattr(model.base.config, "model_type", "model")
    try:
        with model.evaluating():
            first = model.logits(lay_out([row], pack=False).to(model.device)).float()
            second = model.logits(lay_out([changed], pack=False).to(model.device)).float()
            plain = _without_prefix(model, row)
    except FAULTS as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise ConfigError(
            f"'{name}' cannot be computed as it is to be trained ({said}): {_remedy(model, exact)}."
        ) from error
    if bool(first.isnan().any()):
        wide = model.dtype == torch.float32
        why = "its weights are damaged: copy them again" if wide else "write --dtype float32, or copy its weights again"
        raise ConfigError(f"'{name}' computes numbers that are none (NaN); {why}.")
    leak = float((first - second)[:half].abs().max())
    effect = float((first - second)[half:].abs().max())
    if leak > (1e-4 if exact and model.dtype == torch.float32 else 5e-2) * effect:
        raise ConfigError(
            f"'{name}' ({kind}) looks ahead: a later token changes what it says of earlier ones, so it cannot be "
            'trained to predict the next; name a model with causal attention, or write "is_decoder": true into its '
            "config.json if it was trained so."
        )
    if plain is not None and torch.equal(plain, first):
        raise ConfigError(
            f"'{name}' ({kind}) takes no prefix, which would change nothing: write another --prompt_method."
        )


def _without_prefix(model: LoadedModel, row: Row) -> torch.Tensor | None:
    """Return the logits of a row that has no prefix before it, None where there is none anyway."""
    front = model.front
    if front is None or not front.length:
        return None
    length, front.length = front.length, 0
    try:
        return model.logits(lay_out([row], pack=False).to(model.device)).float()
    finally:
        front.length = length


def _remedy(model: LoadedModel, exact: bool) -> str:
    if model.front is not None:
        return "write another --prompt_method, or name another model"
    if not exact:
        return "name a base that is not quantised, without --load_in_4bit and --load_in_8bit"
    if hasattr(model.model, "peft_config"):
        return "name other modules in --peft_lora_target_modules, or name another model"
    return "name another model"
