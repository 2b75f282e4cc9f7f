"""Other names of keys: aliases that are accepted, and names in other tools, which error messages translate."""

from __future__ import annotations

ALIASES = {
    "log_with": "report_to",
    "use_auth_token": "token",
    "lr_scheduler": "lr_scheduler_type",
    "data": "dataset_name",
}
"""Accepted names of keys: OpenFedLLM's, and short ones."""

FOREIGN = {
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "base_model": "model_name_or_path",
    "torch_dtype": "dtype",
    "model_dtype": "dtype",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "data_path": "dataset_name",
    "train_dataset": "dataset_name",
    "train_file": "dataset_name",
    "dataset_train_split": "dataset_split",
    "eval_dataset": "eval_dataset_name",
    "validation_file": "eval_dataset_name",
    "max_train_samples": "dataset_sample",
    "max_eval_samples": "eval_rows",
    "eval_steps": "eval_every",
    "per_device_eval_batch_size": "eval_batch_size",
    "lr": "learning_rate",
    "lr_schedule": "lr_scheduler_type",
    "min_lr": "min_learning_rate",
    "optim": "optimizer",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "max_seq_length": "seq_length",
    "max_seq_len": "seq_length",
    "max_length": "seq_length",
    "cutoff_len": "seq_length",
    "block_size": "seq_length",
    "max_completion_length": "max_new_tokens",
    "steps": "max_steps",
    "local_steps": "max_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "local_epochs": "num_train_epochs",
    "rounds": "num_rounds",
    "comm_round": "num_rounds",
    "n_clients": "num_clients",
    "clients_per_round": "sample_clients",
    "algorithm": "fed_alg",
    "strategy": "fed_alg",
    "mu": "prox_mu",
    "dirichlet_alpha": "split_alpha",
    "partition": "split_strategy",
    "lora_r": "peft_lora_r",
    "lora_rank": "peft_lora_r",
    "lora_alpha": "peft_lora_alpha",
    "lora_dropout": "peft_lora_dropout",
    "lora_target_modules": "peft_lora_target_modules",
    "target_modules": "peft_lora_target_modules",
    "use_lora": "use_peft",
    "peft": "use_peft",
    "lora": "use_peft",
    "beta": "dpo_beta",
    "loss_type": "loss",
    "reward_funcs": "reward",
    "chat_template": "template",
    "quantization": "load_in_4bit",
    "output": "output_dir",
    "out": "output_dir",
    "random_seed": "seed",
    "adam_eps": "adam_epsilon",
    "clip_grad": "max_grad_norm",
}
"""Names in other tools, and the key of the same meaning."""

BESIDE = {
    "num_train_epochs": ", which counts beside max_steps -1",
    "max_steps": ", the steps of a client in a round",
    "batch_size": ", the rows of a micro-batch",
    "quantization": ", or load_in_8bit",
}
"""Remarks for some of these keys in the error message."""


def foreign(name: str, *, flags: bool) -> str | None:
    """Return a sentence that translates another tool's name into the key of Weft, or None.

    Args:
        name: without leading dashes.
        flags: write the key as a flag.
    """
    key = FOREIGN.get(name.replace("-", "_"))
    if key is None:
        return None
    return f" Weft calls it {'--' if flags else ''}{key}{BESIDE.get(name, BESIDE.get(key, ''))}."
