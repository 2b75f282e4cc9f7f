"""`--clean` and `weft clean`: what a run trains on, what it says, what it refuses; held-out rows stay as they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import weft
from support.fake_sites import NAMES, FakeSites
from support.own_tasks import own_task
from support.rows import colour_rows, write_rows
from weft import registry
from weft.cli import main
from weft.config import build
from weft.core.libraries import Tokenizer
from weft.data.cleaning.cleaner import Sample
from weft.data.load import kind_of
from weft.data.parts import Selection, files_of
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.launch.cleaning import losses
from weft.launch.client import ClientBuilder
from weft.launch.population import Population, populate
from weft.objectives.causal_lm import CausalLM
from weft.sites.agreement import own_config
from weft.sites.policy import read_policy
from weft.sites.server import serve

MAIL = "ann@mail.example.org"


def population(keys: dict[str, object], tokenizer: Tokenizer, rows: str = "conversations") -> Population:
    return populate(build(keys), tokenizer, InMemory(), rows=rows, pool=False)


def texts(people: Population, tokenizer: Tokenizer, held_out: bool = False) -> list[str]:
    parts = people.evaluated.held_out if held_out else people.trained.train
    return [tokenizer.decode(people.trained.table[int(row)][0]) for part in parts for row in part]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Rows of which every fourth holds an address, and every tenth is there twice."""
    rows = colour_rows(120)
    for row in rows[::4]:
        row["instruction"] += f" {MAIL}"
    return write_rows(tmp_path / "marked.jsonl", rows + rows[::10])


def test_a_run_trains_on_what_cleaning_left_and_says_what_it_did(keys, marked: Path, capsys):
    run = weft.train(keys | {"dataset_name": str(marked), "clean": ["personal_data", "length"], "report": True})
    split = json.loads((run.path / "split.json").read_text())
    total = split["cleaning"]["total"]
    assert total["personal_data"]["changed"] == total["personal_data"]["counts"]["email"] > 20
    assert run.summary["cleaning"]["total"] == total
    assert set(split["cleaning"]["clients"]) == {"client_0", "client_1", "client_2"}
    assert "the cleaner personal_data rewrote" in capsys.readouterr().err
    report = (run.path / "report.html").read_text()
    assert "personal_data" in report
    assert "x email" in report


def test_rows_to_measure_on_stay_as_they_are(keys, marked: Path, tiny_tokenizer):
    plain = population(keys | {"dataset_name": str(marked)}, tiny_tokenizer)
    clean = population(
        keys | {"dataset_name": str(marked), "clean": ["personal_data", "exact_duplicates"]}, tiny_tokenizer
    )
    assert texts(clean, tiny_tokenizer, held_out=True) == texts(plain, tiny_tokenizer, held_out=True)
    assert any(MAIL in text for text in texts(clean, tiny_tokenizer, held_out=True))
    assert any(MAIL in text for text in texts(plain, tiny_tokenizer))
    assert not any(MAIL in text for text in texts(clean, tiny_tokenizer))
    assert len(texts(clean, tiny_tokenizer)) < len(texts(plain, tiny_tokenizer))


def test_cleaners_that_do_nothing_change_no_bit(keys, tiny_tokenizer):
    plain = weft.train(keys, quiet=True)
    clean = weft.train(
        keys | {"clean": ["length", "secrets"], "clean_args": {"length.least": 1}, "output_dir": f"{plain.path}-2"},
        quiet=True,
    )
    assert (plain.path / "metrics.jsonl").read_bytes() == (clean.path / "metrics.jsonl").read_bytes()


