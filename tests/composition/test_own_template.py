"""A run's template: one of the user's own, and one with a clock; and pairs for KTO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from test_told import PAIRS, STRICT, TALKS, model  # noqa: F401

import weft
from support.flags import flags
from support.rows import write_rows
from weft.cli import main
from weft.launch import template_date


def test_a_template_with_a_clock_writes_one_day_for_the_whole_run(keys, model, tmp_path: Path, monkeypatch):  # noqa: F811

    data = str(write_rows(tmp_path / "rows.jsonl", [{"messages": talk} for talk in TALKS]))
    given = keys | {
        "model_name_or_path": str(model("dated")),
        "template": "chat",
        "dataset_name": data,
        "num_rounds": 2,
    }
    given |= {"save_model_freq": 1, "checkpoint_seconds": 0}
    one = weft.train(given | {"output_dir": str(tmp_path / "one")})
    two = weft.train(given | {"output_dir": str(tmp_path / "two")})
    read = lambda run: (run.path / "metrics.jsonl").read_bytes()  # noqa: E731
    assert read(one) == read(two)
    assert one.config.template_date == template_date.today()
    # Taken up on another day, the run goes on with its own.
    monkeypatch.setattr(template_date, "today", lambda: "2031-01-31")
    shutil.rmtree(two.path / "checkpoints" / "round_000002")
    shutil.rmtree(two.path / "adapter")
    (two.path / "summary.json").unlink()
    again = weft.train(given | {"output_dir": str(tmp_path / "two")}, resume=True)
    assert again.config.template_date == one.config.template_date
    assert read(again) == read(one)
    named = weft.train(given | {"output_dir": str(tmp_path / "named"), "template_date": "2020-01-01"})
    assert named.config.template_date == "2020-01-01"


def test_a_template_file_of_the_users_own_is_used_and_kept_with_the_run(keys, tmp_path: Path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": talk} for talk in TALKS])
    file = tmp_path / "own.jinja"
    file.write_text(STRICT)
    given = keys | {"dataset_name": data, "prompt_template": file, "template": "auto", "num_rounds": 1}
    words = ["sft", *flags(given)]
    assert main([*words, "--dry_run"]) == 0
    assert "template     chat" in capsys.readouterr().out.replace("template    chat", "template     chat")
    assert main([*words, "--quiet"]) == 0
    run = weft.open_run(str(given["output_dir"]))
    assert run.tokenizer.chat_template == STRICT
    assert (run.path / "template.jinja").read_text() == STRICT
    file.write_text(STRICT.replace("[", "("))
    (run.path / "summary.json").unlink()
    assert main([*words, "--resume"]) == 2
    assert "has changed since the run began" in capsys.readouterr().err
    for changes, said in (
        ({"template": "vicuna"}, "leave one of them out"),
        ({"prompt_template": tmp_path / "none.jinja"}, "check the path after --prompt_template"),
        ({"template_date": "tomorrow"}, "write one such as 2026-01-31"),
    ):
        assert main(["sft", *flags(given | changes)]) == 2
        assert said in capsys.readouterr().err


def test_kto_learns_from_pairs(keys, tmp_path: Path):
    data = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    given = keys | {
        "objective": "preference",
        "loss": "kto",
        "dataset_name": str(data),
        "num_rounds": 1,
        "num_clients": 2,
    }
    run = weft.train(given | {"sample_clients": 2, "eval_fraction": 0.25})
    split = json.loads((run.path / "split.json").read_text())
    assert sum(one["rows"] for one in split["clients"].values()) == 12  # pairs stay together
    assert run.summary["eval"]["preference_accuracy"] is not None
