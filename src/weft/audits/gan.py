"""The GAN attack: a malicious participant trains on what it samples from the shared model, under a label of its own.

Hitaj et al. 2017, Deep Models Under the GAN (arXiv 1702.07464): the participant's generator imitates a class that only
the victim has, and the participant trains on these samples as another class, so that the victim has to teach the
difference more strongly. In text the generator is the shared model, and the class of a text is the beginning that it
comes after: the participant samples after beginnings of the victim's kind, and trains on the samples after beginnings
of its own rows. It never sees the victim's rows.

Two controls: rows of the victim's kind that nobody trained on, and the same federation without the victim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.participant import Asked, all_rows, asked, fewer_steps, held_out, together
from weft.audits.scene import Scene
from weft.audits.sent import Malicious, Station, values_of
from weft.audits.settings import CannotAudit
from weft.audits.statistics import Estimate, auc
from weft.core.types import Tensors
from weft.json_types import JsonObject
from weft.models.generate import Sampling, generate
from weft.models.layout import Row

ROUNDS = 3
MOST_STEPS = 60
"""Steps of a client in a repeated round."""
PROMPTS = 12
COPIES = 4
"""Samples after each beginning, in every round."""
RUN = 4
"""Tokens of a run that is looked for in samples; shorter ones stand in any text."""
FEWEST = 4
"""Rows of each kind that are worth comparing."""
OF_999 = 3.2905
"""Quantile of the normal distribution of a 99.9 % interval."""
SAMPLES, TRAINS, WITHOUT = "samples", "trains on its samples", "trains on its samples, without the victim (control)"


class GAN(Audit):
    """How much nearer samples come to a victim's rows than to unseen ones, by round."""

    title: ClassVar[str] = "A participant that trains on its samples (GAN attack)"
    means: ClassVar[str] = (
        f"Share of a row's runs of {RUN} tokens that stand in what a malicious participant sampled so far, for rows of "
        "the victim and for rows of the same kind that nobody trained on (control), and how well it tells the two "
        "apart (AUC, 0.5 is chance)."
    )
    defence: ClassVar[str] = (
        "Differential privacy of a client or a row, and fewer passes over the rows; masks do not help: the model is "
        "shared."
    )
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Repeat the first rounds three times: with a participant that samples, that trains too, without the victim."""
        station = Station(scene)
        names = together(scene, "a malicious participant attacks another")
        count = min(ROUNDS, scene.config.num_rounds)
        found = {
            SAMPLES: _attack(station, names, names, count, trains=False),
            TRAINS: _attack(station, names, names, count, trains=True),
            WITHOUT: _attack(station, names, names[:-1], count, trains=True),
        }
        victim = names[-1]
        for scores in (found[SAMPLES][0], found[WITHOUT][-1]):
            _check_control(scores, victim)
        numbers: JsonObject = {"victim": victim, "participant": names[0], "rows": len(found[SAMPLES][0][0]), "arms": {}}
        cells = [_line("before", "", found[SAMPLES][0], numbers["arms"])]
        for arm, rounds in found.items():
            cells += [_line(arm, f"round {at}", scores, numbers["arms"]) for at, scores in enumerate(rounds) if at]
        heads = ["the participant", "after", "runs of the victim's rows", "of unseen rows (control)", "AUC (95 %)"]
        fewer = fewer_steps(station, names, scene.settings.few(MOST_STEPS))
        return Findings(numbers, heads, cells, _notes(numbers, count) + fewer)


class _Participant:
    """Who samples after beginnings of the victim's kind, and what it has sampled so far."""

    def __init__(self, station: Station, victim: str, own: str, *, trains: bool) -> None:
        """Take beginnings of unseen rows of the victim, and those of the participant's own rows.

        Raises:
            CannotAudit: there are too few rows of a kind.
        """
        scene, clients = station.scene, station.host.train_clients
        private = all_rows(clients.find(victim).train)
        unseen = held_out(station, victim)
        half = len(unseen) // 2
        self.prompts = [one.prompt for one in asked(scene, unseen[:half], RUN)[:PROMPTS]]
        self.rows = [asked(scene, rows, RUN) for rows in (private, unseen[half:])]
        self.own = [one.prompt for one in asked(scene, all_rows(clients.find(own).train), 1)]
        if min(len(self.prompts), len(self.own), *map(len, self.rows)) < FEWEST:
            raise CannotAudit(
                f"The client '{victim}' trained on, or held out, too few rows with ends of {RUN} tokens or more to "
                "compare what is sampled with both: audit a run with a larger --eval_fraction, or of longer answers."
            )
        self.station, self.trains = station, trains
        self.runs: set[tuple[int, ...]] = set()
        self.scores: list[tuple[np.ndarray, np.ndarray]] = []
        """(rows,) of the victim's rows and of unseen ones, after each sampling."""

    def sample(self, params: Tensors) -> list[Row]:
        """Sample the shared model, and return what is trained on in the next round beside the participant's rows."""
        scene, model = self.station.scene, self.station.host.model
        model.load(values_of(model, params))
        most = max(len(one.end) for rows in self.rows for one in rows)
        prompts = [scene.fitting(prompt, most) for prompt in self.prompts]
        seed = scene.settings.seed + 7919 * len(self.scores)
        ends = [
            answer.ids
            for answers in generate(model, prompts, Sampling(most, 1.0), copies=COPIES, seed=seed)
            for answer in answers
        ]
        self.runs.update(run for end in ends for run in _runs(end.tolist()))
        private, unseen = (np.array([self._share(one) for one in rows]) for rows in self.rows)
        self.scores.append((private, unseen))
        return [self._row(place, end) for place, end in enumerate(ends)] if self.trains else []

    def _share(self, row: Asked) -> float:
        runs = _runs(row.end)
        return len(runs & self.runs) / len(runs)

    def _row(self, place: int, end: np.ndarray) -> Row:
        """Return a sample after a beginning of the participant's own."""
        beginning = self.own[place % len(self.own)]
        ids = np.concatenate([beginning, end])[: self.station.scene.config.seq_length].astype(np.int32)
        return ids, np.arange(len(ids)) >= len(beginning)


