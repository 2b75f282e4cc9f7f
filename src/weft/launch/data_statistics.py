"""What each client's rows are like, before any training: lengths, labels, languages; none of few rows, noisy if asked.

Counts of a client are those of all its rows, held-out ones too. How many these are, every run tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.secret import Secret
from weft.data.documents import Documents
from weft.data.encode import ConversationTable
from weft.data.formats import Example, Turn
from weft.data.languages import LANGUAGES, OTHER, language_of
from weft.data.pairs import Pair
from weft.data.prompts import Prompt, PromptTable
from weft.data.tokenize import tokenize
from weft.federation.clients import ClientData
from weft.json_types import JsonObject
from weft.launch.contamination import text_of, texts_of
from weft.launch.population import Population, load_template, template_name

LEAST = 10
"""The smallest count of simulated clients; that of a site is its own."""
SHORTEST = 32
"""Tokens of the rows of the first bin; every further bin reaches twice as far."""
MOST = 1 << 31
"""Limit for the counts that a site may claim."""
SPURIOUS = 5
"""Scales of noise below which a count is taken for noise alone: P(z >= 5 b) is 0.003."""
BINS = 40
"""Limit for the bins that a site may send."""


def statistics_of(population: Population, tokenizer: Tokenizer, config: RunConfig) -> dict[str, JsonObject]:
    """Return the exact counts of every client, by name: `lengths`, `languages`, and `labels` where there are any."""
    names: Sequence[str] = population.split.get("labels") or ()
    frame = _frame(config, tokenizer, population.evaluated.table)
    found: dict[str, JsonObject] = {}
    for client in population.evaluated:
        counts: JsonObject = {"rows": len(client.train), "held": len(client.held_out)}
        counts |= _lengths_and_languages(client, tokenizer, config.seq_length, frame)
        if config.choices:
            if (labels := _choices_of(client, tokenizer, config.choices)) is not None:
                counts["labels"] = labels
        elif names:
            numbers = population.split["clients"][client.name].get("labels", [])
            counts["labels"] = dict(zip(names, numbers, strict=True))
        found[client.name] = counts
    return found


def protected(counts: JsonObject, least: int = 0, noise: float = 0.0, secret: Secret | None = None) -> JsonObject:
    """Return the counts of a client as it sends them.

    Args:
        counts: as `statistics_of` returns them.
        least: of fewer rows nothing is told: rare labels and languages are put together, and lengths with their
            neighbours, until each number is that large.
        noise: scale of the discrete Laplace noise of each number; 0: none. It is added first. A row is in one number of
            each kind, so that each kind costs an epsilon of 1 / `noise`.
        secret: of the client; needed with noise. Equal counts have equal noise, so that asking again tells nothing.
    """
    total = counts["rows"] + counts["held"]
    least = max(least, math.ceil(SPURIOUS * noise))
    sent: JsonObject = {"rows": counts["rows"], "held": counts["held"], "least": least, "noise": noise}
    for kind in ("lengths", "labels", "languages"):
        exact: dict[str, int] | None = counts.get(kind)
        if exact is None:  # not asked, or not known
            continue
        values = np.array(list(exact.values()), dtype=np.int64)
        if noise:
            assert secret is not None
            values = np.maximum(0, values + secret.laplace(len(values), noise, "statistics", kind, repr(exact)))
        noisy = dict(zip(exact, values.tolist(), strict=True))
        if kind == "lengths":
            sent[kind] = _merged_lengths(noisy, least)
        else:
            sent[kind] = _merged(noisy, total, least, exact=not noise)
    return sent


def simulated(config: RunConfig, population: Population, tokenizer: Tokenizer) -> dict[str, JsonObject]:
    """Return by client what simulated clients send of their rows, as sites do whose policy has the defaults."""

    def sent(name: str, counts: JsonObject) -> JsonObject:
        # A secret is written to disk when it is first drawn.
        secret = population.evaluated.memory.secret(name) if config.statistics_noise else None
        counts = counts if config.choices or not config.statistics_noise else counts | {"labels": None}
        return protected(counts, LEAST, config.statistics_noise, secret)

    return {name: sent(name, counts) for name, counts in statistics_of(population, tokenizer, config).items()}


def at_site(
    config: RunConfig, population: Population, tokenizer: Tokenizer, rules: tuple[int, float] | None, folder: Path
) -> JsonObject | None:
    """Return what a site sends of its rows; labels are told only where the run names them. None: it tells nothing.

    Args:
        config: by which the site trains.
        population: the site as the only client.
        tokenizer: of the model.
        rules: the least count and the least noise of the site policy; None: it does not accept this.
        folder: of the site's runs, which keeps the secret that noise is drawn from: the same for all of them.
    """
    if not config.data_statistics or rules is None:
        return None
    ((_, counts),) = statistics_of(population, tokenizer, config).items()
    if not config.choices:
        counts.pop("labels", None)
    least, noise = rules
    secret = Secret.load_or_create(folder / ".statistics.key")
    return protected(counts, least, max(noise, config.statistics_noise), secret)


def asked_statistics(choices: Sequence[str], answers: Mapping[str, object]) -> dict[str, JsonObject]:
    """Return what sites sent of their rows, as far as it was asked and can be true.

    Args:
        choices: the labels that the run names.
        answers: of the sites, whatever they are.
    """
    known = {"labels": {*choices, OTHER}, "languages": {*LANGUAGES}}
    found: dict[str, JsonObject] = {}
    for site, answer in answers.items():
        if not isinstance(answer, dict) or not _is_count(answer.get("least")):
            continue
        kept: JsonObject = {key: answer[key] for key in ("rows", "held", "least") if _is_count(answer.get(key))}
        noise = answer.get("noise")
        kept["noise"] = float(noise) if isinstance(noise, (int, float)) and 0 <= noise <= MOST else 0.0
        for kind, names in known.items():
            counts = answer.get(kind)
            if isinstance(counts, dict) and all(name in names and _is_count(n) for name, n in counts.items()):
                kept[kind] = counts
        bins = answer.get("lengths")
        if isinstance(bins, list) and len(bins) <= BINS and all(map(_is_bin, bins)):
            kept["lengths"] = bins
        found[site] = kept
    return found


def notes(found: Mapping[str, JsonObject]) -> list[str]:
    """Return sentences on what the counts of clients do not say."""
    lines = []
    least = max((one["least"] for one in found.values()), default=0)
    if least > 1:
        lines.append(f"Counts below {least} are put together with others, or left out.")
    noises = sorted({one["noise"] for one in found.values() if one["noise"]})
    if noises:
        low = noises[0]
        lines.append(
            f"Each count but those of rows has noise of the scale {', '.join(f'{noise:g}' for noise in noises)}: a row "
            f"costs an epsilon of {1 / low:.3g} at most for each kind of count, each time that another count is asked."
        )
    return lines


def differences(found: Mapping[str, JsonObject]) -> list[str]:
    """Return sentences on how much clients differ, from what they told."""
    sizes = np.array([one.get("rows", 0) for one in found.values()], dtype=np.int64)
    if len(sizes) < 2:
        return []
    lines = [f"{sizes.sum()} rows to train on; the largest client has {sizes.max() / max(1, sizes.sum()):.0%} of them."]
    for kind in ("languages", "labels"):
        # A site whose counts are all 0, as noise may make them, has no shares.
        tables = {name: one[kind] for name, one in found.items() if any(one.get(kind, {}).values())}
        if len(tables) > 1:
            far = divergences(tables)
            worst = max(far, key=lambda name: far[name])
            lines.append(
                f"{kind}: the clients' shares differ from all by {sum(far.values()) / len(far):.2f} on average (0: not "
                f"at all; 1 at most), most at '{worst}' ({far[worst]:.2f})."
            )
    return lines


def divergences(tables: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return the Jensen-Shannon divergence of each client's shares from those of all rows, in bits, 0 to 1."""
    names = sorted({name for table in tables.values() for name in table})
    counts = np.array([[table.get(name, 0) for name in names] for table in tables.values()], dtype=np.float64)
    shares, everybody = counts / counts.sum(axis=1, keepdims=True), counts.sum(axis=0) / counts.sum()
    middle = (shares + everybody) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(shares > 0, shares * np.log2(shares / middle), 0.0)
        right = np.where(everybody > 0, everybody * np.log2(everybody / middle), 0.0)
    return dict(zip(tables, ((left + right).sum(axis=1) / 2).tolist(), strict=True))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _is_bin(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_count, value))


