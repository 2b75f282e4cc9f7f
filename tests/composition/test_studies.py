"""Studies: runs over arms, settings and seeds, made once, gone on with after any end, and summed up in one table."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import weft
from support.full_disk import no_file_over
from support.preferences import preference_rows
from support.rows import write_rows
from weft.cli import main
from weft.errors import ConfigError, RunError
from weft.runs.comparison import spread
from weft.studies.study import read_study
from weft.studies.sweep import check, sweep


@pytest.fixture
def study(keys, tmp_path: Path) -> dict[str, Any]:
    """Two arms with two seeds."""
    base = {key: value for key, value in keys.items() if key != "output_dir"}
    return {
        "base": base | {"num_rounds": 1, "max_steps": 1, "eval_every": 0},
        "grid": {"seed": [1, 2]},
        "arms": {"fedavg": {"fed_alg": "fedavg"}, "central": {"fed_alg": "central"}},
        "metrics": ["loss", "accuracy@client_1"],
        "output_dir": str(tmp_path / "study"),
    }


def summary(study: dict[str, Any], *names: str) -> dict[str, Any]:
    return json.loads(Path(study["output_dir"]).joinpath("runs", *names, "summary.json").read_text())


def ends(study: dict[str, Any]) -> dict[str, int]:
    """When the summary of each run was written."""
    return {str(file): file.stat().st_mtime_ns for file in Path(study["output_dir"]).rglob("summary.json")}


def written(study: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(file)


def test_a_study_is_its_runs_in_one_table(study, capsys, tmp_path):
    frame = weft.sweep(study, quiet=True)
    losses = {
        arm: [summary(study, arm, f"seed_{seed}")["eval"]["loss"] for seed in (1, 2)] for arm in ("fedavg", "central")
    }
    of_loss = frame[frame.metric == "loss"].set_index("arm")
    for arm, values in losses.items():
        assert of_loss["mean"][arm] == pytest.approx(sum(values) / 2)
        assert of_loss["deviation"][arm] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    apart = [second - first for first, second in zip(losses["fedavg"], losses["central"], strict=True)]
    assert of_loss["difference"]["central"] == pytest.approx(sum(apart) / 2)
    # Student's quantile for one degree of freedom is 12.706; the standard error of two is half their distance.
    half = 12.7062 * abs(apart[0] - apart[1]) / 2
    assert of_loss["high"]["central"] - of_loss["difference"]["central"] == pytest.approx(half, rel=1e-4)
    at_client = [summary(study, "fedavg", f"seed_{seed}")["clients"]["client_1"]["accuracy"] for seed in (1, 2)]
    of_client = frame[frame.metric == "accuracy@client_1"].set_index("arm")
    assert of_client["mean"]["fedavg"] == pytest.approx(spread(at_client).mean)
    page = (Path(study["output_dir"]) / "study.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)', page)

    # What is done is not done again; a further seed is.
    before = ends(study)
    study["grid"]["seed"].append(3)
    assert main(["sweep", written(study, tmp_path)]) == 0
    told = capsys.readouterr()
    assert "4 of 6 runs are done; 2 are left." in told.err
    assert told.out.splitlines()[-1].endswith("study.html")
    assert before.items() < ends(study).items()


def test_a_run_that_fails_is_kept_and_named_and_the_others_go_on(study, tmp_path, capsys):
    study["arms"] = {"fedavg": {}, "broken": {"dataset_name": str(tmp_path / "absent.jsonl")}}
    study["grid"]["seed"] = [1]
    file = written(study, tmp_path)
    assert main(["sweep", file]) == 1
    told = capsys.readouterr()
    assert "failed: broken, seed 1: " in told.out
    assert "absent.jsonl" in told.out
    assert main(["sweep", file]) == 1
    assert "1 failed before and is not tried again without --retry; 0 are left" in capsys.readouterr().err
    (tmp_path / "absent.jsonl").write_bytes(Path(study["base"]["dataset_name"]).read_bytes())
    before = ends(study)
    assert main(["sweep", file, "--retry"]) == 0
    assert before.items() < ends(study).items()
    assert "failed:" not in capsys.readouterr().out


def test_settings_are_chosen_on_held_out_rows_of_a_seed_that_is_not_reported(study, tmp_path):
    """The setting that learns is chosen over the one that does not, and a test set is not looked at for it."""
    study["base"] |= {"eval_dataset_name": study["base"]["dataset_name"], "held_out_overlap": "leave_out"}
    del study["base"]["eval_fraction"]
    rows = [json.loads(line) for line in Path(study["base"]["dataset_name"]).read_text().splitlines()]
    study["base"]["eval_dataset_name"] = str(write_rows(tmp_path / "test.jsonl", rows[:10]))
    study["arms"] = {
        "fedavg": {"try": [{"learning_rate": 0.0}, {"learning_rate": 0.05}]},
        "central": {"fed_alg": "central"},
    }
    study["choice"] = {"seed": 7, "metric": "loss", "keys": {"eval_fraction": 0.2}}
    study["grid"]["seed"] = [1]
    study["base"]["max_steps"] = 4
    frame = weft.sweep(study, quiet=True)
    assert list(frame["setting"][frame.metric == "loss"]) == ["learning_rate 0.05", ""]
    folder = Path(study["output_dir"])
    tried = yaml.safe_load((folder / "choice/fedavg/setting_1/seed_7/config.yaml").read_text())
    made = yaml.safe_load((folder / "runs/fedavg/seed_1/config.yaml").read_text())
    assert (tried["eval_dataset_name"], tried["eval_fraction"], tried["learning_rate"]) == (None, 0.2, 0.05)
    assert made["eval_dataset_name"].endswith("test.jsonl")
    assert made["learning_rate"] == 0.05


def changed(study: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return copy.deepcopy(study) | fields


MISTAKES = {
    "key of the grid": (
        {"grid": {"learning_rat": [0.1]}},
        "'learning_rat', which there is not. Did you mean 'learning_rate'?",
    ),
    "key of an arm": ({"arms": {"a": {"fed_algo": "fedavg"}}}, "Did you mean 'fed_alg'?"),
    "metric": ({"metrics": ["los"]}, "no run of this study has it. Did you mean 'loss'?"),
    "field": ({"metric": "loss"}, "Did you mean 'metrics'?"),
    "baseline": ({"baseline": "fedavgg"}, "Did you mean 'fedavg'?"),
    "algorithm": ({"arms": {"a": {"fed_alg": "fedavgg"}}}, "The arm 'a' cannot be run."),
    "without effect": ({"grid": {"prox_mu": [0.1, 1.0]}}, "The key prox_mu of the grid has no effect in any arm."),
    "twice": ({"grid": {"fed_alg": ["fedavg"]}}, "fed_alg is a key of the grid of"),
    "tuning seed": ({"choice": {"seed": 2}}, "is among those that it reports"),
    "test": (
        {"choice": {"seed": 9, "metric": "tfns/accuracy", "settings": [{"max_steps": 1}]}},
        "a test that the study",
    ),
    "no arms": ({"arms": {}}, "names no arms"),
    # Two points without names would be one folder, and one would show the values of the other.
    "no name": ({"grid": {"max_steps": {"": 1, "two": 2}}}, "A value of max_steps in the grid has no name"),
    "escape": ({"arms": {"red\x1b[31m": {}}}, "An arm of the study is called 'red\\x1b[31m', with unprintable"),
    "one seed twice": ({"grid": {"seed": {"a": 1, "b": 1}}}, "The grid has a seed twice"),
    "seed of an arm": ({"arms": {"a": {"seed": 5}}}, "The arm 'a' sets seed, which is the study's"),
    "mean over seeds": ({"arms": {"a": {"mean_over": {"seed": [1, 2]}}}}, "The arm 'a' sets seed"),
    "output_dir of an arm": ({"arms": {"a": {"output_dir": "b"}}}, "The arm 'a' sets output_dir"),
    "no output_dir": ({"output_dir": None}, "is None: write the path of a directory"),
    "metrics": ({"metrics": 5}, "metrics is no list"),
    "settings": ({"choice": {"seed": 9, "settings": 5}}, "settings to choose from is no list"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_before_anything_is_made(study, tmp_path, capsys, mistake: str):
    fields, words = MISTAKES[mistake]
    assert main(["sweep", written(changed(study, **fields), tmp_path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not Path(study["output_dir"]).exists()


def test_a_study_that_changed_since_it_was_begun_is_refused_by_its_cells(study, tmp_path, capsys):
    study["arms"] = {"fedavg": {}}
    weft.sweep(study, quiet=True)
    study["arms"] = {"fedavg": {"batch_size": 2}}
    assert main(["sweep", written(study, tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "'fedavg, seed 1' (batch_size was 4 and is now 2)" in told
    assert "'fedavg, seed 2'" in told


def test_a_disk_that_is_full_in_the_middle_stops_the_study_and_loses_nothing(study):
    checked = check(read_study(study))
    with contextlib.ExitStack() as stack:

        def note(sentence: str) -> None:
            if sentence.startswith("[1/4]"):
                stack.enter_context(no_file_over(2500))

        with pytest.raises(RunError, match=r"1 of 4 runs is done and kept; go on by `weft sweep`"):
            sweep(checked, note=note, command="weft sweep")
    before = ends(study)
    assert len(before) == 1
    found = sweep(checked)
    assert not found.failures
    assert before.items() < ends(study).items()
    assert len(ends(study)) == 4


def test_the_reference_of_preferences_is_computed_once_for_all_arms(study, tmp_path, capsys):
    """The second arm of a seed takes the first one's log-probabilities, which are those of a run that stands alone."""
    data = write_rows(tmp_path / "pairs.jsonl", preference_rows(40))
    study |= {"verb": "dpo", "metrics": ["loss"], "arms": {"fedavg": {}, "fedprox": {"fed_alg": "fedprox"}}}
    study["base"] |= {"dataset_name": str(data)}
    weft.sweep(study, quiet=True)
    assert capsys.readouterr().err.count("log-probabilities of") == 2  # once a seed, whose rows are in another order
    folder = Path(study["output_dir"])
    assert len(list((folder / "shared").glob("reference_*.npy"))) == 2
    defaults = {"objective": "preference", "peft_lora_dropout": 0.0, "min_learning_rate": 1e-5}
    weft.train(study["base"] | defaults | {"seed": 1, "output_dir": str(tmp_path / "alone")}, quiet=True)
    for arm in ("fedavg", "fedprox"):
        kept = folder / "runs" / arm / "seed_1" / "reference.npy"
        assert kept.read_bytes() == (tmp_path / "alone" / "reference.npy").read_bytes()


