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
POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


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

    def compared(
        self, items: Sequence[Item], replies: Sequence[Reply], others: Mapping[int, tuple[str, ...]], by: judge.Judge
    ) -> list[dict[str, float]]:
        """Return for each turn of items whether its answer is better than another model's; raises as `judged`.

        Args:
            items: what was asked.
            replies: of the model.
            others: the other model's answers, by the number of the item.
            by: the judge, which is shown both orders.

        Returns:
            `win_turn_N`, 1 for a win, 0.5 for a tie and 0 for a loss; `split_turn_N`, 1 where it is a tie because the
            orders gave different verdicts; `undecided_turn_N`, 1 where there is no verdict.
        """
        shown = [
            self.conversation(item, reply)._replace(others=others[item.number])
            for item, reply in zip(items, replies, strict=True)
        ]
        scores: list[dict[str, float]] = [{} for _ in items]
        for turn in range(1, max(len(one.questions) for one in shown) + 1):
            places = [place for place, one in enumerate(shown) if len(one.questions) >= turn]
            found = by.compare([shown[place] for place in places], turn)
            for place, result, split in zip(places, found.results, found.split, strict=True):
                scores[place][f"undecided_turn_{turn}"] = float(result is None)
                if result is not None:
                    scores[place] |= {f"win_turn_{turn}": POINTS[result], f"split_turn_{turn}": float(split)}
        return scores

    def measures(self, records: Sequence[Record]) -> Measures:
        """Return the mean of what was rated, over all turns and of each, and the share of what was not.

        Where answers were compared with another model's, also how often they won, ties counting half.
        """
        turns = sorted({name for record in records for name in record.scores if name.startswith("rating_turn_")})
        each = {name: [record for record in records if name in record.scores] for name in turns}
        ratings = [(value, str(r.number)) for r in records for name, value in r.scores.items() if name in turns]
        missing = [value for r in records for name, value in r.scores.items() if name.startswith("unrated_")]
        result = {"rating": statistics.mean([value for value, _ in ratings], [number for _, number in ratings], BOUNDS)}
        if len(turns) > 1:
            result |= {name: statistics.mean([r.scores[name] for r in own], None, BOUNDS) for name, own in each.items()}
        result |= {"unrated": _share(missing)}
        return result | (_wins(records) if any("undecided_turn_1" in record.scores for record in records) else {})

    def values(self, records: Sequence[Record]) -> dict[str, dict[int, float]]:
        """Return those of the rating over all turns, of the items that have one."""
        ratings = {
            record.number: [value for name, value in record.scores.items() if name.startswith("rating_turn_")]
            for record in records
        }
        rated = {number: own for number, own in ratings.items() if own}
        won = {record.number: own for record in records if (own := _turns(record, "win_turn_"))}
        named = {"rating": rated, "win_rate": won}
        return {name: _ratios(own) for name, own in named.items() if own}

    def answer_text(self, row: JsonObject) -> str:
        """Return the first reference answer; "" where there is none."""
        references = evaluate(self.references, row) or ("",)
        return str(references[0])

    def scores(self, item: Item, reply: Reply) -> Mapping[str, float]:
        """Refuse: without a judge there is no rating."""
        raise TypeError("a judge rates these answers")


def _turns(record: Record, prefix: str) -> list[float]:
    """Return an item's scores of a kind, one for each turn that has it."""
    return [value for name, value in record.scores.items() if name.startswith(prefix)]


def _ratios(own: Mapping[int, list[float]]) -> dict[int, float]:
    """Return values of items whose mean is the mean over all turns of all items."""
    tops, bottoms = [sum(values) for values in own.values()], [float(len(values)) for values in own.values()]
    return dict(zip(own, ratio_values(tops, bottoms), strict=True))


def _share(flags: Sequence[float]) -> statistics.Measure:
    return statistics.Measure(sum(flags) / max(1, len(flags)), None, len(flags))


def _wins(records: Sequence[Record]) -> Measures:
    """Return how often answers won against another model's, over all turns and by turn."""
    turns = sorted({name for record in records for name in record.scores if name.startswith("win_turn_")})
    wins = [(value, str(record.number)) for record in records for value in _turns(record, "win_turn_")]
    found: dict[str, statistics.Measure] = {}
    if wins:
        found["win_rate"] = statistics.mean([value for value, _ in wins], [number for _, number in wins], (0.0, 1.0))
    for name in turns if len(turns) > 1 else ():
        own = [record.scores[name] for record in records if name in record.scores]
        found[name.replace("win", "win_rate")] = statistics.mean(own, None, (0.0, 1.0))
    for prefix, metric in (("split_turn_", "split_verdicts"), ("undecided_turn_", "undecided")):
        found[metric] = _share([value for record in records for value in _turns(record, prefix)])
    return found