def _lengths_and_languages(client: ClientData, tokenizer: Tokenizer, longest: int, frame: str) -> JsonObject:
    edges = [SHORTEST]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    lengths, languages = dict.fromkeys(map(str, edges), 0), dict.fromkeys(LANGUAGES, 0)
    table = client.train.table
    for row in (int(row) for view in (client.train, client.held_out) for row in view.index):
        size = _tokens(table[row])
        lengths[str(next((edge for edge in edges if size <= edge), edges[-1]))] += 1
        languages[language_of(" ".join(texts_of(table, row, tokenizer)).removeprefix(frame))] += 1
    return {"lengths": lengths, "languages": languages}


def _frame(config: RunConfig, tokenizer: Tokenizer, table: object) -> str:
    """Return what the template writes before every row, which has a language of its own."""
    if isinstance(table, Documents):
        return ""
    template = load_template(template_name(config, tokenizer, ""), config.template_date)
    examples = [Example((Turn("user", word), Turn("assistant", "0"))) for word in ("1", "2")]
    first, last = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids, _ in tokenize(examples, tokenizer, template)
    )
    size = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[:size].rstrip()


def _tokens(content: Any) -> int:
    if isinstance(content, Pair):
        return len(content.prompt) + sum(map(len, content.answers))
    return len(content.ids) if isinstance(content, Prompt) else len(content[0])


