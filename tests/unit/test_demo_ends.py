"""How the demo ends: what it aims at, its line for guessing, what to do next, and an interruption."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from weft.cli import main
from weft.commands import demo as command
from weft.commands.demo import TOGETHER, Demo, show, train_all, ways
from weft.demo import picture
from weft.demo.hospitals import make_hospitals
from weft.demo.next_steps import next_steps
from weft.demo.picture import FEDERATION, POOLED

FEW = {"num_rounds": 1, "max_steps": 1, "learning_rate": 1e-3}


@pytest.mark.slow
def test_the_commands_that_it_ends_with_run(tmp_path: Path, capsys):
    """Each of them, as it is printed, on what the demo left behind in a folder with a space in its name."""
    demo = Demo(tmp_path / "a demo", 1, dict(FEW), dict(FEW), "float32")
    show(demo, train_all(demo))
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  weft ")]
    assert printed == [line for _, line in next_steps(demo.folder, demo.seed)]
    assert [shlex.split(line)[1] for line in printed] == ["chat", "compare", "sft"]
    for line in printed:
        words = shlex.split(line)
        assert words[0] == "weft"
        assert main(words[1:]) == 0, line
    assert (demo.folder / "own" / "adapter").is_dir()


def test_the_picture_has_a_line_for_guessing():
    names = list(ways())
    models = [picture.ModelResult(name=n, accuracy=0.5, per_hospital={}, bytes=0, seconds=0.0) for n in names]
    axes = Figure().subplots()
    picture._draw_bars(axes, models, 0.2)
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.2, 0.2]]
    assert "guessing: 20 %" in [text.get_text() for text in axes.texts]


def test_guessing_is_one_of_the_exams_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = {row["output"] for hospital in make_hospitals(0) for row in hospital.exam}
    monkeypatch.setattr(Demo, "pipeline", lambda self, name, way: picture.ModelResult(seconds=0.0))
    monkeypatch.setattr(Demo, "answers", lambda self, names: [])
    assert train_all(Demo(tmp_path / "demo", 0))["chance"] == 1 / len(answers)


def test_an_interruption_says_how_to_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    begun = []

    def stop(self: Demo, name: str, way: dict) -> None:
        begun.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Demo, "pipeline", stop)
    assert main(["demo", "--output_dir", str(tmp_path / "my demo")]) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    again = said.split("`")[1]
    assert main(shlex.split(again)[1:]) == 130
    assert len(begun) == 2


def test_an_unknown_number_format_is_refused(tmp_path: Path, capsys):
    assert main(["demo", "--output_dir", str(tmp_path / "demo"), "--dtype", "float8"]) == 2
    assert "bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_every_trained_model_of_the_demo_makes_the_same_steps():
    """One round of all of them at one place, and as many in the federation's rounds."""
    for plan in (command.PRETRAIN, command.FINETUNE):
        steps = {
            name: plan_of["num_rounds"] * plan_of["max_steps"]
            for name, plan_of in ((name, command._rounds(plan, way)) for name, way in ways().items())
        }
        assert len(set(steps.values())) == 1
        assert command._rounds(plan, TOGETHER) == plan


@pytest.mark.slow
def test_the_federation_comes_near_the_pooled_data(tmp_path: Path):
    """The demo's aim in full: nine tenths of the pooled data's score, where a hospital alone has a third."""
    demo = Demo(tmp_path, 0)
    demo.prepare()
    found = {name: demo.pipeline(name, ways()[name]) for name in (FEDERATION, POOLED, "hospital b alone")}
    assert found[FEDERATION]["accuracy"] >= 0.9 * found[POOLED]["accuracy"]
    assert found[POOLED]["accuracy"] >= 0.8
    alone = found["hospital b alone"]
    assert alone["per_hospital"]["hospital b"] >= 0.9
    assert alone["accuracy"] < 0.45
    assert found[FEDERATION]["bytes"] > 0 == alone["bytes"]
