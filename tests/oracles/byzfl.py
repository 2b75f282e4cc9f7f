"""Writes byzfl.json: what byzfl's rules and attacks make of recorded vectors.

    pip install byzfl==0.0.11 torchvision && python tests/oracles/byzfl.py

Its folder is not on the path while this runs, so that `byzfl` is the package and not this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import byzfl  # noqa: E402

SHAPES = {"9 of 2": (9, 2, 12), "11 of 3": (11, 3, 9), "20 of 5": (20, 5, 16)}


def rules(f: int) -> dict[str, object]:
    return {
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f),
        "krum": byzfl.Krum(f),
        "multi_krum": byzfl.MultiKrum(f),
        "geometric_median": byzfl.GeometricMedian(nu=1e-9, T=3000),
        "centered_clipping": byzfl.CenteredClipping(L=3, tau=2.0),
        "norm_clipping": lambda vectors: byzfl.Average()(byzfl.Clipping(c=2.0)(vectors.copy())),
    }


def buckets(vectors: np.ndarray, size: int) -> dict[str, object]:
    """Return what Bucketing makes of the vectors, and the order that it draws: here of the same seed once more."""
    np.random.seed(size)
    order = np.random.permutation(len(vectors))
    np.random.seed(size)
    return {"size": size, "order": order.tolist(), "means": byzfl.Bucketing(size)(vectors.copy()).tolist()}


def main() -> None:
    rng = np.random.default_rng(0)
    found = []
    for name, (n, f, d) in SHAPES.items():
        honest = rng.normal(0.3, 1.0, (n - f, d)) * np.geomspace(0.01, 3, d)
        vectors = np.concatenate([honest, rng.normal(4.0, 2.0, (f, d))])[rng.permutation(n)]
        after = {rule: made(vectors.copy()).tolist() for rule, made in rules(f).items()}
        nearest = byzfl.NNM(f)(vectors.copy())
        after |= {f"nnm {rule}": made(nearest.copy()).tolist() for rule, made in rules(f).items()}
        attacks = {
            "sign_flip": byzfl.SignFlipping()(honest),
            "inner_product": byzfl.InnerProductManipulation(tau=0.5)(honest),
            "alie": byzfl.ALittleIsEnough(tau=-1.5)(honest),
            "mimic": byzfl.Mimic(epsilon=1)(honest),
        }
        found.append(
            {
                "name": name,
                "f": f,
                "vectors": vectors.tolist(),
                "after": after,
                "honest": honest.tolist(),
                "buckets": buckets(vectors, 2 if n % 2 else 3),
                "attacks": {attack: vector.tolist() for attack, vector in attacks.items()},
            }
        )
    (HERE / "byzfl.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
