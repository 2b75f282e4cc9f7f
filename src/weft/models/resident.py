"""The resident model: loaded once in a process, kept through all rounds and clients.

A round puts the travelling parameters into it in place and takes them out again. Where the model computes in
bfloat16 or float16, the trained parameters have float32 masters beside them: the optimizer works on the masters,
the model on rounded copies. Knows nothing of rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.model_types import Cache, CausalModel, base_model_of
from weft.core.types import Streams, Tensors
from weft.models.compat import cache_arguments, cache_of
from weft.models.emulator import only_layers
from weft.models.layout import Batch, Row
from weft.models.probes import packing_is_exact
from weft.models.prompts import Front
from weft.models.side import Side

RowT = TypeVar("RowT")


class _Select:
    """A pre-hook on the output layer that lets only the listed positions through.

    It works for every model whose output layer is a module of its own, whatever comes after it (scaling, soft
    caps), where a slice argument exists for some models only.
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.index is None:
            return None
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.index)[None], *args[1:])


class Resident:
    """A model on its device, its tokenizer, and the float32 values of what is trained."""

    loss_scale = 1.0
    """What a loss is multiplied by before its gradient is taken."""

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        front: Front | None = None,
    ) -> None:
        """Take over a model whose `requires_grad` flags say what is trained, and its prompt; it is moved nowhere."""
        self.model = model
        self.front = front
        self.writable = model
        """What is saved: the same model, or one of its shape without weights."""
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.params: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.base = base_model_of(model)
        self._select = _Select()
        self.base.get_output_embeddings().register_forward_pre_hook(self._select)
        self.masters: Tensors = {}
        for name, parameter in self.params.items():
            if dtype == torch.float32 and parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float().requires_grad_()
                parameter.data = parameter.data.to(dtype)
        self.initial: Tensors = {}
        """Trained parameters that do not travel, as they were loaded, on the CPU."""
        self.fixed: Tensors = {}
        """Factors of the adapter that are never trained, on the CPU."""
        self.started: Tensors = {}
        """What is trained as it was when `remember` was called, on the CPU."""
        self._side: Side | None = None
        self._rounded = [name for name in self.params if self.masters[name] is not self.params[name]]
        self.can_pack = packing_is_exact(self)
        self.can_cache: bool | None = None
        """Whether answers drawn with a cache are the same as without; found out when it is first asked for."""

    def load(self, values: Tensors) -> None:
        """Put values (float32, by name, of any device) into the model, in place."""
        names = list(values)
        with torch.no_grad():
            torch._foreach_copy_([self.masters[n] for n in names], [values[n] for n in names])
        self.sync()

    def train_only(self, names: Collection[str] | None) -> None:
        """Let the named parameters have gradients, and no others; None: all that are trained."""
        for name, parameter in self.params.items():
            parameter.requires_grad_(names is None or name in names)

    def trained(self) -> Tensors:
        """Return the float32 values, on the device, of what is trained at present."""
        return {name: master for name, master in self.masters.items() if self.params[name].requires_grad}

    def put_side(self, values: Tensors) -> None:
        """Add frozen low-rank factors to the output of every adapted layer, in place of those before."""
        if self._side is None and values:
            self._side = Side(self.model)
        if self._side is not None:
            self._side.load(values)

    def remember(self) -> None:
        """Keep what is trained as it is now, for `as_started`."""
        self.started = self.values()

    @contextmanager
    def as_started(self) -> Iterator[None]:
        """Be, for a while, the model that was remembered: a reference without a second model."""
        now, side = tensors.copy(self.masters, self.device), self._side.given if self._side is not None else {}
        self.put_side({})
        self.load(self.started)
        try:
            yield
        finally:
            self.load(now)
            self.put_side(side)

    @contextmanager
    def with_layers(self, layers: Sequence[int] | None) -> Iterator[None]:
        """Have only these of the decoder's layers for a while; None: all."""
        with only_layers(self.base, layers):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without gradients and without dropout, for a while."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def values(self) -> Tensors:
        """Return float32 copies of what is trained, on the CPU."""
        return tensors.copy(self.masters, "cpu")

    def deal(self, moments: Streams) -> Streams:
        """Return copies, on the device, of an optimizer's values for the parameters that are here."""
        return {key: tensors.copy(values, self.device) for key, values in moments.items()}

    def gather(self, moments: Streams) -> Streams:
        """Return copies of an optimizer's values on the CPU."""
        return {key: tensors.copy(values, "cpu") for key, values in moments.items()}

    def next_token_gradient(self, batch: Batch, targets: float) -> Tensor | None:
        """Add a gradient and return the summed loss, where the model does both itself; here it does neither."""
        return None

    def asked_likelihoods(self, rows: Sequence[Row]) -> list[tuple[float, int]] | None:
        """Return for every row the log-probability (nats) of what is learnt of it and the number of its tokens, where
        the model can only be asked; here it cannot."""
        return None

    def asked_texts(self, prompt: str, count: int, tokens: int, seed: int) -> list[str] | None:
        """Return what the model writes behind a text, where it can only be asked; here it cannot."""
        return None

    def asked_tally(self) -> dict[str, float]:
        """Return sums of how it was asked since the last call; here there are none."""
        return {}

    def own_part(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Return the rows of a micro-batch that this process computes."""
        return rows

    def total(self, numbers: list[float]) -> list[float]:
        """Return the sums of every process's numbers."""
        return numbers

    def clip(self, most: float) -> None:
        """Clip the gradients to a norm."""
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), most)

    def finite(self) -> bool:
        """Say whether no trained parameter is NaN or infinite."""
        return tensors.all_finite(self.masters)

    @torch.no_grad()
    def sync(self) -> None:
        """Round the masters into the model."""
        if self._rounded:
            torch._foreach_copy_([self.params[n] for n in self._rounded], [self.masters[n] for n in self._rounded])

    @torch.no_grad()
    def collect_grads(self) -> None:
        """Add the gradients of the rounded parameters to their masters', and clear them."""
        for name in self._rounded:
            grad = self.params[name].grad
            if grad is None:
                continue
            master = self.masters[name]
            master.grad = grad.float() if master.grad is None else master.grad.add_(grad)
            self.params[name].grad = None

    def logits(self, batch: Batch) -> Tensor:
        """Return (N, V): the logits that predict the batch's N targets."""
        mask, positions = batch.mask, batch.position_ids
        cache = None
        if self.front is not None and self.front.length:
            cache = self.front.cache(len(batch.input_ids))
            # All rows of a line see the prefix, and count on from it.
            mask = None if mask is None else F.pad(mask, (self.front.length, 0), value=True)
            positions = None if positions is None else positions + self.front.length
        self._select.index = batch.index
        try:
            out = self.base(
                input_ids=batch.input_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
                **cache_arguments(self.base, cache),
            )
        finally:
            self._select.index = None
        logits: Tensor = out.logits
        return logits[0]

    def continued(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, cache: Cache | None, index: Tensor
    ) -> tuple[Tensor, Cache]:
        """Return the logits (N, V) at some positions of lines that go on, and the cache to go on from.

        Args:
            input_ids: (B, L) what is new.
            mask: (B, all so far) which positions are tokens.
            position_ids: (B, L).
            cache: of what came before, or None at the beginning.
            index: (N,) positions in the flattened (B * L).

        Returns:
            The logits, and the cache with what is new.
        """
        if self.front is not None and self.front.length:
            cache = self.front.cache(len(input_ids)) if cache is None else cache
            mask = F.pad(mask, (self.front.length, 0), value=1)
            position_ids = position_ids + self.front.length
        self._select.index = index
        try:
            out = self.base(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=True,
                **cache_arguments(self.base, cache),
            )
        finally:
            self._select.index = None
        return out.logits[0], cache_of(self.base, out)
