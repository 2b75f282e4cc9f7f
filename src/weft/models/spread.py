"""A model whose parameters are spread over processes: sharded (FSDP2), or split within layers (tensor parallelism).

Both leave a model of DTensors. Values come and go tensor by tensor through the leader, so that no other process ever
holds the whole model. On the others, what is gathered are tensors without content (meta), so that the same code runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel
from weft.core.types import Streams, Tensors
from weft.errors import ConfigError
from weft.models.group import RankGroup
from weft.models.resident import Resident, RowT


class SpreadModel(Resident):
    """A resident model in several processes; with `splits_batch` each computes a part of every micro-batch."""

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
        """Fill a distributed shell, whose tensors are on the meta device, with the leader's whole model.

        Args:
            whole: the model with its weights, at the leader; elsewhere None.
            shell: the same model, sharded or split.
            writable: the same model, without content, to be saved with what is gathered.
            tokenizer: of the model.
            group: of processes.
            dtype: of the arithmetic; masters are float32.
            splits_batch: rows of a micro-batch are shared out over the processes.
        """
        self.group, self.splits_batch = group, splits_batch
        _fill(shell, whole, group)
        # FSDP rounds by itself on the way to a layer.
        super().__init__(shell, tokenizer, group.device, torch.float32 if splits_batch else dtype)
        self.dtype, self.writable = dtype, writable
        source = dict((writable if whole is None else whole).named_parameters())
        self.load({name: source[name].detach() for name in self.masters})  # without the rounding of a copy
        if splits_batch:
            self.loss_scale = float(group.size)  # FSDP averages gradients; the loss is a sum over all rows

    @torch.no_grad()
    def load(self, values: Tensors) -> None:
        """Put values, which only the leader has, into the shards."""
        for module in self.base.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # or the next pass would go on with what the last one had gathered
        for name, value in values.items():
            self.masters[name].copy_(self._placed(name, value))
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Round the masters into the model."""
        for name in self._rounded:
            self.params[name].copy_(self.masters[name])

    @torch.no_grad()
    def values(self) -> Tensors:
        """Return float32 copies of what is trained: at the leader whole and on the CPU, elsewhere without content."""
        return {name: self._fetched(master.detach()) for name, master in self.masters.items()}

    def deal(self, moments: Streams) -> Streams:
        """Return the leader's moments as they belong to the shards."""
        return {key: {n: self._placed(n, v) for n, v in values.items()} for key, values in moments.items()}

    def gather(self, moments: Streams) -> Streams:
        """Bring the moments of all processes to the leader."""
        return {key: {name: self._fetched(value) for name, value in values.items()} for key, values in moments.items()}

    def _placed(self, name: str, value: Tensor) -> Tensor:
        """Return a value of the leader as the shard of a parameter; single numbers whole."""
        master = self.masters[name]
        if value.dim() and isinstance(master, DTensor):
            return _dealt(value, master, self.group)
        return self.group.spread(value)

    def _fetched(self, value: Tensor) -> Tensor:
        """Return a shard as the whole tensor: on the leader's CPU, elsewhere without content."""
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.to("cpu", copy=True) if self.group.leads else torch.empty_like(full, device="meta")

    def own_part(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Return this process's rows of a micro-batch."""
        return rows[self.group.rank :: self.group.size] if self.splits_batch else rows

    def total(self, numbers: list[float]) -> list[float]:
        """Return sums over the processes, where each has its own rows."""
        return self.group.total(numbers) if self.splits_batch else numbers

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Clip the gradients to a norm over all processes."""
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        local = [_local(grad) for grad in grads]
        squares = [
            sum(
                float(one.double().square().sum())
                for one, grad in zip(local, grads, strict=True)
                if _split(grad) is part
            )
            for part in (True, False)
        ]
        norm = (self.group.total([squares[0]])[0] + squares[1]) ** 0.5
        if norm > most:
            torch._foreach_mul_(local, most / (norm + 1e-6))

    @torch.no_grad()
    def finite(self) -> bool:
        """Say whether no parameter of any process is NaN or infinite."""
        bad = sum(not bool(torch.isfinite(_local(master)).all()) for master in self.masters.values())
        return self.group.total([float(bad)])[0] == 0


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _split(value: Tensor) -> bool:
    return isinstance(value, DTensor) and any(isinstance(place, Shard) for place in value.placements)


def _dealt(value: Tensor, like: DTensor, group: RankGroup) -> Tensor:
    """Scatter a whole tensor of the leader as another is placed."""
    there = like.to_local().device
    full = value.to(group.device) if group.leads else torch.empty(like.shape, dtype=value.dtype, device=group.device)
    made = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=0)
    return made if there == group.device else made.to(there)


@torch.no_grad()
def _fill(shell: nn.Module, whole: nn.Module | None, group: RankGroup) -> None:
    """Give the tensors of a shell memory, and the values of the leader's model."""
    shell.to_empty(device=group.device)
    tie = getattr(shell, "tie_weights", None)
    if tie is not None:
        tie()
    source = {} if whole is None else {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for name, value in [*shell.named_parameters(), *shell.named_buffers()]:
        given = source[name].detach().to(value.dtype) if source else torch.empty_like(value, device="meta")
        value.copy_(_dealt(given, value, group) if isinstance(value, DTensor) else group.spread(given))


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a model's blocks: the longest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError("The model has no list of layers to share out over processes: write --parallel none.")
    return max(lists, key=lambda one: len(one[1]))


def shard(model: CausalModel, group: RankGroup, dtype: torch.dtype, *, offload: bool) -> None:
    """Shard a model by FSDP2, layer by layer (Zhao et al. 2023, arXiv 2304.11277).

    Args:
        model: a transformers model, in place.
        group: of processes.
        dtype: of the arithmetic; shards, reductions and optimizer are float32.
        offload: shards, gradients and moments are on the CPU between their uses.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = _mesh(group)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    away = CPUOffloadPolicy(pin_memory=group.device.type == "cuda") if offload else OffloadPolicy()
    for layer in layers_of(model)[1]:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=away)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=away)


def split(model: CausalModel, group: RankGroup) -> None:
    """Split the layers of a model over the processes, as its own tensor-parallel plan says (Shoeybi et al. 2019).

    Embeddings and norms are whole on every process.

    Raises:
        ConfigError: a model without a plan, or heads that cannot be shared out evenly.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    styles: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    known = {f"{model.base_model_prefix}.{name}": styles[how]() for name, how in plan.items() if how in styles}
    if not known:
        raise ConfigError(f"A {model.config.model_type} has no tensor-parallel plan: write --parallel fsdp.")
    heads = model.config.get_text_config().num_key_value_heads
    if heads % group.size:
        raise ConfigError(
            f"The model's {heads} key-value heads cannot be shared out over {group.size} processes: start as many as "
            "divide them, or write --parallel fsdp."
        )
    parallelize_module(model, _mesh(group), known)


def _mesh(group: RankGroup) -> DeviceMesh:
    return init_device_mesh(group.device.type, (group.size,))