def _choices_of(client: ClientData, tokenizer: Tokenizer, choices: Sequence[str]) -> dict[str, int] | None:
    """Return how often a client's answers are each of the choices, and all others together; None: it has no answers."""
    table, counts = client.train.table, dict.fromkeys((*choices, OTHER), 0)
    if not isinstance(table, (ConversationTable, PromptTable)):
        return None
    for row in (int(row) for view in (client.train, client.held_out) for row in view.index):
        content: Any = table[row]
        answer = content.answer if isinstance(content, Prompt) else text_of(tokenizer, content[0][content[1]])
        answer = answer.strip()
        counts[answer if answer in counts else OTHER] += 1
    return counts


def _merged(counts: dict[str, int], total: int, least: int, *, exact: bool) -> dict[str, int]:
    """Return counts of which each is `least` or more: rare names are put together, with a frequent one if need be."""
    shown = {name: count for name, count in counts.items() if name != OTHER and count and count >= least}
    rest = max(0, total - sum(shown.values()))  # what noise makes of the others says less than the number of rows
    while exact and 0 < rest < least and shown:  # left out alone, it would follow from the number of rows
        rest += shown.pop(min(shown, key=lambda name: shown[name]))
    return shown | ({OTHER: rest} if rest and rest >= least else {})


def _merged_lengths(counts: dict[str, int], least: int) -> list[list[int]]:
    """Return bins [shortest, longest, rows] of `least` rows or more each: smaller ones join their neighbours."""
    bins: list[list[int]] = []
    low, rows = 1, 0
    for edge, count in counts.items():
        rows += count
        if rows and rows >= least:
            bins.append([low, int(edge), rows])
            low, rows = int(edge) + 1, 0
    if rows and bins:
        bins[-1] = [bins[-1][0], int(list(counts)[-1]), bins[-1][2] + rows]
    return bins
