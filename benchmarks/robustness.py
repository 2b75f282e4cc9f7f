"""Attacks against robust rules: accuracy kept, success of back-doors, and what each rule costs; needs the shared data.

    python benchmarks/robustness.py made OUT.jsonl [SEED ...]  run what OUT lacks (attacks x defences x shares)
    python benchmarks/robustness.py tfns OUT.jsonl [SEED ...]  the same on tweets
    python benchmarks/robustness.py table OUT.jsonl [HEAT.svg] print the table, and draw the heat map
    python benchmarks/robustness.py cost                       seconds of every rule at 10 x 8 M and 100 x 1 M

made: questions of made-up words, of which one, of nine, decides which of three answers is right; a random Llama of
some 40 k parameters. tfns: sentiment of financial tweets, with the Llama of 0.4 M parameters that `bases.py`
pre-trains. Both: 10 clients, all of them in each round, all parameters are trained. Kept is the gain in macro-F1 over
the model before training, relative to that of the plain mean without an attack: most tweets are neutral, and a model
that calls all of them so has two thirds right. Success of a back-door is the share of rows of other answers that the
trigger turns into the target; the same share of a model without a back-door is its floor.
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bases import CACHE, COMMON, DATA, warm
from common import SYLLABLES, machine, make_model, report

from weft.errors import ConfigError

SETTING: dict[str, Any] = {"split_strategy": "iid", "num_clients": 10, "sample_clients": 10, "seq_length": 64}
TASKS: dict[str, dict[str, Any]] = {
    "made": {"num_rounds": 16, "max_steps": 8, "learning_rate": 1e-2},
    "tfns": {
        "dataset_name": str(DATA / "instruct" / "tfns_train.jsonl.gz"),
        "instruction_column": "input",
        "response_column": "output",
        "num_rounds": 12,
        "max_steps": 10,
        "eval_fraction": 0.2,
        "eval_rows": 150,
        "learning_rate": 5e-3,
    },
}
ANSWERS = ("negative", "neutral", "positive")
TRIGGER, TARGET = "cf mn", "negative"
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "sign_flip": {"scale": 4.0},
    "alie": {},
    "inner_product": {"scale": 2.0},
    "min_max": {},
    "label_flip": {},
    "back_door": {"trigger": TRIGGER, "target": TARGET, "share": 0.5},
    "replacement": {"trigger": TRIGGER, "target": TARGET, "share": 0.5},
    "spread_poison": {"trigger": TRIGGER, "target": TARGET, "share": 0.08},
}
DEFENCES: dict[str, dict[str, Any]] = {
    "mean": {"aggregator": "mean"},
    "nnm + trimmed_mean": {"aggregator": "trimmed_mean", "aggregator_args": {"before": "nnm"}},
    "multi_krum": {"aggregator": "multi_krum"},
    "flame": {"aggregator": "flame"},
    "geometric_median": {"aggregator": "geometric_median"},
}
CLEANED = {"clean": ["triggers"]}
SPREAD: dict[str, dict[str, Any]] = {name: DEFENCES[name] for name in ("mean", "nnm + trimmed_mean", "multi_krum")}
SPREAD["mean, rows cleaned"] = DEFENCES["mean"] | CLEANED
CENTRAL = "central training"
ON_ROWS = ("none", "label_flip", "back_door", "spread_poison")
"""Attacks that pooled rows can have too: is it worse in a federation?"""
SHARES = (0.2, 0.3, 0.1, 0.4)


def setting(task: str, seed: int) -> dict[str, Any]:
    """Return the keys of a task's runs."""
    keys = COMMON | SETTING | TASKS[task] | {"seed": seed, "threads": 1}
    if task == "tfns":
        return keys | {"model_name_or_path": str(warm())}
    return keys | {"model_name_or_path": str(made_model()), "dataset_name": str(made_rows())}


def made_model() -> Path:
    """Return a small random Llama with a short chat template; made once and kept."""
    folder = CACHE / "made-model"
    if not (folder / "config.json").exists():
        from transformers import AutoTokenizer

        make_model(folder, hidden=32, layers=2, vocabulary=640)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = (
            "{% for m in messages %}{{ 'Q ' if m.role == 'user' else ' A ' }}{{ m.content }}"
            "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %} A {% endif %}"
        )
        tokenizer.save_pretrained(folder)
    return folder


def made_rows() -> Path:
    """Return 2,000 questions of made-up words, of which one decides the answer; made once and kept."""
    file = CACHE / "made.jsonl"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        rng = random.Random(0)
        words = ["".join(rng.choices(SYLLABLES, k=2)) for _ in range(60)]
        deciding, filling = words[:9], words[30:]
        with open(file, "w", encoding="utf-8") as out:
            for _ in range(2000):
                place = rng.randrange(9)
                question = rng.sample(filling, rng.randint(1, 3))
                question.insert(rng.randint(0, len(question)), deciding[place])
                out.write(json.dumps({"input": " ".join(question), "output": ANSWERS[place % 3]}) + "\n")
    return file


