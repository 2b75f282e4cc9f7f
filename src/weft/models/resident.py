"""The resident model: loaded once per process, and used for all rounds and clients.

Trained parameters are copied in and out in place. Where the model computes in bfloat16 or float16, they have float32
masters: the optimizer updates the masters, and the model computes with rounded copies. Knows nothing of rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.model_types import Cache, CausalModel, base_model_of
from weft.core.types import Streams, Tensors
from weft.models import varlen
from weft.models.compat import cache_arguments, cache_of
from weft.models.compiled import plain_layers
from weft.models.emulator import only_layers
from weft.models.layout import Batch, Row, lay_out, line_step
from weft.models.probes import packing_is_exact
from weft.models.prompts import Front
from weft.models.recomputation import Recomputation
from weft.models.selection import Selection
from weft.models.side import Side

RowT = TypeVar("RowT")


class Resident:
    """A model on its device, its tokenizer, and the float32 masters of its trained parameters."""

    one_process: ClassVar[bool] = True  # the whole model is in this process
    loss_scale = 1.0  # factor of a loss before its backward pass
    line_step = 1  # what the length of padded lines is a multiple of
    compiled = False  # whether training steps, and on a GPU steps of decoding, are compiled
    decoding: Any = None  # the step of decoding with a static cache; False: it is not exact; None: not tested
    engine: Any = None  # samples answers in torch's place (weft.models.vllm_engine)

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        front: Front | None = None,
    ) -> None:
        """Take over a model whose `requires_grad` flags mark the trained parameters, and its prompt."""
        self.model = model
        self.front = front
        self.writable = model
        """The model to save: the same one, or one of its shape on the meta device."""
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.params: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.base = base_model_of(model)
        self._select = Selection()
        # The hook stays for good; it does nothing while no index is set.
        self.base.get_output_embeddings().register_forward_pre_hook(self._select)
        self.masters: Tensors = {}
        for name, parameter in self.params.items():
            if dtype == torch.float32 and parameter.dtype == torch.float32:
                self.masters[name] = parameter  # one tensor: there is nothing to round
            else:
                self.masters[name] = parameter.detach().float().requires_grad_()
                parameter.data = parameter.data.to(dtype)
        self.initial: Tensors = {}  # initial values, on the CPU, of trained parameters that are never sent
        self.fixed: Tensors = {}  # frozen factors of the adapter, on the CPU
        self.reference: Tensors = {}  # trained parameters at the last call of `store_reference`, on the CPU
        self._side: Side | None = None
        self._rounded = [name for name in self.params if self.masters[name] is not self.params[name]]
        self.line_step = 1 if front is not None else line_step(device, self.base.config)
        self.can_pack = packing_is_exact(self)
        self.offsets = self._use_offsets() if self.can_pack else ""
        """When rows share one line by offsets instead of a mask (`lay_out`)."""
        self.recomputation = Recomputation(self.base)
        self.ends_with_head: bool | None = None
        """Whether nothing follows the output layer; None until a loss in chunks has tested it."""
        self.can_cache: bool | None = None  # a cache leaves the logits unchanged; None until `generate` has tested it

    @property
    def vocabulary(self) -> int:
        """Number of logits of a position."""
        return int(self.base.get_output_embeddings().weight.shape[0])

    def load(self, values: Tensors) -> None:
        """Copy values (float32, by name, on any device) into the model."""
        names = list(values)
        with torch.no_grad():
            torch._foreach_copy_([self.masters[n] for n in names], [values[n] for n in names])
        self.sync()

    def train_only(self, names: Collection[str] | None) -> None:
        """Switch gradients on for the named trained parameters alone; None: for all."""
        for name, parameter in self.params.items():
            parameter.requires_grad_(names is None or name in names)

    def trainable(self) -> Tensors:
        """Return the float32 masters, on the device, of the parameters whose gradients are on."""
        return {name: master for name, master in self.masters.items() if self.params[name].requires_grad}

    def put_side(self, values: Tensors) -> None:
        """Set the frozen low-rank factors whose product is added to the output of every LoRA layer."""
        if self._side is None and values:
            self._side = Side(self.model)
        if self._side is not None:
            self._side.load(values)

    def store_reference(self) -> None:
        """Store the current values of the trained parameters, for `as_reference`."""
        self.reference = self.values()

    def as_reference(self) -> AbstractContextManager[None]:
        """Compute as the stored reference inside the context: no second model is needed."""
        return self.holding(self.reference, {})

    @contextmanager
    def holding(self, values: Tensors, side: Tensors) -> Iterator[None]:
        """Compute with other values of the trained parameters, and other side factors, inside the context."""
        current, former = tensors.copy(self.masters, self.device), self._side.values if self._side is not None else {}
        self.put_side(side)
        self.load(values)
        try:
            yield
        finally:
            self.load(current)
            self.put_side(former)

    @contextmanager
    def with_layers(self, layers: Sequence[int] | None) -> Iterator[None]:
        """Compute with these decoder layers alone inside the context; None: with all."""
        with only_layers(self.base, layers):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without gradients and without dropout inside the context."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), plain_layers(self.compiled):
                yield
        finally:
            self.model.train(was_training)

    def values(self) -> Tensors:
        """Return float32 copies of the trained parameters, on the CPU."""
        return tensors.copy(self.masters, "cpu")

    def scatter(self, moments: Streams) -> Streams:
        """Return copies, on the device, of an optimizer's state for this process's parameters."""
        return {key: tensors.copy(values, self.device) for key, values in moments.items()}

    def gather(self, moments: Streams) -> Streams:
        """Return copies, on the CPU, of an optimizer's state."""
        return {key: tensors.copy(values, "cpu") for key, values in moments.items()}

    def next_token_gradient(self, batch: Batch, targets: float) -> Tensor | None:
        """Run forward and backward pass and return the summed loss (nats); None: the caller does this, as here."""
        return None

    def remote_likelihoods(self, rows: Sequence[Row]) -> list[tuple[float, int]] | None:
        """Return the log-probability (nats) and number of every row's targets, from an endpoint; None: it is here."""
        return None

    def remote_texts(self, prompt: str, count: int, tokens: int, seed: int) -> list[str] | None:
        """Return continuations of a text, where the model is behind an endpoint; None: it is here."""
        return None

    def remote_counts(self) -> dict[str, float]:
        """Return the numbers of requests to an endpoint since the last call; empty without one."""
        return {}

    def local_rows(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Return this process's rows of a micro-batch."""
        return rows

    def total(self, numbers: list[float]) -> list[float]:
        """Return the element-wise sums over the processes of the model."""
        return numbers

    def clip(self, most: float) -> None:
        """Scale the gradients of all masters to a joint L2 norm of at most `most`."""
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), most)

    def finite(self) -> bool:
        """Return whether all trained parameters are finite."""
        return tensors.all_finite(self.masters)

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the masters, rounded, into the model."""
        if self._rounded:
            torch._foreach_copy_([self.params[n] for n in self._rounded], [self.masters[n] for n in self._rounded])

    @torch.no_grad()
    def collect_grads(self) -> None:
        """Add the gradients of the rounded copies to those of their masters, and clear them."""
        pairs = [(self.masters[name], self.params[name]) for name in self._rounded]
        sums: list[Tensor] = []
        grads: list[Tensor] = []
        for master, parameter in pairs:
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                sums.append(master.grad)
                grads.append(parameter.grad)
            parameter.grad = None
        if sums:
            torch._foreach_add_(sums, grads)

    def _use_offsets(self) -> str:
        """Switch to variable-length attention where the device has it and it is exact; return when it is used."""
        if not self.one_process or self.front is not None or not varlen.use(self.base, self.device, self.dtype):
            return ""
        if packing_is_exact(self, offsets=True):
            return "where shorter" if self.device.type == "cpu" else "always"
        varlen.remove(self.base)
        return ""

    def lay_out(self, rows: Sequence[Row], *, pack: bool = True) -> Batch:
        """Return a batch of rows, on the CPU, that share lines if `pack` and the model computes that exactly."""
        return lay_out(rows, pack=pack and self.can_pack, offsets=self.offsets, step=self.line_step)

    def logits(self, batch: Batch) -> Tensor:
        """Return (N, V): the logits that predict the batch's N targets; (B, M, V) where its index is (B, M)."""
        mask, positions = batch.mask, batch.position_ids
        cache = None
        if self.front is not None and self.front.length:
            cache = self.front.cache(len(batch.input_ids))
            # Every row attends to the prefix, and its positions follow it.
            mask = None if mask is None else F.pad(mask, (self.front.length, 0), value=True)
            positions = None if positions is None else positions + self.front.length
        masked: dict[str, object] = {"attention_mask": mask}
        if batch.offsets is not None:
            masked = varlen.arguments(batch.offsets, batch.longest)
        self._select.index = batch.index
        try:
            out = self.base(
                input_ids=batch.input_ids,
                position_ids=positions,
                use_cache=False,
                **masked,
                **cache_arguments(self.base, cache),
            )
        finally:
            self._select.index = None
        logits: Tensor = out.logits
        return logits if batch.index.dim() > 1 else logits[0]

    def hidden(self, batch: Batch) -> Tensor:
        """Return (N, D): what the output layer computes the logits of the batch's N targets from."""
        self._select.takes = True
        try:
            self.logits(batch)
            hidden = self._select.hidden
        finally:
            self._select.takes, self._select.hidden = False, None
        assert hidden is not None
        return hidden

    def continued(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, cache: Cache | None, index: Tensor
    ) -> tuple[Tensor, Cache]:
        """Continue lines whose earlier positions are in a cache.

        Args:
            input_ids: (B, L) the new tokens.
            mask: (B, cached + L) 1 for tokens, 0 for padding.
            position_ids: (B, L).
            cache: of the earlier positions; None: there are none.
            index: (N,) positions in the flattened (B * L) whose logits are returned.

        Returns:
            The logits (N, V), and the cache with the new positions.
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
