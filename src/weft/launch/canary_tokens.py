"""New-token canaries: records whose answer is a token that occurs in no other row (Panda et al. 2025, 2503.06808).

No other row teaches the model anything of such a token, so that what it knows of one comes from the canary alone. The
token follows from the secret of the client: the first of those drawn that the rows lack. Tokens are taken from the
vocabulary as it is: new ones would change the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.secret import Secret
from weft.data.encode import encode
from weft.data.formats import Example, Turn
from weft.data.sources import Sources
from weft.data.templates import Template
from weft.errors import DataError
from weft.launch.canaries import Canary, canaries_of

KIND = "token"
MOST_DRAWS = 20_000
"""Tokens that are drawn for one canary."""
SHORTEST = 2
"""Letters of a token: shorter ones stand within the words of nearly every row."""


class Written(NamedTuple):
    """How rows become tokens."""

    tokenizer: Tokenizer
    template: Template


class TokenCanary(Canary):
    """An invented record with a code word in place of a number; `digits` is the word."""

    @property
    def question(self) -> str:
        """What is asked in its row."""
        return f"What is the code word of the patient {self.name}, born {self.date}?"

    @property
    def answer(self) -> str:
        """What is answered: one token."""
        return self.digits


def all_canaries(
    config: RunConfig, sources: Sources, names: Sequence[str], secret_of: Callable[[str], Secret], written: Written
) -> list[Canary]:
    """Return the canaries of a run, those that coins kept out too: records with numbers, and records with tokens.

    Args:
        config: says how many, how often, and whose.
        sources: have all other rows.
        names: of the clients.
        secret_of: returns the secret of a client.
        written: how rows become tokens.

    Raises:
        ConfigError: `canary_clients` names a client that the run does not have.
        DataError: the tokenizer has too few tokens that occur in no row.
    """
    records = canaries_of(config, names, secret_of)
    drawn = canaries_of(config, names, secret_of, range(len(records), len(records) + config.canary_tokens))
    if not records or not drawn:
        return records
    drawn = [TokenCanary(**vars(one) | {"kind": KIND, "digits": ""}) for one in drawn]
    rows: list[Example] = [*getattr(sources, "examples", []), *(one.example() for one in (*records, *drawn))]
    texts = "\n".join(turn.text for row in rows for turn in row.turns)
    found: list[Canary] = []
    verdicts: dict[str, bool] = {}
    for canary in drawn:
        word = _word(config, canary, secret_of(canary.client), texts, written, verdicts)
        if word is None:
            raise DataError(
                f"The tokenizer has only {len(found)} tokens of {SHORTEST} letters or more that occur in no row, and "
                f"canary_tokens is {config.canary_tokens}: write fewer, or leave out --canary_tokens."
            )
        verdicts[word] = False  # no other canary has it
        found.append(TokenCanary(**vars(canary) | {"digits": word}))
    return [*records, *found]


def _word(
    config: RunConfig, canary: Canary, secret: Secret, texts: str, written: Written, verdicts: dict[str, bool]
) -> str | None:
    """Return the first token drawn that stands in no row, as text; None: there is none among those drawn."""
    tokenizer = written.tokenizer
    special = set(tokenizer.all_special_ids)
    for turn in range(MOST_DRAWS):
        token = int.from_bytes(secret.bytes(8, "canary token", canary.number, turn), "big") % len(tokenizer)
        if token in special:
            continue
        word = tokenizer.decode([token]).strip()
        if word not in verdicts:
            new = len(word) >= SHORTEST and word.isalnum() and word not in texts
            verdicts[word] = new and _is_one_token(config, canary, word, written)
        if verdicts[word]:
            return word
    return None


def _is_one_token(config: RunConfig, canary: Canary, word: str, written: Written) -> bool:
    """Say whether a word is one token as the answer of a row, and stands nowhere else in it."""
    tokenizer, template = written
    example = Example((Turn("user", canary.question), Turn("assistant", word)))
    table = encode([example], tokenizer, template, seq_length=config.seq_length)
    if not len(table):
        return False
    ids, learn = table[0]
    answer = [token for token in ids[learn].tolist() if tokenizer.decode([token]).strip() == word]
    whole: str = tokenizer.decode(ids[learn].tolist(), skip_special_tokens=True)
    return len(answer) == 1 and whole.strip() == word and ids.tolist().count(answer[0]) == 1
