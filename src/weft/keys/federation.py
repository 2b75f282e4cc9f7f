"""Keys of the federation: the algorithm, the clients, their participation."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field

from weft.json_types import JsonObject
from weft.keys.effects import (
    ALWAYS,
    FEDERATED,
    LOCAL_MODEL,
    NOT_SITES,
    NOT_SPREAD,
    ONE_SOURCE,
    Condition,
    Effect,
    flag,
    only,
    verbs,
)


class FederationKeys(BaseModel):
    """The federation."""

    objective: str = Field("sft", description="training loss")
    objective_args: JsonObject = Field({}, description="parameters of the objective: name=value ...")
    fed_alg: str = Field("fedavg", description="federated algorithm, or a baseline: local, localN, central")
    num_rounds: int = Field(
        500, ge=0, description="number of rounds; 0: evaluate the model that the run begins from, and train nothing"
    )
    recipe: Literal["diloco", "photon"] = Field(
        "diloco",
        description="defaults of `weft pretrain`: diloco keeps the clients' optimizer states, photon resets "
        "them and uses higher learning rates",
    )
    fed_args: JsonObject = Field({}, description="parameters of the algorithm: name=value ...; a wrong name lists them")
    num_clients: int = Field(
        2,
        ge=0,
        description="clients of the federation; 0: as many as the column or the folder has values (by, domain)",
    )
    sample_clients: int = Field(2, ge=1, description="clients sampled in each round")
    client_sampling: Literal["uniform", "size", "poisson"] = Field(
        "uniform",
        description="probability of a client: equal (uniform), or by its rows (size); poisson: a coin for each client, "
        "so that sample_clients take part on average",
    )
    client_weight: str = Field(
        "size",
        description="weight of an update: by rows (size), equal (uniform), larger for larger losses "
        "(minimax), or for larger gains (gain)",
    )
    client_weight_args: JsonObject = Field({}, description="parameters of the client weight: name=value ...")
    aggregator: str = Field(
        "mean", description="how updates are combined: the mean, or a rule that stands attackers, such as trimmed_mean"
    )
    aggregator_args: JsonObject = Field({}, description="parameters of the aggregator: name=value ...")
    attack: str = Field(
        "none", description="simulation: what malicious clients do, to measure defences; see docs/robustness.md"
    )
    attack_args: JsonObject = Field({}, description="parameters of the attack: name=value ...")
    num_malicious: float = Field(
        0.2, gt=0, description="simulation: malicious clients: below 1 their share of all, from 1 on their number"
    )
    leave_when: JsonObject = Field(
        {},
        description="simulation: what every client tests each shared model on, and when it leaves: forbidden=FILE "
        "rate=0.2 canaries=FILE most_rise=1 most_fall=1",
    )
    privacy: str = Field("none", description="the part behind privacy_unit, which sets it, or one of your own")
    privacy_args: JsonObject = Field({}, description="parameters of the privacy: name=value ...")
    codec: str = Field("none", description="compression of updates")
    codec_args: JsonObject = Field({}, description="parameters of the codec: name=value ...")
    codec_down: str = Field(
        "none",
        description="compression of tasks, by the names of codec: the difference from what a client holds is sent",
    )
    codec_down_args: JsonObject = Field({}, description="parameters of codec_down: name=value ...")
    protection: str = Field(
        "none", description="secure aggregation, which hides single updates from the server: masks, or ckks"
    )
    protection_args: JsonObject = Field({}, description="parameters of the protection: name=value ...")
    min_contributors: int = Field(3, ge=1, description="fewest clients in a sum of secure aggregation")
    encrypt: list[str] | None = Field(
        None,
        description="globs, or parts of names, of the tensors that ckks encrypts; the server sees all others [all]",
    )
    group_size: int = Field(
        0, ge=0, description="clients in each sum of secure aggregation: the server sees one sum of each group [0: all]"
    )
    cluster: int = Field(
        1, ge=1, description="number of models; each client trains the one with the smallest loss on its rows"
    )
    weight_rate: float = Field(1.0, gt=0, description="strength of minimax and gain")
    availability: str | None = Field(
        None, description="CSV file of client,first,last: rounds (from 1) in which a client can be reached"
    )
    availability_period: int | None = Field(None, ge=1, description="rounds after which the availability repeats")
    min_clients: int = Field(0, ge=0, description="quorum: a round with fewer valid updates is repeated")
    max_attempts: int = Field(10, ge=1, description="attempts at a round before the run stops; it can be resumed")
    over_selection: float = Field(
        0.0,
        ge=0,
        description="share of clients sampled beyond sample_clients, such as 0.2; the first valid updates are used",
    )
    max_update_norm: float | None = Field(
        None,
        ge=0,
        description="largest norm of an update, as a multiple of the round's median; 0: no limit [with nvflare 100, "
        "or 10000 where rounds count epochs; otherwise 0]",
    )
    max_client_share: float = Field(
        1.0, gt=0, le=1, description="largest share of one client in the weight of a round, such as 0.5; 1: no limit"
    )
    max_bad_updates: int = Field(3, ge=0, description="invalid updates after which a client is excluded; 0: never")
    client_failure_rate: float = Field(
        0.0, ge=0, lt=1, description="simulation: probability that a client drops out of a round, below 1"
    )
    client_speed: list[float] | None = Field(
        None,
        description="simulation: speeds of the clients, repeated cyclically; below 1: share of the steps "
        "that it makes in a round",
    )
    prox_mu: float = Field(0.01, ge=0, description="mu of FedProx")
    fedopt_tau: float | Literal["auto"] = Field(
        1e-3, description="tau of the adaptive servers; auto: median absolute update of the first round"
    )
    fedopt_eta: float | None = Field(
        None, gt=0, description="learning rate of the adaptive servers [0.001; twice tau if that is auto]"
    )
    fedopt_beta1: float = Field(0.9, ge=0, lt=1, description="beta1 of the adaptive servers, and FedAvgM's momentum")
    fedopt_beta2: float = Field(0.99, ge=0, lt=1, description="beta2 of the adaptive servers")


ADAPTIVE = only("fed_alg", "fedadam", "fedyogi", "fedadagrad")
ATTACKED = (Condition(lambda config: config.attack != "none", "there is no attack", "add such as --attack sign_flip"),)
BY_CLIENTS = (
    *ATTACKED,
    Condition(
        lambda config: config.attack not in ("server_back_door", "spread_poison"),
        "no client is malicious where the attack is {c.attack}",
        "choose another --attack",
    ),
)
ANY_ALGORITHM = (
    Condition(
        lambda config: re.fullmatch(r"local\d+", config.fed_alg) is None,
        "{c.fed_alg} has no parameters of its own",
        "choose another --fed_alg",
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
    "attack": ALWAYS,
    "attack_args": ATTACKED,
    "num_malicious": BY_CLIENTS,
    "leave_when": NOT_SITES + FEDERATED + LOCAL_MODEL + NOT_SPREAD + verbs("sft", "preference", "grpo"),
    "privacy": ALWAYS,
    "privacy_args": ALWAYS,
    "codec": ALWAYS,
    "codec_args": ALWAYS,
    "codec_down": ALWAYS,
    "codec_down_args": ALWAYS,
    "protection": ALWAYS,
    "protection_args": ALWAYS,
    "min_contributors": only("protection", "masks", "ckks"),
    "encrypt": only("protection", "ckks"),
    "group_size": only("protection", "masks", "ckks"),
    "cluster": ALWAYS,
    "weight_rate": only("client_weight", "minimax", "gain"),
    "availability": FEDERATED,
    "availability_period": flag("availability", "FILE"),
    "min_clients": ALWAYS,
    "max_attempts": ALWAYS,
    "over_selection": ALWAYS,
    "max_update_norm": ALWAYS,
    "max_client_share": ALWAYS,
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
