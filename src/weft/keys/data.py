"""Keys of the data: sources, tokenization, the split over clients."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weft import kinds
from weft.json_types import JsonObject
from weft.keys.effects import ALWAYS, NOT_SITES, ONE_SOURCE, Condition, Effect, flag, only, verbs
from weft.registry import SPLITS


class Client(BaseModel):
    """A client with its own data."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    data: str
    eval: str | None = None
    """Source of its held-out rows; None: `eval_fraction` of its rows is held out."""


class DataKeys(BaseModel):
    """The data."""

    dataset_name: str | None = Field(None, description="name on the hub, a file or a folder, split over the clients")
    dataset_sample: int | None = Field(20000, ge=1, description="largest number of rows that are used")
    dataset_split: str | None = Field(
        None,
        description="part of a folder or data set to train on, or a slice such as train[:10%] (default: train)",
    )
    eval_dataset_split: str | None = Field(
        None,
        description="part of eval_dataset_name, or of dataset_name, to evaluate on (default: validation, else test)",
    )
    held_out_overlap: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="if rows of eval_dataset_name are training rows too: refuse the run, or leave them out "
        "of the training",
    )
    local_data_dir: str | None = Field(None, description="folder in which dataset_name is searched")
    clients: list[Client] | None = Field(None, description="clients with their own data: name=path ...")
    public_data: str | None = Field(
        None,
        description="public rows: they are a client of their own, which takes part in every round, unless "
        "public_share is set",
    )
    public_share: float = Field(
        0.0, ge=0, lt=1, description="share of every client's batches that is drawn from public_data, from 0 to below 1"
    )
    token_cache: str | None = Field(
        None, description="folder for tokenized text [$WEFT_CACHE/tokens, or ~/.cache/weft/tokens]"
    )
    clean: list[str] = Field(
        [],
        description="cleaners of every client's training rows, in their order: repair, length, language, "
        "exact_duplicates, near_duplicates, perplexity, triggers, personal_data, secrets, contamination, "
        "or FILE.py:NAME",
    )
    clean_args: JsonObject = Field({}, description="parameters of cleaners: cleaner.name=value ...")
    template: str = Field(
        "auto", description="alpaca, vicuna, chat; auto is chat if the tokenizer has a chat template, else alpaca"
    )
    prompt_template: str | None = Field(None, description="file with a Jinja chat template, instead of the tokenizer's")
    template_date: str | None = Field(
        None,
        description="date for chat templates that print the current one, such as 2026-01-31 (default: day of "
        "the run's start)",
    )
    seq_length: int = Field(512, ge=2, description="longest row in tokens; longer ones are cut")
    truncation_side: Literal["right", "left"] = Field(
        "right", description="side on which longer rows are cut: right, left"
    )
    instruction_column: str | None = Field(
        None, description="column of the question; several, separated by commas, are joined by blank lines"
    )
    response_column: str | None = Field(
        None, description="column of the answer; several, separated by commas, are joined by blank lines"
    )
    instruction_prefix: str | None = Field(None, description="text before every question, such as 'Summarise:'")
    split_strategy: str = Field(
        "iid", description="how the rows of one source are split over the clients, such as iid, dirichlet, by"
    )
    split_args: JsonObject = Field({}, description="parameters of the split: name=value ...")
    split_column: str | None = Field(
        None, description="column for dirichlet, by and shards (default: the answers, if they are few)"
    )
    split_seed: int | None = Field(
        None, description="seed for sampling, splitting and holding out rows (default: seed)"
    )
    clients_of_rest: int = Field(
        0,
        ge=0,
        description="with by and domain: extra clients for the rows of values beyond num_clients; 0: those "
        "rows are dropped",
    )
    split_alpha: float = Field(
        0.5, gt=0, description="concentration of dirichlet, quantity, length and cluster; smaller is more skewed"
    )
    split_min_rows: int = Field(
        1, ge=1, description="smallest number of rows of a client; random splits are redrawn until it holds"
    )
    shards_per_client: int = Field(2, ge=1, description="sorted shards of each client, with shards")


TOKENIZED = (
    Condition(
        lambda config: (
            config.objective == "causal_lm"
            or config.federated_tokenizer
            or kinds.is_outside("objective", config.objective)
        ),
        "it concerns tokenized plain text, and the objective is {c.objective}",
        "use `weft pretrain`",
    ),
)

WORKS: dict[str, Effect] = {
    "dataset_name": ALWAYS,
    "dataset_sample": ONE_SOURCE,
    "dataset_split": NOT_SITES,
    "eval_dataset_split": NOT_SITES,
    "held_out_overlap": NOT_SITES,
    "local_data_dir": NOT_SITES,
    "clients": ALWAYS,
    "public_data": ALWAYS,
    "public_share": ALWAYS,
    "token_cache": TOKENIZED,
    "clean": NOT_SITES + verbs("sft", "causal_lm", "preference"),
    "clean_args": flag("clean", "repair"),
    "template": verbs("sft", "preference", "grpo"),
    "prompt_template": NOT_SITES + verbs("sft", "preference", "grpo"),
    "template_date": verbs("sft", "preference", "grpo"),
    "seq_length": ALWAYS,
    "truncation_side": verbs("sft"),
    "instruction_column": NOT_SITES + verbs("sft", "preference", "grpo"),
    "instruction_prefix": NOT_SITES + verbs("sft", "preference", "grpo"),
    "response_column": NOT_SITES + verbs("sft", "grpo"),
    "split_strategy": ONE_SOURCE,
    "split_args": ONE_SOURCE,
    "split_seed": NOT_SITES,
    "clients_of_rest": ONE_SOURCE + only("split_strategy", "by", "domain"),
    "split_column": ONE_SOURCE + only("split_strategy", "by", "dirichlet", "shards"),
    "split_alpha": ONE_SOURCE + only("split_strategy", "dirichlet", "quantity", "length", "cluster"),
    "split_min_rows": ONE_SOURCE + only("split_strategy", *(name for name in SPLITS if name != "shards")),
    "shards_per_client": ONE_SOURCE + only("split_strategy", "shards"),
}
"""When each key has an effect."""
