"""`weft.train` takes rows, models and tokenizers as objects, and the run is that of the same files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError, DataError
from weft.launch.objects import rows_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "given"


@pytest.fixture
def small(keys) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != "dataset_name"} | {"num_rounds": 2, "max_steps": 1}


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "adapter" / "adapter_model.safetensors")


def same(one, two) -> bool:
    left, right = weights(one), weights(two)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def made(kind: str, rows: list[dict[str, str]], tmp_path: Path) -> Any:
    import datasets
    import pandas

    if kind == "path":
        return write_rows(tmp_path / "rows.jsonl", rows)
    if kind == "frame":
        return pandas.DataFrame(rows)
    if kind == "dataset":
        return datasets.Dataset.from_list(rows)
    if kind == "dict":
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)}
        )
    return rows


@pytest.fixture
def plain(small, tmp_path: Path):
    """The run of a file."""
    path = str(write_rows(tmp_path / "plain.jsonl", colour_rows(60)))
    return weft.train(small | {"dataset_name": path, "output_dir": str(tmp_path / "plain")}, quiet=True)


def test_rows_of_every_kind_are_those_of_a_file(small, plain, cache: Path, tmp_path: Path, capsys):
    for kind in ("path", "list", "frame", "dataset", "dict"):
        rows = made(kind, colour_rows(60), tmp_path)
        capsys.readouterr()
        run = weft.train(small, dataset_name=rows, output_dir=tmp_path / kind, quiet=True)
        assert same(plain, run), kind
        said = capsys.readouterr().err
        assert ("of dataset_name the split 'train' is used, and not test." in said) == (kind == "dict")
    # The same rows have one name, whatever they were given as.
    assert len(list(cache.iterdir())) == 1


def test_a_run_of_objects_is_resumed_by_anybody(small, cache: Path, tmp_path: Path, capsys):
    rows = colour_rows(60)
    first = weft.train(small, dataset_name=rows, quiet=True)
    before = (first.path / "metrics.jsonl").read_bytes()
    again = weft.train(small, dataset_name=rows, resume=True, quiet=True)
    assert (again.path / "metrics.jsonl").read_bytes() == before
    assert weft.train(output_dir=first.path, resume=True, quiet=True).summary["rounds"] == 2
    assert main(["sft", "--output_dir", str(first.path), "--resume", "--quiet"]) == 0
    with pytest.raises(ConfigError, match="dataset_name was"):
        weft.train(small, dataset_name=rows[:-1], resume=True, quiet=True)
    assert len(list(cache.iterdir())) == 1  # the rows that were refused are gone
    # Without the file, who has the rows can still go on.
    next(cache.iterdir()).unlink()
    assert weft.train(small, dataset_name=rows, resume=True, quiet=True).summary["rounds"] == 2


def test_clients_and_held_out_rows_given_as_objects_equal_those_of_files(small, cache: Path, tmp_path: Path):
    import pandas

    parts = {"a": colour_rows(20, 1), "b": colour_rows(30, 2)}
    small = {key: value for key, value in small.items() if key != "num_clients"}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in parts.items()}
    by_path = weft.train(small, clients=files, output_dir=tmp_path / "paths", quiet=True)
    by_rows = weft.train(
        small, clients={"a": parts["a"], "b": pandas.DataFrame(parts["b"])}, output_dir=tmp_path / "rows", quiet=True
    )
    assert same(by_path, by_rows)
    fresh = [{"instruction": f"What colour is number {place}?", "output": "red"} for place in range(7)]
    held = [{"name": name, "data": rows, "eval": fresh} for name, rows in parts.items()]
    apart = weft.train(small | {"eval_fraction": None}, clients=held, output_dir=tmp_path / "held", quiet=True)
    assert [client["rows"] for client in apart.summary["clients"].values()] == [7, 7]
    public = weft.train(small, clients=files, public_data=colour_rows(9, 4), output_dir=tmp_path / "public", quiet=True)
    assert public.summary["rounds"] == 2


def test_a_model_and_its_tokenizer_given_as_objects_train_as_their_folder_does(
    small, plain, cache: Path, tiny_model: Path, tmp_path: Path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = {key: value for key, value in small.items() if key != "model_name_or_path"}
    own |= {"dataset_name": colour_rows(60)}
    run = weft.train(own, model=model, tokenizer=tokenizer, output_dir=tmp_path / "model", quiet=True)
    assert same(plain, run)
    assert model.state_dict().keys() == before.keys()  # the object itself is as it was
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert run.model is not None
    also = weft.train(own, model_name_or_path=model, tokenizer=tokenizer, output_dir=tmp_path / "also", quiet=True)
    assert same(plain, also)
    assert weft.train(own, model=str(tiny_model), output_dir=tmp_path / "name", quiet=True).path
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1.0
    with pytest.raises(ConfigError, match="model_name_or_path was"):
        weft.train(own, model=model, tokenizer=tokenizer, output_dir=tmp_path / "model", resume=True, quiet=True)
    assert len([path for path in cache.iterdir() if path.name.startswith("model-")]) == 1


def test_a_tokenizer_given_as_an_object_begins_a_model_from_nothing(small, cache: Path, tiny_tokenizer, tmp_path: Path):
    own = {key: value for key, value in small.items() if key not in ("model_name_or_path", "use_peft")}
    own |= {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "dataset_name": colour_rows(40)}
    run = weft.train(own, tokenizer=tiny_tokenizer, quiet=True)
    assert run.model.config.vocab_size == len(tiny_tokenizer)


def test_mistaken_objects_are_refused_and_leave_nothing(small, cache: Path, tiny_model: Path, tmp_path: Path):
    import datasets
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(task_type="CAUSAL_LM"))
    own = {key: value for key, value in small.items() if key != "model_name_or_path"}
    data = {"dataset_name": colour_rows(30)}
    stream = datasets.Dataset.from_list(colour_rows(5)).to_iterable_dataset()
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(colour_rows(3)) for name in ("a", "b")})
    cases: list[tuple[dict[str, Any], str]] = [
        (small | {"dataset_name": 7}, "of the type int"),
        (small | {"dataset_name": []}, "holds no row"),
        (small | {"dataset_name": ["a", "b"]}, "a row is a dict"),
        (small | {"dataset_name": {"instruction": ["a"]}}, "Dataset.from_dict"),
        (small | {"dataset_name": stream}, "stream.take"),
        (small | {"dataset_name": splits}, "no split 'train', but a, b"),
        (small | {"dataset_name": colour_rows(3), "dataset_split": "train"}, "has no splits"),
        (small | {"dataset_name": [{"instruction": object()}]}, "Row 1 of dataset_name cannot be written"),
        (small | data | {"learning_rat": 1}, "Did you mean 'learning_rate'"),
        (small | data | {"prox_mu": 1}, "fed_alg fedprox"),
        (own | data | {"model": model}, "add tokenizer="),
        (own | data | {"model": adapted, "tokenizer": "x"}, "merge_and_unload"),
        (own | data | {"model": 3}, "of the type int"),
        (small | data | {"model": "x"}, "leave one of them out"),
        (small | data | {"tokenizer": model}, "give the model as an object too"),
        (own | data | {"recipe": "photon"}, "weft pretrain"),
    ]
    for given, words in cases:
        with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
            weft.train(given, quiet=True)
        assert not cache.exists() or not list(cache.iterdir()), words
        assert not Path(small["output_dir"]).exists(), words
    with pytest.raises(DataError, match="instruction_column"):  # found when the rows are read, from the file
        weft.train(small, dataset_name=[{"frage": "a", "antwort": "b"}] * 9, quiet=True)
    assert not list(cache.iterdir())


def test_values_of_frames_become_what_json_has(cache: Path):
    import numpy
    import pandas

    from weft.launch.objects import ObjectInputs

    frame = pandas.DataFrame(
        {
            "text": ["a", None],
            "number": [1.5, numpy.nan],
            "when": pandas.to_datetime(["2024-05-06", None]),
            "count": pandas.array([3, None], dtype="Int64"),
            "list": [numpy.array([1, 2]), [3]],
        }
    )
    with ObjectInputs() as given:
        path = given.with_names({"dataset_name": frame})["dataset_name"]
        given.keep()
    first, second = (json.loads(line) for line in Path(path).read_text().splitlines())
    assert first == {"text": "a", "number": 1.5, "when": "2024-05-06T00:00:00", "count": 3, "list": [1, 2]}
    assert second == {"text": None, "number": None, "when": None, "count": None, "list": [3]}
    with pytest.raises(DataError, match="of the type set"):
        rows_of({1, 2}, "rows")


def test_the_signature_names_every_key():
    keys = inspect.signature(weft.train).parameters["keys"]
    assert keys.annotation == "Unpack[Keys]"
    from weft.config import RunConfig
    from weft.typed import Keys

    assert Keys.__annotations__.keys() == {"model", *RunConfig.model_fields}
