"""The studies of the repository: every run of them can be, and their dry runs pass on a local model and local rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.paths import DATA, ROOT
from weft.cli import main
from weft.commands.sweep import parse_keys
from weft.data.partition import hold_out
from weft.studies.cells import cells_of, check_effects, first_settings
from weft.studies.study import read_study

RUNS = {"finance": 3 * 21, "domains": 3 * 13, "preferences": 3 * 3 * 8}
"""Seeds times arms, `alone` counted five times; of preferences three numbers of rows."""
SMALL = "load_in_8bit=false peft_lora_r=8 peft_lora_alpha=16 num_rounds=2 max_steps=2 batch_size=4 eval_rows=10".split()
CLIENTS = (
    "clients=[{name: general, data: %s/self_instruct_human.jsonl.gz}, {name: math, data: %s/gsm8k_train.jsonl.gz}]"
)
LOCAL = {
    "finance": [
        *("dataset_sample=400", "truncation_side=left", "seq_length=96", "eval_tasks=[tfns]", "eval_limit=30"),
        f"dataset_name={DATA}/instruct/tfns_train.jsonl.gz",
        f"task_data=[{DATA}/eval]",
    ],
    "domains": ["dataset_split=null", "seq_length=256", CLIENTS % (DATA / "instruct", DATA / "instruct")],
    "preferences": [f"dataset_name={DATA}/preference/personas.jsonl.gz", "seq_length=96"],
}
"""What takes the place of sets on the hub and of a model of 7 B parameters."""
ARMS = {"finance": ["alone", "scaffold"], "domains": ["math alone", "local"], "preferences": ["alone", "dual"]}
METRICS = {"domains": ["loss@math", "loss@home"]}


def test_every_study_has_its_test():
    assert {file.stem for file in (ROOT / "studies").glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_a_study_can_be(name: str):
    study = read_study(ROOT / "studies" / f"{name}.yaml")
    check_effects(study, study.arms)
    cells = cells_of(study, first_settings(study))
    assert len(cells) == len({cell.folder for cell in cells}) == RUNS[name]
    # OpenFedLLM's scripts: 200 rounds of 10 steps of 16 rows of at most 512 tokens, 8-bit bases.
    for cell in cells:
        config = cell.config
        assert (config.num_rounds, config.max_steps, config.batch_size, config.seq_length) == (200, 10, 16, 512)
        assert config.load_in_8bit
        assert config.learning_rate == (5e-4 if name == "preferences" else 5e-5)
        assert (config.peft_lora_r, config.peft_lora_alpha) == ((8, 16) if name == "preferences" else (32, 64))


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_a_study_can_be_with_its_keys_for_one_core(name: str):
    """The command is the one in the file's first lines, and no key of the file is one that no run has."""
    file = f"studies/small/{name}.yaml"
    head = (ROOT / file).read_text().partition("\n#")[0]
    assert head.startswith(f"# weft sweep studies/{name}.yaml --set {file} ")
    study = read_study(ROOT / "studies" / f"{name}.yaml", keys=parse_keys([str(ROOT / file)]))
    check_effects(study, study.arms)
    assert len(cells_of(study, first_settings(study))) == RUNS[name]
    for cell in cells_of(study, first_settings(study)):
        assert cell.config.model_name_or_path.startswith("runs/small/")
        assert not cell.config.load_in_8bit


def test_groups_of_the_study_of_preferences_train_on_the_rows_that_its_points_name():
    study = read_study(
        ROOT / "studies/preferences.yaml", keys=parse_keys([str(ROOT / "studies/small/preferences.yaml")])
    )
    for cell in cells_of(study, first_settings(study)):
        config = cell.config
        train, held_out = hold_out(np.arange(200), config.eval_fraction, seed=1, client=0, most=config.eval_rows)
        assert cell.point == (f"{len(train)} rows",)
        assert len(held_out) == 200 - len(train)


def test_every_run_of_finance_on_smollm2_can_be():
    """The rows are what the file says: 192 of a client to train on and 15 held out, a pass over the first by each."""
    file = "studies/small/finance_smollm2.yaml"
    assert (ROOT / file).read_text().startswith(f"# weft sweep {file} ")
    study = read_study(ROOT / file)
    cells = cells_of(study, first_settings(study))
    assert [cell.arm for cell in cells] == ["local", "fedavg", "scaffold", "fedadamw", "central"] * 3
    for cell in cells:
        config = cell.config
        assert config.model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (config.peft_lora_r, config.dataset_sample, config.num_clients) == (16, 4 * (192 + 15), 4)
        assert config.num_rounds * config.max_steps * config.batch_size == 192
        assert round(config.eval_fraction * 207) == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_study_passes_its_dry_run_on_a_local_model(name: str, stories: Path, tmp_path: Path, capsys):
    words = ["--arms", *ARMS[name], "--set", f"model_name_or_path={stories}", *SMALL, *LOCAL[name]]
    if name in METRICS:
        words = ["--metrics", *METRICS[name], *words]
    file = tmp_path / "study.yaml"
    text = (ROOT / "studies" / f"{name}.yaml").read_text()
    # The baseline of domains is no arm of this selection.
    file.write_text(text.replace("baseline: fedavg", "baseline: local"))
    assert main(["sweep", str(file), "--output_dir", str(tmp_path / "out"), *words, "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert " of them left: about " in told
    assert not (tmp_path / "out").exists()
