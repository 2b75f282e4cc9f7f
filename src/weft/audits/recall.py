"""How many of a row's words an update gives away, and whether it is known whose they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weft.audits.scene import Scene
from weft.audits.sent import Sent
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, auc, share
from weft.core.types import Tensors

ALIKE = "A client's whole round is left out, because both clients read the same words."


def others_of(tokens: Sequence[frozenset[int]], place: int) -> frozenset[int]:
    """Return the tokens of all but one."""
    return frozenset().union(*(one for other, one in enumerate(tokens) if other != place))


def recalls(score: Callable[[Tensors, int], Tensor], sent: Sequence[Sent]) -> tuple[Estimate, Estimate]:
    """Return the recall of each row's own words from its update, and from that of the next row.

    Args:
        score: returns (V,) of an update and of the number of tokens that the attacker is told of; larger for likelier
            tokens.
        sent: updates, each of one row or of one client.

    Raises:
        CannotAudit: as `own_and_next`.
    """
    found = []
    for one in sent:
        count = len(one.tokens[0])
        found.append(frozenset(score(one.delta, count).topk(count).indices.tolist()))
    return own_and_next([one.tokens[0] for one in sent], found)


def own_and_next(words: Sequence[frozenset[int]], found: Sequence[frozenset[int]]) -> tuple[Estimate, Estimate]:
    """Return the share of each row's own words (which the next row lacks) that its update, and that of the next, gave.

    Args:
        words: of each row.
        found: what was read in the update of each.

    Raises:
        CannotAudit: no row has a word of its own, so that nothing can be read, whatever the updates hold.
    """
    hits, misled, of = 0, 0, 0
    for place, mine in enumerate(words):
        after = (place + 1) % len(words)
        own = mine - words[after]
        hits, misled, of = hits + len(own & found[place]), misled + len(own & found[after]), of + len(own)
    if not of:
        raise CannotAudit(
            "No row has a word that the next one lacks, so that no word which is read says whose it is: audit a run "
            "whose rows differ."
        )
    return share(hits, of), share(misled, of)


def chance_of(sent: Sequence[Sent], vocabulary: int) -> float:
    """Return the share of a row's words among as many that are drawn at random."""
    return sum(len(one.tokens[0]) for one in sent) / len(sent) / vocabulary


def check_control(control: Estimate, chance: float) -> None:
    """Refuse where the update of one row gives more of another's words than twice what chance does.

    Raises:
        CannotAudit: it does, so that a recall would say nothing.
    """
    if control.low > 2 * chance:
        raise CannotAudit(
            f"The control failed: the update of one row gives {control} of the words of another, and chance "
            f"{chance:.2f}, so that the recall says nothing; write another --seed."
        )


def above(recall: Estimate, control: Estimate) -> list[str]:
    """Return a sentence where a recall cannot be told from its control."""
    if recall.low > control.high:
        return []
    return [f"The recall is not above that of the control ({control}): nothing was read that is the row's own."]


def under_masks(scene: Scene) -> list[str]:
    """Return a sentence where the server of a run has no update of a single client."""
    if scene.config.protection == "none":
        return []
    return ["Under masks the server has no update of a single row, and this is what it would read with one."]


def attribution(scores: Sequence[Tensor], own: Sequence[frozenset[int]]) -> Estimate:
    """Return how well the words of one client are told from those of the others, by scores for each client."""
    inside, outside = [], []
    for place, mine in enumerate(own):
        theirs = frozenset().union(*(words for other, words in enumerate(own) if other != place))
        inside += scores[place][sorted(mine)].tolist()
        outside += scores[place][sorted(theirs)].tolist()
    if not inside or not outside:
        return Estimate(0.5, 0.0, 1.0)
    return auc(torch.tensor(inside).numpy(), torch.tensor(outside).numpy())


def line(name: str, recall: Estimate, sent: Sequence[Sent]) -> list[str]:
    """Return the cells of a table."""
    counts = [len(one.tokens[0]) for one in sent]
    return [name, str(recall), f"{min(counts)} to {max(counts)}"]
