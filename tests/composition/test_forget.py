"""`weft forget`: the result equals, bit for bit, a run that never had the client or the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weft
from support.preferences import preference_rows
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.core.witness import state_digest
from weft.errors import ConfigError
from weft.launch.verify import verify
from weft.runs import checkpoint
from weft.runs.layout import RunDir

SEEN_LATE = {"seed": 1, "sample_clients": 1, "num_rounds": 6, "save_model_freq": 1, "checkpoint_seconds": 0}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["forget", *words])
    out, err = capsys.readouterr()
    return code, out + err


def lines(run: Path, *events: str) -> list[dict[str, Any]]:
    return [
        line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["event"] in events
    ]


def last_seen(run: Path) -> str:
    """Return the client that was asked for the first time after all others."""
    seen: list[str] = []
    for line in lines(run, "round"):
        seen += [name for name in line["clients"] if name not in seen]
    return seen[-1]


def state_of(run: Path) -> str:
    return state_digest(checkpoint.at(RunDir(run), max(RunDir(run).rounds)))


def anew(run: Path, out: Path) -> Path:
    """Begin the run that a config.yaml describes anew, elsewhere."""
    assert main(["sft", "--config", str(run / "config.yaml"), "--output_dir", str(out)]) == 0
    return out


def result(run: Path) -> bytes:
    file = next(
        path for path in (run / "adapter/adapter_model.safetensors", run / "model/model.safetensors") if path.exists()
    )
    return file.read_bytes()


@pytest.fixture
def preferences(people, tmp_path: Path) -> dict[str, Any]:
    """The keys of a DPO run of three named clients."""
    files = [write_rows(tmp_path / f"pairs_{name}.jsonl", preference_rows(20)) for name in "abc"]
    clients = [{"name": f"ward_{name}", "data": str(file)} for name, file in zip("abc", files, strict=True)]
    left = {key: value for key, value in people.items() if key != "choices"}
    return left | {"objective": "preference", "clients": clients, "eval_fraction": 0.1}


KINDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "sft": lambda people, pairs: people,
    "fedadam": lambda people, pairs: people | {"fed_alg": "fedadam"},
    "codec": lambda people, pairs: people | {"codec": "sparse_loco", "codec_args": {"keep": 300}},
    "dpo": lambda people, pairs: pairs,
    "full": lambda people, pairs: people | {"use_peft": False},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_left_is_a_run_that_never_had_the_client(kind: str, people, preferences, tmp_path: Path, capsys):
    keys = KINDS[kind](people, preferences) | SEEN_LATE
    old = weft.train(keys).path
    client = last_seen(old)
    first = min(line["round"] for line in lines(old, "round") if client in line["clients"])
    assert first > 1  # else there is nothing to keep
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    # Nothing of the client is read once more.
    Path(next(one["data"] for one in keys["clients"] if one["name"] == client)).unlink()
    code, words = said(capsys, str(old), "--client", client, "--yes")
    assert code == 0, words
    assert f"round {first} saw it first, and the state after round {first - 1} is the last before" in words
    assert f"so {6 - first + 1} of 6 rounds are computed once more" in words
    new = Path(f"{old}-forgotten")
    fresh = anew(new, tmp_path / "fresh")
    assert state_of(new) == state_of(fresh)
    assert result(new) == result(fresh) != result(old)
    assert lines(new, "round") == lines(fresh, "round")
    assert all(client not in line["clients"] for line in lines(new, "round"))
    assert client not in json.dumps(lines(new, "eval"))
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before
    assert not verify(RunDir(new)).findings
    origin = json.loads((new / "forgotten.json").read_text())
    assert origin["rounds_kept"] == first - 1
    assert origin["head"] == verify(RunDir(old)).head
    # Rounds before the client came are those of the old run; the cohorts of later ones too, but for the client.
    for line, former in zip(lines(new, "round"), lines(old, "round"), strict=True):
        assert line["clients"] == [name for name in former["clients"] if name != client]


def test_with_client_state_every_round_is_computed_once_more(people, tmp_path: Path, capsys):
    """SCAFFOLD's server divides by the rows of all clients, those of one that has not come yet too."""
    old = weft.train(people | SEEN_LATE | {"fed_alg": "scaffold"}).path
    client = last_seen(old)
    code, words = said(capsys, str(old), "--client", client, "--yes")
    assert code == 0, words
    assert "every round depends on it, since each step counts the rows of all clients" in words
    new = Path(f"{old}-forgotten")
    fresh = anew(new, tmp_path / "fresh")
    assert state_of(new) == state_of(fresh)
    assert not (new / "clients" / client).exists()
    assert result(new) != result(old)


