"""The table of a study: what a metric's name means, ranks, choices, and words that others wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weft.cli import main
from weft.commands.tables import print_table
from weft.errors import ConfigError, RunError
from weft.launch.cost_estimate import Cost
from weft.runs.comparison import Outcome
from weft.runs.text import spreadsheet_text
from weft.studies.cells import Cell, cells_of, cells_to_choose
from weft.studies.estimate import Part, sum_of
from weft.studies.labels import label_of
from weft.studies.measures import Measure, asked_measures, value_of
from weft.studies.page import page_of
from weft.studies.picture import draw, looks
from weft.studies.study import Study, read_study
from weft.studies.table import Row, records_of, rows_of
from weft.studies.words import cells_of_row

LOSS = Measure("loss", "lower")
SHARES = {"tfns/accuracy": Measure("tfns/accuracy", "higher"), "fpb/accuracy": Measure("fpb/accuracy", "higher")}
SUMMARY: dict[str, Any] = {
    "eval": {"loss": 3.0},
    "clients": {"a": {"loss": 2.0, "rows": 1}, "b": {"loss": 4.0, "rows": 1}, "c": {"loss": None, "rows": 0}},
    "tasks": {"first": {}, "last": {"tfns/accuracy": 0.5, "fpb/accuracy": 0.9}},
    "bytes_up": 3,
    "bytes_down": 4,
    "seconds": 2.0,
}
PERSONAL = SUMMARY | {
    "models": {
        "own": {"loss": 1.5},
        "own_on_everybody": {"loss": 5.0},
        "clients": {"a": {"own": {"loss": 1.0}}, "b": {"own": {"loss": 2.0}}},
    }
}


def outcome(summary: dict[str, Any], seed: int = 1) -> Outcome:
    return Outcome("nowhere", {"seed": seed, "fed_alg": "fedavg"}, summary)


@pytest.mark.parametrize(
    ("name", "shared", "personal"),
    [
        ("loss", 3.0, 5.0),
        ("loss@home", 3.0, 1.5),
        ("loss@worst", 4.0, 2.0),
        ("loss@everybody", None, 5.0),
        ("loss@a", 2.0, 1.0),
        ("loss@x", None, None),
    ],
)
def test_what_a_metric_is_of(name: str, shared: float | None, personal: float | None):
    measure = LOSS._replace(name=name)
    assert value_of(outcome(SUMMARY), measure) == shared
    assert value_of(outcome(PERSONAL), measure) == personal


def test_tasks_are_named_by_globs_and_averaged():
    known = {"loss": LOSS} | SHARES
    assert [one.name for one in asked_measures(["*/accuracy"], known)] == list(SHARES)
    (mean,) = asked_measures(["mean:*/accuracy"], known)
    assert value_of(outcome(SUMMARY), mean) == pytest.approx(0.7)
    assert mean.tasks == ["tfns", "fpb"]
    assert mean.better == "higher"
    with pytest.raises(ConfigError, match="put to the server's model, at no client"):
        asked_measures(["tfns/accuracy@home"], known)


def study(**fields: Any) -> Study:
    base = {"model_name_or_path": "m", "dataset_name": "d", "num_clients": 2}
    return read_study({"base": base, "output_dir": "out"} | fields)


def found(some: Study, losses: dict[str, list[float | None]]) -> list[Row]:
    """The rows of runs with such losses, by arm and seed; None: the run is not done."""
    cells = cells_of(some, {})
    outcomes = {}
    for arm, values in losses.items():
        for cell, value in zip([cell for cell in cells if cell.arm == arm], values, strict=True):
            if value is not None:
                outcomes[cell.name] = outcome(SUMMARY | {"eval": {"loss": value}}, cell.seed)
    return rows_of(some, cells, outcomes, [LOSS], {}, {})


def test_ranks_and_differences_are_those_of_a_point():
    some = study(grid={"seed": [1, 2, 3]}, arms={"a": {}, "b": {"fed_alg": "central"}, "c": {"fed_alg": "fednova"}})
    rows = found(some, {"a": [1.0, 2.0, 3.0], "b": [0.5, 1.4, 2.6], "c": [1.0, 2.0, 3.0]})
    assert [row.mean_rank for row in rows] == [2.5, 1.0, 2.5]
    # Differences -0.5, -0.6, -0.4: mean -0.5, deviation 0.1, t of two degrees 4.3027: 0.2484 each way.
    b = rows[1].differences["loss"]
    assert b.value == pytest.approx(-0.5)
    assert b.interval == pytest.approx((-0.74842, -0.25158), abs=1e-4)
    assert cells_of_row(rows[1], LOSS)[2:5] == ["1.5000 ± 1.0536", "-0.5000 (-0.7484 to -0.2516)", "better"]
    (record, *_) = records_of(rows, [LOSS], [])
    assert (record["mean"], record["bytes"], record["seeds"]) == (2.0, 7, "1 2 3")


def test_places_are_those_over_the_seeds_that_all_arms_have():
    """By its own seeds the second arm would be the better one: the hard seed is not among them."""
    some = study(grid={"seed": [1, 2, 3]}, arms={"a": {}, "b": {"fed_alg": "central"}})
    rows = found(some, {"a": [1.0, 2.0, 9.0], "b": [1.1, 2.1, None]})
    assert [row.mean_rank for row in rows] == [1.0, 2.0]
    apart = found(some, {"a": [1.0, None, None], "b": [None, 2.0, None]})
    assert [row.mean_rank for row in apart] == [None, None]


def test_an_arm_may_be_the_mean_of_runs_which_all_must_be_there():
    some = study(grid={"seed": [1, 2]}, arms={"alone": {"mean_over": {"fed_alg": ["local0", "local1"]}}})
    rows = found(some, {"alone": [1.0, 3.0, 5.0, 7.0]})
    assert rows[0].values["loss"] == {1: 2.0, 2: 6.0}
    assert rows[0].cost("bytes") == 14
    cells = cells_of(some, {})
    half = rows_of(some, cells, {cells[0].name: outcome(SUMMARY)}, [LOSS], {}, {cells[1].name: "why"})
    assert half[0].values["loss"] == {}
    assert half[0].failed == (cells[1].name,)


def test_keys_that_are_set_anew_replace_those_of_base_and_grid():
    fields = {"grid": {"seed": [1, 2], "batch_size": {"small": 2, "large": 8}}, "arms": {"a": {}}}
    base = {"model_name_or_path": "m", "dataset_name": "d"}
    some = read_study(fields | {"base": base}, keys={"seed": [5], "batch_size": 4, "num_rounds": 7})
    (cell,) = cells_of(some, {})
    assert (cell.seed, cell.config.batch_size, cell.config.num_rounds) == (5, 4, 7)
    assert cell.name == "a, batch_size 4, seed 5"
    arms = {"a": {"fed_alg": "fedavg"}, "b": {"fed_alg": "central"}}
    with pytest.raises(ConfigError, match="every arm of the study sets it itself"):
        read_study({"base": base, "arms": arms}, keys={"fed_alg": "fedprox"})


def test_runs_for_the_choice_see_no_row_that_is_reported():
    base = {"model_name_or_path": "m", "clients": [{"name": "a", "data": "a.jsonl", "eval": "test.jsonl"}]}
    fields = {"arms": {"a": {"try": [{}, {"fed_args": {}, "learning_rate": 0.1}]}}, "choice": {"seed": 3}}
    some = read_study({"base": base, "grid": {"seed": [1]}} | fields)
    cells = cells_to_choose(some)
    assert [cell.setting for cell in cells] == ["as it is", "learning_rate 0.1"]
    assert {client.eval for cell in cells for client in cell.config.clients or ()} == {None}
    assert [client.eval for cell in cells_of(some, {("a", ()): {}}) for client in cell.config.clients or ()] == [
        "test.jsonl"
    ]


def test_a_study_names_the_fault_of_a_run_without_the_way_on_of_the_run_itself():
    error = RunError("Round 3 was begun 5 times and fewer than 2 clients answered", "go on with --resume")
    assert str(error) == "Round 3 was begun 5 times and fewer than 2 clients answered: go on with --resume."
    assert error.fault == "Round 3 was begun 5 times and fewer than 2 clients answered."
    assert RunError("The disk is full.").fault == str(RunError("The disk is full.")) == "The disk is full."


def test_labels_are_read_by_people():
    assert label_of({"fed_args": {"alpha": 0.1}, "prox_mu": 1.0}) == "alpha 0.1, prox_mu 1.0"


def test_a_page_shows_names_of_others_as_text():
    some = study(grid={"seed": [1]}, arms={"<b>$x": {}})
    rows = found(some, {"<b>$x": [1.0]})
    picture = draw(rows, LOSS)
    page = page_of("a <study>", rows, [LOSS], {"loss": picture}, {"<i>run": "<script>"}, [], {"a": "<"}, "weft sweep")
    assert "<b>$x" not in page
    assert "<script" not in page
    assert "&lt;b&gt;$x" in picture
    assert picture == draw(rows, LOSS)


def test_rows_of_a_picture_look_different_although_there_are_more_arms_than_colours():
    names = [f"arm {number}" for number in range(17)]
    some = study(grid={"seed": [1], "learning_rate": {"low": 0.1, "high": 1.0}}, arms={name: {} for name in names})
    rows = found(some, {name: [1.0, 1.0] for name in names})
    assert len(rows) == len(set(looks(rows))) == 34


def test_a_page_writes_out_what_is_not_printed_and_runs_no_script():
    rows = found(study(grid={"seed": [1]}, arms={"a": {}}), {"a": [1.0]})
    page = page_of("a", rows, [LOSS], {}, {"run": "red\x1b[31m \u202egnp"}, [], {}, "weft sweep")
    assert "red\\x1b[31m \\u202egnp" in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_no_cell_of_a_csv_file_is_a_formula():
    """A spreadsheet computes what begins so, whoever wrote it."""
    texts = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(1)", "\tx"]
    assert [spreadsheet_text(text) for text in texts] == [f"'{text}" for text in texts]
    assert [spreadsheet_text(value) for value in ("a=1", "", -1.5, None)] == ["a=1", "", -1.5, None]


def test_a_folder_is_inside_the_study_whatever_an_arm_is_called():
    some = study(arms={"../../x": {}, "A/b": {}})
    assert {cell.arm for cell in cells_of(some, {})} == {"../../x", "A/b"}
    for cell in cells_of(some, {}):
        assert isinstance(cell, Cell)
        assert cell.folder.parts[:2] == ("out", "runs")
        assert len(cell.folder.parts) == 4
        assert Path("..") not in cell.folder.parents
        assert ".." not in cell.folder.parts


def test_a_table_on_a_terminal_writes_out_what_is_not_printed(capsys: pytest.CaptureFixture[str]):
    print_table("t", ["client"], [["\x1b[31mred"], ["a\u202eb\nweft: all is well"], ["ä [bold]x"]])
    told = capsys.readouterr().out
    assert "  \\x1b[31mred\n" in told
    assert "  a\\u202eb\\nweft: all is well\n" in told
    assert "  ä [bold]x\n" in told


def test_an_error_writes_out_what_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sweep", str(tmp_path / "red\x1b[31m.yaml")]) == 2
    assert "red\\x1b[31m.yaml" in capsys.readouterr().err


def test_a_study_that_is_done_has_no_time_left_to_estimate():
    """It said: 0 of them left: about 0.0 s, and how far an estimate may be off."""
    done = Part("a", 2, 0, 0, Cost(500.0, 9.0), True)
    assert sum_of([done], 1) == "2 runs, none of them left: 1.0 kB were sent in all runs."
    assert "2 of them left: about" in sum_of([done, done._replace(left=2)], 1)