def test_a_resumed_run_trains_on_the_same_rows(keys, marked: Path, tmp_path: Path):
    more = {
        "dataset_name": str(marked),
        "clean": ["personal_data", "exact_duplicates"],
        "lr_scheduler_type": "constant",
    }
    whole = weft.train(keys | more | {"num_rounds": 4, "output_dir": str(tmp_path / "whole")}, quiet=True)
    weft.train(keys | more | {"num_rounds": 2}, quiet=True)
    resumed = weft.train(keys | more | {"num_rounds": 4}, resume=True, quiet=True)
    lines = [json.loads(line) for line in (resumed.path / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["train_loss"] for line in lines if line["event"] == "round"]
    whole_lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [line["train_loss"] for line in whole_lines if line["event"] == "round"]


def test_perplexity_is_that_of_the_runs_own_model(keys, tmp_path: Path, tiny_model: Path):
    one = {"num_clients": 1, "sample_clients": 1, "eval_fraction": 0, "eval_every": 0}
    builder = ClientBuilder(build(keys | one))
    samples = [Sample((row["instruction"],), (row["output"],)) for row in colour_rows(20)]
    found = losses(builder.model, samples, builder.config)
    ids = builder.tokenizer.encode(samples[3].text, add_special_tokens=False)
    mask = np.arange(len(ids)) > 0
    row = (np.array(ids, dtype=np.int32), mask)
    assert found[3] == pytest.approx(CausalLM().assess(builder.model, [row], 1, 0), abs=1e-5)
    run = weft.train(keys | one | {"clean": ["perplexity"], "clean_args": {"perplexity.deviations": 1}}, quiet=True)
    counts = run.summary["cleaning"]["total"]["perplexity"]
    assert 1 <= counts["left_out"] < 120
    assert set(counts["counts"]) <= {"perplexity far above the others", "perplexity far below the others"}


def test_preferences_are_cleaned_in_all_their_parts(keys, tmp_path: Path, tiny_tokenizer):
    rows = [
        {"prompt": f"{row['instruction']} {MAIL}", "chosen": f"{row['output']} {MAIL}", "rejected": f"none {MAIL}"}
        for row in colour_rows(30)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    changes = {"dataset_name": str(data), "objective": "preference", "clean": ["personal_data"]}
    people = population(keys | changes, tiny_tokenizer, "pairs")
    pairs = [people.trained.table[int(row)] for part in people.trained.train for row in part]
    parts = [tiny_tokenizer.decode(ids) for pair in pairs for ids in (pair.prompt, *pair.answers)]
    assert len(parts) > 30
    assert all("[EMAIL]" in text and MAIL not in text for text in parts)


def test_documents_are_cleaned_and_those_to_measure_on_are_not(keys, tmp_path: Path, tiny_tokenizer):
    rows = [{"text": f"document {number} about colours {MAIL if number % 2 else ''}"} for number in range(60)]
    data = write_rows(tmp_path / "texts.jsonl", [*rows, rows[3]])
    changes = {"dataset_name": str(data), "objective": "causal_lm", "template": None, "eval_fraction": 0.2}
    changes |= {"clean": ["exact_duplicates", "personal_data"]}
    people = population(keys | changes, tiny_tokenizer, "text")
    trained, held_out = texts(people, tiny_tokenizer), texts(people, tiny_tokenizer, held_out=True)
    assert not any(MAIL in text for text in trained)
    assert any("[EMAIL]" in text for text in trained)
    assert any(MAIL in text for text in held_out)
    assert people.counts["rows"] == 61
    run = weft.train(keys | changes | {"num_rounds": 2}, quiet=True)
    assert np.isfinite(run.summary["eval"]["loss"])


def test_contamination_compares_with_the_rows_to_measure_on(keys, tmp_path: Path, tiny_tokenizer):
    words = [f"w{number}" for number in range(400)]
    chance = np.random.default_rng(0)
    rows = [{"instruction": " ".join(chance.choice(words, 20)), "output": "red"} for _ in range(40)]
    tests = [{"instruction": " ".join(chance.choice(words, 20)), "output": "red"} for _ in range(8)]
    leaks = [{"instruction": f"now {row['instruction']}", "output": "red"} for row in tests[:3]]
    data, test = write_rows(tmp_path / "d.jsonl", rows + leaks), write_rows(tmp_path / "t.jsonl", tests)
    changes = {"dataset_name": str(data), "eval_dataset_name": str(test), "clean": ["contamination"]}
    changes |= {"seq_length": 1024}
    people = population(keys | changes, tiny_tokenizer)
    assert people.split["cleaning"]["total"]["contamination"]["counts"] == {"in the test set": 3}
    other = {"dataset_name": str(data), "clean": ["contamination"], "clean_args": {"contamination.against": str(test)}}
    people = population(keys | other | {"eval_fraction": 0, "seq_length": 1024}, tiny_tokenizer)
    assert people.split["cleaning"]["total"]["contamination"]["left_out"] == 3


REFUSED = {
    "no such cleaner": ({"clean": ["repare"]}, "Did you mean 'repair'"),
    "twice": ({"clean": ["length", "length"]}, "names a cleaner twice"),
    "a parameter of none": ({"clean": ["length"], "clean_args": {"secrets.action": "drop"}}, "write CLEANER.NAME"),
    "no such parameter": ({"clean": ["length"], "clean_args": {"length.leest": 3}}, "Did you mean 'least'"),
    "a value that cannot be": ({"clean": ["length"], "clean_args": {"length.least": "many"}}, "cannot be"),
    "an action that there is not": ({"clean": ["secrets"], "clean_args": {"secrets.action": "burn"}}, "mask"),
    "triggers of plain text": ({"clean": ["triggers"], "objective": "causal_lm", "template": None}, "plain text"),
    "all rows": (
        {"clean": ["length"], "clean_args": {"length.least": 9999}},
        "leaves no row to the client 'client_0': the cleaner length took the last",
    ),
    "perplexity from scratch": (
        {"clean": ["perplexity"], "objective": "causal_lm", "size": "5m", "tokenizer": "t", "use_peft": False},
        "pretrained",
    ),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_in_one_sentence_and_leaves_nothing(keys, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError) as refused:
        weft.train(keys | changes)
    sentence = str(refused.value)
    assert words in sentence
    assert "\n" not in sentence
    assert not Path(str(keys["output_dir"])).exists()


def test_a_cleaner_of_ones_own(keys, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom weft.data.cleaning.cleaner import Cleaner\n\n"
        "@dataclass(frozen=True)\nclass NoRed(Cleaner):\n    word: str = 'red'\n"
        "    def faults(self, samples, tools):\n"
        "        return {n: 'a colour' for n, one in enumerate(samples) if self.word in one.text}\n"
    )
    changes = {"clean": [f"{file}:NoRed"], "clean_args": {"mine.py:NoRed.word": "green"}}
    run = weft.train(keys | changes, quiet=True)
    assert run.summary["cleaning"]["total"]["mine.py:NoRed"]["counts"]["a colour"] > 0
    wrong = tmp_path / "wrong.py"
    wrong.write_text("class NoRed:\n    pass\n")
    with pytest.raises(ConfigError, match=r"derived from weft\.data\.cleaning\.cleaner\.Cleaner"):
        weft.train(keys | {"clean": [f"{wrong}:NoRed"], "output_dir": f"{keys['output_dir']}-3"})


def distinct_rows(count: int) -> list[str]:
    """Sentences of which no two are alike."""
    lots = random.Random(0)
    words = [a + b + c for a in "bdgklmprst" for b in "aeiou" for c in "nrst"]
    return [f"The colour of the {' '.join(lots.sample(words, 6))} is what we see there." for _ in range(count)]


@pytest.mark.parametrize("objective", ["sft", "preference", "causal_lm"])
def test_all_cleaners_together_clean_every_kind_of_rows(keys, objective: str, tmp_path: Path):
    said = distinct_rows(90)
    said[3] += f" {MAIL}"
    said[4] += " <b>bold</b> word"
    said[5] = said[6]
    rows = {
        "sft": [{"instruction": text, "output": text[::2]} for text in said],
        "preference": [{"prompt": text, "chosen": f"good {text}", "rejected": f"bad {text}"} for text in said],
        "causal_lm": [{"text": text} for text in said],
    }[objective]
    own = {"objective": objective, "dataset_name": str(write_rows(tmp_path / "d.jsonl", rows))}
    # Plain text has no answers that a trigger could be compared with, which is refused in words.
    cleaners = [name for name in registry.CLEANERS if objective != "causal_lm" or name != "triggers"]
    own |= {"clean": cleaners, "num_rounds": 1, "max_steps": 1, "num_clients": 1, "sample_clients": 1}
    own |= {"template": None} if objective == "causal_lm" else {}
    total = weft.train(keys | own, quiet=True).summary["cleaning"]["total"]
    assert list(total) == cleaners
    assert len(registry.CLEANERS) == 10
    assert total["personal_data"]["counts"]["email"] >= 1
    assert total["repair"]["changed"] >= 1
    assert total["exact_duplicates"]["left_out"] == 1


def test_of_what_a_site_cleans_nothing_travels(run, sites: FakeSites, caplog: pytest.LogCaptureFixture):
    """Not even counts, which stand in the site's own log: the control."""
    secret = f"sk-{'A1b2' * 12}"
    for number, (name, policy) in enumerate(list(sites.policies.items())):
        rows = colour_rows(60, number)
        for row in rows[::3]:
            row["instruction"] += f" {MAIL} {secret}"
        file = write_rows(Path(str(policy.data.path)).parent / "dirty.jsonl", rows)
        data = policy.data.model_copy(update={"path": str(file), "clean": ["personal_data", "secrets"]})
        sites.policies[name] = policy.model_copy(update={"data": data})
        sites.begin(name)
    with caplog.at_level("INFO"):
        done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    assert done.summary["rounds"] == 1
    sent = b"".join(sites.answered)
    assert len(sent) > 1000
    for word in (MAIL, secret, "personal_data", "secrets", "email"):
        assert word.encode() not in sent
    assert "the cleaner personal_data rewrote" in caplog.text


class TestTheCommand:
    def test_it_writes_what_is_left_with_all_columns_and_a_report(self, marked: Path, tmp_path: Path, capsys):
        out = tmp_path / "clean.jsonl"
        words = [str(marked), "--out", str(out), "--clean", "personal_data", "exact_duplicates"]
        assert main(["clean", *words]) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) < 132
        assert rows[0].keys() == json.loads(marked.read_text().splitlines()[0]).keys()
        assert MAIL not in out.read_text()
        report = json.loads(Path(f"{out}.report.json").read_text())
        assert report["left"] == len(rows)
        assert report["cleaners"]["exact_duplicates"]["left_out"] == 132 - len(rows)
        assert "personal_data" in capsys.readouterr().out

    def test_a_folder_of_its_files_is_read_without_their_counts(self, marked: Path, tmp_path: Path):
        folder = tmp_path / "cleaned"
        folder.mkdir()
        for name in ("a.jsonl", "b.jsonl"):
            assert main(["clean", str(marked), "--out", str(folder / name), "--clean", "exact_duplicates"]) == 0
        write_rows(folder / "other.report.json", [{"text": "a report that is data"}])
        read = [path.name for path in files_of(folder, Selection(), kind_of)]
        assert read == ["a.jsonl", "b.jsonl", "other.report.json"]

    def test_a_run_on_its_file_is_a_run_with_clean(self, keys, tmp_path: Path, tiny_tokenizer):
        rows = colour_rows(40)
        rows[3]["instruction"] += f" {MAIL}"
        data, out = write_rows(tmp_path / "d.jsonl", rows), tmp_path / "o.jsonl"
        assert main(["clean", str(data), "--out", str(out), "--clean", "personal_data", "--json"]) == 0
        one = {"num_clients": 1, "sample_clients": 1, "eval_fraction": 0}
        inside = population(keys | one | {"dataset_name": str(data), "clean": ["personal_data"]}, tiny_tokenizer)
        before = population(keys | one | {"dataset_name": str(out)}, tiny_tokenizer)
        assert texts(inside, tiny_tokenizer) == texts(before, tiny_tokenizer)

    def test_preferences_and_plain_text_are_told_by_their_columns(self, tmp_path: Path, capsys):
        pairs = write_rows(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "good one", "rejected": f"bad {MAIL}"}] * 2)
        plain = write_rows(tmp_path / "t.jsonl", [{"text": f"some text {MAIL}"}, {"text": "more text"}])
        for data, objective in ((pairs, "preference"), (plain, "causal_lm")):
            words = [str(data), "--out", str(tmp_path / "o.jsonl"), "--clean", "personal_data", "exact_duplicates"]
            assert main(["clean", *words, "--json"]) == 0
            report = json.loads(capsys.readouterr().out)
            assert report["objective"] == objective
            assert report["cleaners"]["personal_data"]["counts"]["email"] >= 1
            assert MAIL not in (tmp_path / "o.jsonl").read_text()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ([], "write --out FILE.jsonl"),
            (["--out", "{tmp}/o.jsonl"], "No cleaner is named"),
            (["--out", "{data}", "--clean", "length"], "is the file that is cleaned"),
            (["--out", "{tmp}/none/o.jsonl", "--clean", "length"], "in a folder that is there"),
            (["--out", "{tmp}/o.jsonl", "--clean", "length", "--clean_args", "length.least=9999"], "leaves no row"),
            (["--out", "{tmp}/o.jsonl", "--clean", "length", "--objective", "grpo"], "not cleaned"),
        ],
    )
    def test_what_cannot_be_is_refused(self, words: list[str], sentence: str, marked: Path, tmp_path: Path, capsys):
        filled = [word.format(tmp=tmp_path, data=marked) for word in words]
        before = sorted(tmp_path.iterdir())
        assert main(["clean", str(marked), *filled]) == 2
        assert sentence in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before

    def test_no_such_file_is_refused(self, tmp_path: Path, capsys):
        words = [str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--clean", "length"]
        assert main(["clean", *words]) == 2
        assert "There is no file" in capsys.readouterr().err


def test_data_errors_name_the_client(keys, tmp_path: Path, tiny_tokenizer):
    good = write_rows(tmp_path / "good.jsonl", colour_rows(20))
    bad = write_rows(tmp_path / "bad.jsonl", [{"instruction": MAIL, "output": MAIL}] * 5)
    clients = {"clients": {"north": str(good), "south": str(bad)}, "num_clients": 2, "dataset_name": None}
    clients |= {"clean": ["personal_data"], "clean_args": {"personal_data.action": "drop"}, "eval_fraction": 0}
    with pytest.raises(DataError, match="no row to the client 'south': the cleaner personal_data took the last 5 of"):
        population(keys | clients, tiny_tokenizer)


def test_a_site_names_its_cleaners_itself(tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl", colour_rows(5))
    text = "data: {path: %s, clean: [%s], clean_args: {length.least: 3}}\naccept: {models: [m]}\n"
    file = tmp_path / "site.yaml"
    file.write_text(text % (data, "length"))
    config = own_config(read_policy(file), {"model_name_or_path": "m", "clean": ["secrets"]}, "north")
    assert (config["clean"], config["clean_args"]) == (["length"], {"length.least": 3})
    file.write_text(text % (data, "lenght"))
    with pytest.raises(ConfigError, match="Did you mean 'length'"):
        read_policy(file)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("word: str", r"needs a value for 'word': write --clean_args mine\.py:NoRed\.word=VALUE"),
        ("word: Unknown = 'red'", r"types of the parameters of the cleaner '.*mine\.py:NoRed' cannot be read"),
    ],
)
def test_a_cleaner_of_ones_own_that_cannot_be_made_is_refused(keys, parameter: str, words: str, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from weft.data.cleaning.cleaner import Cleaner\n\n"
        f"@dataclass(frozen=True)\nclass NoRed(Cleaner):\n    {parameter}\n"
    )
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | {"clean": [f"{file}:NoRed"]}, quiet=True)