@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", ["central", "fedbuff"])
def test_where_cohorts_or_rows_are_everybodys_all_rounds_are_computed_once_more(
    fed_alg: str, people, tmp_path: Path, capsys
):
    old = weft.train(people | SEEN_LATE | {"fed_alg": fed_alg}).path
    code, words = said(capsys, str(old), "--client", "ward_b", "--yes")
    assert code == 0, words
    assert "so 6 of 6 rounds are computed once more" in words
    new = Path(f"{old}-forgotten")
    assert state_of(new) == state_of(anew(new, tmp_path / "fresh")) != state_of(old)


def test_rows_are_forgotten_as_if_they_had_not_been_in_the_file(people, tmp_path: Path, capsys):
    for one in people["clients"]:  # rows that nobody else has
        rows = [json.loads(line) for line in Path(one["data"]).read_text().splitlines()]
        write_rows(Path(one["data"]), [row | {"instruction": f"{one['name']} {n}"} for n, row in enumerate(rows)])
    old = weft.train(people | SEEN_LATE).path
    client = last_seen(old)
    place = next(number for number, one in enumerate(people["clients"]) if one["name"] == client)
    data = Path(people["clients"][place]["data"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    gone, left = rows[:3], [row for row in rows if row not in rows[:3]]
    code, words = said(capsys, str(old), "--rows", str(write_rows(tmp_path / "gone.jsonl", gone)), "--yes")
    assert code == 0, words
    assert f"{len(rows) - len(left)} rows and {client}" in words
    new = Path(f"{old}-forgotten")
    # A run of the user's own, on a file in which the user deleted the rows.
    clients = [dict(one) for one in people["clients"]]
    clients[place]["data"] = str(write_rows(tmp_path / "left.jsonl", left))
    fresh = weft.train(people | SEEN_LATE | {"clients": clients, "output_dir": str(tmp_path / "fresh")}).path
    assert state_of(new) == state_of(fresh)
    assert result(new) == result(fresh) != result(old)
    texts = [file.read_text(errors="replace") for file in new.rglob("*") if file.suffix in (".json", ".jsonl", ".yaml")]
    assert not any(row["output"] in text and row["instruction"] in text for row in gone for text in texts)


@pytest.mark.parametrize(
    "more",
    [
        {"clean": ["contamination"]},
        {"clean": ["near_duplicates"], "clean_args": {"near_duplicates.across": True}},
    ],
)
def test_where_a_cleaner_compares_rows_with_everybodys_all_rounds_are_computed_once_more(more, people, capsys):
    old = weft.train(people | SEEN_LATE | more).path
    code, words = said(capsys, str(old), "--client", last_seen(old), "--dry_run")
    assert code == 0, words
    assert "every round depends on it, since a cleaner compares rows with those of everybody" in words
    assert "so 6 of 6 rounds are computed once more" in words


def test_rounds_that_are_kept_come_with_the_secrets_that_they_were_drawn_from(people, capsys):
    """Canaries, buckets of an aggregator and noise are drawn from secrets: others would not go with the old rounds."""
    old = weft.train(people | SEEN_LATE | {"canaries": 12}).path
    client = last_seen(old)
    code, words = said(capsys, str(old), "--client", client, "--yes")
    assert code == 0, words
    new = Path(f"{old}-forgotten")
    assert json.loads((new / "forgotten.json").read_text())["rounds_kept"]
    was, now = ({str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.key")} for run in (old, new))
    assert now.keys() >= {f"clients/ward_{name}/secret.key" for name in "abc"} - {f"clients/{client}/secret.key"}
    assert all(key == was.get(name) for name, key in now.items() if client not in name)
    assert (
        not (new / "clients" / client / "secret.key").exists()
        or now[f"clients/{client}/secret.key"] != was[f"clients/{client}/secret.key"]
    )


def test_rows_that_are_in_public_data_too_are_not_forgotten(people, capsys, tmp_path: Path):
    row = json.loads(Path(people["clients"][0]["data"]).read_text().splitlines()[0])
    public = write_rows(tmp_path / "public.jsonl", [row])
    old = weft.train(people | {"num_rounds": 1, "public_data": str(public), "public_share": 0.25}).path
    code, words = said(capsys, str(old), "--rows", str(write_rows(tmp_path / "gone.jsonl", [row])), "--yes")
    assert code == 2
    assert f"1 of the rows are in '{public}' (public_data)" in words
    assert not Path(f"{old}-forgotten").exists()


def test_rows_that_nobody_has_are_named_by_their_places(people, capsys, tmp_path: Path):
    """And the cost is told where the new run's place is taken too."""
    rows = [json.loads(line) for line in Path(people["clients"][0]["data"]).read_text().splitlines()]
    write_rows(Path(people["clients"][0]["data"]), [rows[0] | {"instruction": "rare"}, *rows[1:]])
    old = weft.train(people | {"num_rounds": 1}).path
    strange = [row | {"output": "none has it"} for row in rows[:2]]
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    gone = write_rows(tmp_path / "gone.jsonl", [strange[0], rows[0] | {"instruction": "rare"}, strange[1]])
    code, words = said(capsys, str(old), "--rows", str(gone), "--dry_run", "--output_dir", str(taken))
    assert code == 0, words
    assert f"2 rows of '{gone}' (1, 3) are not among the rows of the run" in words
    assert "To forget 1 row and ward_a: " in words
    assert f"'{taken}' is there already: to forget, give another" in words
    assert "none has it" not in words
    code, words = said(capsys, str(old), "--rows", str(gone), "--yes", "--output_dir", str(taken))
    assert code == 2
    assert [file.name for file in taken.iterdir()] == ["notes.txt"]


def test_the_cost_of_a_cheap_method_is_no_round(people, capsys):
    old = weft.train(people | EVERYBODY | {"num_rounds": 1}).path
    code, words = said(capsys, str(old), "--client", "ward_b", "--method", "ascent", "--dry_run")
    assert code == 0, words
    assert "To forget ward_b by --method ascent no round is computed once more" in words
    assert "so 1 of 1 rounds are computed" not in words


def test_of_one_source_that_is_dealt_the_others_keep_their_rows(keys, tmp_path: Path, capsys):
    old = weft.train(keys | SEEN_LATE).path
    client = last_seen(old)
    code, words = said(capsys, str(old), "--client", client, "--yes", "--output_dir", str(tmp_path / "new"))
    assert code == 0, words
    fresh = anew(tmp_path / "new", tmp_path / "fresh")
    assert state_of(tmp_path / "new") == state_of(fresh)
    assert "NaN" not in (tmp_path / "new" / "split.json").read_text()  # which is no JSON
    was, now = (json.loads((run / "split.json").read_text())["clients"] for run in (old, tmp_path / "new"))
    assert {name: one["rows"] for name, one in now.items()} == {
        name: 0 if name == client else one["rows"] for name, one in was.items()
    }


def test_a_forgetting_that_was_killed_is_resumed(people, tmp_path: Path, capsys, monkeypatch):
    from weft.launch.trainer import Trainer

    old = weft.train(people | SEEN_LATE).path
    client = last_seen(old)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_rounds", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, words = said(capsys, str(old), "--client", client, "--yes")
    assert code == 130
    assert "Go on with: weft sft --output_dir" in words
    new = Path(f"{old}-forgotten")
    assert main(["sft", "--output_dir", str(new), "--resume"]) == 0
    assert state_of(new) == state_of(anew(new, tmp_path / "fresh"))


def test_the_cost_is_printed_and_nothing_is_done(people, capsys, tmp_path: Path):
    old = weft.train(people | SEEN_LATE).path
    code, words = said(capsys, str(old), "--client", "ward_a", "--dry_run")
    assert code == 0
    assert " rounds are computed once more, about " in words
    code, words = said(capsys, str(old), "--client", "ward_a")
    assert code == 2
    assert "add --yes, or --dry_run" in words
    gone = write_rows(
        tmp_path / "gone.jsonl", [json.loads(Path(people["clients"][0]["data"]).read_text().splitlines()[0])]
    )
    assert said(capsys, str(old), "--rows", str(gone), "--dry_run")[0] == 0
    assert [path.name for path in old.parent.glob(f"{old.name}-*")] == []


def test_bad_input(people, capsys, tmp_path: Path):
    old = weft.train(people | SEEN_LATE | {"num_rounds": 1}).path
    never = next(one["name"] for one in people["clients"] if one["name"] not in lines(old, "round")[0]["clients"])
    unknown = tmp_path / "unknown.jsonl"
    write_rows(unknown, colour_rows(1, 99))
    (tmp_path / "rows.txt").write_text("a row")
    for words, reason in [
        (["--client", "ward_z"], "There is no client 'ward_z' to forget. Did you mean"),
        (["--client", never], "took part in no round"),
        ([], "Nothing to forget is named"),
        (["--rows", str(tmp_path / "rows.txt")], "write the path of a file in .jsonl"),
        (["--client", "ward_a", "--rows", str(unknown)], "or two kinds"),
    ]:
        code, told = said(capsys, str(old), *words, "--yes")
        assert code == 2, told
        assert reason in told
    for more, reason in [
        ({"protection": "masks", "sample_clients": 3}, "would show the update of that client as the difference"),
        ({"fed_alg": "local"}, "delete its folder"),
        (
            {"privacy_unit": "client", "noise_multiplier": 1.0, "clip_norm": 0.1},
            "would spend it once more on everybody else",
        ),
    ]:
        run = weft.train(people | more | {"num_rounds": 1, "output_dir": str(tmp_path / f"run_{len(reason)}")}).path
        code, told = said(capsys, str(run), "--client", "ward_a", "--yes")
        assert code == 2, told
        assert reason in told


EVERYBODY = {
    "sample_clients": 3,
    "keep_updates": True,
    "checkpoint_seconds": 0,
    "save_model_freq": 1,
    "lr_scheduler_type": "constant",
}


def exact_and(old: Path, method: str, client: str, tmp_path: Path, capsys) -> tuple[dict[str, Any], Path, Path]:
    """Forget a client exactly and cheaply; return the scores and both runs."""
    exact, cheap = tmp_path / "exact", tmp_path / method
    assert said(capsys, str(old), "--client", client, "--yes", "--output_dir", str(exact))[0] == 0
    code, words = said(
        capsys, str(old), "--client", client, "--method", method, "--exact", str(exact), "--output_dir", str(cheap)
    )
    assert code == 0, words
    assert "local rounds to relearn" in words
    return json.loads((cheap / "forgotten.json").read_text())["scores"], exact, cheap


def test_updates_that_are_taken_back_after_one_round_leave_the_exact_run(people, tmp_path: Path, capsys):
    """The others began from the same parameters, so that only rounding differs; after more rounds they did not."""
    import torch

    distances = []
    for rounds in (1, 4):
        keys = people | EVERYBODY | {"num_rounds": rounds, "output_dir": str(tmp_path / f"run_{rounds}")}
        old = weft.train(keys).path
        found, exact, cheap = exact_and(old, "update", "ward_b", tmp_path / str(rounds), capsys)
        assert set(found) == {"before", "update", "exact"}
        one, other = (checkpoint.at(RunDir(run), rounds).params for run in (exact, cheap))
        distances.append(max(float((one[name] - other[name]).abs().max()) for name in one))
        assert not verify(RunDir(cheap)).findings
        assert torch.isfinite(torch.tensor([score["loss"] for score in found.values()])).all()
    assert distances[0] < 1e-7 < distances[1]


def test_a_cheap_way_without_held_out_rows_is_refused_before_it_changes_anything(people, tmp_path: Path, capsys):
    """Ascent went on for all its steps, and the forgotten were said to be told from nobody."""
    run = weft.train(people | {"num_rounds": 1, "max_steps": 1, "eval_fraction": 0.0, "sample_clients": 3}).path
    out = tmp_path / "cheap"
    code, words = said(capsys, str(run), "--client", "ward_b", "--method", "ascent", "--output_dir", str(out))
    assert code == 2
    assert "No client but ward_b has held-out rows" in words
    assert not out.exists()


@pytest.mark.slow
def test_ascent_makes_the_rows_of_a_client_as_strange_as_unseen_ones(people, tmp_path: Path, capsys):
    for one in people["clients"]:  # rows that nobody else has, so that they can be told apart
        rows = [json.loads(line) for line in Path(one["data"]).read_text().splitlines()]
        write_rows(
            Path(one["data"]), [row | {"output": f"{one['name']} {n * 7919 % 1000}"} for n, row in enumerate(rows)]
        )
    keys = {key: value for key, value in people.items() if key != "choices"} | EVERYBODY
    old = weft.train(keys | {"num_rounds": 8, "max_steps": 20, "learning_rate": 1e-2}).path
    found, _, cheap = exact_and(old, "ascent", "ward_b", tmp_path, capsys)
    assert found["before"]["relearning"] == 0
    assert found["ascent"]["relearning"] > 0
    assert found["ascent"]["membership"] < found["before"]["membership"]
    assert (cheap / "adapter" / "README.md").exists()


def test_cheap_methods_say_what_they_need(people, tmp_path: Path, capsys):
    old = weft.train(people | EVERYBODY | {"num_rounds": 1, "keep_updates": False}).path
    other = weft.train(
        people | EVERYBODY | {"num_rounds": 1, "fed_alg": "fedadam", "output_dir": str(tmp_path / "o")}
    ).path
    some = [str(write_rows(tmp_path / "some.jsonl", colour_rows(1)))]
    for words, reason in [
        ([str(old), "--client", "ward_b", "--method", "update"], "a run keeps them with --keep_updates"),
        ([str(other), "--client", "ward_b", "--method", "update"], "takes updates out of plain means"),
        ([str(old), "--rows", *some, "--method", "ascent"], "forgets whole clients"),
        ([str(old), "--client", "ward_b", "--exact", str(other)], "add --method update or ascent"),
        ([str(old), "--client", "ward_b", "--method", "ascent", "--exact", str(other)], "is not what `weft forget"),
    ]:
        code, told = said(capsys, *words)
        assert code == 2, told
        assert reason in told
        assert not Path(f"{words[0]}-forgotten").exists()


def test_nobody_is_left_where_all_clients_are_forgotten(keys, capsys):
    with pytest.raises(ConfigError, match="forgotten leaves 0 of 3 clients"):
        weft.train(keys | {"forgotten": ["client_0", "client_1", "client_2"]})
    assert not Path(keys["output_dir"]).exists()
