"""The model card of what a run trained: README.md beside the weights, as the hub reads it.

Says what was trained, how, by how many and with which scores, from the files in the run directory alone. It may be
published, so it holds no path of this machine, no row and no name of a client: of clients it says how many there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from weft import kinds, plugins
from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.data.dataset_card import front_matter
from weft.data.load import kind_of
from weft.json_types import JsonObject
from weft.runs.comparison import KINDS, ComparisonRow, Outcome, compared, verb_of
from weft.runs.fingerprints import Fingerprints, made_from
from weft.runs.layout import RunDir
from weft.runs.text import human_bytes, human_number

CARD = "README.md"
TAG = "weft"
ON_THE_WAY = ("aggregator", "privacy", "codec", "protection")
"""Kinds of parts that most runs have none of."""
LICENSE = ("license", "license_name", "license_link")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
PROMPTS = {"soft": "soft prompt", "prefix": "prefix", "p_tuning": "p-tuning prompt", "black_box": "soft prompt"}
DOES = {
    "sft": "on questions with answers",
    "causal_lm": "on plain text",
    "preference": "on preferences",
    "grpo": "by rewards of its own answers (GRPO)",
}


@dataclass(frozen=True)
class Origin:
    """What a run began from, as far as it may be told."""

    model: str | None
    """Its name on the hub; None: it has none, or the run began from nothing."""
    license: Mapping[str, str]
    """What the model's own card says of its license."""
    data: str | None
    """The name of a data set of the hub."""
    nothing: bool = False


def write_cards(run: RunDir, personal: bool = False) -> None:
    """Write the cards of all that a finished run wrote: of the shared adapter or model, and of clients' own."""
    for kind in ("adapter", "model"):
        shared = run.path / kind
        if shared.is_dir():
            write_card(run, shared, personal=personal)
        for own in run.clients.glob(f"*/{kind}"):
            write_card(run, own, own=True, personal=personal)


def write_card(
    run: RunDir,
    folder: Path,
    *,
    whole: bool | None = None,
    own: bool = False,
    like: Path | None = None,
    base: str | None = None,
    personal: bool = False,
) -> None:
    """Write the card of what is in a folder.

    Args:
        run: that trained it.
        folder: the adapter or the model.
        whole: a whole model, not an adapter; None: as its name says.
        own: one client's own.
        like: the folder of which it is a copy. Its card was written where the run was, and knows what is on the hub.
        base: the name or path of another model that it is for.
        personal: what was measured was clients' own models, of which the summary has no more.
    """
    config = run.read_config()
    summary = json.loads(run.summary_file.read_text(encoding="utf-8")) if run.summary_file.exists() else {}
    split = json.loads(run.split_file.read_text(encoding="utf-8")) if run.split_file.exists() else {}
    whole = folder.name == "model" if whole is None else whole
    began = _began(config, front_matter(like / CARD) if like is not None else {}, base)
    body = [
        _title(config, began, whole, own),
        _training(config, summary, split, began, made_from(run)),
        _scores(Outcome("", config, summary, personal)),
        _use(config, began, whole, folder),
    ]
    head = yaml.safe_dump(_head(config, began, whole), sort_keys=False, allow_unicode=True)
    write_atomic(folder / CARD, ("---\n" + head + "---\n\n" + "\n\n".join(filter(None, body)) + "\n").encode())


def hub_name(name: str | None) -> str | None:
    """Return a name if it is one of the hub, and not a file or a folder of this machine."""
    if name is None or not _ID.fullmatch(name) or Path(name).exists():
        return None
    return name


def _began(config: JsonObject, before: JsonObject, base: str | None) -> Origin:
    """Return what a run began from; a card that Weft wrote before knows more than names that are read elsewhere."""
    nothing = any(config.get(key) is not None for key in ("size", "hidden_size", "num_layers", "num_heads"))
    known = TAG in (before.get("tags") or [])
    data = next(iter(before.get("datasets") or []), None) if known else _data(config)
    if nothing:
        return Origin(None, {}, data, nothing)
    if known and base is None:
        return Origin(before.get("base_model"), {key: before[key] for key in LICENSE if key in before}, data)
    name = base or str(config["model_name_or_path"])
    said = front_matter(card) if (card := _card_of(name)) is not None else {}
    return Origin(hub_name(name), {key: said[key] for key in LICENSE if isinstance(said.get(key), str)}, data)


def _data(config: JsonObject) -> str | None:
    """Return the name of the run's data set if it is one of the hub that everybody may load."""
    name = config.get("dataset_name")
    if config.get("token") or config.get("local_data_dir") or config.get("clients") or "/" not in str(name):
        return None
    return None if kind_of(Path(str(name))) is not None else hub_name(name)


def _card_of(name: str) -> Path | None:
    """Return where a model's own card lies on this machine."""
    if hub_name(name) is None:
        return Path(name).expanduser() / CARD
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CARD)
    return Path(found) if isinstance(found, str) else None