def test_rows_of_other_clients_are_compared_only_where_asked_and_the_run_says_what_that_reveals(keys, tmp_path, capsys):
    pytest.importorskip("datasketch")
    rows = [{"instruction": f"{number} " + "how many words does a long question need to be alike " * 3, "output": "so"}
            for number in range(4)]  # fmt: skip
    clients = [
        {"name": name, "data": str(write_rows(tmp_path / f"{name}.jsonl", rows + colour_rows(20, place)))}
        for place, name in enumerate("ab")
    ]
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    own = left | {"clients": clients, "clean": ["near_duplicates"], "num_rounds": 1, "eval_every": 0}
    counts = {}
    for across in ("true", "false"):
        given = own | {"clean_args": {"near_duplicates.across": across}, "output_dir": str(tmp_path / across)}
        counts[across] = weft.train(given).summary["cleaning"]["clients"]["b"]["near_duplicates"]["counts"]
        said = "clients tell each other sketches of their rows" in " ".join(capsys.readouterr().err.split())
        assert said == (across == "true")
    assert counts["true"]["near duplicate of another client's row"] >= 1
    assert "near duplicate of another client's row" not in counts["false"]


def test_a_site_compares_by_files_and_not_with_clients_that_it_cannot_see(tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows(10))
    policy = {"path": "rows.jsonl", "clean": ["near_duplicates"], "clean_args": {"near_duplicates.across": True}}
    (tmp_path / "site.yaml").write_text(json.dumps({"data": policy, "accept": {"models": ["m"]}}))
    with pytest.raises(ConfigError, match=r"near_duplicates\.against"):
        read_policy(tmp_path / "site.yaml")
    policy["clean_args"] = {"near_duplicates.against": "a.sketches+/b.sketches", "near_duplicates.key": "secret.key"}
    (tmp_path / "site.yaml").write_text(json.dumps({"data": policy, "accept": {"models": ["m"]}}))
    assert read_policy(tmp_path / "site.yaml").data.clean_args == {
        "near_duplicates.against": f"{tmp_path}/a.sketches+/b.sketches",
        "near_duplicates.key": f"{tmp_path}/secret.key",
    }