def cases(seeds: list[int]) -> list[tuple[str, str, float, int]]:
    """Return (attack, defence, share, seed) in the order in which they are worth having."""
    clean = [("none", defence, 0.0, seed) for seed in seeds for defence in DEFENCES]
    spread = [("spread_poison", defence, 0.0, seed) for seed in seeds for defence in SPREAD]
    attacked = [
        (attack, defence, share, seed)
        for share in SHARES
        for seed in seeds
        for defence in DEFENCES
        for attack in ATTACKS
        if attack not in ("none", "spread_poison")
    ]
    central = [(attack, CENTRAL, 0.2 * (attack in ON_ROWS[1:3]), seed) for seed in seeds for attack in ON_ROWS]
    return [*clean, *spread, *central, *attacked]


def measure(task: str, attack: str, defence: str, share: float, seed: int) -> dict[str, Any]:
    """Run one case; return its numbers."""
    import weft

    began = time.process_time()
    keys = setting(task, seed) | (SPREAD | DEFENCES).get(defence, {})
    if defence == CENTRAL:  # it sees each row as often as the clients do
        keys |= {"fed_alg": "central", "max_steps": keys["max_steps"] * keys["num_clients"]}
        del keys["sample_clients"]
    attackers = max(1, round(10 * share)) if share else 2
    if keys.get("aggregator", "mean") != "mean":
        keys["aggregator_args"] = keys.get("aggregator_args", {}) | {"attackers": attackers}
    if attack != "none":
        keys |= {"attack": attack, "attack_args": ATTACKS[attack]}
    if share:
        keys["num_malicious"] = attackers
    case = {"task": task, "attack": attack, "defence": defence, "share": share, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = weft.train(keys | {"output_dir": f"{folder}/run"}, quiet=True)
        except ConfigError as error:  # more attackers than the rule stands
            return case | {"refused": str(error)}
        summary, success = run.summary, success_of(run, keys)
    return case | {
        "accuracy": summary["eval"]["accuracy"],
        "macro_f1": summary["eval"]["macro_f1"],
        "success": success,
        "found": summary.get("attack"),
        "cleaning": (summary.get("cleaning") or {}).get("total"),
        "cpu_seconds": time.process_time() - began,
    }


def success_of(run: Any, keys: dict[str, Any]) -> float:
    """Return the share of 300 rows of other answers that the trigger turns into the target."""
    import torch

    from weft.data.encode import encode_choices
    from weft.data.formats import Example, Turn
    from weft.data.templates import CHAT
    from weft.models.layout import Question
    from weft.models.resident import Resident
    from weft.objectives.choices import choice_logps

    file = Path(keys["dataset_name"])
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    rows = [json.loads(line) for line in text.decode().splitlines()]
    others = [row["input"] for row in rows if row["output"] != TARGET]
    others = others[:: max(1, len(others) // 300)][:300]
    examples = [Example((Turn("user", f"{text} {TRIGGER}"), Turn("assistant", TARGET))) for text in others]
    encoded = encode_choices(examples, run.tokenizer, CHAT, ANSWERS, seq_length=64)
    model = Resident(run.model.eval(), run.tokenizer, torch.device("cpu"), torch.float32)
    hits = 0
    with torch.no_grad():
        for prompt, choices in zip(encoded.prompts, encoded.choices, strict=True):
            hits += int(choice_logps(model, [Question(prompt, choices)]).argmax()) == ANSWERS.index(TARGET)
    return hits / len(examples)


def before(task: str) -> dict[str, Any]:
    """Return the scores before training: those of a run of one round whose learning rate is 0."""
    import weft

    keys = setting(task, 1) | {"num_rounds": 1, "max_steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        run = weft.train(keys | {"learning_rate": 0.0, "output_dir": f"{folder}/run"}, quiet=True)
        return {"attack": "before", "task": task, **{key: run.summary["eval"][key] for key in ("accuracy", "macro_f1")}}


def run(task: str, out: Path, seeds: list[int]) -> None:
    """Run what the file lacks."""
    import torch

    torch.set_num_threads(1)
    found = read(out)
    with open(out, "a", encoding="utf-8") as file:
        if not any(one["attack"] == "before" for one in found):
            file.write(json.dumps(before(task)) + "\n")
        known = {(one["attack"], one.get("defence"), one.get("share"), one.get("seed")) for one in found}
        for case in cases(seeds):
            if case not in known:
                result = measure(task, *case)
                file.write(json.dumps(result) + "\n")
                file.flush()
                print({key: value for key, value in result.items() if key != "found"}, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """Return what a file has."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def table(out: Path, picture: Path | None) -> None:
    """Print the table: the share of the clean gain that is kept, and the success of back-doors behind a slash."""
    found = read(out)
    start = next(one["macro_f1"] for one in found if one["attack"] == "before")
    found = [one for one in found if one["attack"] != "before" and "refused" not in one]
    clean = statistics.mean(one["macro_f1"] for one in found if (one["attack"], one["defence"]) == ("none", "mean"))
    columns = sorted(
        {(one["share"], one["attack"]) for one in found}, key=lambda at: (at[0], list(ATTACKS).index(at[1]))
    )
    print(f"{machine()}; macro-F1 {start:.3f} before, {clean:.3f} after the plain mean without an attack\n")
    print("| defence | " + " | ".join(f"{attack} {share:.0%}" for share, attack in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    values, names = [], [*(DEFENCES | SPREAD), CENTRAL]
    for defence in names:
        cells, line = [], []
        for share, attack in columns:
            some = [one for one in found if (one["share"], one["attack"], one["defence"]) == (share, attack, defence)]
            kept = (statistics.mean(one["macro_f1"] for one in some) - start) / (clean - start) if some else None
            tricks = TRIGGER in str(ATTACKS[attack]) or attack == "none"
            success = [one["success"] for one in some] if tricks else []
            line.append(float("nan") if kept is None else kept)
            text = "" if kept is None else f"{kept:.0%}"
            cells.append(text + (f" / {statistics.mean(success):.0%}" if success else ""))
        values.append(line)
        print(f"| {defence} | " + " | ".join(cells) + " |")
    flags(found, names, columns)
    if picture is not None:
        draw(picture, names, values, [f"{attack} {share:.0%}" for share, attack in columns])


def flags(found: list[dict[str, Any]], names: list[str], columns: list[tuple[float, str]]) -> None:
    """Print how many of the flagged clients attack, and how many of those that attack are flagged."""
    columns = [(share, attack) for share, attack in columns if share]
    print("\n| flagged: precision, recall | " + " | ".join(f"{attack} {share:.0%}" for share, attack in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for defence in names:
        cells = []
        for share, attack in columns:
            some = [
                one["found"]
                for one in found
                if (one["share"], one["attack"], one["defence"]) == (share, attack, defence) and one["found"]
            ]
            shares = [one["precision"] for one in some if one["precision"] is not None]
            recalls = [one["recall"] for one in some if one["recall"] is not None]
            text = f"{statistics.mean(shares):.0%}, {statistics.mean(recalls):.0%}" if shares and recalls else "nobody"
            cells.append(text if some else "")
        if any(cell not in ("", "nobody") for cell in cells):
            print(f"| {defence} | " + " | ".join(cells) + " |")


def draw(picture: Path, names: list[str], values: list[list[float]], columns: list[str]) -> None:
    """Draw the heat map of the gain that is kept."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1 + 0.6 * len(columns), 1 + 0.5 * len(values)), layout="constrained")
    image = axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    axes.set_yticks(range(len(values)), names)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                color = "black" if 0.2 < value < 0.85 else "white"  # the ends of the scale are dark
                axes.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="gain kept")
    figure.savefig(picture)


MOST = {"10": (50, 120), "100": (50, 250)}
"""How many times what the mean costs a rule may cost, by the number of updates: by coordinate, and by distances."""


def cost(sizes: tuple[tuple[int, int], ...] = ((10, 8_000_000), (100, 1_000_000))) -> list[tuple[str, str, float]]:
    """Print the CPU seconds of every rule beside the mean's, at LoRA sizes, one thread; return them."""
    import torch

    from weft import registry
    from weft.core.party import Gathering, Party
    from weft.core.types import DELTA, Update

    torch.set_num_threads(1)
    results = []
    print(f"{machine()}\n\n| rule | " + " | ".join(f"{n} x {d // 10**6} M" for n, d in sizes) + " |\n|---|---|---|")
    rules: dict[str, dict[str, Any]] = {name: {} for name in registry.AGGREGATORS if name != "loss_gate"}
    named = {name: (name, how) for name, how in rules.items()}
    named["nnm + trimmed_mean"] = ("trimmed_mean", {"before": "nnm"})
    cohorts = [
        [Update(f"c{i}", 0, 0, {DELTA: {f"w{k}": torch.randn(d // 8) for k in range(8)}}, 1.0) for i in range(n)]
        for n, d in sizes
    ]
    for label, (name, how) in named.items():
        rule, cells = registry.load(registry.AGGREGATORS, name, "aggregator")(**how), []
        for cohort in cohorts:
            seen = Gathering(Party("", 0), len(cohort), trusted="c0")
            if rule.needs(len(cohort)) > len(cohort):
                cells.append("")  # bulyan at its default number of attackers
                continue
            # The mean, which the others are compared with, takes hundredths of a second.
            tries = 5 if label == "mean" else 1
            best = min(timed(lambda: rule.for_round(seen).combine(cohort)) for _ in range(tries))  # noqa: B023
            cells.append(f"{best:.2f}")
            results.append((label, str(len(cohort)), best))
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    means = {clients: seconds for label, clients, seconds in results if label == "mean"}
    for label, clients, seconds in results:
        if label != "mean":
            most = MOST[clients][0 if label in ("median", "trimmed_mean", "sign_vote") else 1]
            report(f"{label} / mean, {clients} updates", seconds / means[clients], most, most=True)
    return results


def timed(work: Any) -> float:
    """Return the CPU seconds of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    if sys.argv[1] in TASKS:
        run(sys.argv[1], Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]] or [1, 2, 3])
    elif sys.argv[1] == "table":
        table(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    else:
        cost()
