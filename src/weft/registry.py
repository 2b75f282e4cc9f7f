"""The tables of named parts: a name on the command line -> "module:Class".

A new method is one new file and one line here. Parts are imported only when they are loaded, so listing the names is
fast.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from weft.errors import ConfigError

ALGORITHMS = {
    "fedavg": "weft.algorithms.fedavg:FedAvg",
    "fedsgd": "weft.algorithms.fedsgd:FedSGD",
    "fedprox": "weft.algorithms.fedprox:FedProx",
    "scaffold": "weft.algorithms.scaffold:Scaffold",
    "fedavgm": "weft.algorithms.fedavgm:FedAvgM",
    "fedadagrad": "weft.algorithms.fedopt:FedAdagrad",
    "fedyogi": "weft.algorithms.fedopt:FedYogi",
    "fedadam": "weft.algorithms.fedopt:FedAdam",
    "fednova": "weft.algorithms.fednova:FedNova",
    "feddyn": "weft.algorithms.feddyn:FedDyn",
    "fedexp": "weft.algorithms.fedexp:FedExP",
    "fedcm": "weft.algorithms.fedcm:FedCM",
    "fedadamw": "weft.algorithms.fedadamw:FedAdamW",
    "diloco": "weft.algorithms.diloco:DiLoCo",
    "ditto": "weft.algorithms.ditto:Ditto",
    "fedbpt": "weft.algorithms.fedbpt:FedBPT",
    "fedkseed": "weft.algorithms.fedkseed:FedKSeed",
    "fedtext": "weft.algorithms.fedtext:FedText",
    "fedbuff": "weft.algorithms.fedbuff:FedBuff",
    "local": "weft.algorithms.local:Local",
    "central": "weft.algorithms.central:Central",
}
LORA_AGGREGATIONS = {
    "average": "weft.lora.average:Average",
    "ffa": "weft.lora.ffa:FFA",
    "rolora": "weft.lora.rolora:RoLoRA",
    "stack": "weft.lora.stack:Stack",
    "svd": "weft.lora.svd:SVD",
    "residual": "weft.lora.residual:Residual",
    "merge": "weft.lora.merge:Merge",
    "fedsa": "weft.lora.fedsa:FedSA",
    "fedsb": "weft.lora.fedsb:FedSB",
    "dual": "weft.lora.dual:Dual",
}
OTHER_NAMES = {
    "fedit": "average",
    "ffa_lora": "ffa",
    "flora": "stack",
    "flexlora": "svd",
    "fedex": "residual",
    "fedex_lora": "residual",
    "fedsa_lora": "fedsa",
    "relora": "merge",
    "fed_sb": "fedsb",
    "kseed": "fedkseed",
    "fednesterov": "diloco",
    "ddp": "fedsgd",
    "data_parallel": "fedsgd",
    "fedadgrad": "fedadagrad",
}
"""Names of parts in papers and other tools."""
WEIGHTINGS = {
    "size": "weft.weighting.size:Size",
    "uniform": "weft.weighting.uniform:Uniform",
    "minimax": "weft.weighting.minimax:Minimax",
    "gain": "weft.weighting.gain:Gain",
}
AGGREGATORS = {
    "mean": "weft.aggregation.mean:Mean",
    "median": "weft.aggregation.coordinates:Median",
    "trimmed_mean": "weft.aggregation.coordinates:TrimmedMean",
    "krum": "weft.aggregation.krum:Krum",
    "multi_krum": "weft.aggregation.krum:MultiKrum",
    "bulyan": "weft.aggregation.krum:Bulyan",
    "geometric_median": "weft.aggregation.geometric_median:GeometricMedian",
    "centered_clipping": "weft.aggregation.clipping:CenteredClipping",
    "norm_clipping": "weft.aggregation.clipping:NormClipping",
    "sign_vote": "weft.aggregation.coordinates:SignVote",
    "foolsgold": "weft.aggregation.foolsgold:FoolsGold",
    "fltrust": "weft.aggregation.root:FLTrust",
    "flame": "weft.aggregation.flame:Flame",
    "loss_gate": "weft.aggregation.root:LossGate",
}
ATTACKS = {
    "none": "weft.attacks.none:NoAttack",
    "sign_flip": "weft.attacks.directed:SignFlip",
    "inner_product": "weft.attacks.directed:InnerProduct",
    "alie": "weft.attacks.directed:Alie",
    "min_max": "weft.attacks.directed:MinMax",
    "min_sum": "weft.attacks.directed:MinSum",
    "scaling": "weft.attacks.simple:Scaling",
    "gaussian": "weft.attacks.simple:Gaussian",
    "mimic": "weft.attacks.simple:Mimic",
    "free_rider": "weft.attacks.simple:FreeRider",
    "label_flip": "weft.attacks.poison:LabelFlip",
    "preference_swap": "weft.attacks.poison:PreferenceSwap",
    "back_door": "weft.attacks.poison:BackDoor",
    "replacement": "weft.attacks.poison:Replacement",
    "server_back_door": "weft.attacks.poison:ServerBackDoor",
    "spread_poison": "weft.attacks.poison:SpreadPoison",
    "unsafe": "weft.attacks.poison:Unsafe",
}
PRIVACY = {
    "none": "weft.privacy.none:NoPrivacy",
    "gaussian": "weft.privacy.gaussian:Gaussian",
    "rows": "weft.privacy.rows:Rows",
}
PROTECTIONS = {
    "none": "weft.protection.plain:Plain",
    "masks": "weft.protection.masks:Masks",
    "ckks": "weft.protection.ckks:Ckks",
}
CODECS = {
    "none": "weft.compression.identity:Identity",
    "bf16": "weft.compression.blocks:BF16",
    "int8": "weft.compression.blocks:Int8",
    "int4": "weft.compression.blocks:Int4",
    "sign": "weft.compression.blocks:Sign",
    "topk": "weft.compression.sparse:TopK",
    "sparse_loco": "weft.compression.sparse:SparseLoCo",
    "low_rank": "weft.compression.low_rank:LowRank",
    "random_k": "weft.compression.linear:RandomK",
    "shared_low_rank": "weft.compression.linear:SharedLowRank",
}
OBJECTIVES = {
    "sft": "weft.objectives.sft:SFT",
    "causal_lm": "weft.objectives.causal_lm:CausalLM",
    "preference": "weft.objectives.preference:Preference",
    "grpo": "weft.objectives.grpo:GRPO",
}
EVALUATORS = {
    "held_out": "weft.evaluation.heldout:HeldOut",
    "pretraining": "weft.evaluation.pretraining_tasks:PretrainingHeldOut",
    "preferences": "weft.evaluation.preferred:Preferred",
    "rewards": "weft.evaluation.rewarded:Rewarded",
}
"""What measures a model on held-out rows; an objective names its own."""
REWARDS = ("exact", "numeric", "regex", "format", "length")
"""Weft's rewards; any other is a Python file."""
REWARDS_WITH_ANSWER = frozenset({"exact", "numeric"})
"""Rewards that compare with the row's own answer."""
SPLITS = {
    "iid": "weft.data.splits:iid",
    "dirichlet": "weft.data.splits:dirichlet",
    "by": "weft.data.splits:by",
    "domain": "weft.data.splits:domain",
    "quantity": "weft.data.splits:quantity",
    "length": "weft.data.splits:length",
    "cluster": "weft.data.splits:cluster",
    "shards": "weft.data.splits:shards",
}
TEMPLATES = {
    "alpaca": "weft.data.templates:ALPACA",
    "vicuna": "weft.data.templates:VICUNA",
    "vicuna_v1.1": "weft.data.templates:VICUNA",
    "chat": "weft.data.templates:CHAT",
}
CLEANERS = {
    "repair": "weft.data.cleaning.repair:Repair",
    "length": "weft.data.cleaning.length:Length",
    "language": "weft.data.cleaning.language:Language",
    "exact_duplicates": "weft.data.cleaning.duplicates:ExactDuplicates",
    "near_duplicates": "weft.data.cleaning.duplicates:NearDuplicates",
    "perplexity": "weft.data.cleaning.surprise:Perplexity",
    "triggers": "weft.data.cleaning.triggers:Triggers",
    "personal_data": "weft.data.cleaning.personal:PersonalData",
    "secrets": "weft.data.cleaning.personal:Secrets",
    "contamination": "weft.data.cleaning.contamination:Contamination",
}
"""Ways to clean training rows, in the order in which they are best applied."""
SCORERS = {
    "choice": "weft.tasks.choice:Choice",
    "generate": "weft.tasks.generation:Generate",
    "bits_per_byte": "weft.tasks.texts:BitsPerByte",
    "preference": "weft.tasks.texts:Preference",
    "refusal": "weft.tasks.refusal:Refusal",
    "program": "weft.tasks.programs:Program",
    "rated": "weft.tasks.conversations:Rated",
}
"""How evaluation tasks are asked and scored."""
AUDITS = {
    "exposure": "weft.audits.exposure:Exposure",
    "epsilon": "weft.audits.epsilon:Epsilon",
    "extraction": "weft.audits.extraction:Extraction",
    "prompts": "weft.audits.prompts:Prompts",
    "new_tokens": "weft.audits.new_tokens:NewTokens",
    "system_prompt": "weft.audits.system_prompt:SystemPrompt",
    "soft_prompt": "weft.audits.soft_prompt:SoftPrompt",
    "membership": "weft.audits.membership:Membership",
    "verbatim": "weft.audits.verbatim:Verbatim",
    "refusals": "weft.audits.refusals:Refusals",
    "span": "weft.audits.span:Span",
    "embedding": "weft.audits.embedding:Embedding",
    "inversion": "weft.audits.inversion:Inversion",
    "sequence": "weft.audits.sequence:Texts",
    "prefixes": "weft.audits.prefixes:Prefixes",
    "properties": "weft.audits.properties:Properties",
    "participant": "weft.audits.participant:Hostile",
    "gan": "weft.audits.gan:GAN",
}
"""What `weft audit` asks a finished run."""
NATURAL_SPLITS = ("by", "domain")
"""Splits that determine the number of clients from the data."""
COMMANDS = {
    "sft": "weft.commands.sft:run",
    "pretrain": "weft.commands.pretrain:run",
    "dpo": "weft.commands.dpo:run",
    "grpo": "weft.commands.grpo:run",
    "prompt": "weft.commands.prompt:run",
    "emulate": "weft.commands.emulate:run",
    "split": "weft.commands.split:run",
    "clean": "weft.commands.clean:run",
    "describe": "weft.commands.describe:run",
    "demo": "weft.commands.demo:run",
    "evaluate": "weft.commands.evaluate:run",
    "attack": "weft.commands.attack:run",
    "audit": "weft.commands.audit:run",
    "tasks": "weft.commands.tasks:run",
    "sweep": "weft.commands.sweep:run",
    "compare": "weft.commands.compare:run",
    "report": "weft.commands.report:run",
    "privacy": "weft.commands.privacy:run",
    "verify": "weft.commands.verify:run",
    "forget": "weft.commands.forget:run",
    "contribution": "weft.commands.contribution:run",
    "chat": "weft.commands.chat:run",
    "export": "weft.commands.export:run",
    "server": "weft.commands.server:run",
    "client": "weft.commands.client:run",
    "submit": "weft.commands.submit:run",
    "status": "weft.commands.submit:status",
    "logs": "weft.commands.submit:logs",
    "stop": "weft.commands.submit:stop",
    "up": "weft.commands.up:run",
    "completion": "weft.commands.completion:run",
}


def nearest(name: str, names: list[str]) -> str | None:
    """Return the most similar of the names, or None where none is similar."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return matches[0] if matches else None


def require(table: Mapping[str, str], name: str, kind: str) -> str:
    """Return the "module:Class" of a name.

    Raises:
        ConfigError: there is no such part; the message lists the names.
    """
    if name in table:
        return table[name]
    raise unknown_name(name, kind, list(table))


def unknown_name(name: str, kind: str, names: list[str], suffix: str = "") -> ConfigError:
    """Return the error of an unknown name, which lists the names, and `suffix` after them."""
    alias_of = OTHER_NAMES.get(name.lower().replace("-", "_"))
    guess = alias_of if alias_of in names else nearest(name, names)
    hint = f" Did you mean '{guess}'?" if guess else ""
    return ConfigError(f"There is no {kind} named '{name}'.{hint} Known: {', '.join(names)}{suffix}.")


def load(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Import and return the object of a name; raise ConfigError as `require` does."""
    return import_object(require(table, name, kind))


def import_object(place: str) -> Any:
    """Import and return the object of a "module:Class"."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