def test_rows_among_the_items_of_the_runs_tasks_are_left_out(keys, tmp_path: Path):
    """Only with the cleaner, and only of the tasks that the run is evaluated on."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [
        {
            "instruction": f"In which year was the {thing} invented that every child in town has {thing} of",
            "output": "red",
        }
        for thing in ("kettle", "bicycle", "lantern", "mirror", "hammer", "needle", "button", "candle", "wheel", "bell")
    ]
    write_rows(folder / "items.jsonl", items)
    prompt = r"{{ instruction }}\nAnswer:"
    task = own_task("items", "choice: {choices: [red, green, blue], answer: output}", file="items", prompt=prompt)
    (folder / "items.yaml").write_text(task)
    data = write_rows(tmp_path / "rows.jsonl", [*colour_rows(40), *items[:6]])
    own = keys | {"dataset_name": str(data), "eval_fraction": 0.0, "num_rounds": 1, "clean": ["contamination"]}
    asked = {"eval_tasks": ["items"], "task_data": [str(folder)], "include_path": [str(folder)]}
    counts = {}
    for name, more in (("asked", asked), ("control", {})):
        run = weft.train(own | more | {"output_dir": str(tmp_path / name)})
        counts[name] = run.summary["cleaning"]["total"]["contamination"]
    assert counts["asked"]["counts"] == {"in the task items": 6}
    assert counts["control"]["left_out"] == 0
