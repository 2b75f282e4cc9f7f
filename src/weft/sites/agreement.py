"""What a site agrees to: the reasons to refuse a run by the site policy, and the keys by which the site trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Sized

from weft import plugins
from weft.config import VOLATILE, RunConfig
from weft.core.types import SEARCH
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.keys.privacy import CLIENT
from weft.kinds import is_outside
from weft.launch.mixtures import named_domains
from weft.sites import part_files, run_limits, site_ledger
from weft.sites.policy import SitePolicy
from weft.sites.reports import reportable
from weft.sites.run_keys import AT_SERVER, FROM_RUN, FROM_SITE, ON_DEMAND, forbidden

TESTED = ("sft", "preference", "grpo")
"""Objectives of the runs whose models a site can test by `leave_when`."""


def refusal(policy: SitePolicy, run: RunConfig, clients: int) -> str | None:
    """Return the reason to refuse a run, in one sentence that holds none of the site's data; None: the site takes part.

    Args:
        policy: the site policy.
        run: the run as it was sent.
        clients: size of the run's cohorts.
    """
    accept = policy.accept
    keys = {key: getattr(run, key) for key in RunConfig.model_fields}
    why = forbidden(keys, from_scratch=accept.from_scratch, tokenizers=tuple(accept.tokenizers))
    if why is not None:
        return why
    why = part_files.refusal(keys, accept.parts)
    if why is not None:
        return why
    why = run_limits.refusal(keys, accept.limits)
    if why is not None:
        return why
    trainable = "prompt" if run.prompt_method else "lora" if run.use_peft else "full"
    # Names of models may be paths of the site, which it tells nobody.
    models = [] if run.from_scratch else [run.model_name_or_path]
    if run.endpoint is not None:
        models.append(run.endpoint_model or run.model_name_or_path)
    for name in models:
        if name not in accept.models:
            return f"the model '{name}' is not among the models that this site accepts"
    if run.endpoint is not None and policy.endpoint is None:
        return "the run asks a model behind an endpoint, and this site has none"
    limits: list[tuple[str, str, list[str] | None]] = [
        ("the objective", run.objective, accept.objectives),
        ("training of the kind", trainable, accept.trainable),
        ("the algorithm", run.fed_alg, accept.algorithms),
        ("the protection", run.protection, accept.protection),
        ("the privacy", run.privacy if is_outside("privacy", run.privacy) else run.privacy_unit, accept.privacy),
    ]
    for what, name, allowed in limits:
        # Files of parts were compared by their content above.
        if allowed is not None and name not in allowed and plugins.parse(name) is None:
            return f"{what} '{name}' is not among what this site accepts ({', '.join(allowed) or 'none'})"
    if not run.num_rounds and not accept.evaluations:
        return "the run evaluates a model and trains nothing, and this site does not accept evaluations by themselves"
    if accept.max_rounds is not None and run.num_rounds > accept.max_rounds:
        return f"the run has {run.num_rounds} rounds, and this site accepts {accept.max_rounds} at most"
    # The first is the server's word, the others are agreed on.
    clients = min(clients, run.sample_clients, run.group_size or clients)
    if accept.min_clients is not None and clients < accept.min_clients:
        return f"a round has {clients} clients, and this site asks for {accept.min_clients} at least"
    why = _partly_open(policy, run) or _untested(policy, run) or _without_noise(policy, run, clients)
    why = why or site_ledger.refusal(accept, policy.ledger, run)
    if why is not None:
        return why
    if run.runtime != "nvflare" or run.parallel != "none":
        return "the run is not one for sites"
    if accept.max_steps is not None and not 0 < run.max_steps <= accept.max_steps:
        amount = f"{run.max_steps} steps" if run.max_steps > 0 else f"{run.num_train_epochs} epochs"
        return f"a round has {amount}, and this site accepts {accept.max_steps} steps at most"
    return _other_domain(policy, run)


def _other_domain(policy: SitePolicy, run: RunConfig) -> str | None:
    """Return the reason to refuse a mixture of domains that the site does not list; None: it lists them all."""
    other = next((name for name in named_domains(run) if name not in policy.accept.domains), None)
    if other is None:
        return None
    return f"the run chooses rows of the domain '{other}', which is not among the domains that this site accepts"


def _without_noise(policy: SitePolicy, run: RunConfig, clients: int) -> str | None:
    """Return the reason to refuse a run whose updates are seen before the noise is in them; None: there is none."""
    if run.noise_at == "client" and run.min_clients > clients:
        return f"the noise is made of {run.min_clients} shares, and a round has {clients} clients"
    if policy.accept.noise_at is None or run.privacy_unit != CLIENT:
        return None
    if run.noise_at == "server":
        return "its server adds the noise, and this site asks for noise_at client"
    if run.protection == "none":
        return (
            "its server would see this site's update with a share of the noise alone, and this site asks for noise_at "
            "client: the run needs protection masks"
        )
    return None


def _partly_open(policy: SitePolicy, run: RunConfig) -> str | None:
    """Return the reason to refuse a run that leaves tensors of its updates unencrypted; None: the site accepts it."""
    if not run.encrypt or policy.accept.partly_encrypted:
        return None
    return (
        f"the run encrypts {', '.join(run.encrypt)} alone, its server would see the other tensors of each site, "
        "and this site does not accept partly_encrypted"
    )


def _untested(policy: SitePolicy, run: RunConfig) -> str | None:
    """Return the reason to refuse a run whose models the site cannot test, although it wants to; None: it can."""
    if policy.leave_when is None or (run.endpoint is None and run.objective in TESTED):
        return None
    kinds = f"{', '.join(TESTED[:-1])} and {TESTED[-1]}"
    return f"this site tests each shared model on questions of its own, which it can do in runs of {kinds} alone"


def smaller_cohort(policy: SitePolicy, plan: Plan) -> str | None:
    """Return the reason to refuse a plan in which fewer clients than a round has share a value; None: there is none."""
    if (policy.accept.min_clients or 0) <= 1:
        return None
    ways = {
        "each client trains one of several models (cluster)": plan.algorithm.choice is not None,
        "clients have different layers (client_layers)": bool(plan.sharing.layers),
        "clients have different ranks (client_ranks)": len(set(plan.sharing.ranks)) > 1,
        "the server steps without waiting for a cohort": plan.algorithm.buffer is not None,
    }
    why = next((way for way, holds in ways.items() if holds), None)
    if why is None:
        return None
    return f"{why}, and this site asks that at least {policy.accept.min_clients} clients share every mean"


def few_rows(
    policy: SitePolicy, plan: Plan, rows: int, domains: Sequence[Mapping[int, Sized]], rounds: int
) -> str | None:
    """Return the reason to refuse a plan by which too few of the site's rows could be told; None: there is none.

    Args:
        policy: the site policy.
        plan: the run's.
        rows: that the site trains on.
        domains: of a mixture, as for `singled_out`.
        rounds: of the run; one without any trains on nothing.
    """
    why = losses_sent(policy, plan, rows) or singled_out(policy, domains)
    return why or (too_few_rows(policy, plan, rows) if rounds else None)


def losses_sent(policy: SitePolicy, plan: Plan, rows: int) -> str | None:
    """Return the reason to refuse a plan whose updates are losses that the site may not report; None: there is none.

    A search sends the loss of each candidate or text, which the server chooses: what `report` and `min_report_rows`
    keep back among the metrics would leave the site beside them.

    Args:
        policy: the site policy.
        plan: the run's.
        rows: that the site trains on.
    """
    sends = plan.local.kind in ("search", "words") and SEARCH in plan.algorithm.streams
    if not sends or plan.local.hides_units:  # the losses of private steps have noise of the site's own
        return None
    scored = plan.local.rows_in_metrics(rows)
    if "loss_sum" in reportable(policy, {"loss_sum": 1.0, "loss_tokens": 1.0}, scored):
        return None
    least = policy.accept.min_report_rows
    if scored < least:
        return f"its updates are losses of fewer than {least} rows, and this site reports none of so few"
    return "its updates are losses, and this site does not report the loss"


def singled_out(policy: SitePolicy, domains: Sequence[Mapping[int, Sized]]) -> str | None:
    """Return the reason to refuse a mixture that chooses too few rows of the site; None: there is none.

    The run names the domains and their shares: of one with a few rows, the update would be that of these alone.

    Args:
        policy: the site policy.
        domains: of each client here the rows of the domains that it would train on, by number.
    """
    least = policy.accept.min_report_rows
    if all(len(rows) >= least for own in domains for rows in own.values()):
        return None
    return f"its mixture names a domain of which this site has fewer than {least} rows"


def too_few_rows(policy: SitePolicy, plan: Plan, rows: int) -> str | None:
    """Return the reason to refuse a plan whose rounds train on too few rows of the site; None: they train on enough.

    The run sets steps and batch: of one step on one row, the update shows the row, whatever it does to metrics.

    Args:
        policy: the site policy.
        plan: the run's.
        rows: that the site trains on.
    """
    least, read = policy.accept.least_trained, plan.local.rows_in_metrics(rows, plan.objective.reuse)
    if read >= least or plan.local.hides_units:  # noise of the site's own hides each row in every step
        return None
    return (
        f"a round trains on fewer than {least} rows of this site (max_steps times batch_size), and an update of so few "
        "would show them"
    )


def own_config(policy: SitePolicy, run: JsonObject, name: str) -> JsonObject:
    """Return the keys by which a site trains: those that it takes from the run, and those of its policy."""
    keys = {key: value for key, value in run.items() if key in FROM_RUN | ON_DEMAND}
    keys = part_files.at_site(keys, policy.accept.parts)
    location = policy.accept.models.get(str(run.get("model_name_or_path")))
    if location and not location.startswith("sha256:"):
        keys["model_name_or_path"] = location
    data = policy.data
    if data.template is not None:
        keys["template"] = data.template
    columns = ("instruction_column", "response_column", "chosen_column", "rejected_column")
    return keys | {
        "runtime": "inprocess",
        "clients": [{"name": name, "data": data.path, "eval": data.eval}],
        **{column: getattr(data, column) for column in columns},
        "dataset_split": data.split,
        "eval_dataset_split": data.eval_split,
        "instruction_prefix": data.instruction_prefix,
        "prompt_template": data.prompt_template,
        "clean": data.clean,
        "clean_args": data.clean_args,
        "leave_when": policy.leave_when.model_dump(exclude_unset=True) if policy.leave_when else {},
        "device": policy.device,
        "threads": policy.threads,
        "token_cache": policy.token_cache,
        "endpoint": policy.endpoint if run.get("endpoint") else None,
        "endpoint_key": policy.endpoint_key,
    }


def wrong_model(policy: SitePolicy, run: RunConfig, digest: str) -> str | None:
    """Return the reason to refuse the model at the site, by the hash of its weights; None: the policy accepts it."""
    location = policy.accept.models.get(run.model_name_or_path)
    if location and location.startswith("sha256:") and location.removeprefix("sha256:") != digest:
        return (
            f"the model '{run.model_name_or_path}' here has the hash {digest[:16]}..., and site.yaml asks for another"
        )
    return None


def agreement(run: JsonObject, base: str, version: str) -> str:
    """Return the hash of what server and sites must agree on: Weft's version, the run, and the base model."""
    # Keys that a site sets for itself, or that mean nothing to it, may differ.
    keys = {key: value for key, value in run.items() if key not in VOLATILE | FROM_SITE | AT_SERVER}
    return hashlib.sha256(json.dumps([version, keys, base], sort_keys=True).encode()).hexdigest()
