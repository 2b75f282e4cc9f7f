"""What is said once, and what is refused, when the data of a run is known."""

from __future__ import annotations

from weft import registry
from weft.config import RunConfig
from weft.core.parts import Algorithm
from weft.data.pairs import PROMPTS_CUT
from weft.data.store import BROKEN
from weft.errors import ConfigError
from weft.launch.population import Population
from weft.runs.progress import Progress


def tell(config: RunConfig, population: Population, algorithm: Algorithm, progress: Progress) -> None:
    """Say once what a user would want to know before the first round."""
    counts = population.counts
    check_alone(config, population)
    if config.sample_clients > len(population.trained) and not algorithm.pools_data and algorithm.shares:
        progress.note(
            f"sample_clients is {config.sample_clients} and there are {len(population.trained)} clients: all take part."
        )
    if counts.get("truncated"):
        progress.note(
            f"{counts['truncated']} of {counts['rows']} rows are longer than {config.seq_length} tokens and were cut "
            f"on the {config.truncation_side}."
        )
    if counts.get(BROKEN):
        progress.note(f"{counts[BROKEN]} documents hold bytes that are no UTF-8; they were replaced.")
    if counts.get(PROMPTS_CUT):
        progress.note(
            f"{counts[PROMPTS_CUT]} of {counts['rows']} prompts leave no room for their answers; cut on the left."
        )
    for reason, count in counts.items():
        if count and reason not in ("rows", "truncated", "tokens", BROKEN, PROMPTS_CUT):
            progress.note(f"{count} rows were left out ({reason.replace('_', ' ')}).")


def check_alone(config: RunConfig, population: Population) -> None:
    """Refuse a `localN` beyond the clients that the data gave."""
    alone = registry.check_algorithm(config.fed_alg)
    if alone is not None and alone >= len(population.names):
        raise ConfigError(
            f"fed_alg is {config.fed_alg}, but there are {len(population.names)} clients, counted from 0: "
            f"local{len(population.names) - 1} is the last."
        )
