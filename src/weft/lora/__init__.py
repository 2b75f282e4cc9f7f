"""How LoRA factors of a cohort become one; one file each, listed in `weft.registry.LORA_AGGREGATIONS`."""
