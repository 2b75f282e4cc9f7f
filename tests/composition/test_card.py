"""The model card: what the hub reads, what people are told, and what stays private."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml

import weft
from support.flags import flags
from support.own_tasks import own_task
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.data.dataset_card import front_matter
from weft.runs.card import CARD, hub_name


def read(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8")


def valid(text: str) -> dict[str, object]:
    """Return the front matter as the hub's own library reads it."""
    from huggingface_hub import ModelCard

    return dict(ModelCard(text).data.to_dict())


def test_a_card_says_what_was_trained_and_how_without_a_path(keys, tmp_path: Path):
    run = weft.train(keys, quiet=True)
    text = read(run.path / "adapter")
    head = valid(text)
    assert head["library_name"] == "peft"
    assert head["tags"] == ["weft", "federated-learning", "fedavg", "sft", "lora"]
    assert not {"license", "base_model", "datasets"} & head.keys()  # the base and the data lie on this machine
    assert str(tmp_path.parent) not in text
    assert "/tmp" not in text
    assert "More Information Needed" not in text
    loss = run.summary["eval"]["loss"]
    for words in (
        "| clients | 3, 2 per round |",
        "| rounds | 3 |",
        f"everybody's rows | 12 | {loss:.4f} |",
        "`vicuna`",
    ):
        assert words in text


