"""Topics without a model: hashed TF-IDF vectors and k-means."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from weft.core.seeds import generator

BUCKETS = 1024
WORD = re.compile(r"\w{3,}")


def cluster_texts(texts: Sequence[str], clusters: int, *, seed: int, rounds: int = 20) -> np.ndarray:
    """Return (texts,): the cluster of each, by spherical k-means with k-means++ seeds.

    Args:
        texts: any.
        clusters: how many; fewer if there are fewer distinct texts.
        seed: of the first centres.
        rounds: of k-means at most.
    """
    vectors = tf_idf(texts)
    centres = _first_centres(vectors, clusters, seed)
    assignment = np.zeros(len(texts), dtype=np.int64)
    for _ in range(rounds):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if (nearest == assignment).all():
            break
        assignment = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, assignment, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    return assignment


def tf_idf(texts: Sequence[str]) -> np.ndarray:
    """Return (texts, BUCKETS) float32 of length 1: (1 + log count) log(n / rows with it), words hashed by CRC-32."""
    counts = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    places: dict[str, int] = {}
    for row, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            place = places.get(word)
            if place is None:
                place = places[word] = zlib.crc32(word.encode()) % BUCKETS
            counts[row, place] += 1
    present = (counts > 0).sum(axis=0)
    rarity = np.log((1 + len(texts)) / (1 + present)).astype(np.float32)
    weights: np.ndarray = np.log1p(counts) * rarity
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    return weights


def _first_centres(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Choose rows far from each other (Arthur and Vassilvitskii 2007)."""
    random = generator(seed, "topics")
    centres = [int(random.integers(len(vectors)))]
    distances = 1 - vectors @ vectors[centres[0]]  # of unit vectors: half of the squared distance
    while len(centres) < clusters:
        chances = np.maximum(distances, 0) ** 2
        if chances.sum() <= 0:
            break
        centres.append(int(random.choice(len(vectors), p=chances / chances.sum())))
        distances = np.minimum(distances, 1 - vectors @ vectors[centres[-1]])
    return vectors[centres]
