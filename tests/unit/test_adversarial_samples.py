"""`weft attack`: what is changed in questions, whether the gradient is right, and that what it reports is so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from support.own_tasks import own_task
from support.rows import write_rows
from weft.cli import main
from weft.launch.subject import of_model
from weft.models.layout import Question
from weft.objectives.choices import choice_logps
from weft.tasks.attacks import Attacker
from weft.tasks.catalogue import select
from weft.tasks.gradients import Swaps
from weft.tasks.local_model import LocalModel
from weft.tasks.perturbations import WORD, Synonyms, misspelt
from weft.tasks.rows import items_of, rows_of

COLOURS = ["red", "green", "blue"]
WORDS = "the old house near a river has many windows doors and one garden with apple trees behind walls".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    chance = np.random.default_rng(0)
    rows = [{"thing": " ".join(chance.choice(WORDS, 12)), "colour": COLOURS[number % 3]} for number in range(30)]
    write_rows(folder / "things.jsonl", rows)
    scorer = "choice:\n  choices: [red, green, blue]\n  answer: colour"
    (folder / "colours.yaml").write_text(own_task("colours", scorer, file="things"))
    generated = "generate:\n  compare: exact\n  answer: colour"
    listed = own_task("listed", scorer, file="things", prompt="Is it {red/green/blue}? {{ thing }} is")
    (folder / "listed.yaml").write_text(listed)
    (folder / "written.yaml").write_text(own_task("written", generated, file="things"))
    return folder


@pytest.fixture
def words(folder: Path, tiny_model: Path, tmp_path: Path) -> list[str]:
    return [
        *("attack", str(tiny_model), "--on", str(folder / "colours.yaml"), "--task_data", str(folder)),
        *("--output_dir", str(tmp_path / "out"), "--budget", "0.5"),
    ]


@pytest.fixture(scope="module")
def local(tiny_model: Path) -> LocalModel:
    model = of_model(str(tiny_model), {"device": "cpu", "dtype": "float32"}, chat=False, batch_size=32).model
    assert isinstance(model, LocalModel)
    return model


def test_it_reports_accuracies_before_and_after_that_are_so(words, folder: Path, local: LocalModel, capsys):
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["items"] == 30
    assert result["column"] == "thing"
    assert result["robust_accuracy"] <= min(report["robust_accuracy"] for report in result["attacks"].values())
    task = select([str(folder / "colours.yaml")], [])[0]
    items = items_of(task, rows_of(task, [folder], 0), 0, None)
    fooled = 0
    for report in result["attacks"].values():
        assert report["robust_accuracy"] <= result["accuracy"]
        for example in report["examples"]:
            fooled += 1
            item = items[example["item"]]
            attacker = Attacker(task, local, column="thing", budget=0.5)
            (before, _), (after, _) = attacker._judge([item, _with_text(item, example["before"], example["after"])])
            assert before
            assert not after
            changed = sum(a != b for a, b in zip(example["before"].split(), example["after"].split(), strict=True))
            assert 1 <= changed <= 6
    assert fooled > 0
    assert main([*words, "--attacks", "characters"]) == 0
    assert "characters" in capsys.readouterr().out


def _with_text(item, before: str, after: str):
    from dataclasses import replace

    return replace(item, prompt=replace(item.prompt, question=item.prompt.question.replace(before, after, 1)))


def test_the_same_seed_attacks_the_same_rows_in_the_same_way(words, capsys):
    results = []
    for _ in range(2):
        assert main([*words, "--limit", "9", "--json"]) == 0
        results.append(capsys.readouterr().out)
    assert results[0] == results[1]
    assert json.loads(results[0])["items"] == 9


def test_the_gradient_is_that_of_the_margin_at_the_embeddings(local: LocalModel, folder: Path):
    """Against differences of the margin itself, along some directions."""
    task = select([str(folder / "colours.yaml")], [])[0]
    item = items_of(task, rows_of(task, [folder], 0), 0, 1)[0]
    request = task.scorer.request(item)
    swaps, right = Swaps(local), 0
    context = local.encoder.prompt_text(request.prompt).rstrip()
    ids = local.encoder.ids(context)
    gradient = swaps._gradient(request, context, ids, right)
    assert gradient.shape[0] == len(ids)
    choices = [np.array(local.encoder.pair(context, " " + one)[1], dtype=np.int32) for one in COLOURS]
    layer = local.model.base.get_input_embeddings()

    def loss(shift: torch.Tensor) -> float:
        def hook(module, args, output):
            moved = output.clone()
            moved[:, : len(ids)] += shift
            return moved

        handle = layer.register_forward_hook(hook)
        try:
            with local.model.evaluating():
                logps = choice_logps(local.model, [Question(np.array(ids, dtype=np.int32), choices)]).double()
        finally:
            handle.remove()
        return float(torch.cat([logps[:right], logps[right + 1 :]]).max() - logps[right])

    torch.manual_seed(0)
    for _ in range(5):
        direction = torch.randn_like(gradient)
        step = 2e-4
        difference = (loss(step * direction) - loss(-step * direction)) / (2 * step)
        assert difference == pytest.approx(float((gradient * direction).sum()), rel=0.05, abs=5e-3)


def test_the_swaps_that_the_gradient_ranks_first_mislead_more_than_any(local: LocalModel, folder: Path):
    task = select([str(folder / "colours.yaml")], [])[0]
    items = items_of(task, rows_of(task, [folder], 0), 0, None)
    attacker = Attacker(task, local, column="thing", budget=0.5)
    swaps, chance = Swaps(local), np.random.default_rng(0)
    names = Synonyms(local.model).names
    gains: dict[str, list[float]] = {"gradient": [], "any": []}
    for victim in attacker.victims(items)[:6]:
        edits = swaps.of(task.scorer.request(victim.item), COLOURS.index(victim.item.row["colour"]), victim.text)
        assert edits
        places = [match.span() for match in WORD.finditer(victim.text)]
        others = []
        for _ in edits:
            begin, end = places[chance.integers(len(places))]
            others.append((begin, end, names[chance.integers(len(names))] if names else "zzz"))
        for kind, group in (("gradient", edits), ("any", others)):
            texts = [victim.text[:begin] + new + victim.text[end:] for begin, end, new in group]
            judged = attacker._judge([victim.asked(text) for text in texts])
            gains[kind].append(victim.margin - float(np.mean([margin for _, margin in judged])))
    assert np.mean(gains["gradient"]) > np.mean(gains["any"])


def test_typing_mistakes_are_small_and_the_same_every_time():
    variants = misspelt("window", 3)
    assert variants == misspelt("window", 3)
    assert len(variants) >= 3
    assert "window" not in variants
    assert all(abs(len(variant) - 6) <= 1 for variant in variants)


def test_synonyms_keep_capitals_and_are_other_words(local: LocalModel):
    synonyms = Synonyms(local.model)
    assert "purchase" in synonyms.of("buy")
    assert "Purchase" in synonyms.of("Buy")
    assert not any(word.lower().startswith("apple"[:4]) for word in synonyms.of("apple"))


def test_rows_without_a_word_are_not_among_those_that_are_drawn(folder: Path, tiny_model: Path, tmp_path, capsys):
    """Where all that were drawn had none, the shares were once divided by no rows."""
    rows = [{"thing": "the old house" if number == 7 else " ", "colour": COLOURS[number % 3]} for number in range(9)]
    write_rows(tmp_path / "few.jsonl", rows)
    scorer = "choice:\n  choices: [red, green, blue]\n  answer: colour"
    (tmp_path / "few.yaml").write_text(own_task("few", scorer, file="few"))
    given = ["attack", str(tiny_model), "--on", str(tmp_path / "few.yaml"), "--task_data", str(tmp_path), "--json"]
    for limit in ("1", "9"):
        assert main([*given, "--limit", limit, "--attacks", "characters", "--output_dir", str(tmp_path / limit)]) == 0
        assert json.loads(capsys.readouterr().out)["items"] == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--attacks", "charactres"], "Did you mean 'characters'"),
        (["--budget", "0"], "above 0"),
        (["--limit", "0"], "write 1 or more"),
        (["--column", "colour"], "write one of these (thing)"),
        (["--column", "nothing"], "write one of these (thing)"),
        (["--on", "{folder}/listed.yaml", "--column", "colour"], "write one of these (thing)"),
        (["--round", "3"], "is no run's directory"),
        (["--on", "{folder}/written.yaml"], "is of the kind generate"),
        (["--on", "general"], "tasks: name one task with choices"),
    ],
)
def test_what_cannot_be_is_refused(words, folder: Path, changes: list[str], sentence: str, tmp_path: Path, capsys):
    given = (
        words
        if changes[0] not in ("--on", "--budget")
        else [word for at, word in enumerate(words) if changes[0] not in (word, words[at - 1])]
    )
    assert main([*given, *[word.format(folder=folder) for word in changes]]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
