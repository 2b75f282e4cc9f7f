"""A model that can only be asked, in the resident's place: its texts are scored where it is, in words.

Rows are token ids of a tokenizer that is here; they are spelled out, and what is sent is text. Vectors that are
searched for (a black box's) cannot be sent: each is said as the token whose embedding points most nearly its way, in
the model that the tokenizer belongs to.
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
from weft.models.endpoint import Endpoint, Spoken
from weft.models.instruction import Instruction
from weft.models.prompts import Projected
from weft.models.resident import Resident


class _NoOutput(WeightedLayer):
    """In the place of an output layer: the endpoint computes the logits."""


class Elsewhere(CausalModel):
    """Stands where a model would be: it holds what is learnt, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.head = _NoOutput()

    def get_output_embeddings(self) -> WeightedLayer:
        """Return a layer that nothing passes."""
        return self.head


class Nearest(nn.Module):
    """A search vector z, said as words."""

    def __init__(self, table: Tensor, tokenizer: Tokenizer, config: RunConfig) -> None:
        """Begin as the words of `prompt_init_text` over and over, or as tokens drawn from those that can be said.

        Args:
            table: (V, width) embeddings.
            tokenizer: whose ids they are.
            config: how many vectors, from how many numbers.
        """
        super().__init__()
        special = set(tokenizer.all_special_ids)
        said = [(i, tokenizer.decode([i])) for i in range(min(len(tokenizer), len(table))) if i not in special]
        self.known = torch.tensor([i for i, text in said if text and not unfit(text) and "\ufffd" not in text])
        ids = tokenizer.encode(config.prompt_init_text or "", add_special_tokens=False)
        if not ids:
            chance = torch.Generator().manual_seed(derive(config.seed, "adapter"))
            ids = self.known[torch.randint(len(self.known), (config.num_virtual_tokens,), generator=chance)].tolist()
        ids = (ids * -(-config.num_virtual_tokens // len(ids)))[: config.num_virtual_tokens]
        begun = nn.Embedding(len(ids), table.shape[1], _weight=table[torch.tensor(ids)].float().clone()).requires_grad_(
            False
        )
        self.vectors = Projected(begun, config.black_box_dim, config.seed)
        self.directions: Tensor
        directions = nn.functional.normalize(table[self.known].float(), dim=-1)
        self.register_buffer("directions", directions, persistent=False)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def text(self) -> str:
        """Return the words."""
        count = self.vectors.embedding.num_embeddings
        nearest = (self.vectors(torch.arange(count)) @ self.directions.T).argmax(dim=-1)
        return " ".join(self.tokenizer.decode(self.known[nearest].tolist()).split())


class RemoteModel(Resident):
    """Asks an endpoint where a resident would compute."""

    def __init__(self, tokenizer: Tokenizer, endpoint: Endpoint, learnt: nn.Module, begin: np.ndarray) -> None:
        """Take what is learnt, an `Instruction` or a `Nearest`, and the ids that every row begins with."""
        model = Elsewhere()
        model.instruction = learnt
        super().__init__(model, tokenizer, torch.device("cpu"), torch.float32)
        self.endpoint, self._begin = endpoint, begin

    def asked_likelihoods(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, int]]:
        """Ask for the rows' likelihoods."""
        return self.endpoint.likelihoods([self._spoken(ids, learn) for ids, learn in rows])

    def asked_texts(self, prompt: str, count: int, tokens: int, seed: int) -> list[str]:
        """Let the endpoint write."""
        return self.endpoint.write(prompt, count, tokens, temperature=1.0, top_p=0.95, seed=seed)

    def asked_tally(self) -> dict[str, float]:
        """Return how often the endpoint was asked."""
        return self.endpoint.tally()

    def _spoken(self, ids: np.ndarray, learn: np.ndarray) -> Spoken:
        """Spell a row out, without what the tokenizer puts at its beginning and the token that ends it."""
        at, end = 0, len(ids)
        if len(self._begin) and np.array_equal(ids[: len(self._begin)], self._begin):
            at = len(self._begin)
        if end > at and ids[end - 1] == self.tokenizer.eos_token_id:
            end -= 1
        edges = [at, *(int(i) for i in np.flatnonzero(np.diff(learn[at:end].astype(np.int8))) + at + 1), end]
        places = [len(self._decoded(ids[at:edge])) for edge in edges]
        stretches = zip(edges[:-1], places[:-1], places[1:], strict=True)
        asked = tuple((begin, stop) for edge, begin, stop in stretches if edge < end and learn[edge])
        return Spoken(self._decoded(ids[at:end]), asked)

    def _decoded(self, ids: np.ndarray) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        return text


def ask_elsewhere(
    config: RunConfig, tokenizer: Tokenizer, begin: np.ndarray, table: Callable[[], Tensor]
) -> RemoteModel:
    """Return what stands for the model behind a run's endpoint, once it has answered.

    Args:
        config: names the endpoint.
        tokenizer: of the model named beside it.
        begin: the ids that it begins every row with.
        table: called for that model's embeddings where vectors are to be said as words.

    Raises:
        ConfigError: the endpoint gives no log-probabilities, or refuses.
        RunError: it cannot be reached.
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
    made = Nearest(table(), tokenizer, config)
    if not len(made.known):
        raise ConfigError(f"The tokenizer of '{config.model_name_or_path}' has no words to say: give another model.")
    return RemoteModel(tokenizer, endpoint, made, begin)
