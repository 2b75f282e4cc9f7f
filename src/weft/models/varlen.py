"""Attention over rows that lie on one line, without a mask: variable-length attention.

A mask of L x L costs memory and keeps flash attention away. With the offsets of the rows in the line the kernel
computes each row's own triangle alone, and grouped key and value heads are not repeated. transformers hands the offsets
through to its attention functions under the names that its flash attention uses, also where activations are recomputed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.model_types import CausalModel

NAME = "weft_varlen"
"""Name of the attention function among those of transformers."""
CUDA_TYPES = (torch.bfloat16, torch.float16)
"""Number formats that flash attention computes in."""


class Unsupported(NotImplementedError):
    """The model asks for something that this attention does not compute; the probe then chooses masks."""


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None, int], Tensor]
"""(query, key, value, offsets, longest row, scale, window) -> output; see `by_row` for shapes."""


def by_row(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float | None, window: int
) -> Tensor:
    """Compute each row by itself with torch's attention: what the kernels are compared with, on any device.

    Args:
        query: (T, H, D) of the positions of all rows, one row after the other.
        key: (T, K, D), where K divides H.
        value: (T, K, D).
        offsets: (R + 1,) int32: where each row begins, and the end of the last.
        longest: length of the longest row.
        scale: factor of the products; None: 1 / sqrt(D).
        window: positions that a position attends to, itself included; 0: all earlier ones.

    Returns:
        (T, H, D).
    """
    lengths = offsets.diff().tolist()
    if key.shape[1] != query.shape[1]:
        copies = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(copies, dim=1) for part in (key, value))
    # Slices would make a gradient of the whole line for each row; a split makes one for all.
    split = (torch.split(part.transpose(0, 1)[None], lengths, dim=2) for part in (query, key, value))
    outputs = []
    for q, k, v in zip(*split, strict=True):
        length = q.shape[2]
        causal = window <= 0 or length <= window
        mask = None if causal else _window(length, window, query.device)
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1)[0]


SHORT = 512
"""Rows up to this length are computed in float32 on CPUs: there torch's attention in 16 bits has a backward pass of
small products, two to three times slower than in float32 for rows of 150 positions, and as fast at 512."""


def _cpu_kernel(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float | None, window: int
) -> Tensor:
    if longest > SHORT:
        return by_row(query, key, value, offsets, longest, scale, window)
    out = by_row(query.float(), key.float(), value.float(), offsets, longest, scale, window)
    return out.to(query.dtype)


def _window(length: int, window: int, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def _sides(window: int) -> tuple[int, int]:
    """Return a window as the kernels take it: positions before and after; -1 is all of them."""
    return (window - 1, 0) if window > 0 else (-1, 0)


def _torch_kernel(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float | None, window: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    settings: dict[str, Any] = {
        "scale": scale,
        "window_size": _sides(window),
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    out = varlen_attn(query, key, value, offsets, offsets, longest, longest, **settings)
    assert isinstance(out, Tensor)
    return out


def _flash_kernel(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float | None, window: int
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    settings: dict[str, Any] = {"softmax_scale": scale, "window_size": _sides(window), "causal": True}
    out: Tensor = flash_attn_varlen_func(query, key, value, offsets, offsets, longest, longest, **settings)
    return out


@functools.cache
def kernel_for(device_type: str) -> Kernel | None:
    """Return the kernel of a kind of device: torch's own, else that of flash-attn; None: there is none."""
    if device_type == "cpu":
        return _cpu_kernel
    if device_type != "cuda":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        try:
            import flash_attn  # noqa: F401
        except ImportError:
            return None
        return _flash_kernel
    return _torch_kernel


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute a layer's attention: by offsets if there are any, else as transformers' "sdpa" does.

    Args:
        module: the attention layer.
        query: (B, H, L, D); with offsets B is 1.
        key: (B, K, L, D).
        value: (B, K, L, D).
        attention_mask: ignored with offsets.
        scaling: factor of the products.
        dropout: of the attention's weights.
        sliding_window: positions that a position attends to; None: all earlier ones.
        softcap: bound of the products by tanh, which is not computed here.
        cu_seq_lens_q: (R + 1,) int32, the offsets of the rows in the line.
        max_length_q: length of the longest row.
        kwargs: what else the architecture passes.

    Returns:
        (B, L, H, D), and None for the weights.

    Raises:
        Unsupported: dropout in the attention, soft caps, or sinks, with offsets.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        passed = kwargs | {"sliding_window": sliding_window, "softcap": softcap}
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **passed
        )
        return out
    if dropout or softcap or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise Unsupported("attention with dropout, soft caps, sinks or biases")
    assert max_length_q is not None
    kernel = kernel_for(query.device.type) or by_row
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if query.is_cuda:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window or 0)[None], None


def use(model: CausalModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Make a model compute by `attention` where its device has a kernel; return whether it does."""
    if kernel_for(device.type) is None or (device.type != "cpu" and dtype not in CUDA_TYPES):
        return False
    return install(model)


def install(model: CausalModel) -> bool:
    """Make a model compute by `attention`; False: it has no exchangeable attention, or drops attention weights."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    config = model.config
    if getattr(config, "_attn_implementation", None) == NAME:
        return True
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    text = config.get_text_config()
    if any(getattr(text, name, 0) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")):
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, TypeError, AttributeError):
        return False
    return getattr(config, "_attn_implementation", None) == NAME


def arguments(offsets: Tensor, longest: int) -> dict[str, object]:
    """Return the arguments of a model's forward pass that carry the offsets to `attention`.

    The mask of four dimensions is ignored there; it keeps transformers from making one, and from looking for the rows
    in the positions, for which the device and the CPU would have to wait for each other.
    """
    return {
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=offsets.device),
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def remove(model: CausalModel) -> None:
    """Make a model compute by transformers' "sdpa" again."""
    model.set_attn_implementation("sdpa")
