"""The keys of a run as keyword arguments, so that an editor completes and checks `weft.train(...)`.

Made from the pydantic models by `python tests/unit/test_typed_keys.py`, and compared with them by that test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import datasets
    import pandas

    from weft.json_types import JsonObject
    from weft.keys.data import Client

    Table: TypeAlias = pandas.DataFrame | datasets.Dataset | datasets.DatasetDict
    Rows: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, object]] | Table
    """A name, a path, or the rows themselves."""
    Clients: TypeAlias = Mapping[str, Rows] | Sequence[str | Mapping[str, object] | Client]
    """{name: rows}, ["name=path", ...] or [{"name": ..., "data": ..., "eval": ...}, ...]."""


class Keys(TypedDict, total=False):
    """All keys of a run; `weft sft --help_all` says what each of them is."""

    model: object
    """A model of transformers, or what model_name_or_path takes."""
    model_name_or_path: str | PathLike[str] | object
    trust_remote_code: bool
    token: bool
    allow_missing: bool
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    load_in_8bit: bool
    load_in_4bit: bool
    gradient_checkpointing: bool | Literal["auto"]
    kernels: Literal["auto", "liger", "none"]
    compile: Literal["auto", "on", "off"]
    int8_threshold: float
    parallel: Literal["none", "fsdp", "tensor", "pipeline"]
    model_offload: Literal["none", "cpu", "disk"]
    cpu_offload: bool
    size: Literal["5m", "15m", "60m", "150m"] | None
    hidden_size: int | None
    num_layers: int | None
    num_heads: int | None
    tokenizer: str | PathLike[str] | object | None
    tokenizer_text: str | PathLike[str] | None
    federated_tokenizer: bool
    tokenizer_min_count: int
    tokenizer_min_clients: int
    tokenizer_noise: float
    vocab_size: int
    use_peft: bool
    peft_lora_r: int
    peft_lora_alpha: float
    peft_lora_dropout: float
    peft_lora_target_modules: list[str]
    use_rslora: bool
    use_dora: bool
    lora_aggregation: str
    lora_aggregation_args: JsonObject
    lora_side_rank: int | None
    lora_merge_every: int
    product_error: Literal["auto", "always", "none"]
    client_ranks: list[int] | None
    client_layers: list[int] | None
    share: list[str] | None
    prompt_method: Literal["soft", "prefix", "p_tuning", "black_box", "text"] | None
    num_virtual_tokens: int
    private_tokens: int
    prompt_init_text: str | None
    prompt_candidates: list[str]
    few_shot: int
    prompt_pool: int
    prompt_proposals: int
    prompt_length: int
    black_box_dim: int
    population: int
    endpoint: str | None
    endpoint_model: str | None
    endpoint_key: str
    endpoint_timeout: float
    endpoint_retries: int
    endpoint_parallel: int
    prompt_hidden_size: int
    dataset_name: Rows | None
    dataset_sample: int | None
    dataset_split: str | None
    eval_dataset_split: str | None
    held_out_overlap: Literal["refuse", "leave_out"]
    local_data_dir: str | PathLike[str] | None
    clients: Clients | None
    public_data: Rows | None
    public_share: float
    token_cache: str | PathLike[str] | None
    clean: list[str]
    clean_args: JsonObject
    template: str
    prompt_template: str | None
    template_date: str | None
    seq_length: int
    truncation_side: Literal["right", "left"]
    instruction_column: str | None
    response_column: str | None
    instruction_prefix: str | None
    split_strategy: str
    split_args: JsonObject
    split_column: str | None
    split_seed: int | None
    clients_of_rest: int
    split_alpha: float
    split_min_rows: int
    shards_per_client: int
    pretraining_task: str
    fim_spm_share: float
    mixture: str | None
    mixture_column: str | None
    mixture_temperature: float
    mixture_reference: str | None
    mixture_strength: float
    objective: str
    objective_args: JsonObject
    fed_alg: str
    num_rounds: int
    recipe: Literal["diloco", "photon"]
    fed_args: JsonObject
    num_clients: int
    sample_clients: int
    client_sampling: Literal["uniform", "size", "poisson"]
    client_weight: str
    client_weight_args: JsonObject
    aggregator: str
    aggregator_args: JsonObject
    attack: str
    attack_args: JsonObject
    num_malicious: float
    leave_when: JsonObject
    privacy: str
    privacy_args: JsonObject
    codec: str
    codec_args: JsonObject
    codec_down: str
    codec_down_args: JsonObject
    protection: str
    protection_args: JsonObject
    min_contributors: int
    encrypt: list[str] | None
    group_size: int
    cluster: int
    weight_rate: float
    availability: str | PathLike[str] | None
    availability_period: int | None
    min_clients: int
    max_attempts: int
    over_selection: float
    max_update_norm: float | None
    max_client_share: float
    max_bad_updates: int
    client_failure_rate: float
    client_speed: list[float] | None
    prox_mu: float
    fedopt_tau: float | Literal["auto"]
    fedopt_eta: float | None
    fedopt_beta1: float
    fedopt_beta2: float
    privacy_unit: str
    target_epsilon: float | None
    target_delta: float
    noise_multiplier: float | None
    clip_norm: float | Literal["adaptive"] | None
    noise_at: Literal["server", "client"]
    max_rows_per_unit: int | None
    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"]
    dpo_beta: float
    label_smoothing: float
    simpo_gamma: float
    chosen_column: str | None
    rejected_column: str | None
    post_alignment: str | None
    post_alignment_steps: int
    reward: list[str]
    reward_weights: list[float] | None
    reward_pattern: str | None
    reward_format: str
    reward_length: int
    reward_seconds: float
    num_generations: int
    max_new_tokens: int
    temperature: float
    top_p: float
    generation_engine: Literal["torch", "vllm"]
    vllm_memory: float
    grpo_loss: Literal["grpo", "dapo", "dr_grpo"]
    grpo_clip: float
    grpo_kl: float
    grpo_iterations: int
    max_steps: int
    num_train_epochs: int
    batch_size: int
    gradient_accumulation_steps: int
    optimizer: Literal["adamw", "sgd", "muon", "adamw_8bit", "paged_adamw_8bit"]
    keep_moments: bool
    learning_rate: float
    lr_scheduler_type: Literal["cosine_by_round", "constant", "cosine", "linear", "wsd"]
    decay_ratio: float
    warmup_steps: int
    warmup_ratio: float
    min_learning_rate: float
    weight_decay: float
    decay_matrices_only: bool
    max_grad_norm: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    muon_momentum: float
    adversarial_training: bool
    adversarial_radius: float
    adversarial_steps: int
    adversarial_prompts: str | None
    adversarial_share: float
    personal_steps: int
    eval_fraction: float
    eval_rows: int | None
    eval_dataset_name: Rows | None
    eval_every: int
    eval_batch_size: int
    eval_everybody: bool | None
    choices: list[str] | None
    eval_tasks: list[str]
    leave_out: list[str]
    forgotten: list[str]
    evaluated_run: str | None
    contamination: list[str]
    data_statistics: bool
    statistics_noise: float
    eval_limit: int | None
    eval_limit_seed: int | None
    task_data: list[str]
    include_path: list[str]
    num_fewshot: int
    apply_chat_template: bool
    best_metric: str | None
    early_stopping_rounds: int
    canaries: int
    canary_repetitions: list[int]
    canary_clients: list[str]
    canary_tokens: int
    output_dir: str | PathLike[str]
    seed: int
    save_model_freq: int
    save_total_limit: int
    keep_updates: bool
    checkpoint_seconds: float
    report_to: list[str]
    report: bool
    accept_changed: bool
    runtime: Literal["inprocess", "ray", "nvflare"]
    ray_address: str | None
    num_actors: int | None
    client_resources: dict[str, float]
    sites: list[str] | None
    silence_timeout: float
    turn_timeout: float
    rejoin_timeout: float
    threads: int | None
    logging_steps: int
    save_steps: int
    push_to_hub: bool
    hub_model_id: str | None
