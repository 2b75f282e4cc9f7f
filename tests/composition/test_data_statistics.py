"""What clients tell of their rows before a training: never a small count, with noise if asked, and no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.core.secret import Secret
from weft.data.languages import LANGUAGES, OTHER, language_of
from weft.launch.data_statistics import asked_statistics, differences, divergences, protected
from weft.sites.policy import read_policy
from weft.sites.server import serve

TEXTS = {
    "de": "Wie heißt der Hund, der auf dem Hof ist, und wem gehört er?",
    "en": "What is the name of the dog that lives on the farm, and whose is it?",
    "es": "¿Cómo se llama el perro que está en la granja y de quién es?",
    "fr": "Quel est le nom du chien qui vit dans la ferme, et à qui est-il ?",
    "it": "Come si chiama il cane che è nella fattoria, e di chi è?",
    "nl": "Hoe heet de hond die op de boerderij is, en van wie is het dier?",
    "pl": "Jak nazywa się pies, który jest na podwórku, i do kogo należy?",
    "pt": "Qual é o nome do cachorro que está na fazenda, e de quem ele é?",
    "sv": "Vad heter hunden som är på gården, och vem har den?",
    "ru": "Как зовут собаку, которая живёт во дворе?",
    "zh": "住在农场的那只狗叫什么名字",
    "ja": "農場にいる犬の名前は何ですか。",
    "ko": "농장에 사는 개의 이름은 무엇입니까?",
    "ar": "ما اسم الكلب الذي يعيش في المزرعة؟",
    "he": "מה שמו של הכלב שגר בחווה?",
    "el": "Πώς λένε τον σκύλο που ζει στο αγρόκτημα;",
    "hi": "खेत में रहने वाले कुत्ते का नाम क्या है?",
    "th": "สุนัขที่อยู่ในฟาร์มชื่ออะไร",
    OTHER: "x = 7 + y; print(x)",
}


def test_languages_of_one_question():
    assert {language: language_of(text) for language, text in TEXTS.items()} == {name: name for name in TEXTS}
    assert set(TEXTS) == set(LANGUAGES)
    assert language_of("") == language_of("12") == language_of("red") == OTHER


def counts(**changes: Any) -> dict[str, Any]:
    """The exact counts of a client of 100 rows."""
    exact: dict[str, Any] = {
        "rows": 80,
        "held": 20,
        "lengths": {"32": 3, "64": 4, "128": 90, "256": 3},
        "labels": {"red": 55, "green": 41, "blue": 4, OTHER: 0},
        "languages": dict.fromkeys(LANGUAGES, 0) | {"en": 100},
    }
    return exact | changes


def test_small_counts_are_put_together_so_that_none_follows_from_the_others():
    assert protected(counts()) == counts() | {
        "least": 0,
        "noise": 0.0,
        "lengths": [[1, 32, 3], [33, 64, 4], [65, 128, 90], [129, 256, 3]],
        "labels": {"red": 55, "green": 41, "blue": 4},
        "languages": {"en": 100},
    }
    sent = protected(counts(), 10)
    assert sent["lengths"] == [[1, 256, 100]]
    assert sent["labels"] == {"red": 55, OTHER: 45}  # blue alone would be 100 - 55 - 41
    assert protected(counts(labels={"red": 3, "green": 4}, rows=7, held=0), 10)["labels"] == {}
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.integers(0, 30, 5)
        some = counts(labels=dict(zip("abcde", values.tolist(), strict=True)), rows=int(values.sum()), held=0)
        labels = protected(some, 10)["labels"]
        assert all(count >= 10 for count in labels.values())
        assert sum(labels.values()) in (values.sum(), 0)
        bins = protected(some | {"lengths": {str(32 << n): int(value) for n, value in enumerate(values)}}, 10)
        assert all(count >= 10 for _, _, count in bins["lengths"])
        assert sum(count for _, _, count in bins["lengths"]) in (values.sum(), 0)


def test_noise_has_its_scale_and_another_question_alone_has_another():
    secret, noise = Secret(bytes(range(32))), 2.0
    big = [counts(labels={"red": 1000 + n, "green": 5000}, rows=6000 + n, held=0) for n in range(3000)]
    sent = [protected(one, 1, noise, secret) for one in big]
    off = np.array([one["labels"]["red"] - 1000 - n for n, one in enumerate(sent)], dtype=float)
    # The discrete Laplace distribution of scale b: the variance is 2 p / (1 - p)^2 with p = exp(-1 / b).
    p = np.exp(-1 / noise)
    assert abs(off.mean()) < 0.2
    assert off.var() == pytest.approx(2 * p / (1 - p) ** 2, rel=0.15)
    assert [protected(one, 1, noise, secret) for one in big[:20]] == sent[:20]  # asked again, the same is told
    assert [protected(one, 1, noise, Secret.random()) for one in big[:20]] != sent[:20]
    assert [protected(one, 1, 0.0) for one in big[:20]] != sent[:20]
    assert sent[0]["rows"] == 6000  # which every run tells
    # What noise alone can make of nothing is not shown.
    assert all(set(protected(counts(rows=80 + n), 1, noise, secret)["languages"]) <= {"en", OTHER} for n in range(100))


def test_divergences_worked_out_by_hand():
    assert divergences({"a": {"x": 10, "y": 10}, "b": {"x": 7, "y": 7}}) == pytest.approx({"a": 0.0, "b": 0.0})
    # p = (1, 0), all = (1/2, 1/2), middle = (3/4, 1/4).
    apart = divergences({"a": {"x": 5}, "b": {"y": 5}})
    by_hand = (np.log2(4 / 3) + np.log2(2 / 3) / 2 + 1 / 2) / 2
    assert apart == pytest.approx({"a": by_hand, "b": by_hand})


@pytest.fixture
def people(keys, tmp_path: Path) -> dict[str, Any]:
    """The keys of a run of two clients; one of them asks in German."""
    german = [{"instruction": f"{TEXTS['de']} {n}", "output": "green"} for n in range(30)]
    files = {"a": write_rows(tmp_path / "a.jsonl", colour_rows(30)), "b": write_rows(tmp_path / "b.jsonl", german)}
    clients = [{"name": name, "data": str(file)} for name, file in files.items()]
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    return left | {"clients": clients, "choices": ["red", "green", "blue"], "seq_length": 200, "num_rounds": 1}


def described(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["describe", *map(str, words), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_command_tells_a_run_what_a_run_tells(people, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(people))
    exact = described(capsys, file)
    assert exact["a"]["languages"] == {"en": 30}  # the preamble of the template is English for both
    assert exact["b"]["languages"] == {"de": 30}
    assert exact["b"]["labels"] == {"green": 30}
    assert sum(exact["a"]["labels"].values()) == 30
    assert sum(count for _, _, count in exact["a"]["lengths"]) == exact["a"]["rows"] + exact["a"]["held"] == 30
    told = described(capsys, file, "--federated")
    assert all(count >= 10 for one in told.values() for count in one["labels"].values())
    run = weft.train(people | {"data_statistics": True})
    assert run.summary["statistics"] == told
    noisy = described(capsys, file, "--federated", "--statistics_noise", 3)
    assert noisy["a"]["rows"] == exact["a"]["rows"]
    assert noisy != told
    assert main(["describe", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "languages: the clients' shares differ from all by" in shown
    assert "de 30" in shown
    assert not list(tmp_path.glob("output*"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--kit", "k"], "add --federated"),
        (["--federated", "--name", "x"], "add --kit"),
        (["--statistics_noise", "1"], "add --federated"),
        (["--federated", "--statistics_noise", "-1"], "statistics_noise"),
        (["--federated", "--kit", "nowhere"], "leave out --clients"),
        (["--federated", "--kit", "nowhere", "--clients", "null"], "nowhere"),
        (["--runtime", "nvflare"], "--kit kits/admin"),
        (["none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_described_is_refused(people, words, reason: str, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(people))
    file = [] if "none.yaml" in words or "--runtime" in words else ["run.yaml"]
    assert main(["describe", *file, *words]) == 2
    assert reason in capsys.readouterr().err


def test_sites_tell_what_their_policies_allow(run, sites: FakeSites, tmp_path: Path):
    rules: list[dict[str, Any]] = [
        {"statistics": True, "min_report_rows": 5},
        {"statistics": True, "min_report_rows": 5, "statistics_noise": 4.0},
        {"min_report_rows": 5},
    ]
    for name, accept in zip(NAMES, rules, strict=True):
        file = Path(sites.policies[name].data.path).parent / "site.yaml"
        policy = yaml.safe_load(file.read_text())
        policy["accept"] |= accept
        file.write_text(yaml.safe_dump(policy))
        sites.policies[name] = read_policy(file)
        sites.begin(name)
    given = run | {"data_statistics": True, "num_rounds": 1, "eval_every": 0}
    done = serve(given, sites, list(NAMES), "1")
    found = done.summary["statistics"]
    assert set(found) == set(NAMES[:2])
    first, second = (found[name] for name in NAMES[:2])
    assert first["languages"] == {"en": 24}
    assert set(first["labels"]) <= {"red", "green", "blue", OTHER}
    assert (first["noise"], second["noise"]) == (0.0, 4.0)
    assert second["least"] == 20
    # Labels are not told where the run does not name them: they are the site's own words.
    other = serve(given | {"choices": None, "output_dir": str(tmp_path / "runs" / "other")}, sites, list(NAMES), "1")
    assert "labels" not in other.summary["statistics"][NAMES[0]]
    # Another run that asks the same is told the same.
    again = serve(given | {"output_dir": str(tmp_path / "runs" / "again")}, sites, list(NAMES), "1")
    assert again.summary["statistics"] == found
    assert (
        "statistics"
        not in serve(
            {key: value for key, value in given.items() if key != "data_statistics"}
            | {"output_dir": str(tmp_path / "runs" / "without")},
            sites,
            list(NAMES),
            "1",
        ).summary
    )


def test_what_a_site_tells_is_believed_as_far_as_it_can_be():
    good = {"rows": 5, "held": 1, "least": 2, "noise": 1.0, "labels": {"red": 3}, "languages": {"en": 6}}
    good |= {"lengths": [[1, 32, 6]]}
    wrong: dict[str, Any] = {
        "none": None,
        "text": "x",
        "least": good | {"least": "x"},
        "label": good | {"labels": {"Alice": 1}},
        "language": good | {"languages": {"en": -1}},
        "lengths": good | {"lengths": [[1, 2]] * 3},
        "many": good | {"lengths": [[1, 2, 3]] * 1000},
        "noise": good | {"noise": "1"},
    }
    found = asked_statistics(["red"], wrong | {"good": good | {"more": 1}})
    assert found["good"] == good
    assert {"none", "text", "least"}.isdisjoint(found)
    for name, kind in (("label", "labels"), ("language", "languages"), ("lengths", "lengths"), ("many", "lengths")):
        assert kind not in found[name]
    assert found["noise"]["noise"] == 0.0


def test_a_site_whose_counts_are_all_zero_makes_no_number_of_the_others_nan():
    """What a hostile site sends, or noise makes of few rows."""
    told = {"rows": 10, "held": 0, "least": 1}
    answers = {name: told | {"labels": {"x": n, "y": m}} for name, n, m in (("a", 9, 1), ("b", 1, 9), ("c", 0, 0))}
    lines = differences(asked_statistics(["x", "y"], answers))
    assert "nan" not in " ".join(lines)
    assert any(line.startswith("labels: ") for line in lines)
    del answers["b"]
    assert len(differences(asked_statistics(["x", "y"], answers))) == 1
