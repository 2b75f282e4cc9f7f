"""Warnings and refusals that depend on the data of a run: printed once, before its first round."""

from __future__ import annotations

from collections.abc import Iterator

from weft import kinds
from weft.config import RunConfig
from weft.core.parts import Algorithm
from weft.data.pairs import TRUNCATED_PROMPTS
from weft.errors import ConfigError
from weft.launch.population import Population
from weft.runs.progress import Progress
from weft.runs.text import contamination_lines


def print_warnings(config: RunConfig, population: Population, algorithm: Algorithm, progress: Progress) -> None:
    """Print the summary of the data and its warnings, once, after all checks and before the first round."""
    progress.print_data_summary(population.account.summary())
    for line in warning_lines(config, population):
        progress.note(line)
    if config.sample_clients > len(population.trained) and not algorithm.pools_data and algorithm.shares:
        progress.note(
            f"sample_clients is {config.sample_clients} and there are {len(population.trained)} clients: all take part."
        )


def warning_lines(config: RunConfig, population: Population) -> Iterator[str]:
    """Yield what a user must know of the data: what was left out, cut, changed and not used."""
    counts = population.counts
    yield from population.account.lines()
    yield from contamination_lines(population.split.get("contamination", {}))
    if config.template_date is not None:
        yield f"the date that the chat template writes is {config.template_date} throughout the run."
    if counts.get("truncated"):
        yield (
            f"{counts['truncated']} of {counts['rows']} rows are longer than {config.seq_length} tokens and were cut "
            f"on the {config.truncation_side}."
        )
    if counts.get(TRUNCATED_PROMPTS):
        count = counts[TRUNCATED_PROMPTS]
        yield f"{count} of {counts['rows']} prompts leave no room for their answers and were cut on the left."


def check_only_client(config: RunConfig, population: Population) -> None:
    """Refuse a `localN` beyond the clients that the data gave."""
    client = kinds.check_algorithm(config.fed_alg)
    if client is not None and client >= len(population.names):
        raise ConfigError(
            f"fed_alg is {config.fed_alg}, but there are {len(population.names)} clients, counted from 0: "
            f"local{len(population.names) - 1} is the last."
        )
