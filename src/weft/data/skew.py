"""Measures of how much clients differ in labels, sizes and lengths of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.json_types import JsonObject


def describe_split(
    names: Sequence[str],
    rows: Sequence[np.ndarray],
    lengths: np.ndarray,
    labels: Sequence[str] | None,
    others: int = 12,
) -> JsonObject:
    """Describe the rows of each client, and measure how much the clients differ.

    Args:
        names: of the clients.
        rows: the numbers of each client's rows.
        lengths: (all rows,) tokens of each.
        labels: of all rows, or None where they have none.
        others: labels beyond so many, the rarest, are counted together.

    Returns:
        `clients`: by name rows, tokens (the 10 %, 50 % and 90 % quantiles) and counts of labels.
        `skew`: `label_js` (the mean of the clients' Jensen-Shannon divergences from all rows, in bits, 0 to 1),
        `size_gini` (0 to 1), `length_ks` (the mean Kolmogorov-Smirnov distance of the clients' lengths from all), and
        the most of any client, `label_js_max` and `length_ks_max`.
    """
    everything = np.concatenate(rows)
    sorted_lengths = np.sort(lengths[everything])
    clients: dict[str, JsonObject] = {
        name: {
            "rows": len(client_rows),
            "tokens": [float(q) for q in np.quantile(lengths[client_rows], (0.1, 0.5, 0.9))],
        }
        for name, client_rows in zip(names, rows, strict=True)
    }
    skew: dict[str, float] = {"size_gini": gini(np.array([len(client_rows) for client_rows in rows]))}
    distances = [ks_distance(np.sort(lengths[client_rows]), sorted_lengths) for client_rows in rows if len(client_rows)]
    skew |= {"length_ks": float(np.mean(distances)), "length_ks_max": float(np.max(distances))}
    description: JsonObject = {"clients": clients, "skew": skew}
    if labels is not None:
        values, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
        counts = np.stack([np.bincount(codes[client_rows], minlength=len(values)) for client_rows in rows])
        totals = counts.sum(axis=0)
        divergences = [js_divergence(label_counts, totals) for label_counts in counts if label_counts.sum()]
        skew |= {"label_js": float(np.mean(divergences)), "label_js_max": float(np.max(divergences))}
        order = np.argsort(-totals, kind="stable")
        frequent, rare = order[:others], order[others:]
        description["labels"] = [str(values[code]) for code in frequent] + (["(others)"] if len(rare) else [])
        for name, label_counts in zip(names, counts, strict=True):
            clients[name]["labels"] = [int(label_counts[code]) for code in frequent] + (
                [int(label_counts[rare].sum())] if len(rare) else []
            )
    return description


def js_divergence(left: np.ndarray, right: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two counts, in bits: 0 for equal shares, 1 for nothing in common."""
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    return float((_relative(p, middle) + _relative(q, middle)) / 2)


def _relative(p: np.ndarray, q: np.ndarray) -> float:
    support = p > 0  # 0 log 0 is 0
    return float((p[support] * np.log2(p[support] / q[support])).sum())


def gini(sizes: np.ndarray) -> float:
    """Return the Gini coefficient of sizes: 0 where all are equal, towards 1 where one has everything."""
    ordered = np.sort(sizes.astype(np.float64))
    if ordered.sum() == 0:
        return 0.0
    count = len(ordered)
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))


def ks_distance(left: np.ndarray, right: np.ndarray) -> float:
    """Return the greatest difference of two empirical distribution functions; both sorted."""
    points = np.unique(np.concatenate([left, right]))
    of_left = np.searchsorted(left, points, side="right") / len(left)
    of_right = np.searchsorted(right, points, side="right") / len(right)
    return float(np.abs(of_left - of_right).max())
