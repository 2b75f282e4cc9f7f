"""Tests of a loaded model before training: does it compute, is its attention causal, can rows share a line exactly.

No list of architectures decides: the logits of a few tokens are computed in two ways and compared.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from weft.core.model_types import CausalModel
from weft.errors import ConfigError
from weft.models import varlen
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
"""What libraries raise where a model cannot compute."""


class LoadedModel(Protocol):
    """The part of `Resident` that is tested; its module imports this one, so it cannot be imported here."""

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


def packing_is_exact(model: LoadedModel, *, offsets: bool = False) -> bool:
    """Test whether rows that share a line get the logits that they get alone.

    A model may ignore the mask or the positions, or carry a state along the line (Mamba). Two rows are computed alone
    and on one line, and must agree within rounding; and another first row must not change the second by a bit.

    Args:
        model: on its device.
        offsets: lay the rows out with offsets instead of a mask.
    """
    if getattr(model.base.config, "_attn_implementation", None) not in ("sdpa", varlen.NAME):
        return False
    size, rng = _vocabulary(model), np.random.default_rng(0)
    # 6 + 6 tokens share a line as long as the filler's 12; the last 5 logits are those of the second row.
    first, second, other, filler = (_row(rng, size, length) for length in (6, 6, 6, 12))
    with model.evaluating():
        try:
            alone = model.logits(lay_out([filler, first, second], pack=False).to(model.device)).float()[-5:]
            how = "always" if offsets else ""
            lines = [lay_out([filler, row, second], pack=True, offsets=how) for row in (first, other)]
            shared, changed = (model.logits(line.to(model.device)).float()[-5:] for line in lines)
        except FAULTS:
            return False
    tolerance = rounding(model)
    close = (alone - shared).abs().max() <= tolerance * alone.abs().max().clamp(min=1e-6)
    return bool(close) and torch.equal(shared, changed)


def rounding(model: LoadedModel) -> float:
    """Return by how much equal computations of a model's logits may differ, as a share of the largest logit.

    In 16 bits this depends on the model's depth and on the device's kernels, so it is measured: the same rows are
    computed on wider lines, and with a mask that says what causal attention is anyway. The answer is three times the
    larger difference, from 0.03 to 0.1.
    """
    if model.dtype == torch.float32:
        return 1e-4
    size, rng = _vocabulary(model), np.random.default_rng(2)
    rows, wide = [_row(rng, size, 12), _row(rng, size, 12)], _row(rng, size, 32)
    try:
        with model.evaluating():
            batch = lay_out(rows, pack=False)
            plain = model.logits(batch.to(model.device)).float()
            wider = model.logits(lay_out([*rows, wide], pack=False).to(model.device)).float()[: len(plain)]
            causal = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, 12, 12)
            masked = model.logits(replace(batch, mask=causal).to(model.device)).float()
    except FAULTS:
        return 0.03
    noise = max(float((plain - other).abs().max()) for other in (wider, masked)) / max(float(plain.abs().max()), 1e-6)
    return min(max(0.03, 3 * noise), 0.1)


def check_computes(model: LoadedModel, name: str, *, exact: bool = True) -> None:
    """Refuse a model that cannot be trained to predict the next token.

    Two rows that differ in their second half must have the same logits in the first: a model that looks ahead, as BERT
    does, would see the tokens that it is to predict. And a prefix must change the logits.

    Args:
        model: with its adapter or prompt, as it will be trained.
        name: of the model, for the error message.
        exact: the base is not quantised.

    Raises:
        ConfigError: the model looks ahead, cannot compute, computes NaN, or ignores its prefix.
    """
    size, rng, half = _vocabulary(model), np.random.default_rng(1), 6
    row, other = _row(rng, size, 2 * half), _row(rng, size, half)
    changed = (np.concatenate([row[0][:half], other[0]]), row[1])
    kind = getattr(model.base.config, "model_type", "model")
    try:
        with model.evaluating():
            first = model.logits(lay_out([row], pack=False).to(model.device)).float()
            second = model.logits(lay_out([changed], pack=False).to(model.device)).float()
            bare = _without_prefix(model, row)
    except FAULTS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise ConfigError(
            f"'{name}' cannot be computed as it is to be trained ({reason}): {_remedy(model, exact)}."
        ) from error
    if bool(first.isnan().any()):
        wide = model.dtype == torch.float32
        remedy = (
            "its weights are damaged: copy them again" if wide else "write --dtype float32, or copy its weights again"
        )
        raise ConfigError(f"'{name}' computes NaN; {remedy}.")
    leak = float((first - second)[:half].abs().max())
    effect = float((first - second)[half:].abs().max())
    if leak > (1e-4 if exact and model.dtype == torch.float32 else 5e-2) * effect:
        raise ConfigError(
            f"'{name}' ({kind}) looks ahead: a later token changes its predictions at earlier ones, so it cannot be "
            'trained to predict the next; name a model with causal attention, or write "is_decoder": true into its '
            "config.json if it was trained so."
        )
    if bare is not None and torch.equal(bare, first):
        raise ConfigError(
            f"'{name}' ({kind}) ignores its prefix, so training it would change nothing: write another --prompt_method."
        )


def _without_prefix(model: LoadedModel, row: Row) -> torch.Tensor | None:
    """Return the logits (N, V) of a row without the prefix; None where the model has no prefix."""
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
