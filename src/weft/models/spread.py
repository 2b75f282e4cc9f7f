"""A model whose parameters are spread over processes: sharded (FSDP2), or split within layers (tensor parallelism).

Both turn parameters into DTensors. Values pass tensor by tensor through the leader, so that no other process ever holds
the whole model. Where the leader gathers values, the others get meta tensors, so that all run the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel
from weft.core.types import Streams, Tensors
from weft.errors import ConfigError
from weft.models.group import RankGroup
from weft.models.resident import Resident, RowT
from weft.models.targets import layers_of


class SpreadModel(Resident):
    """A resident model in several processes; with `splits_batch`, each computes some rows of every micro-batch."""

    one_process: ClassVar[bool] = False

    def __init__(
        self,
        whole: CausalModel | None,
        shell: CausalModel,
        writable: CausalModel,
        tokenizer: Tokenizer,
        group: RankGroup,
        dtype: torch.dtype,
        *,
        splits_batch: bool,
    ) -> None:
        """Fill a distributed model on the meta device with the weights of the leader's whole model.

        Args:
            whole: the model with its weights at the leader; None at the other processes.
            shell: the same model, sharded or split.
            writable: the same model on the meta device, saved with the gathered values.
            tokenizer: of the model.
            group: the rank group.
            dtype: of the computation; masters are float32.
            splits_batch: each process computes its own rows of a micro-batch.
        """
        self.group, self.splits_batch = group, splits_batch
        _fill(shell, whole, group)
        # FSDP rounds a layer's weights itself when it gathers them, so no rounded copies are made.
        super().__init__(shell, tokenizer, group.device, torch.float32 if splits_batch else dtype)
        self.dtype, self.writable = dtype, writable
        source = dict((writable if whole is None else whole).named_parameters())
        self.load(
            {name: source[name].detach() for name in self.masters}
        )  # in float32, where the base class has rounded
        if splits_batch:
            self.loss_scale = float(group.size)  # FSDP averages gradients; the loss is a sum over all rows

    @torch.no_grad()
    def load(self, values: Tensors) -> None:
        """Scatter values, which only the leader has, into the shards."""
        for module in self.base.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # else the next pass would use the weights gathered by the last one
        for name, value in values.items():
            self.masters[name].copy_(self._scatter_value(name, value))
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Round the masters into the model."""
        for name in self._rounded:
            self.params[name].copy_(self.masters[name])

    @torch.no_grad()
    def values(self) -> Tensors:
        """Return float32 copies of the trained parameters: whole on the leader's CPU, meta tensors elsewhere."""
        return {name: self._gather_value(master.detach()) for name, master in self.masters.items()}

    def scatter(self, moments: Streams) -> Streams:
        """Scatter the leader's optimizer state like the parameters."""
        return {key: {n: self._scatter_value(n, v) for n, v in values.items()} for key, values in moments.items()}

    def gather(self, moments: Streams) -> Streams:
        """Gather the optimizer state of all processes at the leader."""
        return {
            key: {name: self._gather_value(value) for name, value in values.items()} for key, values in moments.items()
        }

    def _scatter_value(self, name: str, value: Tensor) -> Tensor:
        """Return this process's shard of a leader's value, placed like the parameter; scalars are broadcast."""
        master = self.masters[name]
        if value.dim() and isinstance(master, DTensor):
            return _scatter_like(value, master, self.group)
        return self.group.broadcast(value)

    def _gather_value(self, value: Tensor) -> Tensor:
        """Return a shard's whole tensor on the leader's CPU, a meta tensor elsewhere."""
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.to("cpu", copy=True) if self.group.is_leader else torch.empty_like(full, device="meta")

    def local_rows(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Return this process's rows of a micro-batch."""
        return rows[self.group.rank :: self.group.size] if self.splits_batch else rows

    def total(self, numbers: list[float]) -> list[float]:
        """Return the element-wise sums over the processes if each has its own rows, else the numbers."""
        return self.group.total(numbers) if self.splits_batch else numbers

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scale the gradients to a joint L2 norm of at most `most` over all processes."""
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        local = [_local(grad) for grad in grads]
        # Shards add up over the processes; a tensor that every process has whole counts once.
        squares = [
            sum(
                float(part.double().square().sum())
                for part, grad in zip(local, grads, strict=True)
                if _split(grad) is is_split
            )
            for is_split in (True, False)
        ]
        norm = (self.group.total([squares[0]])[0] + squares[1]) ** 0.5
        if norm > most:
            torch._foreach_mul_(local, most / (norm + 1e-6))

    @torch.no_grad()
    def finite(self) -> bool:
        """Return whether all parameters of all processes are finite."""
        bad = not tensors.all_finite({name: _local(master) for name, master in self.masters.items()})
        return self.group.total([float(bad)])[0] == 0


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _split(value: Tensor) -> bool:
    return isinstance(value, DTensor) and any(isinstance(place, Shard) for place in value.placements)


def _scatter_like(value: Tensor, like: DTensor, group: RankGroup) -> Tensor:
    """Scatter a whole tensor of the leader with the placement of another."""
    target_device = like.to_local().device
    full = (
        value.to(group.device) if group.is_leader else torch.empty(like.shape, dtype=value.dtype, device=group.device)
    )
    dtensor = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=0)
    return dtensor if target_device == group.device else dtensor.to(target_device)


@torch.no_grad()
def _fill(shell: nn.Module, whole: nn.Module | None, group: RankGroup) -> None:
    """Allocate the tensors of a model on the meta device, and fill them from the leader's model."""
    shell.to_empty(device=group.device)
    tie = getattr(shell, "tie_weights", None)
    if tie is not None:
        tie()  # `to_empty` makes a new parameter in every place, so tied ones are tied no longer
    source = {} if whole is None else {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for name, value in [*shell.named_parameters(), *shell.named_buffers()]:
        content = source[name].detach().to(value.dtype) if source else torch.empty_like(value, device="meta")
        value.copy_(_scatter_like(content, value, group) if isinstance(value, DTensor) else group.broadcast(content))


def shard(model: CausalModel, group: RankGroup, dtype: torch.dtype, *, offload: bool) -> None:
    """Shard a model by FSDP2, one unit per layer (Zhao et al. 2023, arXiv 2304.11277).

    Args:
        model: a transformers model, in place.
        group: the rank group.
        dtype: of the computation; shards, reductions and optimizer are float32.
        offload: keep shards, gradients and optimizer state on the CPU between uses.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = _mesh(group)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    offload_policy = CPUOffloadPolicy(pin_memory=group.device.type == "cuda") if offload else OffloadPolicy()
    # Layers first: what they leave (embeddings, norms, output layer) becomes the outermost unit.
    for layer in layers_of(model)[1]:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload_policy)


def split(model: CausalModel, group: RankGroup) -> None:
    """Split a model's layers over the processes by its own tensor-parallel plan (Shoeybi et al. 2019).

    Embeddings and norms are whole on every process.

    Raises:
        ConfigError: the model has no plan, or its heads cannot be divided evenly.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    styles: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    styles_by_module = {
        f"{model.base_model_prefix}.{name}": styles[style]() for name, style in plan.items() if style in styles
    }
    if not styles_by_module:
        raise ConfigError(f"A {model.config.model_type} has no tensor-parallel plan: write --parallel fsdp.")
    heads = model.config.get_text_config().num_key_value_heads
    if heads % group.size:
        raise ConfigError(
            f"The model's {heads} key-value heads cannot be shared out over {group.size} processes: start as many as "
            "divide them, or write --parallel fsdp."
        )
    parallelize_module(model, _mesh(group), styles_by_module)


def _mesh(group: RankGroup) -> DeviceMesh:
    return init_device_mesh(group.device.type, (group.size,))
