"""Aggregations of a cohort's LoRA factors; one file each, listed in `weft.registry.LORA_AGGREGATIONS`."""
