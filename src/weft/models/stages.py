"""A model whose layers lie one behind the other in several processes: pipeline parallelism (Huang et al. 2019).

Every process has a stretch of the layers, the first the input embeddings too, the last the output layer. A micro-batch
goes through them in parts, so that all have something to do (torch.distributed.pipelining, GPipe's schedule).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel
from weft.core.types import Streams, Tensors
from weft.errors import ConfigError
from weft.models.group import RankGroup
from weft.models.layout import Batch
from weft.models.probes import packing_is_exact
from weft.models.resident import Resident
from weft.models.spread import layers_of


class _Elsewhere(nn.Module):
    """In the place of a module that another process has: what comes in goes out."""

    def __init__(self, attention_type: str = "full_attention") -> None:
        super().__init__()
        self.attention_type = attention_type

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden


class Staged(Resident):
    """A resident model in stages. What another process has is a tensor without content (meta) here."""

    def __init__(
        self,
        whole: CausalModel | None,
        shell: CausalModel,
        writable: CausalModel,
        tokenizer: Tokenizer,
        group: RankGroup,
        dtype: torch.dtype,
    ) -> None:
        """Keep this process's stretch of a shell on the meta device, and fill it from the leader's whole model.

        Raises:
            ConfigError: a model that cannot be cut, or one with fewer layers than there are processes.
        """
        self.group = group
        every = dict(writable.named_parameters())
        self._owner = _cut(shell, group, list(every))
        shell.to_empty(device=group.device)
        source = dict((writable if whole is None else whole).named_parameters())
        for name, buffer in shell.named_buffers():
            buffer.copy_(group.spread(buffer if whole is None else dict(whole.named_buffers())[name]))
        for parameter in shell.parameters():
            parameter.data.zero_()
        super().__init__(shell, tokenizer, group.device, dtype)
        self.writable = writable
        own = self.masters
        self.masters = {**every, **own}
        self.load({name: source[name].detach() for name in every})
        self.can_pack = packing_is_exact(self)

    def trained(self) -> Tensors:
        """Return the float32 values of what is trained and here."""
        return {name: self.masters[name] for name in self.params if self.params[name].requires_grad}

    @torch.no_grad()
    def load(self, values: Tensors) -> None:
        """Put values, which only the leader has, where they belong."""
        for name, value in values.items():
            block = self.group.spread(value)
            if name in self.params:
                self.masters[name].copy_(block)
        self.sync()

    @torch.no_grad()
    def values(self) -> Tensors:
        """Return float32 copies of what is trained: at the leader all of it, on the CPU; elsewhere without content."""
        return self._whole(self.masters)

    def _whole(self, values: Tensors) -> Tensors:
        """Bring the values of every process to the leader."""
        made = {}
        for name, like in self.masters.items():
            here = values.get(name)
            shape = like.shape if here is None or here.is_meta else here.shape
            block = torch.empty(shape, dtype=torch.float32, device=self.device)
            if here is not None and not here.is_meta:
                block.copy_(here.detach())
            dist.broadcast(block, self._owner[name])
            made[name] = block.to("cpu", copy=True) if self.group.leads else torch.empty_like(block, device="meta")
        return made

    def deal(self, moments: Streams) -> Streams:
        """Return those of the leader's moments that belong to parameters that are here."""
        made: Streams = {}
        for key, values in moments.items():
            for name, value in values.items():
                block = self.group.spread(value)
                if name in self.params:
                    made.setdefault(key, {})[name] = block
        return made

    def gather(self, moments: Streams) -> Streams:
        """Bring the moments of all processes to the leader."""
        made: Streams = {}
        for key, values in moments.items():
            if key == "step":  # a single number, the same for all
                count = next(iter(values.values())).cpu()
                made[key] = {name: count.clone() for name in self.masters}
            else:
                made[key] = self._whole(values)
        return made

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Clip the gradients to a norm over all processes."""
        grads = [self.masters[name].grad for name in self.params]
        found = [grad for grad in grads if grad is not None]
        norm = self.group.total([sum(float(grad.double().square().sum()) for grad in found)])[0] ** 0.5
        if norm > most:
            torch._foreach_mul_(found, most / (norm + 1e-6))

    def finite(self) -> bool:
        """Say whether no parameter of any process is NaN or infinite."""
        bad = any(not bool(torch.isfinite(self.masters[name]).all()) for name in self.params)
        return self.group.total([float(bad)])[0] == 0

    def logits(self, batch: Batch) -> Tensor:
        """Return (N, V) on every process: the logits that predict the batch's N targets, without gradients."""
        lines, length = batch.input_ids.shape
        rank, last = self.group.rank, self.group.size - 1
        coming = batch.input_ids
        if rank:
            width = self.base.config.get_text_config().hidden_size
            coming = torch.empty(lines, length, width, dtype=self.dtype, device=self.device)
            dist.recv(coming, rank - 1)
        self._select.index = batch.index if rank == last else None
        try:
            out = self._through(coming, batch.position_ids, batch.mask)
        finally:
            self._select.index = None
        if rank < last:
            dist.send(out.contiguous(), rank + 1)
            size = self.base.config.get_text_config().vocab_size
            found = torch.empty(len(batch.index), size, dtype=self.dtype, device=self.device)
        else:
            found = out[0].contiguous()
        dist.broadcast(found, last)
        return found

    def _through(self, coming: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return what this stage makes of token ids, or of what the stage before made."""
        given = {"inputs_embeds": coming} if self.group.rank else {"input_ids": coming}
        out = self.base(**given, attention_mask=mask, position_ids=positions, use_cache=False)
        made: Tensor = out.logits
        return made

    def next_token_gradient(self, batch: Batch, targets: float) -> Tensor:
        """Add the gradient of the batch's summed cross-entropy over `targets`; return the sum, on every process."""
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        lines = batch.input_ids.shape[0]
        parts = max(n for n in range(1, 2 * self.group.size + 1) if lines % n == 0)
        wanted = torch.full((batch.input_ids.numel(),), -100, device=self.device)
        wanted[batch.index] = batch.targets
        stage = PipelineStage(_Stage(self), self.group.rank, self.group.size, self.device)
        schedule = ScheduleGPipe(stage, parts, lambda out, goal: _summed(out, goal) / targets, scale_grads=False)
        given = {"positions": batch.position_ids, "mask": batch.mask}
        more: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        losses: list[Tensor] = []
        goal = wanted.view_as(batch.input_ids)
        if self.group.leads:
            schedule.step(batch.input_ids, **more)
        elif self.group.rank == self.group.size - 1:
            schedule.step(target=goal, losses=losses, **more)
        else:
            schedule.step(**more)
        found = sum((loss.detach() for loss in losses), torch.zeros((), device=self.device)) * targets
        dist.broadcast(found, self.group.size - 1)
        return found


class _Stage(nn.Module):
    """What the pipeline calls in this process."""

    def __init__(self, model: Staged) -> None:
        super().__init__()
        self.model = model.model
        self._through = model._through

    def forward(self, coming: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self._through(coming, positions, mask)


def _summed(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100, reduction="sum")


def _cut(model: CausalModel, group: RankGroup, names: list[str]) -> dict[str, int]:
    """Leave in the model what this process has; return the process that has each parameter."""
    text, (place, layers) = model.config.get_text_config(), layers_of(model)
    base: nn.Module | None = getattr(model, model.base_model_prefix, None)
    if text.tie_word_embeddings:
        raise ConfigError(
            "The model's input and output embeddings are one tensor, and a pipeline has them in two processes: write "
            "--parallel fsdp."
        )
    if base is None or not hasattr(base, "norm") or len(layers) < group.size:
        raise ConfigError(
            f"A {model.config.model_type} of {len(layers)} layers cannot be cut into {group.size} stages: start fewer "
            "processes, or write --parallel fsdp."
        )
    bounds = [len(layers) * number // group.size for number in range(group.size + 1)]
    stage = {f"{place}.{n}.": rank for rank in range(group.size) for n in range(bounds[rank], bounds[rank + 1])}
    embed = {id(p) for p in model.get_input_embeddings().parameters()}
    first = {name for name, parameter in model.named_parameters() if id(parameter) in embed}
    last = group.size - 1
    owner = {
        name: next((rank for start, rank in stage.items() if name.startswith(start)), 0 if name in first else last)
        for name in names
    }
    for number, layer in enumerate(layers):
        if not bounds[group.rank] <= number < bounds[group.rank + 1]:
            layers[number] = _Elsewhere(getattr(layer, "attention_type", "full_attention"))
    if group.rank:
        model.set_input_embeddings(_Elsewhere())
    if group.rank < last:
        base.norm = _Elsewhere()
        model.set_output_embeddings(_Elsewhere())
    return owner
