"""The keys of a run: flat, typed, and the names of the flags too. `weft.config` reads them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from weft import checks, registry
from weft.errors import ConfigError


class Client(BaseModel):
    """One named client with data of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    data: str
    eval: str | None = None
    """Its held-out rows, where they lie apart; otherwise `eval_fraction` of its rows is kept out."""


class RunConfig(BaseModel):
    """Everything that says what a run is."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Model
    model_name_or_path: str = Field("meta-llama/Llama-2-7b-hf", description="a hub name or a folder")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    token: bool = Field(False, description="use the stored Hugging Face token")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the model's arithmetic"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    load_in_8bit: bool = Field(False, description="8-bit base (bitsandbytes)")
    load_in_4bit: bool = Field(False, description="4-bit base (bitsandbytes)")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    parallel: Literal["none", "fsdp", "tensor", "pipeline"] = Field(
        "none",
        description="one model in the processes that torchrun starts: sharded, split within layers, or by layers",
    )
    model_offload: Literal["none", "cpu", "disk"] = Field(
        "none", description="where the layers of a frozen base wait while they do not compute"
    )
    cpu_offload: bool = Field(False, description="with fsdp: shards, gradients and moments on the CPU between uses")
    size: Literal["5m", "15m", "60m", "150m"] | None = Field(
        None, description="begin from nothing: a Llama of about so many parameters"
    )
    hidden_size: int | None = Field(None, ge=2, description="width of a model that begins from nothing")
    num_layers: int | None = Field(None, ge=1, description="layers of a model that begins from nothing")
    num_heads: int | None = Field(None, ge=1, description="attention heads of a model that begins from nothing")
    tokenizer: str | None = Field(None, description="its tokenizer: a hub name or a folder")
    tokenizer_text: str | None = Field(None, description="public text that a tokenizer is trained on")
    federated_tokenizer: bool = Field(
        False, description="train the tokenizer from the clients' counts of frequent words; no text is sent"
    )
    tokenizer_min_count: int = Field(5, ge=1, description="a client sends only words that it has at least so often")
    tokenizer_min_clients: int = Field(2, ge=1, description="only words that so many clients sent are used")
    tokenizer_noise: float = Field(
        0.0,
        ge=0,
        description="scale of the discrete Laplace noise on a word's sum: epsilon is 1 / scale for one word more",
    )
    vocab_size: int = Field(8192, ge=259, description="tokens of a trained tokenizer, at most")
    use_peft: bool = Field(False, description="train a LoRA adapter; without it all parameters")
    peft_lora_r: int = Field(8, ge=1, description="LoRA rank")
    peft_lora_alpha: float = Field(16, gt=0, description="LoRA alpha")
    peft_lora_dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    peft_lora_target_modules: list[str] = Field(["auto"], description="auto, all-linear, or names of modules")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA")
    lora_aggregation: str = Field(
        "average", description="how clients' factors become one: average, ffa, rolora, stack, svd, residual, ..."
    )
    lora_side_rank: int | None = Field(
        None, ge=1, description="largest rank of what stack and residual keep aside (default: nothing is lost)"
    )
    lora_merge_every: int = Field(10, ge=1, description="rounds after which merge puts the adapter aside, rank by rank")
    client_ranks: list[int] | None = Field(
        None, description="LoRA ranks of the clients in their order, repeated; at most peft_lora_r"
    )
    share: list[str] | None = Field(
        None, description="which trained tensors travel: globs or parts of their names; others stay with the client"
    )

    # Data
    dataset_name: str | None = Field(None, description="a hub name, a file or a folder, split over the clients")
    dataset_sample: int | None = Field(20000, ge=1, description="rows used at most")
    dataset_split: str | None = Field(None, description="which split of a hub data set (default: train)")
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
    seq_length: int = Field(512, ge=2, description="longest row in tokens")
    truncation_side: Literal["right", "left"] = Field("right", description="the side cut from over-long rows")
    instruction_column: str | None = Field(None, description="column of the question")
    response_column: str | None = Field(None, description="column of the answer")
    split_strategy: str = Field(
        "iid", description="how one source is split over clients: iid, dirichlet, by, domain, quantity, length, ..."
    )
    split_column: str | None = Field(
        None, description="the column that dirichlet, by and shards go by (default: the answers, where they are few)"
    )
    split_alpha: float = Field(
        0.5, gt=0, description="concentration of dirichlet, quantity, length and cluster: small is skewed"
    )
    split_min_rows: int = Field(1, ge=1, description="rows that every client must get; a random split is drawn again")
    shards_per_client: int = Field(2, ge=1, description="sorted shards that a client gets with shards")

    # Federation
    objective: str = Field("sft", description="the training loss")
    fed_alg: str = Field("fedavg", description="the algorithm, or a baseline: local, localN, central")
    num_rounds: int = Field(500, ge=1, description="rounds")
    recipe: Literal["diloco", "photon"] = Field(
        "diloco", description="what `weft pretrain` fills in: kept inner states, or stateless clients at higher rates"
    )
    fed_args: dict[str, Any] = Field(
        {}, description="the algorithm's own parameters: name=value ...; a wrong name lists them"
    )
    num_clients: int = Field(
        2, ge=0, description="clients in the population; 0: as many as the column or the folder has (by, domain)"
    )
    sample_clients: int = Field(2, ge=1, description="clients in a round")
    client_sampling: Literal["uniform", "size"] = Field("uniform", description="every client alike, or by its rows")
    client_weight: Literal["size", "uniform"] = Field(
        "size", description="what a client's update weighs: its rows, or the same as any other"
    )
    availability: str | None = Field(
        None, description="a CSV of client,first,last: the rounds (from 1) in which a client can be reached"
    )
    availability_period: int | None = Field(None, ge=1, description="rounds after which the trace begins again")
    min_clients: int = Field(0, ge=0, description="good replies without which a round is repeated, not averaged")
    max_attempts: int = Field(10, ge=1, description="how often a round is begun before the run stops, to be resumed")
    over_selection: float = Field(
        0.0, ge=0, description="share of clients asked beyond sample_clients; the first good replies count"
    )
    client_failure_rate: float = Field(0.0, ge=0, lt=1, description="simulated: chance that a client drops out")
    client_speed: list[float] | None = Field(
        None, description="simulated: clients' speeds, repeated; below 1 makes that share of its steps in a round"
    )
    prox_mu: float = Field(0.01, ge=0, description="mu of FedProx")
    fedopt_tau: float | Literal["auto"] = Field(
        1e-3, description="tau of the adaptive servers; auto: the median size of the first round's changes"
    )
    fedopt_eta: float | None = Field(
        None, gt=0, description="server learning rate of the adaptive servers [0.001; twice tau where that is auto]"
    )
    fedopt_beta1: float = Field(0.9, ge=0, lt=1, description="beta1 of the adaptive servers")
    fedopt_beta2: float = Field(0.99, ge=0, lt=1, description="beta2 of the adaptive servers")
    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"] = Field(
        "dpo", description="how `weft dpo` learns from preferences"
    )
    dpo_beta: float = Field(0.1, gt=0, description="beta of DPO and its family")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="share of wrong labels that robust_dpo expects")
    simpo_gamma: float = Field(0.5, ge=0, description="margin of SimPO")

    # Local training
    max_steps: int = Field(10, ge=-1, description="optimizer steps a client and round; -1: num_train_epochs instead")
    num_train_epochs: int = Field(3, ge=1, description="passes over a client's rows a round, where max_steps is -1")
    batch_size: int = Field(16, ge=1, description="rows a micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches an optimizer step")
    optimizer: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="of the local steps; with moments in 8 bits, also paged out to the CPU (bitsandbytes)"
    )
    learning_rate: float = Field(2e-5, ge=0, description="peak learning rate")
    lr_scheduler_type: Literal["cosine_by_round", "constant", "cosine", "linear", "wsd"] = Field(
        "cosine_by_round",
        description="over the whole run; cosine_by_round is OpenFedLLM's: constant within a round; wsd: constant, then "
        "linear to 0",
    )
    decay_ratio: float = Field(0.2, gt=0, le=1, description="share of all steps in which wsd falls")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up at the start of the run")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="the same as a share of all steps")
    min_learning_rate: float = Field(1e-6, ge=0, description="where cosine and linear end")
    weight_decay: float = Field(0.0, ge=0, description="weight decay, decoupled in AdamW")
    decay_matrices_only: bool = Field(False, description="no weight decay on norms and biases")
    max_grad_norm: float = Field(1.0, ge=0, description="gradient clipping; 0: none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")

    personal_steps: int = Field(
        0, ge=0, description="steps that every client makes on its own rows after the last round, for its own model"
    )

    # Evaluation
    eval_fraction: float = Field(0.05, ge=0, lt=1, description="rows that each client keeps out")
    eval_rows: int | None = Field(None, ge=1, description="of them, how many at most")
    eval_dataset_name: str | None = Field(None, description="held-out rows that lie apart; otherwise eval_fraction")
    eval_every: int = Field(10, ge=0, description="rounds between evaluations; 0: only at the end")
    eval_batch_size: int = Field(32, ge=1, description="rows a batch in evaluation")
    eval_everybody: bool | None = Field(
        None, description="at the end, measure each client's own model on everybody's rows too [where there are any]"
    )
    choices: list[str] | None = Field(
        None, description="the closed set of answers; found where it is small, [] for none"
    )

    # Run
    output_dir: str = Field("output", description="the run directory")
    seed: int = Field(2023, ge=0, description="everything random follows from it")
    save_model_freq: int = Field(50, ge=0, description="rounds between checkpoints that are kept; 0: only the newest")
    save_total_limit: int = Field(10, ge=1, description="how many of these are kept at most")
    checkpoint_seconds: float = Field(5.0, ge=0, description="at most this much work is lost to a kill, and one round")
    report_to: list[str] = Field(["none"], description="tensorboard, wandb, mlflow, trackio, none")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's)")

    # OpenFedLLM's flags that have no effect here, so that its scripts run as they stand
    logging_steps: int = Field(100, description="accepted; every round is logged")
    save_steps: int = Field(1000, description="accepted; see save_model_freq")
    push_to_hub: bool = Field(False, description="accepted only as False; use `weft export` and the hub's own tool")
    hub_model_id: str | None = Field(None, description="accepted; see push_to_hub")

    @field_validator("peft_lora_target_modules", "report_to", "choices", "share", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Take "a,b" for ["a", "b"]."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, (list, tuple)):
            return [word.strip() for part in value for word in str(part).split(",") if word.strip()]
        return value

    @field_validator("client_ranks", "client_speed", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """Take "8,16" for [8, 16], and a number for a list of one."""
        parts = value if isinstance(value, (list, tuple)) else [value] if value is not None else []
        words = [word for part in parts for word in str(part).split(",") if word.strip()]
        return words or None

    @field_validator("fed_args", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Take ["mu=0.1", ...] and "mu=0.1,nu=2" for {"mu": "0.1", ...}."""
        if value is None or isinstance(value, dict):
            return value or {}
        parts = value if isinstance(value, (list, tuple)) else [value]
        words = [word.strip() for part in parts for word in str(part).split(",") if word.strip()]
        for word in words:
            if "=" not in word:
                raise ConfigError(f"A parameter of the algorithm is written name=value in fed_args, not '{word}'.")
        return dict(word.split("=", 1) for word in words)

    @field_validator("clients", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take ["name=path", ...] and {name: path} for clients."""
        if isinstance(value, dict):
            return [{"name": name, "data": str(data)} for name, data in value.items()]
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return [_client(entry) if isinstance(entry, str) else entry for entry in value]
        return value

    @model_validator(mode="before")
    @classmethod
    def _everybody(cls, values: Any) -> Any:
        """A natural split has as many clients as it has values, unless a number is given."""
        natural = isinstance(values, dict) and values.get("split_strategy") in registry.NATURAL_SPLITS
        return values | {"num_clients": 0} if natural and "num_clients" not in values else values

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        """Refuse what cannot be, before anything is loaded."""
        checks.check(self)
        return self

    @property
    def from_scratch(self) -> bool:
        """Whether the model begins from nothing."""
        return any(value is not None for value in (self.size, self.hidden_size, self.num_layers, self.num_heads))

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the run makes its own tokenizer first."""
        return self.federated_tokenizer or self.tokenizer_text is not None

    @property
    def start_name(self) -> str:
        """What the run starts from, in words."""
        return (
            f"from nothing ({self.size or f'width {self.hidden_size}'})"
            if self.from_scratch
            else self.model_name_or_path
        )

    @property
    def lora_scale(self) -> float:
        """The s of s B A: alpha / r, or alpha / sqrt r for rsLoRA."""
        return self.peft_lora_alpha / (self.peft_lora_r**0.5 if self.use_rslora else self.peft_lora_r)


def _client(text: str) -> dict[str, str]:
    name, separator, data = text.partition("=")
    if not separator or not name or not data:
        raise ConfigError(f"A client is written name=path, not '{text}'.")
    return {"name": name, "data": data}
