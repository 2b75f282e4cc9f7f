"""A model whose layers are divided into stages, one per process: pipeline parallelism (Huang et al. 2019).

Every process has consecutive layers; the first also has the input embeddings, the last the output layer. A micro-batch
passes through the stages in parts, so that all stages work at a time (torch.distributed.pipelining, GPipe's schedule).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel
from weft.core.types import Streams, Tensors
from weft.errors import ConfigError
from weft.models.group import RankGroup
from weft.models.layout import Batch
from weft.models.probes import packing_is_exact
from weft.models.resident import Resident
from weft.models.targets import layers_of


class _PassThrough(nn.Module):
    """In the place of a module of another stage: returns its input."""

    def __init__(self, attention_type: str = "full_attention") -> None:
        super().__init__()
        self.attention_type = attention_type

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden


class PipelineModel(Resident):
    """A resident model in stages; parameters of other stages are meta tensors."""

    one_process: ClassVar[bool] = False

    def __init__(
        self,
        whole: CausalModel | None,
        shell: CausalModel,
        writable: CausalModel,
        tokenizer: Tokenizer,
        group: RankGroup,
        dtype: torch.dtype,
    ) -> None:
        """Keep this stage's layers of a model on the meta device, and fill them from the leader's whole model.

        Raises:
            ConfigError: the model cannot be divided, or has fewer layers than there are processes.
        """
        self.group = group
        all_parameters = dict(writable.named_parameters())
        self._owner = _divide(shell, group, list(all_parameters))
        shell.to_empty(device=group.device)
        source = dict((writable if whole is None else whole).named_parameters())
        for name, buffer in shell.named_buffers():
            buffer.copy_(group.broadcast(buffer if whole is None else dict(whole.named_buffers())[name]))
        for parameter in shell.parameters():
            parameter.data.zero_()
        super().__init__(shell, tokenizer, group.device, dtype)
        self.writable = writable
        local_masters = self.masters
        self.masters = {**all_parameters, **local_masters}
        self.load({name: source[name].detach() for name in all_parameters})
        self.can_pack = packing_is_exact(self)  # again: the base class tested weights that were all zero

    def trainable(self) -> Tensors:
        """Return the float32 masters of this stage's parameters whose gradients are on."""
        return {name: self.masters[name] for name in self.params if self.params[name].requires_grad}

    @torch.no_grad()
    def load(self, values: Tensors) -> None:
        """Broadcast values, which only the leader has; each stage keeps its own."""
        for name, value in values.items():
            block = self.group.broadcast(value)
            if name in self.params:
                self.masters[name].copy_(block)
        self.sync()

    @torch.no_grad()
    def values(self) -> Tensors:
        """Return float32 copies of all trained parameters: on the leader's CPU, meta tensors elsewhere."""
        return self._whole(self.masters)

    def _whole(self, values: Tensors) -> Tensors:
        """Gather the values of every stage at the leader's CPU."""
        whole = {}
        for name, like in self.masters.items():  # one order on all ranks, or the broadcasts would not match
            local = values.get(name)
            shape = like.shape if local is None or local.is_meta else local.shape
            block = torch.empty(shape, dtype=torch.float32, device=self.device)
            if local is not None and not local.is_meta:
                block.copy_(local.detach())
            dist.broadcast(block, self._owner[name])
            whole[name] = block.to("cpu", copy=True) if self.group.is_leader else torch.empty_like(block, device="meta")
        return whole

    def scatter(self, moments: Streams) -> Streams:
        """Broadcast the leader's optimizer state; each stage keeps that of its parameters."""
        local_moments: Streams = {}
        for key, values in moments.items():
            for name, value in values.items():
                block = self.group.broadcast(value)
                if name in self.params:
                    local_moments.setdefault(key, {})[name] = block
        return local_moments

    def gather(self, moments: Streams) -> Streams:
        """Gather the optimizer state of all stages at the leader."""
        whole: Streams = {}
        for key, values in moments.items():
            if key == "step":  # one scalar per parameter, the same for all
                count = next(iter(values.values())).cpu()
                whole[key] = {name: count.clone() for name in self.masters}
            else:
                whole[key] = self._whole(values)
        return whole

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scale the gradients to a joint L2 norm of at most `most` over all stages."""
        grads = [self.masters[name].grad for name in self.params]
        present = [grad for grad in grads if grad is not None]
        norm = self.group.total([sum(float(grad.double().square().sum()) for grad in present)])[0] ** 0.5
        if norm > most:
            torch._foreach_mul_(present, most / (norm + 1e-6))

    def finite(self) -> bool:
        """Return whether all parameters of all stages are finite."""
        bad = not tensors.all_finite({name: self.masters[name] for name in self.params})
        return self.group.total([float(bad)])[0] == 0

    def logits(self, batch: Batch) -> Tensor:
        """Return (N, V) on every process: the logits that predict the batch's N targets, without gradients."""
        lines, length = batch.input_ids.shape
        rank, last = self.group.rank, self.group.size - 1
        inputs = batch.input_ids
        if rank:
            width = self.base.config.get_text_config().hidden_size
            inputs = torch.empty(lines, length, width, dtype=self.dtype, device=self.device)
            dist.recv(inputs, rank - 1)
        self._select.index = batch.index if rank == last else None
        try:
            out = self._through(inputs, batch.position_ids, batch.mask)
        finally:
            self._select.index = None
        if rank < last:
            dist.send(out.contiguous(), rank + 1)
            size = self.base.config.get_text_config().vocab_size
            logits = torch.empty(len(batch.index), size, dtype=self.dtype, device=self.device)
        else:
            logits = out[0].contiguous()
        dist.broadcast(logits, last)
        return logits

    def _through(self, inputs: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return this stage's output (B, L, width or V) for token ids (B, L), or for the output of the stage before."""
        first_argument = {"inputs_embeds": inputs} if self.group.rank else {"input_ids": inputs}
        out = self.base(**first_argument, attention_mask=mask, position_ids=positions, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def next_token_gradient(self, batch: Batch, targets: float) -> Tensor:
        """Add the gradient of the summed cross-entropy divided by `targets`; return the sum (nats) on every process."""
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        lines = batch.input_ids.shape[0]
        # The parts must be of one size; GPipe idles less the more there are, up to about two per stage.
        parts = max(n for n in range(1, 2 * self.group.size + 1) if lines % n == 0)
        goal_ids = torch.full((batch.input_ids.numel(),), -100, device=self.device)
        goal_ids[batch.index] = batch.targets
        stage = PipelineStage(_Stage(self), self.group.rank, self.group.size, self.device)
        schedule = ScheduleGPipe(stage, parts, lambda out, goal: _summed_loss(out, goal) / targets, scale_grads=False)
        optional = {"positions": batch.position_ids, "mask": batch.mask}
        arguments: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        losses: list[Tensor] = []
        goal = goal_ids.view_as(batch.input_ids)
        if self.group.is_leader:
            schedule.step(batch.input_ids, **arguments)
        elif self.group.rank == self.group.size - 1:
            schedule.step(target=goal, losses=losses, **arguments)
        else:
            schedule.step(**arguments)
        loss_sum = sum((loss.detach() for loss in losses), torch.zeros((), device=self.device)) * targets
        dist.broadcast(loss_sum, self.group.size - 1)
        return loss_sum


class _Stage(nn.Module):
    """The module that the pipeline calls in this process."""

    def __init__(self, model: PipelineModel) -> None:
        super().__init__()
        self.model = model.model
        self._through = model._through

    def forward(self, inputs: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self._through(inputs, positions, mask)


def _summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")


def _divide(model: CausalModel, group: RankGroup, names: list[str]) -> dict[str, int]:
    """Replace the modules of other stages by pass-throughs; return the rank of each parameter's stage."""
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
    # By identity: the embeddings' names differ between architectures.
    embed = {id(p) for p in model.get_input_embeddings().parameters()}
    first = {name for name, parameter in model.named_parameters() if id(parameter) in embed}
    last = group.size - 1
    owner = {
        name: next((rank for start, rank in stage.items() if name.startswith(start)), 0 if name in first else last)
        for name in names
    }
    for number, layer in enumerate(layers):
        if not bounds[group.rank] <= number < bounds[group.rank + 1]:
            layers[number] = _PassThrough(getattr(layer, "attention_type", "full_attention"))
    if group.rank:
        model.set_input_embeddings(_PassThrough())
    if group.rank < last:
        base.norm = _PassThrough()
        model.set_output_embeddings(_PassThrough())
    return owner
