"""The mixture of a run: its rule, and the domains of every client."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weft import registry
from weft.config import RunConfig
from weft.data.documents import Documents
from weft.data.source_kinds import Texts
from weft.data.sources import Sources
from weft.errors import ConfigError, DataError
from weft.federation.clients import Clients, View
from weft.keys.pretraining import EXCESS, PUBLIC, TEMPERATURE, mixture_shares, numbers_of
from weft.training.mixture import PREFIX, Mixture


def mixture_of(config: RunConfig) -> Mixture | None:
    """Return the rule of a run's mixture; ConfigError where the reference run cannot be read."""
    if config.mixture is None:
        return None
    if (shares := mixture_shares(config.mixture)) is not None:
        return Mixture(tuple(shares.values()), list(shares).index(PUBLIC) if PUBLIC in shares else -1)
    reference = tuple(reference_losses(config).values()) if config.mixture_reference is not None else ()
    return Mixture((), -1, config.mixture_temperature, reference, config.mixture_strength)


def reference_losses(config: RunConfig) -> dict[str, float]:
    """Return the losses that a small model reached (nats a token), by domain: as written, or of a run's clients."""
    reference = config.mixture_reference or ""
    if "=" in reference:
        return numbers_of("mixture_reference", reference)
    path = Path(reference).expanduser() / "summary.json"
    try:
        clients: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["clients"]
        losses = {name: float(scores["loss"]) for name, scores in clients.items() if scores.get("loss") is not None}
    except FileNotFoundError:
        raise ConfigError(
            f"mixture_reference '{reference}' is no finished run: write the folder of one, or losses as name=loss,..."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"'{path}' cannot be read: name another run after --mixture_reference.") from None
    if not losses:
        raise ConfigError(
            f"The run '{reference}' measured no loss of its clients: name one with a client for each domain and "
            "held-out rows, such as of --split_strategy domain."
        )
    return losses


def named_domains(config: RunConfig) -> tuple[str, ...]:
    """Return the domains that the keys name, in the order of their numbers; none where the data names them."""
    if config.mixture is None or config.mixture == TEMPERATURE:
        return ()
    return tuple(mixture_shares(config.mixture) or reference_losses(config))


def mixed(
    config: RunConfig,
    sources: Sources,
    table: object,
    clients: Clients,
    documents: Sequence[np.ndarray],
    public: np.ndarray | None,
    left_out: Collection[str] = (),
) -> tuple[Clients, tuple[str, ...]]:
    """Return the clients, each with its rows by domain, and the names of the domains.

    Args:
        config: the run.
        sources: knows the domain of each document.
        table: of the documents.
        clients: who trains.
        documents: the training documents of each.
        public: the public documents, a domain that all clients have.
        left_out: clients that are not trained on.

    Raises:
        DataError: a domain that is not there, one domain alone, or a client without any that has a share.
    """
    if config.mixture is None or not isinstance(sources, Texts) or not isinstance(table, Documents):
        return clients, ()
    trained = zip(clients.names, documents, strict=True)
    found = [_grouped(sources.domains_of(part), part) if name not in left_out else {} for name, part in trained]
    if any(PUBLIC in groups for groups in found) and public is not None:
        raise DataError(f"A domain is called '{PUBLIC}', which is the name of public_data: give it another name.")
    shared = {} if public is None else {PUBLIC: public}
    found = [groups | shared for groups in found]
    present = sorted({name for groups in found for name in groups})
    names = named_domains(config) or tuple(present)
    _check_names(config, sources, names, present)
    shares = mixture_shares(config.mixture) or dict.fromkeys(names, 1.0)
    domains = []
    for client, groups in zip(clients.names, found, strict=True):
        own = {n: table.rows_of(groups[name]) for n, name in enumerate(names) if name in groups and shares[name] > 0}
        mixes = any(name in groups and shares[name] > 0 and name not in shared for name in names)
        if not mixes and groups.keys() - shared.keys():
            has = ", ".join(sorted(groups.keys() - shared.keys()))
            key, number = _numbers(config)
            raise DataError(
                f"The client '{client}' has no row of a domain with a {number} in {key}, but of {has}: give one "
                f"of these a {number}, or write --leave_out with the client's name."
            )
        domains.append(own)
    left = [name for name in present if name not in names or not shares[name]]
    if left:
        key, number = _numbers(config)
        sources.log(f"Rows of {', '.join(left)} are not trained on: {key} has no {number} for them.")
    return replace(clients, domains=domains), names


def _numbers(config: RunConfig) -> tuple[str, str]:
    """Return the key that names the domains, and what it gives each."""
    return ("mixture_reference", "loss") if config.mixture == EXCESS else ("mixture", "share")


def _grouped(domains: Sequence[str], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Return the documents by domain, each in their order."""
    groups: dict[str, list[int]] = {}
    for name, number in zip(domains, numbers.tolist(), strict=True):
        groups.setdefault(name, []).append(number)
    return {name: np.array(group, dtype=np.int64) for name, group in groups.items()}


def _check_names(config: RunConfig, sources: Sources, names: Sequence[str], present: Sequence[str]) -> None:
    """Refuse domains that are not there; a site may lack some, which others have."""
    if config.clients and len(config.clients) == 1 and any(name in present for name in names):
        # A site, which has its own domains alone and cannot know those of others.
        if missing := [name for name in names if name not in present]:
            sources.log(f"There are no rows of {', '.join(missing)}: their shares in mixture fall to other domains.")
        return
    own = [name for name in present if name != PUBLIC]
    unnamed = len(own) == 1 and config.mixture_column is None and not {PUBLIC, *own}.issuperset(names)
    if unnamed or len(present) == 1:
        raise DataError(
            f"All rows are of one domain, '{own[0]}', so there is nothing to mix: write --mixture_column COLUMN with "
            "the column that names the domain of a row, or give each domain a file of its own."
        )
    reference, key = config.mixture_reference or "", _numbers(config)[0]
    for name in names:
        if name not in present:
            guess = registry.nearest(name, list(present))
            hint = f"did you mean '{guess}'?" if guess else f"the data has {', '.join(present)}."
            if config.mixture == EXCESS and "=" not in reference:
                raise DataError(
                    f"The run '{reference}' of mixture_reference has a client '{name}', which is no domain of this "
                    "data: name a run with a client for each domain, such as of --split_strategy domain, or write the "
                    f"losses as {present[0]}=LOSS,..."
                )
            raise DataError(f"{key} names the domain '{name}', which is not there: {hint}")


def mixture_text(config: RunConfig, names: Sequence[str], clients: Clients) -> str | None:
    """Return the shares of the domains in a client's batches, the mean of all clients; None: there is no mixture."""
    rule = mixture_of(config)
    if rule is None or clients.domains is None:
        return None
    rule = replace(rule, reference=())  # asks for no loss then
    found = np.zeros(len(names))
    mixing = [domains for domains in clients.domains if domains]
    for domains in mixing:
        found[sorted(domains)] += rule.shares_of({n: View(clients.table, rows) for n, rows in domains.items()}, len)
    text = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, found / len(mixing), strict=True))
    return text + (", times what excess loss makes of it" if config.mixture == EXCESS else "")


def sampled(names: Sequence[str], sums: dict[str, float]) -> dict[str, float]:
    """Return the shares of the rows that a round's clients drew, by domain, from their counts; empty without any."""
    counts = {name: max(0.0, sums.get(f"{PREFIX}/{number}", 0.0)) for number, name in enumerate(names)}
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}
