"""A plan: the parts of a run, composed. It is data; `weft.federation.compatibility` says what may be combined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from weft.core.attack import Attack
from weft.core.declarations import Metric
from weft.core.exchange import Aggregator, Codec, Privacy, Protection, Weighting
from weft.core.objective import Objective
from weft.core.parts import Algorithm
from weft.federation.own_aggregator import needed
from weft.federation.sharing import Sharing
from weft.training.loop import GradientSteps


@dataclass(frozen=True)
class Plan:
    """The parts of a run, which may or may not go together."""

    algorithm: Algorithm
    aggregator: Aggregator
    privacy: Privacy
    codec: Codec
    protection: Protection
    objective: Objective
    local: GradientSteps
    sharing: Sharing = field(default_factory=Sharing)
    trainable: str = "full"
    """The kind of trained parameters: "full", "lora", "dora" (whose product is normalised) or "prompt"."""
    quorum: int = 0
    """Admitted updates that a round needs; with fewer it is repeated."""
    cohort: int = 0
    """Clients that are asked in a round; 0: unknown."""
    cohorts: Mapping[str, int] = field(default_factory=dict)
    """Smallest cohorts that clients require by their site policies, by client."""
    weighting: Weighting = field(default_factory=Weighting)
    max_update_norm: float = 0.0
    """Largest norm of an update, as a multiple of the median of its round; 0: no limit."""
    max_client_share: float = 1.0
    """Largest share of one client in the weight of a round; 1: no limit."""
    slow_clients: bool = False
    """Some clients do not make all their steps in time."""
    over_selected: bool = False
    """More clients are sampled than updates are used."""
    sampled: bool = False
    """Not every client takes part in every round."""
    everywhere: bool = False
    """The client of the public rows takes part in every round."""
    trusted: str = ""
    """The name of that client: its rows are the server's own."""
    parallel: str = "none"
    """How one model is spread over processes: "none", "fsdp", "tensor" or "pipeline"."""
    offloaded: bool = False
    """Layers of the base wait on the CPU or on disk."""
    personal_steps: int = 0
    """Steps that every client makes on its own after the last round."""
    attack: Attack = field(default_factory=Attack)
    """What malicious clients of a simulation do."""
    codec_down: Codec = field(default_factory=Codec)
    """Encodes tasks; `codec` encodes updates."""
    reports: bool = True
    """Clients send the scores of their held-out rows."""
    measured: tuple[Metric, ...] = ()
    """What scores are of."""
    score_places: tuple[str, ...] = ()
    """What a sealed sum of scores has places for (`weft.core.score_places`)."""
    error_device: torch.device | None = None
    """Computes the product error of a round; None: it is not computed."""

    def quorum_of(self, clients: Iterable[str], asked: int) -> int:
        """Return the number of clients that a round of these needs, of `asked` that were asked."""
        needs = needed(self.aggregator, self.updates_of(asked)) * self.clients_of_update
        return max(self.quorum, needs, *(self.cohorts.get(client, 0) for client in clients))

    @property
    def clients_of_update(self) -> int:
        """Fewest clients whose sum is one update to the aggregator: 1, or those of a group."""
        return self.protection.smallest_sum if self.protection.grouped else 1

    def updates_of(self, clients: int) -> int:
        """Return the number of updates that the aggregator sees of so many clients."""
        return clients // self.clients_of_update

    @property
    def weighs_rows(self) -> bool:
        """Whether a client's weight is its number of rows; under differential privacy all clients weigh the same."""
        return self.weighting.by_rows and not self.privacy.bounded

    @property
    def shares_of_noise(self) -> int:
        """Clients whose shares make up the noise, so that no sum of fewer may be opened; 0: it is not of shares."""
        return self.quorum if self.privacy.noise_in_shares else 0

    @property
    def draws_secrets(self) -> bool:
        """Whether clients draw from secrets of their own."""
        return self.privacy.draws_secrets or self.protection.draws_secrets

    @property
    def sends_alike(self) -> bool:
        """Whether all clients of a round are sent the same bytes of a model, whatever they had before."""
        return not self.codec_down.lossy and self.algorithm.turns is None

    @property
    def remembers(self) -> bool:
        """Whether clients keep anything between rounds that follows from their training."""
        coded = self.codec.remembers or self.codec_down.remembers
        return self.algorithm.stateful_clients or self.sharing.keeps or coded

    @property
    def clients_remember(self) -> bool:
        """Whether clients may keep anything between rounds, what a privacy part keeps for its own use included."""
        return self.remembers or type(self.privacy).on_client is not Privacy.on_client

    @property
    def personal(self) -> bool:
        """Whether the rounds leave every client a model of its own."""
        algorithm = self.algorithm
        return algorithm.personal is not None or algorithm.choice is not None or self.sharing.keeps

    @property
    def keeps_own(self) -> bool:
        """Whether clients keep what makes their models their own, beside what the server sends."""
        return self.algorithm.personal is not None or self.sharing.keeps

    @property
    def own_models(self) -> bool:
        """Whether clients have models of their own at the end of the run."""
        return self.personal or self.personal_steps > 0

    @property
    def period(self) -> int:
        """Rounds after which the same parameters travel again."""
        turns = self.algorithm.turns
        return 1 if turns is None else turns.period
