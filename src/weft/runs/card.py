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
from weft.core.texts import printable
from weft.data.dataset_card import front_matter
from weft.data.load import kind_of
from weft.json_types import JsonObject
from weft.runs.chain import head_of
from weft.runs.comparison import KINDS, ComparisonRow, Outcome, compared_metrics, verb_of
from weft.runs.fingerprints import Fingerprints, read_fingerprints
from weft.runs.layout import RunDir
from weft.runs.metrics import read
from weft.runs.privacy_words import short_guarantee
from weft.runs.task_scores import CARD, scores_section
from weft.runs.text import human_bytes, human_number

TAG = "weft"
ON_THE_WAY = ("aggregator", "privacy", "codec", "codec_down", "protection", "attack")
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
    """What a run began from, as far as it may be published."""

    model: str | None
    """Its name on the hub; None: it has none, or the run began from nothing."""
    license: Mapping[str, str]
    """What the model's own card says of its license."""
    data: str | None
    """The name of a data set of the hub."""
    from_scratch: bool = False
    """The weights were drawn at random, not loaded."""


def write_cards(run: RunDir, personal: bool = False) -> None:
    """Write the cards of all that a finished run wrote: of the shared adapter or model, and of clients' own."""
    for kind in ("adapter", "model"):
        shared = run.path / kind
        if shared.is_dir():
            write_card(run, shared, personal=personal)
        for folder in run.clients.glob(f"*/{kind}"):
            write_card(run, folder, of_client=True, personal=personal)


def write_card_of_round(run: RunDir, folder: Path, round: int) -> None:
    """Write the card of the shared adapter or model as it was after a round, with that round's scores."""
    records = [line for line in read(run.metrics_file) if line.get("event") == "eval" and line["round"] == round]
    evaluation = records[-1] if records else {}
    summary = {"rounds": round, "eval": evaluation, "clients": evaluation.get("clients", {})}
    if folder.is_dir():
        write_card(run, folder, summary=summary)


def write_card(
    run: RunDir,
    folder: Path,
    *,
    whole: bool | None = None,
    of_client: bool = False,
    original: Path | None = None,
    base: str | None = None,
    personal: bool = False,
    summary: JsonObject | None = None,
) -> None:
    """Write the card of what is in a folder.

    Args:
        run: that trained it.
        folder: the adapter or the model.
        whole: a whole model, not an adapter; None: as its name says.
        of_client: one client's own.
        original: the folder that it is a copy of. Its card was written on the run's machine, which knows what is on
            the hub.
        base: the name or path of another model that it is for.
        personal: what was measured was clients' own models, of which the summary has no more.
        summary: of the run as far as the folder has it; None: that of its end.
    """
    config = run.read_config()
    if summary is None:
        summary = json.loads(run.summary_file.read_text(encoding="utf-8")) if run.summary_file.exists() else {}
    split = json.loads(run.split_file.read_text(encoding="utf-8")) if run.split_file.exists() else {}
    whole = folder.name == "model" if whole is None else whole
    origin = _origin_of(config, front_matter(original / CARD) if original is not None else {}, base)
    body = [
        _title(config, origin, whole, of_client),
        _training(config, summary, split, origin, read_fingerprints(run), head_of(run.chain_file)),
        _scores(Outcome("", config, summary, personal)),
        scores_section(run, folder),
        _use(config, origin, whole, folder),
    ]
    head = yaml.safe_dump(_head(config, origin, whole), sort_keys=False, allow_unicode=True)
    write_atomic(folder / CARD, ("---\n" + head + "---\n\n" + "\n\n".join(filter(None, body)) + "\n").encode())


def hub_name(name: str | None) -> str | None:
    """Return a name if it is one of the hub, and not a file or a folder of this machine."""
    # A file or folder of this name is what the run loaded, and a path must not be published.
    if name is None or not _ID.fullmatch(name) or Path(name).exists():
        return None
    return name


def _origin_of(config: JsonObject, former_card: JsonObject, base: str | None) -> Origin:
    """Return what a run began from: by the card that Weft wrote with the run, if there is one, else by its keys."""
    from_scratch = any(config.get(key) is not None for key in ("size", "hidden_size", "num_layers", "num_heads"))
    by_weft = TAG in (former_card.get("tags") or [])
    data = next(iter(former_card.get("datasets") or []), None) if by_weft else _data(config)
    if from_scratch:
        return Origin(None, {}, data, from_scratch)
    # The base of an exported copy may be a path here; the card that was written with the run has its hub name.
    if by_weft and base is None:
        license = {key: former_card[key] for key in LICENSE if key in former_card}
        return Origin(former_card.get("base_model"), license, data)
    name = base or str(config["model_name_or_path"])
    base_card = front_matter(card) if (card := _card_of(name)) is not None else {}
    return Origin(hub_name(name), {key: base_card[key] for key in LICENSE if isinstance(base_card.get(key), str)}, data)


def _data(config: JsonObject) -> str | None:
    """Return the name of the run's data set if it is one of the hub that everybody may load."""
    name = config.get("dataset_name")
    # A data set that needs a token, or is named client by client, may be private: the card does not name it.
    if config.get("token") or config.get("local_data_dir") or config.get("clients") or "/" not in str(name):
        return None
    return None if kind_of(Path(str(name))) is not None else hub_name(name)


def _card_of(name: str) -> Path | None:
    """Return where a model's own card lies on this machine."""
    if hub_name(name) is None:
        return Path(name).expanduser() / CARD
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, CARD)
    return Path(path) if isinstance(path, str) else None


