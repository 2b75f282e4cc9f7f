"""Keys of the federation: the algorithm, the clients, and how they take part."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field

from weft.json_types import JsonObject
from weft.keys.effects import ALWAYS, FEDERATED, ONE_SOURCE, Condition, Effect, flag, only, verbs


class FederationKeys(BaseModel):
    """The federation."""

    objective: str = Field("sft", description="the training loss")
    objective_args: JsonObject = Field({}, description="the objective's own parameters: name=value ...")
    fed_alg: str = Field("fedavg", description="the algorithm, or a baseline: local, localN, central")
    num_rounds: int = Field(500, ge=1, description="rounds")
    recipe: Literal["diloco", "photon"] = Field(
        "diloco", description="what `weft pretrain` fills in: kept inner states, or stateless clients at higher rates"
    )
    fed_args: JsonObject = Field(
        {}, description="the algorithm's own parameters: name=value ...; a wrong name lists them"
    )
    num_clients: int = Field(
        2, ge=0, description="clients in the population; 0: as many as the column or the folder has (by, domain)"
    )
    sample_clients: int = Field(2, ge=1, description="clients in a round")
    client_sampling: Literal["uniform", "size"] = Field("uniform", description="every client alike, or by its rows")
    client_weight: str = Field(
        "size",
        description="what a client's update weighs: its rows (size), the same as any other (uniform), more the worse "
        "it fares (minimax), or more the more it gains (gain)",
    )
    client_weight_args: JsonObject = Field({}, description="the client weight's own parameters: name=value ...")
    aggregator: str = Field("mean", description="how the updates of a cohort become one, such as mean")
    aggregator_args: JsonObject = Field({}, description="the aggregator's own parameters: name=value ...")
    privacy: str = Field("none", description="what bounds and hides a client's part in the result, such as none")
    privacy_args: JsonObject = Field({}, description="the privacy's own parameters: name=value ...")
    codec: str = Field("none", description="how updates are compressed on their way, such as none")
    codec_args: JsonObject = Field({}, description="the codec's own parameters: name=value ...")
    protection: str = Field("none", description="how single updates are hidden from the server, such as none")
    protection_args: JsonObject = Field({}, description="the protection's own parameters: name=value ...")
    cluster: int = Field(
        1, ge=1, description="so many models instead of one; a client trains the one that fits its own rows best"
    )
    weight_rate: float = Field(1.0, gt=0, description="how strongly minimax and gain weigh")
    availability: str | None = Field(
        None, description="a CSV of client,first,last: the rounds (from 1) in which a client can be reached"
    )
    availability_period: int | None = Field(None, ge=1, description="rounds after which the trace begins again")
    min_clients: int = Field(0, ge=0, description="good replies without which a round is repeated, not averaged")
    max_attempts: int = Field(10, ge=1, description="how often a round is begun before the run stops, to be resumed")
    over_selection: float = Field(
        0.0, ge=0, description="share of clients asked beyond sample_clients; the first good replies count"
    )
    max_bad_updates: int = Field(
        3, ge=0, description="bad updates (not what was asked for) after which a client is not asked again; 0: always"
    )
    client_failure_rate: float = Field(0.0, ge=0, lt=1, description="simulated: chance that a client drops out")
    client_speed: list[float] | None = Field(
        None, description="simulated: clients' speeds, repeated; below 1 makes that share of its steps in a round"
    )
    prox_mu: float = Field(0.01, ge=0, description="mu of FedProx")
    fedopt_tau: float | Literal["auto"] = Field(
        1e-3, description="tau of the adaptive servers; auto: the median size of the first round's changes"
    )
    fedopt_eta: float | None = Field(
        None, gt=0, description="server learning rate of the adaptive servers [0.001; twice tau where that is auto]"
    )
    fedopt_beta1: float = Field(0.9, ge=0, lt=1, description="beta1 of the adaptive servers")
    fedopt_beta2: float = Field(0.99, ge=0, lt=1, description="beta2 of the adaptive servers")


ADAPTIVE = only("fed_alg", "fedadam", "fedyogi", "fedadagrad")
ANY_ALGORITHM = (
    Condition(
        lambda config: re.fullmatch(r"local\d+", config.fed_alg) is None,
        "{c.fed_alg} has no parameters of its own",
        "choose another --fed_alg",
    ),
)
REPEATED = (
    Condition(
        lambda config: config.min_clients > 0 or config.runtime == "nvflare",
        "no round is repeated where min_clients is 0",
        "add such as --min_clients 1",
    ),
)
WORKS: dict[str, Effect] = {
    "objective": ALWAYS,
    "objective_args": ALWAYS,
    "fed_alg": ALWAYS,
    "num_rounds": ALWAYS,
    "recipe": verbs("causal_lm"),
    "fed_args": ANY_ALGORITHM,
    "num_clients": ONE_SOURCE,
    "sample_clients": FEDERATED,
    "client_sampling": FEDERATED,
    "client_weight": FEDERATED,
    "client_weight_args": FEDERATED,
    "aggregator": FEDERATED,
    "aggregator_args": FEDERATED,
    "privacy": ALWAYS,
    "privacy_args": ALWAYS,
    "codec": ALWAYS,
    "codec_args": ALWAYS,
    "protection": ALWAYS,
    "protection_args": ALWAYS,
    "cluster": ALWAYS,
    "weight_rate": only("client_weight", "minimax", "gain"),
    "availability": FEDERATED,
    "availability_period": flag("availability", "FILE"),
    "min_clients": ALWAYS,
    "max_attempts": REPEATED,
    "over_selection": ALWAYS,
    "max_bad_updates": ALWAYS,
    "client_failure_rate": ALWAYS,
    "client_speed": ALWAYS,
    "prox_mu": only("fed_alg", "fedprox"),
    "fedopt_tau": ADAPTIVE,
    "fedopt_eta": ADAPTIVE,
    "fedopt_beta1": only("fed_alg", "fedadam", "fedyogi", "fedavgm"),
    "fedopt_beta2": only("fed_alg", "fedadam", "fedyogi"),
}
"""When each key has an effect."""
