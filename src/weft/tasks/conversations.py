"""Scorer of open questions, whose answers a judge rates from 1 to 10, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from weft.json_types import JsonObject
from weft.tasks import judge, statistics
from weft.tasks.expressions import evaluate
from weft.tasks.requests import Item, Record, Reply, Texts, Writing
from weft.tasks.scorer import Expression, Measures, Scorer, ratio_values

BOUNDS = (1.0, 10.0)
"""The least and the best rating."""


class Rated(Scorer):
    """The mean rating over all turns, and that of each turn."""

    main: ClassVar[str] = "rating"
    needs: ClassVar[str] = "judge"
    expressions: ClassVar[tuple[str, ...]] = ("turns", "references", "temperature")

    turns: Expression
    """The user's questions, one after the other; the prompt is the first."""
    references: Expression = "[]"
    """Reference answers, one for each question; an empty list or None: there are none."""
    temperature: Expression = "0"
    max_tokens: int = 512

    def request(self, item: Item) -> Writing:
        """Ask all questions, in one conversation."""
        _, *others = evaluate(self.turns, item.row)
        temperature = float(evaluate(self.temperature, item.row))
        return Writing(item.prompt, (), self.max_tokens, temperature, turns=tuple(map(str, others)))

    def conversation(self, item: Item, reply: Reply) -> judge.Item:
        """Return what the judge is shown."""
        assert isinstance(reply, Texts)
        questions = tuple(map(str, evaluate(self.turns, item.row)))
        references = tuple(map(str, evaluate(self.references, item.row) or ()))
        return judge.Item(str(item.number), questions, reply.samples[0], references)

    def judged(self, items: Sequence[Item], replies: Sequence[Reply], by: judge.Judge) -> list[dict[str, float]]:
        """Return the scores of items: a rating for each turn, or that it could not be read or was not given.

        Raises:
            ConfigError: the judge refuses all requests.
            RunError: it does not answer; what it judged is kept.
        """
        shown = [self.conversation(item, reply) for item, reply in zip(items, replies, strict=True)]
        scores: list[dict[str, float]] = [{} for _ in items]
        for turn in range(1, max(len(one.questions) for one in shown) + 1):
            places = [place for place, one in enumerate(shown) if len(one.questions) >= turn]
            ratings = by.rate([shown[place] for place in places], turn)
            for place, rating in zip(places, ratings.scores, strict=True):
                scores[place][f"unrated_turn_{turn}"] = float(rating is None)
                if rating is not None:
                    scores[place][f"rating_turn_{turn}"] = rating
        return scores

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the mean of what was rated, over all turns and of each, and the share of what was not."""
        turns = sorted({name for record in records for name in record.scores if name.startswith("rating_turn_")})
        each = {name: [record for record in records if name in record.scores] for name in turns}
        ratings = [(value, str(r.number)) for r in records for name, value in r.scores.items() if name in turns]
        missing = [value for r in records for name, value in r.scores.items() if name.startswith("unrated_")]
        result = {"rating": statistics.mean([value for value, _ in ratings], [number for _, number in ratings], BOUNDS)}
        if len(turns) > 1:
            result |= {name: statistics.mean([r.scores[name] for r in own], None, BOUNDS) for name, own in each.items()}
        return result | {"unrated": statistics.Measure(sum(missing) / max(1, len(missing)), None, len(missing))}

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return those of the rating over all turns, of the items that have one."""
        ratings = {
            record.number: [value for name, value in record.scores.items() if name.startswith("rating_turn_")]
            for record in records
        }
        rated = {number: own for number, own in ratings.items() if own}
        tops, bottoms = [sum(own) for own in rated.values()], [float(len(own)) for own in rated.values()]
        return {"rating": dict(zip(rated, ratio_values(tops, bottoms), strict=True))} if rated else {}

    def answer_text(self, row: JsonObject) -> str:
        """Return the first reference answer; "" where there is none."""
        references = evaluate(self.references, row) or ("",)
        return str(references[0])

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Refuse: without a judge there is no rating."""
        raise TypeError("a judge rates these answers")
