"""Matrices in factors: W = B A with B (d, R) and A (R, k), never multiplied out.

One routine, a QR of both factors and a small SVD between them, gives the best factors of a rank, in O((d + k) R^2 +
R^3); norms, and with them the distance of two products, need no more than the factors' Gram matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weft.core.seeds import derive
from weft.core.types import Tensors

FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>[ABR])\.(?P<adapter>\w+)\.weight")
LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")
"""A layer's number in a parameter's name: the first part that is a number."""
SIDE_A, SIDE_B = ".side_A", ".side_B"
PERSONAL = "personal"
"""The name of the adapter that never leaves its client."""


class Product(NamedTuple):
    """The matrix b @ a."""

    b: Tensor
    """(d, R)"""
    a: Tensor
    """(R, k)"""


def kind_of(name: str) -> str:
    """Return "A", "B" or "R" for a parameter that is a factor of a LoRA, else ""."""
    match = FACTOR.fullmatch(name)
    return match["kind"] if match else ""


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to, None where it belongs to none."""
    match = LAYER.search(name)
    return int(match[1]) if match else None


def modules(names: Iterable[str], adapter: str = "default") -> dict[str, dict[str, str]]:
    """Return for every module with a LoRA the parameter names of its factors by kind."""
    names_of: dict[str, dict[str, str]] = {}
    for name in names:
        match = FACTOR.fullmatch(name)
        if match and match["adapter"] == adapter:
            names_of.setdefault(match["module"], {})[match["kind"]] = name
    return names_of


def product_of(params: Mapping[str, Tensor], factors: Mapping[str, str], scale: float) -> Product:
    """Return scale * B (R) A of one module; `factors` names them by kind."""
    b, a = params[factors["B"]], params[factors["A"]]
    if "R" in factors:
        b = b @ params[factors["R"]]
    return Product(b * scale, a)


def total(products: Sequence[Product], weights: Sequence[float] | None = None) -> Product:
    """Return the weighted sum of products as one product, whose rank is the sum of theirs."""
    weights = weights or [1.0] * len(products)
    b = torch.cat([product.b * weight for product, weight in zip(products, weights, strict=True)], dim=1)
    return Product(b, torch.cat([product.a for product in products], dim=0))


def norm(product: Product) -> float:
    """Return the Frobenius norm of b @ a, from the Gram matrices of its factors: ||B A||^2 = <B^T B, A A^T>.

    In float64, cancellation leaves an error of about 1e-8 of the largest term, below the precision of float32 factors.
    """
    b, a = product.b.double(), product.a.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def truncate(product: Product, rank: int | None = None) -> Product:
    """Return the best approximation of a rank in balanced factors: B = U S^1/2, A = S^1/2 V^T, by falling S.

    Args:
        product: the matrix to approximate.
        rank: of the result, padded with zeros where the product has a smaller one. None: the product's own numerical
            rank, so that only rounding is lost.
    """
    if rank is None:
        # A side adapter without a rank bound is truncated in every round: in float64, so that rounding does not add up.
        result = _truncate(Product(product.b.double(), product.a.double()), None, product.b.dtype)
        return Product(result.b.to(product.b.dtype), result.a.to(product.a.dtype))
    return _truncate(product, rank, product.b.dtype)


def _truncate(product: Product, rank: int | None, dtype: torch.dtype) -> Product:
    left, right, core = _core(product)
    # float64 costs little on the small matrix, and preserves the precision of float32 factors.
    u, s, vt = torch.linalg.svd(core.double(), full_matrices=False) if rank is None else _leading(core.double(), rank)
    if rank is None:
        limit = min(product.b.shape[0], product.a.shape[1])
        count = int((s > s[:1] * torch.finfo(dtype).eps).sum()) if s.numel() else 0
        width = count = min(count, limit)
    else:
        width, count = rank, min(rank, s.numel())
    # Balanced factors: both get the square root of S, so that their gradients have similar scales.
    root = s[:count].sqrt()
    b = _times(left, (u[:, :count] * root).to(product.b.dtype), product.b.shape[0])
    a = _times(right, (vt[:count].T * root).to(product.a.dtype), product.a.shape[1]).T
    if count < width:
        b = torch.nn.functional.pad(b, (0, width - count))
        a = torch.nn.functional.pad(a, (0, 0, 0, width - count))
    return Product(b.contiguous(), a.contiguous())


def _leading(core: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V^T of the largest singular values, in less than half of the time of a whole SVD.

    The eigenvectors of core^T core are V. Squares lose values below 1e-8 of the largest, which is below what float32
    factors tell; U S is core V itself, so that nothing is divided by a square root of rounding.
    """
    wide = core.shape[0] < core.shape[1]
    tall = core.T if wide else core
    vectors = torch.linalg.eigh(tall.T @ tall).eigenvectors.flip(1)[:, :rank]
    images = tall @ vectors
    s = torch.linalg.vector_norm(images, dim=0)
    units = images / s.clamp(min=torch.finfo(s.dtype).tiny)
    return (vectors, s, units.T) if wide else (units, s, vectors.T)


class _Reflectors(NamedTuple):
    """A QR's orthogonal factor as Householder reflectors: forming Q costs more than its product with few columns."""

    values: Tensor
    tau: Tensor


def _core(product: Product) -> tuple[_Reflectors, _Reflectors, Tensor]:
    """Return Q_B, Q_A and R_B R_A^T, so that b @ a = Q_B (R_B R_A^T) Q_A^T."""
    left, right = torch.geqrf(product.b), torch.geqrf(product.a.T.contiguous())
    r_b = left.a[: min(left.a.shape)].triu()
    r_a = right.a[: min(right.a.shape)].triu()
    return _Reflectors(*left), _Reflectors(*right), r_b @ r_a.T


def _times(q: _Reflectors, columns: Tensor, rows: int) -> Tensor:
    """Return Q @ columns, (rows, n)."""
    tall = torch.nn.functional.pad(columns, (0, 0, 0, rows - columns.shape[0]))
    return torch.ormqr(q.values, q.tau, tall)


def side_products(side: Mapping[str, Tensor]) -> dict[str, Product]:
    """Return the products of a side adapter by module."""
    return {
        name.removesuffix(SIDE_A): Product(side[name.removesuffix(SIDE_A) + SIDE_B], value)
        for name, value in side.items()
        if name.endswith(SIDE_A)
    }


def side_tensors(products: Mapping[str, Product]) -> dict[str, Tensor]:
    """Return the products as a side adapter's tensors."""
    values: dict[str, Tensor] = {}
    for module, (b, a) in products.items():
        values |= {module + SIDE_A: a, module + SIDE_B: b}
    return values


def fresh(params: Tensors, seed: int, round: int) -> Tensors:
    """Return the parameters of a newly initialised LoRA for this round: every B zero, every A random.

    A is Kaiming uniform with a = sqrt 5, that is uniform within 1 / sqrt k of 0, as peft initialises it.
    """
    values = dict(params)
    for factors in modules(params).values():
        values[factors["B"]] = torch.zeros_like(values[factors["B"]])
        like = values[factors["A"]]
        random = torch.Generator().manual_seed(derive(seed, "fresh adapter", factors["A"], round))
        bound = like.shape[1] ** -0.5
        values[factors["A"]] = torch.empty_like(like).uniform_(-bound, bound, generator=random)
    return values