def _attack(
    station: Station, names: Sequence[str], together: Sequence[str], count: int, *, trains: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the scores before the first round and after each.

    Args:
        station: the run's clients.
        names: the participant first, the victim last.
        together: clients of the rounds.
        count: of rounds.
        trains: the participant trains on its samples.
    """
    participant = _Participant(station, names[-1], names[0], trains=trains)
    params, most = station.state.params, station.scene.settings.few(MOST_STEPS)
    for after in station.rounds(together, count, most, Malicious(names[0], participant.sample)):
        params = after
    participant.sample(params)
    return participant.scores


def _runs(ids: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + RUN]) for at in range(len(ids) - RUN + 1)}


def _line(arm: str, after: str, scores: tuple[np.ndarray, np.ndarray], numbers: JsonObject) -> list[str]:
    """Add what was found to the numbers; return cells."""
    private, unseen = (float(some.mean()) for some in scores)
    apart = auc(*scores)
    found = {"private": private, "unseen": unseen, "auc": apart.as_json()}
    numbers.setdefault(arm, {}).update({after: found} if after else found)
    return [arm, after, f"{private:.0%}", f"{unseen:.0%}", str(apart)]


def _check_control(scores: tuple[np.ndarray, np.ndarray], victim: str) -> None:
    """Refuse where a model that never saw the victim tells its rows from unseen ones: raise CannotAudit."""
    apart: Estimate = auc(*scores, quantile=OF_999)
    if not apart.holds(0.5):
        raise CannotAudit(
            f"The control failed: samples of a model that has not learnt from the client '{victim}' tell its rows from "
            f"unseen ones (AUC {apart}, 99.9 %), so that the two are not of one kind: audit a run whose rows were held "
            "out at random (--eval_fraction)."
        )


def _notes(numbers: JsonObject, count: int) -> list[str]:
    last = f"round {count}"
    passive, active = (numbers["arms"][arm][last] for arm in (SAMPLES, TRAINS))
    gain = (active["private"] - active["unseen"]) - (passive["private"] - passive["unseen"])
    notes = [
        f"'{numbers['participant']}' attacks '{numbers['victim']}': {PROMPTS} beginnings of unseen rows at most, "
        f"{COPIES} samples after each in every round; {count} rounds, repeated from the start.",
        "Training on the samples changes by how much more of the victim's rows stands in them, than of unseen rows, by "
        f"{gain:+.0%}.",
    ]
    if max(passive["auc"]["low"], active["auc"]["low"]) <= 0.5:
        notes.append("Not above chance: nothing was sampled that is the victim's own.")
    return notes
