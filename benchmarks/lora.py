"""What exact LoRA aggregation costs: the factored SVD of a large cohort, and a round's product error."""

from __future__ import annotations

import time

import torch
from common import machine, report

from weft.core import lowrank
from weft.core.lowrank import Product
from weft.core.types import DELTA, Update
from weft.federation.products import Products

CLIENTS, RANK, SIZE, MATRICES = 50, 16, 4096, 32


def cohort(seed: int) -> Product:
    """Return the stacked factors of a cohort for one matrix."""
    random = torch.Generator().manual_seed(seed)
    parts = [
        Product(torch.randn(SIZE, RANK, generator=random), torch.randn(RANK, SIZE, generator=random))
        for _ in range(CLIENTS)
    ]
    return lowrank.total(parts, [1 / CLIENTS] * CLIENTS)


def factored_svd() -> float:
    """Return the seconds of the best rank-16 factors of 50 clients on 32 matrices of 4096 x 4096."""
    product = cohort(0)
    lowrank.truncate(product, RANK)
    taken = 0.0
    for number in range(MATRICES):
        product = cohort(number)
        began = time.perf_counter()
        lowrank.truncate(product, RANK)
        taken += time.perf_counter() - began
    return taken


def product_error(clients: int) -> tuple[float, float]:
    """Return the seconds that the product error of a cohort takes, and those of its average, for 32 matrices."""
    random = torch.Generator().manual_seed(0)
    base = {}
    for number in range(MATRICES):
        base[f"m{number}.lora_A.default.weight"] = torch.randn(RANK, SIZE, generator=random)
        base[f"m{number}.lora_B.default.weight"] = torch.randn(SIZE, RANK, generator=random)
    delta = {name: torch.randn(value.shape, generator=random) * 1e-3 for name, value in base.items()}
    updates = [Update(str(n), 0, 0, {DELTA: delta}, 1.0) for n in range(clients)]
    from weft.aggregation.mean import Mean

    began = time.perf_counter()
    Mean().combine(updates)
    average = time.perf_counter() - began
    began = time.perf_counter()
    products = Products(2.0, {}, exact=False)
    for _ in products.watch(updates, {update.client: base for update in updates}):
        pass
    products.error(base, {}, {})
    return time.perf_counter() - began, average


def main() -> None:
    """Print the times."""
    torch.set_num_threads(2)
    print(f"# {machine()}")
    seconds = factored_svd()
    report(f"factored SVD, {CLIENTS} clients r={RANK}, {MATRICES} of {SIZE} x {SIZE}", seconds, 15, most=True,
                  unit="s")  # fmt: skip
    for clients in (2, 10, 50):
        error, average = product_error(clients)
        print(f"product error of {clients} clients, the same matrices: {error:.2f} s (their average: {average:.2f} s)")


if __name__ == "__main__":
    main()