def _head(config: JsonObject, origin: Origin, whole: bool) -> JsonObject:
    """Return the front matter."""
    head: JsonObject = dict(origin.license)
    if origin.model is not None:
        head |= {"base_model": origin.model, "base_model_relation": "finetune" if whole else "adapter"}
    head |= {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    if origin.data is not None:
        head["datasets"] = [origin.data]
    tags = [TAG, "federated-learning", plugins.public_name(config["fed_alg"]), verb_of(config)]
    tags += [] if whole or not config.get("use_peft") else ["lora"]
    return head | {"tags": [tag for tag in tags if tag != "central"]}


def _title(config: JsonObject, origin: Origin, whole: bool, of_client: bool) -> str:
    start = f"`{origin.model}`" if origin.model else "a model that is not on the hub"
    if origin.from_scratch:
        what = "A language model trained from scratch"
        title = "Model trained from scratch"
    elif whole:
        what, title = (
            f"A language model fine-tuned from {start}",
            f"Model fine-tuned from {origin.model or 'its base'}",
        )
    else:
        kind = _adapter(config)
        what, title = f"A {kind} for {start}, trained", f"{kind[0].upper()}{kind[1:]} for {origin.model or 'its base'}"
    who = " by one client of a run as its personal model" if of_client else ""
    return f"# {title}\n\n{what}{who} {DOES.get(str(config['objective']), 'with a custom loss')}, with Weft."


def _adapter(config: JsonObject) -> str:
    return "LoRA adapter" if config.get("use_peft") else PROMPTS.get(str(config.get("prompt_method")), "prompt")


def _part(config: JsonObject, key: str, fingerprints: Fingerprints) -> str:
    """Return the name of a part, with what tells its content where it is not Weft's own."""
    name = str(config.get(key, RunConfig.model_fields[key].default))
    content = fingerprints.get(f"the {kinds.KINDS[key].word} '{name}'")
    if content is None:
        return plugins.public_name(name)
    return f"{plugins.public_name(name)} ({f'SHA-256 {content}' if plugins.parse(name) else content})"


def _training(
    config: JsonObject,
    summary: JsonObject,
    split: JsonObject,
    origin: Origin,
    fingerprints: Fingerprints,
    head: str | None,
) -> str:
    """Return the table of how it was trained."""
    central = config["fed_alg"] == "central"
    clients = len(split.get("clients") or config.get("clients") or config.get("sites") or []) or config["num_clients"]
    cohort = "all rows pooled at one place" if central else f"{min(config['sample_clients'], clients)} per round"
    steps = config["max_steps"]
    work = f"{steps} steps" if steps > 0 else f"{config['num_train_epochs']} epochs"
    rows = {
        "algorithm": _part(config, "fed_alg", fingerprints),
        **{key: name for key in ON_THE_WAY if (name := _part(config, key, fingerprints)) not in ("mean", "none")},
        "differential privacy": short_guarantee(summary.get("privacy")),
        "clients": f"{clients}, {cohort}",
        "rounds": summary.get("rounds"),
        "local work": f"{work} of {config['batch_size'] * config['gradient_accumulation_steps']} rows",
        "optimizer": f"{config['optimizer']}, learning rate {config['learning_rate']:g}, {config['lr_scheduler_type']}",
        "LoRA": f"rank {config['peft_lora_r']}, alpha {config['peft_lora_alpha']:g}, "
        + _part(config, "lora_aggregation", fingerprints)
        if config.get("use_peft")
        else None,
        "maximum row length": f"{config['seq_length']} tokens",
        "training tokens": human_number(summary["tokens"]) if summary.get("tokens") else None,
        "traffic": human_bytes(summary["bytes_up"] + summary["bytes_down"]) if summary.get("bytes_up") else None,
        "data": f"`{origin.data}`" if origin.data else "not published",
        "split": split.get("strategy"),
        "seed": config["seed"],
        "record of the run": None if head is None else f"`{head}`",
    }
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    """Return a value as the text of a cell of a table: what would end the cell or the line is escaped."""
    return printable(str(value)).replace("|", "\\|")


def _scores(outcome: Outcome) -> str:
    """Return the table of scores, a line for each kind."""
    row = ComparisonRow((outcome,), {})
    by_kind = {kind: scores for kind in KINDS if (scores := row.scores(kind))}
    names = [metric.name for metric in compared_metrics() if any(metric.name in scores for scores in by_kind.values())]
    if not names:
        return ""
    rows = [
        f"| {kind} | {row.rows()} | " + " | ".join(f"{scores[h].mean:.4f}" if h in scores else "" for h in names) + " |"
        for kind, scores in by_kind.items()
    ]
    top = [
        "| measured on held-out rows | n | " + " | ".join(map(_cell, names)) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    return "\n".join(["## Scores", "", *top, *rows])


def _use(config: JsonObject, origin: Origin, whole: bool, folder: Path) -> str:
    """Return how it is loaded."""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if whole:
        lines += ["", 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")']
    else:
        lines += [
            "from peft import PeftModel",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{origin.model or "BASE"}")',
        ]
        lines += ['model = PeftModel.from_pretrained(model, "THIS_FOLDER")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")']
    note = "" if config["objective"] == "causal_lm" else f"Prompts use the template `{_template(config, folder)}`."
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```" + (f"\n\n{note}" if note else "")


def _template(config: JsonObject, folder: Path) -> str:
    """Return the template of the prompts; `auto` is that of the tokenizer, if it has one."""
    if config["template"] != "auto":
        return str(config["template"])
    tokenizer_config = folder / "tokenizer_config.json"
    settings = json.loads(tokenizer_config.read_text(encoding="utf-8")) if tokenizer_config.exists() else {}
    return "chat" if "chat_template" in settings or (folder / "chat_template.jinja").exists() else "alpaca"
