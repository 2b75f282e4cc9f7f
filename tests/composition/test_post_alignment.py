"""`--post_alignment`: the shared model is tuned at the server after the last round, and the run stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import weft
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError


@pytest.fixture
def refusals(tmp_path: Path) -> Path:
    rows = [{"instruction": f"how do I steal {number} things", "output": "no"} for number in range(20)]
    return write_rows(tmp_path / "refusals.jsonl", rows)


@pytest.mark.parametrize("use_peft", [True, False])
def test_an_aligned_model_is_written_beside_the_run_that_stays_as_it_is(keys, refusals: Path, use_peft: bool):
    base = keys | {"use_peft": use_peft, "num_rounds": 2, "eval_every": 0}
    plain = weft.train(base, quiet=True)
    changes = {"post_alignment": str(refusals), "post_alignment_steps": 25, "output_dir": f"{plain.path}-a"}
    run = weft.train(base | changes, quiet=True)
    assert (plain.path / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    entry = run.summary["aligned"]
    assert (entry["rows"], entry["steps"]) == (20, 25)
    kind = Path(entry["folder"]).name
    file = "adapter_model.safetensors" if use_peft else "model.safetensors"
    before, after = (
        load_file(run.path / kind / file),
        load_file(run.path / entry["folder"] / file),
    )
    assert before.keys() == after.keys()
    assert load_file(plain.path / kind / file).keys() == before.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    for name, value in load_file(plain.path / kind / file).items():
        assert value.equal(before[name])


@pytest.mark.parametrize("attack", ["label_flip", "spread_poison"])
def test_an_attack_on_rows_leaves_the_rows_of_the_server_alone(keys, refusals: Path, attack: str):
    """Refusals that are poisoned themselves would align nothing."""
    changes = {"post_alignment": str(refusals), "post_alignment_steps": 1, "num_rounds": 1, "eval_every": 0}
    found = {}
    for name in ("none", attack):
        out = {"output_dir": f"{keys['output_dir']}-{name}", "attack": name, "learning_rate": 1e-9}
        found[name] = weft.train(keys | changes | out, quiet=True).summary["aligned"]
    assert found[attack]["loss"] == pytest.approx(found["none"]["loss"], abs=1e-4)
    assert found[attack]["rows"] == 20


def test_more_steps_lower_the_loss_on_the_rows(keys, refusals: Path):
    found = []
    for steps in (1, 40):
        changes = {"post_alignment": str(refusals), "post_alignment_steps": steps, "learning_rate": 1e-2}
        out = {"output_dir": f"{keys['output_dir']}-{steps}", "num_rounds": 1, "eval_every": 0}
        found.append(weft.train(keys | changes | out, quiet=True).summary["aligned"]["loss"])
    assert found[1] < found[0]  # the mean over all steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"post_alignment": "{tmp}/none.jsonl"}, "There is no file"),
        ({"post_alignment": "{bad}"}, "The rows of post_alignment cannot be used"),
        ({"post_alignment": "{good}", "fed_alg": "local"}, "leave out --fed_alg local"),
        ({"post_alignment": "{good}", "lora_aggregation": "svd"}, "averaged parameters"),
        ({"post_alignment": "{good}", "objective": "causal_lm", "template": None}, "weft sft"),
        ({"post_alignment_steps": 3}, "add --post_alignment FILE"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(
    keys, changes: dict[str, object], words: str, refusals: Path, tmp_path: Path
):
    bad = write_rows(tmp_path / "bad.jsonl", [{"a": 1, "b": 2}])
    places = {"tmp": tmp_path, "bad": bad, "good": refusals}
    given = {key: value.format(**places) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | given)
    assert words in str(refused.value)
    assert not Path(str(keys["output_dir"])).exists()


def test_the_command_line_takes_it(keys, refusals: Path, tmp_path: Path):
    words = [f"--{key}={value}" for key, value in keys.items()]
    data = write_rows(tmp_path / "rows.jsonl", colour_rows(30))
    more = [f"--dataset_name={data}", f"--post_alignment={refusals}", "--post_alignment_steps=2", "--quiet"]
    assert main(["sft", *[word for word in words if not word.startswith("--dataset_name")], *more]) == 0
    assert (Path(str(keys["output_dir"])) / "aligned" / "adapter").is_dir()
