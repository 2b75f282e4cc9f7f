"""Writes flower.json: where Flower's strategies are after each of five rounds.

    pip install flwr==1.42.0 && python tests/oracles/flower.py

Four clients of unequal rows end every round a recorded change away from what they were sent.
"""

from __future__ import annotations

import json
from pathlib import Path

import flwr
import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

ROWS = [3, 10, 1, 26]
ROUNDS = 5
SHAPES = {"w": (2, 3), "b": (3,)}
ADAPTIVE = {"eta": 0.05, "tau": 0.01}
MOMENTA = ADAPTIVE | {"beta_1": 0.8, "beta_2": 0.95}
STRATEGIES = {
    "fedavg": (FedAvg, {}),
    "fedprox": (FedProx, {"proximal_mu": 0.1}),
    "fedavgm": (FedAvgM, {"server_learning_rate": 0.7, "server_momentum": 0.8}),
    "fedadagrad": (FedAdagrad, ADAPTIVE),
    "fedyogi": (FedYogi, MOMENTA),
    "fedadam": (FedAdam, MOMENTA),
}


def main() -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in SHAPES.values()]
    # One coordinate is large and one small, so that tau, the start of v and the signs of Yogi all matter.
    size = [np.geomspace(0.003, 0.3, int(np.prod(shape))).reshape(shape) for shape in SHAPES.values()]
    deltas = [[[rng.normal(size=one.shape) * one for one in size] for _ in ROWS] for _ in range(ROUNDS)]
    found = {}
    for name, (made, how) in STRATEGIES.items():
        begun = {} if name in ("fedavg", "fedprox") else {"initial_parameters": ndarrays_to_parameters(start)}
        strategy = made(**how, **begun)
        now, seen = start, []
        for number, changes in enumerate(deltas):
            results = [
                (
                    None,
                    FitRes(
                        Status(Code.OK, ""),
                        ndarrays_to_parameters([w + d for w, d in zip(now, change, strict=True)]),
                        rows,
                        {},
                    ),
                )
                for rows, change in zip(ROWS, changes, strict=True)
            ]
            parameters, _ = strategy.aggregate_fit(number + 1, results, [])
            now = parameters_to_ndarrays(parameters)
            seen.append(named(now))
        found[name] = {"how": how, "after": seen}
    told = {"flwr": flwr.__version__, "rows": ROWS, "start": named(start), "strategies": found}
    told["deltas"] = [[named(change) for change in changes] for changes in deltas]
    Path(__file__).with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def named(values: list[np.ndarray]) -> dict[str, list]:
    return {name: value.tolist() for name, value in zip(SHAPES, values, strict=True)}


if __name__ == "__main__":
    main()
