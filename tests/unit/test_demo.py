"""The demo: hospitals that share no fact, the same bytes for the same seed, and the whole of it in a few steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from weft.cli import main
from weft.commands.demo import Demo, show, train_all
from weft.demo.hospitals import SPECIALITIES, choices, facts, make_hospitals, public_glossary, write


def test_no_hospital_knows_anothers_facts():
    conditions = {name: {fact.condition for fact in facts(name)} for name in SPECIALITIES}
    for hospital in make_hospitals(0):
        foreign = set().union(*(found for name, found in conditions.items() if name != hospital.name))
        texts = [row["text"] for row in hospital.notes]
        texts += [row["instruction"] for row in hospital.questions + hospital.exam]
        assert not [text for text in texts if any(condition in text for condition in foreign)]


def test_the_exam_asks_every_fact_in_words_that_were_never_trained_on():
    for hospital in make_hospitals(0):
        trained = {row["instruction"] for row in hospital.questions}
        assert not trained & {row["instruction"] for row in hospital.exam}
        known = {(fact.condition, fact.answer) for fact in facts(hospital.name)}
        assert len(hospital.exam) == len(facts(hospital.name))
        assert {row["output"] for row in hospital.exam} <= {answer for _, answer in known}


def test_public_lines_tie_no_answer_to_a_condition():
    conditions = {fact.condition for name in SPECIALITIES for fact in facts(name)}
    assert any(condition in line for line in public_glossary(0) for condition in conditions)
    for line in public_glossary(0):
        found = [condition for condition in conditions if condition in line]
        assert not found or not any(f" {answer}" in line.partition(":")[2] for answer in choices())


def test_one_seed_gives_the_same_bytes(tmp_path: Path):
    for folder in ("a", "b"):
        write(tmp_path / folder, seed=3)
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(written) == 9
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in written)


@pytest.mark.slow
def test_a_short_demo_measures_every_model_and_draws_its_picture(tmp_path: Path, capsys):
    few = {"num_rounds": 1, "max_steps": 1, "learning_rate": 1e-3}
    demo = Demo(tmp_path / "demo", 0, few, few)
    result = train_all(demo)
    show(demo, result)
    out = capsys.readouterr().out
    assert [model["name"] for model in result["models"]] == [
        "hospital a alone",
        "hospital b alone",
        "hospital c alone",
        "federation",
        "pooled data",
    ]
    assert [model["bytes"] > 0 for model in result["models"]] == [False, False, False, True, False]
    assert len(result["answers"]) == 3
    assert "federation" in out
    last = out.strip().splitlines()[-1]
    shares = [float(share) for share in re.findall(r"\((\d+)%\)", last)]
    assert last.startswith("The federation sent")
    assert shares[0] < 60 < shares[1] < 300
    assert shares[2] < shares[1]
    assert (demo.folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((demo.folder / "demo.json").read_text()) == result
    assert main(["demo", "--output_dir", str(demo.folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["demo", "--output_dir", str(tmp_path), "--overwrite"]) == 2
    assert (tmp_path / "demo").exists()
