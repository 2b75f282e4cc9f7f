"""Checkpoints written while rounds are computed: how long rounds wait for them, as a share of a run's time.

Every round multiplies matrices, as training does, and is committed; its state is that of 135 M parameters in float32.
The control has a checkpoint after every round, for which the round waits.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import machine, make_model, make_rows, report

from weft import config as configuration
from weft.core.types import ServerState
from weft.launch import compose
from weft.launch.commits import Commits, Logs, Position
from weft.runs.chain import ChainLog
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog

ROUNDS, SECONDS, TENSORS, NUMBERS, SIDE = 5, 6.0, 90, 1_500_000, 1024
WAIT = 2.0
"""Per cent of a run's time: a bound of the project."""


def compute(seconds: float, side: int) -> int:
    """Multiply matrices for some seconds; return how many products it made."""
    matrix, made, begun = torch.ones(side, side), 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        matrix @ matrix
        made += 1
    return made


def share(folder: Path, checkpoint_seconds: float, sizes: tuple[int, float, int, int, int]) -> tuple[float, float]:
    """Run rounds that are all committed; return the per cent of the time that they wait, and products a second.

    Args:
        folder: of the run, which is made.
        checkpoint_seconds: of the run; 0: a round waits for its checkpoint.
        sizes: rounds, seconds of each, tensors of the state, numbers of each, side of the matrices.
    """
    rounds, seconds, tensors, numbers, side = sizes
    keys = {
        "model_name_or_path": str(make_model(folder / "model", hidden=32, layers=1, vocabulary=400)),
        "dataset_name": str(make_rows(folder / "rows.jsonl", 40, words=(2, 4))),
        "checkpoint_seconds": checkpoint_seconds,
    }
    config = configuration.build(keys)
    run = RunDir(folder / "run")
    run.path.mkdir()
    logs = Logs(MetricsLog(run.metrics_file), MetricsLog(run.timing_file), ChainLog(run.chain_file))
    state, waited, made = ServerState({f"layer{n}": torch.randn(numbers) for n in range(tensors)}), 0.0, 0
    begun = time.perf_counter()
    with logs.chain, logs.metrics, logs.timing, Commits(config, run, logs, compose.plan(config)) as commits:
        commits.committed = Position(state, 0, 0, {})
        for number in range(1, rounds + 1):
            made += compute(seconds, side)
            state = replace(state, round=number)
            logs.metrics.append({"round": number})
            offered = time.perf_counter()
            commits.offer(Position(state, logs.metrics.size(), 0, {}))
            waited += time.perf_counter() - offered
        whole = time.perf_counter() - begun
    return 100 * waited / whole, made / (rounds * seconds)


def main(
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    tensors: int = TENSORS,
    numbers: int = NUMBERS,
    side: int = SIDE,
) -> None:
    """Run without a wait and with it, in turn, and print both shares."""
    torch.set_num_threads(1)
    sizes = rounds, seconds, tensors, numbers, side
    print(f"# {machine()}; {rounds} rounds of {seconds:g} s, a state of {4 * tensors * numbers / 1e6:.0f} MB")
    found = {}
    for name, checkpoint_seconds in (("in a thread", 1e-3), ("rounds wait", 0.0)):
        with tempfile.TemporaryDirectory() as temporary:
            found[name] = share(Path(temporary), checkpoint_seconds, sizes)
            print(f"{name}: {found[name][0]:.2f} % of the time, {found[name][1]:.1f} products a second", flush=True)
    report("rounds wait for checkpoints, of a run's time", found["in a thread"][0], WAIT, most=True, unit=" %")


if __name__ == "__main__":
    main()
