"""A model behind an endpoint in the place of the resident model: it scores and writes texts.

Rows are token ids of a local tokenizer; they are decoded, because an endpoint takes text. The vectors of a black-box
prompt cannot be sent: each is replaced by the token whose embedding, in the model that the tokenizer belongs to, has
the greatest cosine similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.model_types import CausalModel, WeightedLayer
from weft.core.seeds import derive
from weft.core.texts import unfit
from weft.errors import ConfigError
from weft.models.completions import ScoredText
from weft.models.endpoint import Endpoint
from weft.models.instruction import Instruction
from weft.models.prompts import ProjectedPrompt
from weft.models.resident import Resident


class _NoOutput(WeightedLayer):
    """In the place of an output layer, which is at the endpoint."""


class RemoteStub(CausalModel):
    """In the place of a local model: it has the trained prompt and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.head = _NoOutput()

    def get_output_embeddings(self) -> WeightedLayer:
        """Return a layer that is never called."""
        return self.head


class NearestWords(nn.Module):
    """A search vector z, and the words nearest to the prompt vectors that it stands for."""

    def __init__(self, table: Tensor, tokenizer: Tokenizer, config: RunConfig) -> None:
        """Start from the words of `prompt_init_text`, repeated, or from random tokens that decode to words.

        Args:
            table: embeddings (V, width).
            tokenizer: of the same model.
            config: names the number of vectors and the dimension of z.
        """
        super().__init__()
        special = set(tokenizer.all_special_ids)
        texts = [(i, tokenizer.decode([i])) for i in range(min(len(tokenizer), len(table))) if i not in special]
        # U+FFFD: a token that holds part of a character only.
        self.word_ids = torch.tensor([i for i, text in texts if text and not unfit(text) and "\ufffd" not in text])
        ids = tokenizer.encode(config.prompt_init_text or "", add_special_tokens=False)
        if not ids:
            chance = torch.Generator().manual_seed(derive(config.seed, "adapter"))
            ids = self.word_ids[
                torch.randint(len(self.word_ids), (config.num_virtual_tokens,), generator=chance)
            ].tolist()
        ids = (ids * -(-config.num_virtual_tokens // len(ids)))[: config.num_virtual_tokens]
        weight = table[torch.tensor(ids)].float().clone()
        initial = nn.Embedding(len(ids), table.shape[1], _weight=weight).requires_grad_(False)
        self.vectors = ProjectedPrompt(initial, config.black_box_dim, config.seed)
        self.directions: Tensor
        directions = nn.functional.normalize(table[self.word_ids].float(), dim=-1)
        self.register_buffer("directions", directions, persistent=False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def text(self) -> str:
        """Return the words, separated by single spaces."""
        count = self.vectors.embedding.num_embeddings
        nearest = (self.vectors(torch.arange(count)) @ self.directions.T).argmax(dim=-1)
        return " ".join(self.tokenizer.decode(self.word_ids[nearest].tolist()).split())


class RemoteModel(Resident):
    """Sends to an endpoint what a resident model would compute."""

    def __init__(self, tokenizer: Tokenizer, endpoint: Endpoint, instruction: nn.Module, begin: np.ndarray) -> None:
        """Take the trained prompt, an `Instruction` or `NearestWords`, and the ids that every row begins with."""
        model = RemoteStub()
        model.instruction = instruction
        super().__init__(model, tokenizer, torch.device("cpu"), torch.float32)
        self.endpoint, self._begin = endpoint, begin

    def remote_likelihoods(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, int]]:
        """Return, for every row, the log-probability (nats) of its target tokens at the endpoint, and their number."""
        return self.endpoint.likelihoods([self._scored_text(ids, learn) for ids, learn in rows])

    def remote_texts(self, prompt: str, count: int, tokens: int, seed: int) -> list[str]:
        """Return `count` continuations of a text, of up to `tokens` tokens each."""
        return self.endpoint.write(prompt, count, tokens, temperature=1.0, top_p=0.95, seed=seed)

    def remote_counts(self) -> dict[str, float]:
        """Return the number of requests and of repeated ones since the last call."""
        return self.endpoint.tally()

    def _scored_text(self, ids: np.ndarray, learn: np.ndarray) -> ScoredText:
        """Decode a row, without its leading tokens, which the endpoint's tokenizer adds, and its end token."""
        at, end = 0, len(ids)
        if len(self._begin) and np.array_equal(ids[: len(self._begin)], self._begin):
            at = len(self._begin)
        if end > at and ids[end - 1] == self.tokenizer.eos_token_id:
            end -= 1
        edges = [at, *(int(i) for i in np.flatnonzero(np.diff(learn[at:end].astype(np.int8))) + at + 1), end]
        # Decoding prefixes, not single tokens: a token's text may depend on its neighbours.
        places = [len(self._text(ids[at:edge])) for edge in edges]
        spans_by_edge = zip(edges[:-1], places[:-1], places[1:], strict=True)
        spans = tuple((begin, stop) for edge, begin, stop in spans_by_edge if edge < end and learn[edge])
        return ScoredText(self._text(ids[at:end]), spans)

    def _text(self, ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        return text


def remote_model(
    config: RunConfig, tokenizer: Tokenizer, begin: np.ndarray, table: Callable[[], Tensor]
) -> RemoteModel:
    """Check a run's endpoint, and return the model behind it.

    Args:
        config: names the endpoint.
        tokenizer: of `model_name_or_path`.
        begin: the ids that the tokenizer begins every row with.
        table: returns the embeddings (V, width) of that model; called for black-box prompts alone.

    Raises:
        ConfigError: the endpoint returns no log-probabilities, or refuses the request.
        RunError: the endpoint cannot be reached.
    """
    endpoint = Endpoint(
        config.endpoint or "",
        config.endpoint_model or config.model_name_or_path,
        key=config.endpoint_key,
        timeout=config.endpoint_timeout,
        retries=config.endpoint_retries,
        parallel=config.endpoint_parallel,
    )
    endpoint.check()
    endpoint.tally()
    if config.prompt_method == "text":
        return RemoteModel(tokenizer, endpoint, Instruction(config.prompt_length, config.prompt_init_text or ""), begin)
    words = NearestWords(table(), tokenizer, config)
    if not len(words.word_ids):
        raise ConfigError(
            f"The tokenizer of '{config.model_name_or_path}' has no token that decodes to a word: name another model."
        )
    return RemoteModel(tokenizer, endpoint, words, begin)
