"""Keys of the data: where rows come from, how they become tokens, who gets them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weft import kinds
from weft.json_types import JsonObject
from weft.keys.effects import ALWAYS, NOT_SITES, ONE_SOURCE, Condition, Effect, only, verbs
from weft.registry import SPLITS


class Client(BaseModel):
    """One named client with data of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    data: str
    eval: str | None = None
    """Its held-out rows, where they lie apart; otherwise `eval_fraction` of its rows is kept out."""


class DataKeys(BaseModel):
    """The data."""

    dataset_name: str | None = Field(None, description="a hub name, a file or a folder, split over the clients")
    dataset_sample: int | None = Field(20000, ge=1, description="rows used at most")
    dataset_split: str | None = Field(
        None,
        description="the part of a folder or data set that is trained on, or a slice, train[:10%] (default: train)",
    )
    eval_dataset_split: str | None = Field(
        None,
        description="the part of eval_dataset_name, or of dataset_name, that is measured on (default: validation, else "
        "test)",
    )
    held_out_overlap: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="what is done where rows of eval_dataset_name are among those to train on: leave_out trains "
        "without them",
    )
    local_data_dir: str | None = Field(None, description="folder in which dataset_name is looked for")
    clients: list[Client] | None = Field(None, description="named clients with their own data: name=path ...")
    public_data: str | None = Field(
        None, description="rows that everybody may see: a client that takes part in every round, or see public_share"
    )
    public_share: float = Field(
        0.0, ge=0, lt=1, description="share of every client's batches that is drawn from public_data instead"
    )
    token_cache: str | None = Field(
        None, description="folder in which tokenized text is kept [$WEFT_CACHE/tokens, or ~/.cache/weft/tokens]"
    )
    template: str = Field(
        "auto", description="alpaca, vicuna, chat; auto is chat where the model has a template, else alpaca"
    )
    prompt_template: str | None = Field(
        None, description="a chat template of your own: a file of Jinja, in place of the tokenizer's"
    )
    template_date: str | None = Field(
        None, description="the day that a chat template with a clock writes, as 2026-01-31 (default: the run's first)"
    )
    seq_length: int = Field(512, ge=2, description="longest row in tokens")
    truncation_side: Literal["right", "left"] = Field("right", description="the side cut from over-long rows")
    instruction_column: str | None = Field(
        None, description="column of the question; several with commas between are joined by blank lines"
    )
    response_column: str | None = Field(None, description="column of the answer, or several likewise")
    instruction_prefix: str | None = Field(
        None, description="a text that stands before every question, such as 'Summarise:'"
    )
    split_strategy: str = Field("iid", description="how one source is split over clients, such as iid, dirichlet, by")
    split_args: JsonObject = Field({}, description="the split's own parameters: name=value ...")
    split_column: str | None = Field(
        None, description="the column that dirichlet, by and shards go by (default: the answers, where they are few)"
    )
    split_seed: int | None = Field(None, description="seed by which rows are drawn, dealt and held out (default: seed)")
    clients_of_rest: int = Field(
        0,
        ge=0,
        description="with by and domain: further clients, to which the rows of values beyond num_clients are dealt; 0: "
        "they are left out",
    )
    split_alpha: float = Field(
        0.5, gt=0, description="concentration of dirichlet, quantity, length and cluster: small is skewed"
    )
    split_min_rows: int = Field(1, ge=1, description="rows that every client must get; a random split is drawn again")
    shards_per_client: int = Field(2, ge=1, description="sorted shards that a client gets with shards")


TOKENIZED = (
    Condition(
        lambda config: (
            config.objective == "causal_lm"
            or config.federated_tokenizer
            or kinds.is_outside("objective", config.objective)
        ),
        "it keeps plain text as tokens, and the objective is {c.objective}",
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
