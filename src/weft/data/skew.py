"""Measures of how much clients differ in labels, sizes and lengths of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

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
    sizes = np.array([len(client_rows) for client_rows in rows], dtype=np.int64)
    everything = np.concatenate(rows).astype(np.int64)
    quantiles, distances = _lengths(lengths[everything], sizes)
    clients: dict[str, JsonObject] = {
        name: {"rows": int(size), "tokens": tokens}
        for name, size, tokens in zip(names, sizes, quantiles.tolist(), strict=True)
    }
    skew: dict[str, float] = {"size_gini": gini(sizes)}
    distances = distances[sizes > 0]
    skew |= {"length_ks": float(np.mean(distances)), "length_ks_max": float(np.max(distances))}
    description: JsonObject = {"clients": clients, "skew": skew}
    if labels is not None:
        values, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
        counts = _counts(codes[everything], sizes)
        totals = np.bincount(codes[everything], minlength=len(values))
        divergences = _divergences(counts, totals, sizes)[sizes > 0]
        skew |= {"label_js": float(np.mean(divergences)), "label_js_max": float(np.max(divergences))}
        order = np.argsort(-totals, kind="stable")
        frequent, rare = order[:others], order[others:]
        description["labels"] = [str(values[code]) for code in frequent] + (["(others)"] if len(rare) else [])
        table = np.zeros((len(sizes), len(description["labels"])), dtype=np.int64)
        column = np.full(len(values), len(frequent))
        column[frequent] = np.arange(len(frequent))
        np.add.at(table, (counts.clients, column[counts.codes]), counts.numbers)
        for name, label_counts in zip(names, table.tolist(), strict=True):
            clients[name]["labels"] = label_counts
    return description


def split_text(split: JsonObject) -> str:
    """Return the description of a split as JSON with a line for each client.

    By itself `json` would write each number on a line of its own, and take ten times as long for 100,000 clients.
    """
    encode = json.JSONEncoder().encode
    lines = []
    for key, value in split.items():
        line = encode({key: value})[1:-1]
        if key == "clients" and value:
            entries = (encode({name: entry})[1:-1] for name, entry in value.items())
            line = f"{encode(key)}: {{\n  " + ",\n  ".join(entries) + "\n }"
        lines.append(line)
    return "{\n " + ",\n ".join(lines) + "\n}\n"


class _Counts(NamedTuple):
    """How often clients have labels, without the zeros: three arrays of the same length, clients in order."""

    clients: np.ndarray
    codes: np.ndarray
    numbers: np.ndarray


def _lengths(lengths: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the quantiles (clients, 3) of each client's lengths and their distance (clients,) from all lengths.

    One sort serves all clients: a loop over 100,000 of them would take minutes.

    Args:
        lengths: (all rows,) of the rows of the first client, of the second, ...
        sizes: (clients,) numbers of rows.
    """
    owner = np.repeat(np.arange(len(sizes)), sizes)
    values = lengths[np.lexsort((lengths, owner))]
    ends = np.cumsum(sizes)
    begins = ends - sizes
    quantiles = np.stack([_quantile(values, begins, sizes, share) for share in (0.1, 0.5, 0.9)], axis=1)
    everything = np.sort(lengths)
    # Both functions are compared where the client's own one jumps, before and after each jump: between two jumps it is
    # constant and that of all rows rises, so that no difference there is larger.
    place = np.arange(len(values)) - begins[owner]
    jumps = np.concatenate([[True], (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])])
    is_last = np.concatenate([jumps[1:], [True]])
    after = np.searchsorted(everything, values, side="right") / len(everything)
    before = np.searchsorted(everything, values, side="left") / len(everything)
    upper = np.where(is_last, np.abs((place + 1) / sizes[owner] - after), 0.0)
    lower = np.where(jumps, np.abs(place / sizes[owner] - before), 0.0)
    distances = np.zeros(len(sizes))
    np.maximum.at(distances, owner, np.maximum(upper, lower))
    return quantiles, distances


def _quantile(values: np.ndarray, begins: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Return the quantile (clients,) of each client's sorted values, as `np.quantile` interpolates; NaN for none."""
    if not len(values):
        return np.full(len(sizes), np.nan)
    position = share * np.maximum(sizes - 1, 0)
    below = np.floor(position).astype(np.int64)
    part = position - below
    last = len(values) - 1
    left = values[np.minimum(begins + below, last)].astype(np.float64)
    right = values[np.minimum(begins + np.minimum(below + 1, np.maximum(sizes - 1, 0)), last)].astype(np.float64)
    step = right - left
    found = np.where(part >= 0.5, right - step * (1 - part), left + step * part)
    return np.where(sizes > 0, found, np.nan)


def _counts(codes: np.ndarray, sizes: np.ndarray) -> _Counts:
    """Return how often each client has each label; `codes` are those of the first client's rows, the second's, ..."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    width = int(codes.max(initial=0)) + 1
    pairs, numbers = np.unique(owner * width + codes, return_counts=True)
    return _Counts(pairs // width, pairs % width, numbers)


def _divergences(counts: _Counts, totals: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence (clients,) of each client's labels from all labels, in bits.

    Only labels that a client has are visited: of the others, each adds half of its share in all rows.
    """
    p = counts.numbers / sizes[counts.clients]
    q = (totals / totals.sum())[counts.codes]
    middle = (p + q) / 2
    terms = p * np.log2(p / middle) + q * np.log2(q / middle) - q
    return (1.0 + np.bincount(counts.clients, weights=terms, minlength=len(sizes))) / 2


def gini(sizes: np.ndarray) -> float:
    """Return the Gini coefficient of sizes: 0 where all are equal, towards 1 where one has everything."""
    ordered = np.sort(sizes.astype(np.float64))
    if ordered.sum() == 0:
        return 0.0
    count = len(ordered)
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))
