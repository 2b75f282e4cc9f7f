"""Files of conversations beside the data: each is read once before a model is loaded, so that no mistake waits."""

from __future__ import annotations

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.federation.plan import Plan
from weft.launch import dishonest_server, post_alignment
from weft.launch.leaving import inspection_of
from weft.launch.own_rows import with_attack_prompts


def check_own_files(config: RunConfig, plan: Plan, tokenizer: Tokenizer) -> None:
    """Read the files of a run that its later steps need, and drop what they hold.

    Raises:
        ConfigError: one of them cannot be read or used.
    """
    if config.post_alignment is not None:
        post_alignment.rows_of(config, tokenizer)
    dishonest_server.rows_of(config, plan, tokenizer)
    with_attack_prompts(config, tokenizer, plan.objective)
    inspection_of(config, tokenizer)
