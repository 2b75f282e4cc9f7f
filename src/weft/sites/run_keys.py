"""Which of a run's keys a site takes from the run. Every key is in exactly one of four sets, which a test checks.

The sets list what is allowed: a key that is in none of them cannot reach a site's files, its network or its hardware.
"""

from __future__ import annotations

from collections.abc import Mapping

FROM_RUN = frozenset(
    """
    model_name_or_path allow_missing dtype load_in_8bit load_in_4bit gradient_checkpointing kernels
    int8_threshold parallel use_peft peft_lora_r peft_lora_alpha peft_lora_dropout peft_lora_target_modules
    use_rslora use_dora lora_aggregation lora_aggregation_args lora_side_rank lora_merge_every client_ranks
    client_layers share
    prompt_method num_virtual_tokens private_tokens prompt_init_text prompt_candidates few_shot prompt_pool
    prompt_proposals prompt_length black_box_dim population prompt_hidden_size endpoint_model
    template template_date seq_length truncation_side dataset_sample public_share
    pretraining_task fim_spm_share mixture mixture_column mixture_temperature mixture_reference mixture_strength
    objective objective_args fed_alg fed_args num_rounds num_clients sample_clients client_sampling client_weight
    client_weight_args aggregator aggregator_args privacy privacy_args
    privacy_unit target_epsilon target_delta noise_multiplier clip_norm noise_at max_rows_per_unit
    codec codec_args codec_down codec_down_args protection protection_args
    min_contributors encrypt group_size cluster weight_rate
    client_speed over_selection prox_mu fedopt_tau fedopt_eta fedopt_beta1 fedopt_beta2
    loss dpo_beta label_smoothing simpo_gamma reward reward_weights reward_pattern reward_format reward_length
    reward_seconds num_generations max_new_tokens temperature top_p grpo_loss grpo_clip grpo_kl grpo_iterations
    max_steps num_train_epochs batch_size gradient_accumulation_steps optimizer learning_rate lr_scheduler_type
    decay_ratio warmup_steps warmup_ratio min_learning_rate weight_decay decay_matrices_only max_grad_norm adam_beta1
    adam_beta2 adam_epsilon muon_momentum personal_steps adversarial_training adversarial_radius adversarial_steps
    eval_fraction eval_rows eval_every eval_batch_size eval_everybody choices seed min_clients max_attempts
    contamination data_statistics statistics_noise
    """.split()
)
"""Keys that a site takes from a run: numbers, names of parts, texts. A site opens none of them as a file."""
FROM_SITE = frozenset(
    """
    dataset_name clients eval_dataset_name dataset_split eval_dataset_split instruction_column response_column
    clean clean_args leave_when chosen_column rejected_column instruction_prefix prompt_template device
    threads token_cache local_data_dir token endpoint endpoint_key model_offload cpu_offload
    """.split()
)
"""Keys that a site sets for itself, whatever the run says: its data, hardware, files and API keys."""
AT_SERVER = frozenset(
    """
    output_dir accept_changed save_model_freq save_total_limit checkpoint_seconds report report_to runtime ray_address
    num_actors client_resources sites silence_timeout turn_timeout logging_steps save_steps push_to_hub hub_model_id
    availability availability_period max_bad_updates client_failure_rate recipe split_strategy split_args split_seed
    clients_of_rest held_out_overlap split_column max_update_norm max_client_share rejoin_timeout product_error
    split_alpha split_min_rows shards_per_client endpoint_timeout endpoint_retries endpoint_parallel vocab_size compile
    tokenizer_min_count tokenizer_min_clients tokenizer_noise generation_engine vllm_memory
    eval_tasks eval_limit eval_limit_seed task_data include_path num_fewshot apply_chat_template best_metric
    early_stopping_rounds leave_out forgotten keep_updates evaluated_run attack attack_args num_malicious
    post_alignment post_alignment_steps
    canaries canary_repetitions canary_clients canary_tokens keep_moments adversarial_prompts adversarial_share
    """.split()
)
"""Keys that only the server uses: a site keeps the defaults."""
SHAPE = ("size", "hidden_size", "num_layers", "num_heads")
"""Keys that define a model from scratch."""
ON_DEMAND = frozenset(
    {"trust_remote_code", "public_data", "tokenizer", "tokenizer_text", "federated_tokenizer", *SHAPE}
)
"""Keys that a site refuses unless its policy allows them: they stand for code, files and models of the run's author."""
ALL = FROM_RUN | FROM_SITE | AT_SERVER | ON_DEMAND
NEVER = ("trust_remote_code", "public_data", "tokenizer_text", "federated_tokenizer")
"""Keys of ON_DEMAND that no policy can allow."""


def forbidden(run: Mapping[str, object], *, from_scratch: bool, tokenizers: tuple[str, ...]) -> str | None:
    """Return the reason to refuse a run's keys, in one sentence; None: the site takes them.

    Args:
        run: the keys as they were sent, by their full names.
        from_scratch: whether the site accepts models from scratch.
        tokenizers: names of the tokenizers that the site accepts.
    """
    for key in sorted(set(run) - ALL):
        return f"the run sets '{key}', which a site takes from nobody"
    for key in NEVER:
        if run.get(key):
            return f"the run sets {key}, and no code travels: a site takes no code, files or tokenizers from a run"
    shape = [key for key in SHAPE if run.get(key) is not None]
    if shape and not from_scratch:
        return f"the run begins a model from nothing ({', '.join(shape)}), and this site does not accept from_scratch"
    name = run.get("tokenizer")
    if name is not None and name not in tokenizers:
        return f"the tokenizer '{name}' is not among those that this site accepts"
    return None