def test_the_empty_card_of_peft_is_never_left_behind(keys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weft.launch.pages.write_cards", lambda *given, **more: None)
    adapter = weft.train(keys, num_rounds=1, quiet=True).path / "adapter"
    assert (adapter / "adapter_config.json").exists()
    assert not (adapter / CARD).exists()


def test_exports_have_cards_of_their_own(keys, tmp_path: Path):
    run = weft.train(keys, num_rounds=1, quiet=True)
    assert main(["export", str(run.path), "--out", str(tmp_path / "copy")]) == 0
    assert read(tmp_path / "copy") == read(run.path / "adapter")
    assert main(["export", str(run.path), "--merge", "--out", str(tmp_path / "whole")]) == 0
    text = read(tmp_path / "whole")
    assert valid(text)["library_name"] == "transformers"
    assert "PeftModel" not in text
    assert "lora" not in valid(text)["tags"]


def test_the_code_of_a_card_loads_what_it_stands_beside(keys, monkeypatch: pytest.MonkeyPatch):
    for more, kind in (({}, "adapter"), ({"use_peft": False, "output_dir": str(keys["output_dir"]) + "2"}, "model")):
        run = weft.train(keys | {"num_rounds": 1} | more, quiet=True)
        code = read(run.path / kind).split("```python\n")[1].split("```")[0]
        code = code.replace("THIS_FOLDER", str(run.path / kind)).replace("BASE", str(keys["model_name_or_path"]))
        made: dict[str, object] = {}
        exec(code, made)
        assert type(made["model"]).__name__.startswith("Peft" if kind == "adapter" else "Llama")


def test_clients_are_counted_and_not_named(keys, tmp_path: Path):
    for name in ("st_marys", "charite"):
        write_rows(tmp_path / f"{name}.jsonl", colour_rows(20))
    given = {key: value for key, value in keys.items() if key != "dataset_name"}
    given |= {"num_clients": None}
    given |= {"clients": {name: str(tmp_path / f"{name}.jsonl") for name in ("st_marys", "charite")}}
    run = weft.train(given, fed_alg="ditto", num_rounds=1, quiet=True)
    cards = [run.path / "adapter", *run.path.glob("clients/*/adapter")]
    assert len(cards) == 3
    for folder in cards:
        text = read(folder)
        assert "st_marys" not in text
        assert "charite" not in text
        assert "| clients | 2, 2 per round |" in text
        assert "own models, own rows" in text
        assert ("by one client of a run as its personal model" in text) == (folder.parent != run.path)


def test_names_of_the_hub_are_told_with_the_license_of_the_base(keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run of a model and data of the hub, as far as its directory goes: the names are in its config.yaml."""
    run = weft.train(keys, num_rounds=1, quiet=True)
    config = run.path / "config.yaml"
    text = config.read_text().replace(str(keys["model_name_or_path"]), "some-org/some-model")
    config.write_text(text.replace(str(keys["dataset_name"]), "some-org/some-set"))
    their = tmp_path / "cached.md"
    their.write_text("---\nlicense: other\nlicense_name: their-own\n---\n\n# Model\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(their))
    from weft.runs.card import write_cards

    write_cards(run.directory)
    head = valid(read(run.path / "adapter"))
    assert (head["base_model"], head["datasets"]) == ("some-org/some-model", ["some-org/some-set"])
    assert (head["license"], head["license_name"]) == ("other", "their-own")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    assert main(["export", str(run.path), "--out", str(tmp_path / "copy")]) == 0
    assert valid(read(tmp_path / "copy")) == head  # what was known where the run was is still known
    write_cards(run.directory)
    assert "license" not in valid(read(run.path / "adapter"))


def test_cards_of_pre_trained_models_and_of_prompts_say_what_they_are(keys, tmp_path: Path):
    lines = write_rows(tmp_path / "text.jsonl", [{"text": f"some text of number {n}"} for n in range(40)])
    own = [
        "--vocab_size",
        "300",
        "--tokenizer_text",
        str(lines),
        "--output_dir",
        str(tmp_path / "new"),
    ]
    given = {"dataset_name": str(lines), "num_rounds": 1, "max_steps": 1, "seq_length": 32, "num_clients": 2}
    assert (
        main(
            ["pretrain", *flags(given), *own, "--hidden_size", "16", "--num_layers", "1", "--num_heads", "2", "--quiet"]
        )
        == 0
    )
    text = read(tmp_path / "new" / "model")
    assert "# Model trained from scratch" in text
    assert "template" not in text
    assert "base_model" not in valid(text)
    given = {key: value for key, value in keys.items() if key != "use_peft"} | {"num_rounds": 1}
    run = weft.train(given, prompt_method="soft", quiet=True)
    assert "# Soft prompt for" in read(run.path / "adapter")
    assert "| LoRA |" not in read(run.path / "adapter")


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """The flags of two tasks, one of a data set of the hub, and one of a file alone."""
    folder = tmp_path / "own"
    folder.mkdir()
    write_rows(folder / "colours.jsonl", colour_rows(12))
    choice = "choice: {choices: [red, green, blue], answer: output}"
    for name in ("colours", "ours"):
        text = own_task(name, choice, file="colours", prompt="{{ instruction }}")
        hub = "{file: colours, hub: some-org/some-set main test}" if name == "colours" else "{file: colours}"
        (folder / f"{name}.yaml").write_text(text.replace("{file: colours}", hub))
    return ["--include_path", str(folder), "--task_data", str(folder), "--quiet", "--tasks"]


def entries(folder: Path) -> dict[str, object]:
    """The hub's files beside weights, as its own library reads them."""
    from huggingface_hub import parse_eval_result_entries

    files = sorted((folder / ".eval_results").glob("*.yaml"))
    return {file.stem: parse_eval_result_entries(yaml.safe_load(file.read_text()))[0] for file in files}


def test_scores_of_tasks_stand_in_the_card_and_in_the_files_of_the_hub(keys, asked, tmp_path: Path):
    run = weft.train(keys, num_rounds=1, quiet=True)
    folder = run.path / "adapter"
    before = read(folder)
    assert main(["evaluate", str(run.path), *asked, "colours", "--limit", "9"]) == 0
    assert main(["evaluate", str(run.path), *asked, "ours"]) == 0
    text = read(folder)
    results = json.loads((run.path / "evaluation" / "end" / "results.json").read_text())["results"]
    value = results["colours"]["acc,none"]
    (line,) = [line for line in text.splitlines() if line.startswith("| colours |")]
    assert line.startswith(f"| colours | accuracy | {100 * value:.1f} % (")
    assert line.endswith(") | 9 | 0-shot, 9 of 12 rows |")
    assert "| 12 | 0-shot |" in next(line for line in text.splitlines() if line.startswith("| ours |"))
    assert valid(text) == valid(before)
    start, end = text.index("## Evaluation tasks"), text.index("## Use")
    assert text[:start] + text[end:] == before  # nothing else of the card has changed
    (entry,) = [entries(folder)["colours"]]
    assert (entry.dataset_id, entry.task_id, entry.value) == ("some-org/some-set", "colours", value)
    assert entry.notes == "accuracy by weft evaluate, 0-shot, 9 of 12 rows"
    assert abs(date.fromisoformat(entry.date) - datetime.now(UTC).date()) <= timedelta(days=1)
    assert list(entries(folder)) == ["colours"]  # the other one is of no data set of the hub
    # The files are not among what tells the weights from others: nothing is asked again.
    assert main(["evaluate", str(run.path), *asked, "colours", "ours", "--limit", "9"]) == 0
    assert read(folder).count("## Evaluation tasks") == 1
    assert main(["export", str(run.path), "--out", str(tmp_path / "copy")]) == 0
    assert (read(tmp_path / "copy"), entries(tmp_path / "copy")) == (read(folder), entries(folder))


def test_scores_of_other_weights_are_not_written(keys, asked, tmp_path: Path):
    run = weft.train(keys, num_rounds=1, quiet=True)
    folder = run.path / "adapter"
    assert main(["evaluate", str(run.path), *asked, "colours"]) == 0
    assert "## Evaluation tasks" in read(folder)
    weft.train(keys, num_rounds=2, quiet=True, resume=True)
    assert "## Evaluation tasks" not in read(folder)
    assert entries(folder) == {}
    # Weights that somebody put there are found out too, when the next scores are written.
    assert main(["evaluate", str(run.path), *asked, "colours", "--overwrite"]) == 0
    assert list(entries(folder)) == ["colours"]
    other = weft.train(keys, num_rounds=1, seed=5, quiet=True, output_dir=str(tmp_path / "other"))
    shutil.copy(other.path / "adapter" / "adapter_model.safetensors", folder)
    words = [*asked, "ours", "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", str(run.path), *words]) == 0
    assert "## Evaluation tasks" not in read(folder)
    assert entries(folder) == {}


def test_only_names_without_a_local_folder_are_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "own").mkdir(parents=True)
    names = ["org/model", "gpt2", "models/own", "/models/own", "./model", "~/model", "a/b/c", "..", None]
    assert [hub_name(name) for name in names] == ["org/model", "gpt2", *[None] * 7]
    (tmp_path / CARD).write_text("---\n: [broken\n---\n")
    assert front_matter(tmp_path / CARD) == {}


def test_settings_of_an_adapter_are_the_same_bytes_whatever_the_order_of_sets(keys):
    """peft writes sets, whose order is that of the process: the record of a run hashes the file."""
    run = weft.train(keys, num_rounds=1, quiet=True)
    text = (run.path / "adapter" / "adapter_config.json").read_text()
    names = json.loads(text)["target_modules"]
    assert names == sorted(names)
    assert len(names) > 1