@pytest.mark.slow
def test_runs_side_by_side_come_to_the_same(study, tmp_path):
    study["arms"]["broken"] = {"dataset_name": str(tmp_path / "absent.jsonl")}
    one = weft.sweep(study, quiet=True)
    two = weft.sweep(study | {"output_dir": str(tmp_path / "other")}, quiet=True, processes=2)
    same = ["arm", "metric", "mean", "deviation", "difference", "low", "high", "failed", "bytes"]
    assert one[same].equals(two[same])
    assert list(two["failed"][two.metric == "loss"]) == [0, 0, 2]


def begin(file: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "weft", "sweep", file, "--output_dir", str(folder), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="in turn"),
        pytest.param(["--processes", "2"], id="side by side"),
        pytest.param(["--set", "runtime=ray", "num_actors=2"], id="ray", marks=pytest.mark.xdist_group("ray")),
    ],
)
def test_a_study_that_was_killed_goes_on(study, tmp_path, monkeypatch, words: list[str]):
    """It is killed between the rounds of its second run, which is resumed and comes to the same, wherever clients are.

    Of Ray, whose start takes long, one seed is enough.
    """
    study["base"] |= {"num_rounds": 6, "checkpoint_seconds": 0, "threads": 1}
    if "runtime=ray" in words:
        pytest.importorskip("ray")
        study["grid"]["seed"], study["arms"]["central"] = [1], {"fed_alg": "scaffold"}
        monkeypatch.setenv("RAY_worker_niceness", "0")  # else actors wait for whatever else the machine does
    file, folder = written(study, tmp_path), tmp_path / "killed"
    process = begin(file, folder, *words)
    deadline = time.monotonic() + 900
    second = folder / "runs" / "central" / "seed_1" / "checkpoints"
    while not (second.is_dir() and any(second.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = {str(path): path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    assert len(done) < len(study["arms"]) * len(study["grid"]["seed"])
    time.sleep(1)  # processes that train see that their input ended
    process = begin(file, folder, *words)
    _, told = process.communicate(timeout=900)
    assert process.returncode == 0, told
    for path, when in done.items():
        assert os.stat(path).st_mtime_ns == when
    whole = weft.sweep(study, quiet=True)
    assert len(whole) == 4
    for run in Path(study["output_dir"]).joinpath("runs").glob("*/seed_*"):
        other = folder / "runs" / run.parent.name / run.name
        assert (other / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_keys_of_the_grid_that_need_each_other_are_checked_together(study):
    study["grid"] |= {"split_strategy": ["dirichlet", "iid"], "split_alpha": {"skewed": 0.1}}
    assert len(check(read_study(study)).measures) == 2
    study["grid"]["split_strategy"] = ["iid"]
    with pytest.raises(ConfigError, match="The key split_alpha of the grid has no effect in any arm"):
        check(read_study(study))


def test_a_metric_of_a_client_that_is_not_there_is_told(study, tmp_path, capsys):
    study |= {"metrics": ["loss", "loss@nobody"], "grid": {"seed": [1]}}
    assert main(["sweep", written(study, tmp_path)]) == 1
    assert "no run has a value of loss@nobody: is there a client of that name?" in capsys.readouterr().err
    # Arms that are left out this time are no runs that the study lost, and the page says what an arm is.
    assert main(["sweep", written(study | {"metrics": ["loss"]}, tmp_path), "--arms", "fedavg"]) == 0
    assert "does not have them now" not in capsys.readouterr().err
    assert "fed_alg: fedavg" in (Path(study["output_dir"]) / "study.html").read_text()
