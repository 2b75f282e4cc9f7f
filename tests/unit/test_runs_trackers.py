import math

import pytest
import torch

from weft.errors import ConfigError, MissingExtra
from weft.runs import trackers
from weft.runs.trackers import Trackers


def test_tensorboard_holds_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    with Trackers(
        ["tensorboard", "none", "tensorboard"], tmp_path, {"fed_alg": "fedavg", "rate": 1e-4, "x": None}
    ) as log:
        log.log({"train_loss": 2.5, "clients": ["a"], "bad": math.nan, "flag": True}, step=1)
        log.log({"train_loss": 1.5, "eval/loss": 3}, step=2)
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 2.5), (2, 1.5)]
    assert events.Scalars("eval/loss")[0].value == 3
    assert not {"bad", "flag", "clients"} & set(events.Tags()["scalars"])
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device())


def test_the_tracker_none_writes_nothing(tmp_path):
    with Trackers(["none"], tmp_path, {}) as log:
        log.log({"loss": 1.0}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused_with_the_known(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'tensorboard'\\? Known: tensorboard, wandb, mlflow, trackio"):
        Trackers(["tensorbord"], tmp_path, {})


def test_one_that_is_not_installed_is_named():
    def only_tensorboard(name: str) -> bool:
        return name == "tensorboard"

    with pytest.raises(MissingExtra, match="'wandb'"):
        trackers.resolve(["wandb"], only_tensorboard)
    assert trackers.resolve(["all", "tensorboard"], only_tensorboard) == ["tensorboard"]


class Failing:
    def log(self, values, step):
        raise OSError("no route to host")

    def finish(self):
        raise AssertionError("it was let go")


def test_a_tracker_that_fails_is_let_go_and_the_run_goes_on(tmp_path):
    notes: list[str] = []
    log = Trackers([], tmp_path, {}, notes.append)
    log._running["wandb"] = Failing()
    log.log({"loss": 1.0}, step=1)
    log.log({"loss": 1.0}, step=2)
    log.close()
    assert len(notes) == 1
    assert "no route to host" in notes[0]


def test_one_that_cannot_start_is_a_clear_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "trackers").write_text("a file where the directory should be")
    with pytest.raises(ConfigError, match="'tensorboard' cannot start"):
        Trackers(["tensorboard"], tmp_path, {})
