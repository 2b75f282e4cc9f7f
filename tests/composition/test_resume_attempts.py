"""A run that is interrupted while rounds are begun again ends with the same bytes as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

import weft
from weft.launch.trainer import Trainer

UNSTEADY = {
    "num_clients": 6,
    "sample_clients": 3,
    "min_clients": 3,
    "client_failure_rate": 0.35,
    "max_attempts": 100,
    "num_rounds": 5,
    "checkpoint_seconds": 0,
}


def results(run: Path) -> dict[str, bytes]:
    files = [run / "metrics.jsonl", run / "adapter" / "adapter_model.safetensors", *run.glob("clients/*/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


class Interrupted:
    """Ends a run when a line has been logged, before the round counts or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, after: int, counts: bool) -> None:
        self.left, self.repeated, self.counts = after, 0, counts
        self.record = Trainer._record
        interrupted = self

        def record(training: Trainer, done) -> None:
            interrupted.record(training, done)
            interrupted.repeated += done.record.repeated
            interrupted.left -= 1
            if interrupted.left == 0 and not interrupted.counts:
                raise KeyboardInterrupt

        def behind(training: Trainer, state):
            made = interrupted.behind(training, state)
            if interrupted.left == 0 and interrupted.counts:
                training.commits.commit(made)
                raise KeyboardInterrupt
            return made

        self.behind = Trainer._position
        monkeypatch.setattr(Trainer, "_record", record)
        monkeypatch.setattr(Trainer, "_position", behind)


@pytest.mark.parametrize("fed_alg", ["fedavg", "scaffold"])
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.slow
def test_a_run_interrupted_within_repeated_rounds_ends_as_the_undisturbed_one(
    keys, tmp_path, monkeypatch, fed_alg, counts
):
    keys = keys | UNSTEADY | {"fed_alg": fed_alg}
    whole = weft.train(keys | {"output_dir": str(tmp_path / "whole")})
    lines = (whole.path / "metrics.jsonl").read_text().splitlines()
    repeated = [place for place, line in enumerate(lines) if '"repeated"' in line]
    assert len(repeated) > 3
    broken = tmp_path / "broken"
    for times in range(30):
        with monkeypatch.context() as patch:
            Interrupted(patch, after=2, counts=counts)
            try:
                weft.train(keys | {"output_dir": str(broken)}, resume=times > 0)
                break
            except KeyboardInterrupt:
                continue
    assert times > 3
    assert results(broken) == results(whole.path)
    assert weft.open_run(broken).summary["attempts"] == whole.summary["attempts"]