def _head(config: JsonObject, began: Origin, whole: bool) -> JsonObject:
    """Return the front matter."""
    head: JsonObject = dict(began.license)
    if began.model is not None:
        head |= {"base_model": began.model, "base_model_relation": "finetune" if whole else "adapter"}
    head |= {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    if began.data is not None:
        head["datasets"] = [began.data]
    tags = [TAG, "federated-learning", plugins.public_name(config["fed_alg"]), verb_of(config)]
    tags += [] if whole or not config.get("use_peft") else ["lora"]
    return head | {"tags": [tag for tag in tags if tag != "central"]}


def _title(config: JsonObject, began: Origin, whole: bool, own: bool) -> str:
    start = f"`{began.model}`" if began.model else "a model that is not on the hub"
    if began.nothing:
        what = "A language model trained from nothing"
        title = "Model trained from nothing"
    elif whole:
        what, title = (
            f"A language model that began as {start}, trained",
            f"Model tuned from {began.model or 'its base'}",
        )
    else:
        kind = _adapter(config)
        what, title = f"A {kind} for {start}, trained", f"{kind[0].upper()}{kind[1:]} for {began.model or 'its base'}"
    who = " by one of the clients for itself, within a run" if own else ""
    return f"# {title}\n\n{what}{who} {DOES.get(str(config['objective']), 'with a loss of its own')}, by Weft."


def _adapter(config: JsonObject) -> str:
    return "LoRA adapter" if config.get("use_peft") else PROMPTS.get(str(config.get("prompt_method")), "prompt")


def _part(config: JsonObject, key: str, made: Fingerprints) -> str:
    """Return the name of a part, with what tells its content where it is not Weft's own."""
    name = str(config.get(key, RunConfig.model_fields[key].default))
    content = made.get(f"the {kinds.KINDS[key].word} '{name}'")
    if content is None:
        return plugins.public_name(name)
    return f"{plugins.public_name(name)} ({f'SHA-256 {content}' if plugins.parse(name) else content})"


def _training(
    config: JsonObject,
    summary: JsonObject,
    split: JsonObject,
    began: Origin,
    made: Fingerprints,
) -> str:
    """Return the table of how it was trained."""
    central = config["fed_alg"] == "central"
    clients = len(split.get("clients") or config.get("clients") or config.get("sites") or []) or config["num_clients"]
    a_round = "all rows pooled at one place" if central else f"{min(config['sample_clients'], clients)} in a round"
    steps = config["max_steps"]
    work = f"{steps} steps" if steps > 0 else f"{config['num_train_epochs']} epochs"
    rows = {
        "algorithm": _part(config, "fed_alg", made),
        **{key: name for key in ON_THE_WAY if (name := _part(config, key, made)) not in ("mean", "none")},
        "clients": f"{clients}, {a_round}",
        "rounds": summary.get("rounds"),
        "local work": f"{work} of {config['batch_size'] * config['gradient_accumulation_steps']} rows",
        "optimizer": f"{config['optimizer']}, learning rate {config['learning_rate']:g}, {config['lr_scheduler_type']}",
        "LoRA": f"rank {config['peft_lora_r']}, alpha {config['peft_lora_alpha']:g}, "
        + _part(config, "lora_aggregation", made)
        if config.get("use_peft")
        else None,
        "longest row": f"{config['seq_length']} tokens",
        "tokens learnt": human_number(summary["tokens"]) if summary.get("tokens") else None,
        "sent": human_bytes(summary["bytes_up"] + summary["bytes_down"]) if summary.get("bytes_up") else None,
        "data": f"`{began.data}`" if began.data else "not published",
        "split": split.get("strategy"),
        "seed": config["seed"],
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _scores(outcome: Outcome) -> str:
    """Return the table of scores, a line for each kind."""
    line = ComparisonRow((outcome,), {})
    found = {kind: scores for kind in KINDS if (scores := line.scores(kind))}
    heads = [metric.name for metric in compared() if any(metric.name in scores for scores in found.values())]
    if not heads:
        return ""
    rows = [
        f"| {kind} | {line.rows()} | "
        + " | ".join(f"{scores[h].mean:.4f}" if h in scores else "" for h in heads)
        + " |"
        for kind, scores in found.items()
    ]
    top = ["| measured on held-out rows | n | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    return "\n".join(["## Scores", "", *top, *rows])


def _use(config: JsonObject, began: Origin, whole: bool, folder: Path) -> str:
    """Return how it is loaded."""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if whole:
        lines += ["", 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")']
    else:
        lines += [
            "from peft import PeftModel",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{began.model or "BASE"}")',
        ]
        lines += ['model = PeftModel.from_pretrained(model, "THIS_FOLDER")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")']
    asked = (
        ""
        if config["objective"] == "causal_lm"
        else f"Questions were put in the template `{_template(config, folder)}`."
    )
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```" + (f"\n\n{asked}" if asked else "")


def _template(config: JsonObject, folder: Path) -> str:
    """Return the template that questions were put in; `auto` is that of the tokenizer, if it has one."""
    if config["template"] != "auto":
        return str(config["template"])
    own = folder / "tokenizer_config.json"
    written = own.exists() and "chat_template" in json.loads(own.read_text(encoding="utf-8"))
    return "chat" if written or (folder / "chat_template.jinja").exists() else "alpaca"
