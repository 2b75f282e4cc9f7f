"""Reading the sources of a run: whose examples are whose, and the rows made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data.documents import Documents
from weft.data.encode import ConversationTable
from weft.data.pairs import PairTable
from weft.data.prompts import PromptTable
from weft.data.source_kinds import Conversations, Judgements, Prompts, Texts, needs_answer
from weft.data.sources import Sources
from weft.data.store import Report
from weft.data.tokens import TextTokenizer

AnySources = Texts | Conversations | Judgements
TokenTable = ConversationTable | Documents | PairTable | PromptTable


def sources_of(config: RunConfig, tokenizer: Tokenizer, rows: str, report: Report) -> AnySources:
    """Return sources of the kind of rows that an objective learns from, without rows yet."""
    if rows == "text":
        return Texts(config, tokenizer=TextTokenizer(tokenizer), report=report)
    if rows == "prompts":
        return Prompts(config, needs_answer=needs_answer(config))
    return Conversations(config) if rows == "conversations" else Judgements(config, unpaired=rows == "judged")


def read(config: RunConfig, sources: Sources) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
    """Read all sources; return the examples of each owner, those of its tests, and the public ones."""
    owners: list[np.ndarray] = []
    tests: list[np.ndarray] = []
    if config.clients:
        for client in config.clients:
            if client.name in config.forgotten:  # its file need not be there any more
                owners.append(np.zeros(0, dtype=np.int64))
                tests.append(owners[-1])
                continue
            owners.append(sources.add(client.data))
            test_source = client.eval or (client.data if config.eval_dataset_split else None)
            tests.append(owners[-1][:0] if test_source is None else sources.add(test_source, held_out=True))
    else:
        files = config.split_strategy == "domain"
        owners.append(sources.add(config.dataset_name or "", sample=config.dataset_sample, files=files))
        if config.eval_dataset_name is not None or config.eval_dataset_split is not None:
            tests.append(sources.add(config.eval_dataset_name or config.dataset_name or "", held_out=True))
    return owners, tests, None if config.public_data is None else sources.add(config.public_data, public=True)


def tokenized(sources: AnySources, tokenizer: Tokenizer, template: Any) -> TokenTable:
    """Return the rows of all examples."""
    return sources.table() if isinstance(sources, Texts) else sources.table(tokenizer, template)
