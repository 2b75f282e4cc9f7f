"""Every command of the README and every example runs, on a tiny model with names replaced."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from support.completions_server import serving
from support.paths import ROOT
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.demo.hospitals import write

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {"num_rounds": 2, "max_steps": 1, "batch_size": 2, "seq_length": 256, "dataset_sample": 60, "eval_every": 1}


def blocks(kind: str, text: str = README) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture
def workplace(tmp_path: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's, whose examples are shortened and name the tiny model and data."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "domains").mkdir()
    texts = [{"text": row["instruction"] + " " + row["output"]} for row in colour_rows(40)]
    for name in ("public", "domains/a", "domains/b", "domains/c", "domains/d"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", texts)
    answers = [row | {"prompt": row["instruction"], "chosen": row["output"]} for row in colour_rows(40)]
    write_rows(tmp_path / "data" / "preferences.jsonl", [row | {"rejected": "none of these"} for row in answers])
    judged = [row | {"completion": row["output"], "label": number % 3 > 0} for number, row in enumerate(answers)]
    write_rows(tmp_path / "data" / "feedback.jsonl", judged)
    sums = [{"prompt": f"{a} + {b}", "answer": f"{a} + {b} = {a + b}"} for a in range(6) for b in range(6)]
    write_rows(tmp_path / "data" / "sums.jsonl", sums)
    for file in (tmp_path / "examples").glob("*.yaml"):
        keys = yaml.safe_load(file.read_text()) | SMALL
        if "clients" in keys:
            del keys["dataset_sample"]
        if "size" in keys:
            keys |= {"size": None, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
        else:
            keys["model_name_or_path"] = str(tiny_model)
            aligned = file.stem in ("dpo", "kto", "grpo")
            keys |= {"dataset_name": str(tiny_data)} if "dataset_name" in keys and not aligned else {}
        file.write_text(yaml.safe_dump(keys))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(words: list[str], tiny_model: Path, tiny_data: Path) -> list[str]:
    """Replace what a README command names by what is there, and its numbers by small ones."""
    names = {"meta-llama/Llama-2-7b-hf": str(tiny_model), "vicgalle/alpaca-gpt4": str(tiny_data)}
    out: list[str] = []
    for word in words:
        key = out[-1].removeprefix("--") if out else ""
        out.append(str(SMALL[key]) if key in SMALL else names.get(word, word))
    return out


def test_the_readme_opens_with_how_to_get_it_and_the_two_commands():
    opening = [["pip", "install"], ["make", "demo"], ["make", "test"]]
    assert [words[:2] for words in commands()[:3]] == opening
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, flags=re.MULTILINE)
    assert re.search(r"^test:", makefile, flags=re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_readme_runs(workplace: Path, tiny_model: Path, tiny_data: Path, capsys):
    ran = 0
    for words in commands():
        if words[0] in ("make", "pip"):
            continue
        assert words[0] == "weft", words
        code = main(shortened(words[1:], tiny_model, tiny_data))
        assert code == 0, (words, capsys.readouterr().err)
        ran += 1
    assert ran == 10
    assert (workplace / "output" / "adapter" / "adapter_model.safetensors").exists()
    assert (workplace / "runs" / "merged" / "model.safetensors").exists()


def test_the_python_of_the_readme_runs(workplace: Path, capsys):
    (code,) = blocks("python")
    values: dict[str, object] = {}
    exec(code, values)
    assert "train_loss" in capsys.readouterr().out
    assert values["model"] is not None


def test_the_example_of_named_clients_runs(workplace: Path):
    assert main(["sft", "--config", "examples/hospitals.yaml", "--quiet"]) == 0
    import weft

    run = weft.open_run("runs/hospitals")
    assert list(run.summary["clients"]) == ["hospital_a", "hospital_b", "hospital_c"]
    assert run.summary["clients"]["hospital_c"]["rows"] == 24


def test_the_rows_of_the_hospitals_are_those_of_the_demo(tmp_path: Path):
    write(tmp_path)
    for name in "abc":
        for kind, file in (("questions", f"hospital_{name}.jsonl"), ("exam", f"hospital_{name}_test.jsonl")):
            shipped = (ROOT / "examples" / "data" / file).read_text(encoding="utf-8")
            assert shipped == (tmp_path / kind / f"{name}.jsonl").read_text(encoding="utf-8")


def test_the_pre_training_example_runs(workplace: Path):
    assert main(["pretrain", "--config", "examples/pretrain.yaml", "--quiet"]) == 0
    import weft

    assert set(weft.open_run("runs/pretrain").summary["clients"]) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("prompt", "prompt"),
        pytest.param("prompt", "black_box", marks=pytest.mark.slow),
        pytest.param("sft", "seeds", marks=pytest.mark.slow),
        ("prompt", "text_prompt"),
    ],
)
def test_the_examples_of_prompts_and_seeds_run(workplace: Path, verb: str, name: str):
    assert main([verb, "--config", f"examples/{name}.yaml", "--template", "alpaca", "--quiet"]) == 0
    import weft

    run = weft.open_run(f"runs/{name}")
    assert run.summary["failures"] == {}
    assert 0 < run.summary["eval"]["loss"] < 20


def test_the_example_of_an_endpoint_runs(workplace: Path, tiny_model: Path):
    with serving(tiny_model) as server:
        words = ["prompt", "--config", "examples/endpoint.yaml", "--template", "alpaca", "--endpoint", server.url]
        assert main([*words, "--quiet"]) == 0
    assert (workplace / "runs" / "endpoint" / "prompt.txt").is_file()


@pytest.mark.parametrize(
    ("verb", "name", "measured"),
    [
        ("dpo", "dpo", "preference_accuracy"),
        pytest.param("dpo", "kto", "preference_accuracy", marks=pytest.mark.slow),
        pytest.param("grpo", "grpo", "reward", marks=pytest.mark.slow),
    ],
)
def test_the_examples_of_alignment_run(workplace: Path, verb: str, name: str, measured: str):
    assert main([verb, "--config", f"examples/{name}.yaml", "--template", "vicuna", "--quiet"]) == 0
    import weft

    run = weft.open_run(f"runs/{name}")
    assert len(run.summary["clients"]) == 5
    assert 0 <= run.summary["eval"][measured] <= 2


@pytest.mark.slow
def test_the_python_example_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "examples/sft.yaml"])
    exec((workplace / "examples" / "compare.py").read_text(), {"__name__": "__main__"})
    assert capsys.readouterr().out.split("\n")[1].startswith("fedavg {")


def test_the_page_of_algorithms_names_every_part():
    from weft import registry

    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    for table in (registry.ALGORITHMS, registry.LORA_AGGREGATIONS, registry.SPLITS):
        for name in table:
            assert re.search(rf"^\|[^|]*`{name}`", page, flags=re.MULTILINE), name
