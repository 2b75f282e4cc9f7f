"""What 100,000 clients cost beside 100 with the same 200,000 rows: to the first round, in a round, and in memory.

Whole commands, each in a process of its own. Both train the same number of clients, steps and rows in a round, so
whatever a round costs more comes from clients that take no part in it. The commands begin one after the other; their
rounds then alternate: 20 of one while the other is stopped. CPU seconds, which other work disturbs least.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import Command, Moment, machine, make_model, make_rows, median, report

ROWS, FEW, MANY, TURNS, TIMES = 200_000, 100, 100_000, 12, 2
TURN = 20
"""Rounds of a command before it is the other's turn."""


class Side:
    """A command that runs by turns, and what it cost."""

    def __init__(self, keys: dict[str, object]) -> None:
        """Begin it, and stop it after its first round."""
        self.command = Command("sft", **keys)
        self.moments = self.command.moments()
        first = self._round()
        self.start, self.before = first.cpu, first.cpu
        """CPU seconds to the end of the first round, and of the last."""
        self.rounds: list[float] = []
        """CPU seconds of a round, for each turn."""
        self.tokens, self.peak = 0, 0
        self.command.pause()

    def _round(self) -> Moment:
        return next(moment for moment in self.moments if moment.event == "round")

    def turn(self) -> None:
        """Go on for some rounds."""
        self.command.go_on()
        for _ in range(TURN):
            moment = self._round()
            self.tokens += moment.record["tokens"]
        self.rounds.append((moment.cpu - self.before) / TURN)
        self.before = moment.cpu
        self.command.pause()

    def end(self) -> None:
        """Go on to the end."""
        self.command.go_on()
        self.peak = max(moment.peak for moment in self.moments)


def together(sides: dict[int, dict[str, object]], turns: int) -> Iterator[tuple[int, Side]]:
    """Run commands by turns; yield the number of clients and what they cost."""
    begun = {clients: Side(keys) for clients, keys in sides.items()}
    for _ in range(turns):
        for side in begun.values():
            side.turn()
    for clients, side in begun.items():
        side.end()
        yield clients, side


def main(rows: int = ROWS, few: int = FEW, many: int = MANY, turns: int = TURNS, times: int = TIMES) -> None:
    """Print the ratios."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys: dict[str, object] = {
            "model_name_or_path": make_model(folder / "model", hidden=64, layers=4, vocabulary=2048),
            "dataset_name": make_rows(folder / "rows.jsonl", rows, words=(6, 8)),
            "dataset_sample": rows,
            "template": "vicuna",
            "use_peft": True,
            "sample_clients": 2,
            "num_rounds": turns * TURN + 2,
            "max_steps": 2,
            "batch_size": 2,  # as many as each of the many clients has
            "seq_length": 128,
            "eval_every": 0,
            "eval_fraction": 0,
            "threads": 1,
        }
        found: dict[int, list[Side]] = {few: [], many: []}
        print(f"# {machine()}")
        for number in range(times):
            runs = {
                clients: keys | {"num_clients": clients, "output_dir": folder / f"run{clients}-{number}"}
                for clients in found
            }
            for clients, side in together(runs, turns):
                found[clients].append(side)
                print(
                    f"{clients:,} clients: {side.start:.2f} CPU s to the first round, {side.peak / 1e6:.0f} MB; "
                    f"{side.tokens / turns / TURN:.0f} tokens a round, ms: "
                    f"{', '.join(f'{seconds * 1e3:.1f}' for seconds in side.rounds)}",
                    flush=True,
                )
    start = median([side.start for side in found[many]]) / median([side.start for side in found[few]])
    peak = median([side.peak for side in found[many]]) / median([side.peak for side in found[few]])
    pairs = [
        more / less
        for left, right in zip(found[few], found[many], strict=True)
        for less, more in zip(left.rounds, right.rounds, strict=True)
    ]
    both = f"{many:,} clients / {few:,}, the same {rows:,} rows"
    report(f"CPU seconds to the first round, {both}", start, 1.3, most=True)
    report(f"CPU seconds of a round, {both}", median(pairs), 1.05, most=True)
    report(f"peak memory, {both}", peak, 1.2, most=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
