"""Arithmetic on tensors by name. All functions keep the order of names of their first argument."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from weft.core.types import Streams, Tensors


def subtract(left: Tensors, right: Tensors) -> Tensors:
    """Return left - right, name by name."""
    values = torch._foreach_sub(list(left.values()), [right[name] for name in left])
    return dict(zip(left, values, strict=True))


def add(left: Tensors, right: Tensors, scale: float = 1.0) -> Tensors:
    """Return left + scale * right, name by name."""
    values = torch._foreach_add(list(left.values()), [right[name] for name in left], alpha=scale)
    return dict(zip(left, values, strict=True))


def copy(values: Tensors, device: torch.device | str | None = None) -> Tensors:
    """Return copies that share no memory with `values`, on `device` if one is given."""
    return {name: value.detach().to(device or value.device, copy=True) for name, value in values.items()}


def lerp_(mean: Tensors, value: Tensors, share: float) -> None:
    """Move `mean` in place towards `value` by `share` of the way; a share of 1 copies the value exactly."""
    if share == 1.0:
        torch._foreach_copy_(list(mean.values()), [value[name] for name in mean])
    else:
        torch._foreach_lerp_(list(mean.values()), [value[name] for name in mean], share)


def seed_used_devices(seed: int) -> None:
    """Seed torch's generators of the CPU and of every GPU in use; for a model that is on its device already.

    `torch.manual_seed` does so too, and for each kind of device that is not in use it stores a call for later with a
    formatted traceback: some milliseconds in every client's turn, half of the time of a small one.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def num_bytes(values: Tensors | Streams) -> int:
    """Return the bytes that the tensors hold, without any header."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, Tensor) else num_bytes(value)
        for value in values.values()
    )


def largest(values: Tensors) -> float:
    """Return the largest absolute value of all elements; NaN or infinite if one is, 0 for tensors without content."""
    numbers = [value.detach() for value in values.values() if value.is_floating_point() and not value.is_meta]
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in numbers:
        if value.numel():
            by_device.setdefault(value.device, []).append(value)
    found = [_largest(group, device) for device, group in by_device.items()]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def _largest(values: list[Tensor], device: torch.device) -> float:
    """Return the largest absolute value of tensors on one device, which is waited for once."""
    # float64 only where a tensor has it: not every device does.
    wide = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    if device.type == "cuda":
        # One kernel for all tensors; the maximum norm of a tensor is finite exactly if all its elements are.
        return float(torch.stack([norm.to(wide) for norm in torch._foreach_norm(values, float("inf"))]).max())
    # On CPUs a tenth of the time of the norm. A NaN is both the least and the largest element.
    least, most = zip(*map(torch.aminmax, values), strict=True)
    ends = [-torch.stack([value.to(wide) for value in least]), torch.stack([value.to(wide) for value in most])]
    return float(torch.cat(ends).max())


def all_finite(values: Tensors) -> bool:
    """Say whether no element is NaN or infinite; tensors without content have none."""
    return math.isfinite(largest(values))


def zeros(like: Tensors) -> Tensors:
    """Return zeros of the same names, shapes, dtypes and devices."""
    return {name: torch.zeros_like(value) for name, value in like.items()}


def scale(values: Tensors, factor: float) -> Tensors:
    """Return factor * values, name by name."""
    return dict(zip(values, torch._foreach_mul(list(values.values()), factor), strict=True))


def squared_norm(values: Tensors) -> float:
    """Return the sum of the squares of all elements."""
    return sum(float(value.double().square().sum()) for value in values.values())


def pull_(params: Tensors, anchor: Tensors, share: float) -> None:
    """Move parameters in place by `share` of their way to the anchor."""
    for name, value in params.items():
        value.sub_(value - anchor[name], alpha=share)


def digest(streams: Mapping[str, Tensors]) -> str:
    """Return a digest of tensors, their names and number formats."""
    sponge = hashlib.blake2b(digest_size=16)
    soak(sponge.update, streams)
    return sponge.hexdigest()


def soak(feed: Callable[[bytes | memoryview], None], streams: Mapping[str, Tensors]) -> None:
    """Feed tensors, their names and number formats to a hash, by its `update`."""
    for name, values in sorted(streams.items()):
        for key, value in sorted(values.items()):
            feed(f"{name} {key} {value.dtype} {tuple(value.shape)}\n".encode("utf-8", "surrogatepass"))
            feed(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
