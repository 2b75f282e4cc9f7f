"""A hostile participant: it samples the shared model round by round, and looks for rows of another client.

After Hitaj et al. 2017, Deep Models Under the GAN (arXiv 1702.07464), whose participant trains a generator against the
shared model. A language model is its own generator: the participant puts the beginnings of another client's rows, and
reads what comes. The control is the same federation without that client. This participant trains as it should; the one
of `gan` trains on what it sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from weft.audits.audit import Audit, Findings
from weft.audits.scene import Scene
from weft.audits.sent import Station, values_of
from weft.audits.settings import CannotAudit
from weft.audits.statistics import mean_of, share
from weft.audits.subsequence import rouge_l
from weft.core.types import Tensors
from weft.json_types import JsonObject
from weft.models.generate import Sampling, generate
from weft.models.layout import Row

ROUNDS = 3
TOGETHER = 4
"""Clients of the repeated rounds."""
MOST_STEPS = 60
"""Steps of a client in a repeated round."""
ROWS = 24
MOST_TOKENS = 32
SHORTEST = 3
"""Tokens of an end that is worth asking for."""
NEAR = 0.9
"""ROUGE-L from which on an end is a near copy."""
GUESSED = 0.1
"""Share of near copies without the victim, above which (95 %) ends can be guessed."""


class Asked(NamedTuple):
    """A row of the victim, as the participant asks for it."""

    prompt: np.ndarray
    """(P,) ids of its beginning, which the participant knows or guesses."""
    end: list[int]


class Hostile(Audit):
    """Gain in ROUGE-L of a victim's rows by round, with the victim and without."""

    title: ClassVar[str] = "A participant that samples the shared model"
    means: ClassVar[str] = (
        "By how much what the model writes after the beginnings of a client's rows comes nearer to their ends than "
        "before training (ROUGE-L), with that client and without it (control); the difference is what its presence "
        "gives away."
    )
    defence: ClassVar[str] = "Differential privacy of a client or a row; masks do not help: the model is shared."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Repeat the first rounds twice, and sample after each."""
        station = Station(scene)
        names = together(scene, "a participant asks for the rows of another")
        victim, others = names[-1], names[:-1]
        rows = asked(scene, all_rows(station.host.train_clients.find(victim).train))
        unseen = asked(scene, held_out(station, victim))
        if len(rows) < 2:
            raise CannotAudit(
                f"The client '{victim}' has fewer than two rows with ends of {SHORTEST} tokens or more, and shorter "
                "ones are guessed: audit a run of longer answers."
            )
        count = min(ROUNDS, scene.config.num_rounds)
        before = _scores(station, station.state.params, rows)
        most = scene.settings.few(MOST_STEPS)
        inside = list(station.rounds(names, count, most))
        outside = list(station.rounds(others, count, most))
        numbers: JsonObject = {"victim": victim, "rows": len(rows), "rounds": {}}
        cells = []
        for number, (with_it, without) in enumerate(zip(inside, outside, strict=True), 1):
            told, guessed = _scores(station, with_it, rows), _scores(station, without, rows)
            cells.append(_line(f"round {number}", before, told, guessed, numbers["rounds"]))
        _check_control(numbers["rounds"][f"round {count}"]["near_control"], victim)
        if len(unseen) > 1:
            ends = (station.state.params, inside[-1], outside[-1])
            first, told, guessed = (_scores(station, params, unseen) for params in ends)
            cells.append(_line("its held-out rows", first, told, guessed, numbers["rounds"]))
        heads = ["after", "gain with the victim", "without it (control)", "difference (95 %)", "near copies"]
        return Findings(numbers, heads, cells, _notes(numbers, count) + fewer_steps(station, names, most))


def together(scene: Scene, what: str) -> list[str]:
    """Return the clients of repeated rounds, the victim last.

    Args:
        scene: the run.
        what: says what takes more than one of them.

    Raises:
        CannotAudit: one client took part.
    """
    names = [name for name in scene.names if scene.taught(name)][:TOGETHER]
    if len(names) < 2:
        raise CannotAudit(f"One client took part in the run, and {what}: audit a run of more.")
    return names


def held_out(station: Station, victim: str) -> list[Row]:
    """Return the rows that a client held out, without those whose content some client trained on."""
    trained = {row[0].tobytes() for client in station.host.train_clients for row in all_rows(client.train)}
    rows = (row for client in station.host.eval_clients if client.name == victim for row in all_rows(client.held_out))
    return [row for row in rows if row[0].tobytes() not in trained]


def all_rows(view: Any) -> list[Row]:
    """Return the rows of a view."""
    return [view[place] for place in range(len(view))]


def asked(scene: Scene, rows: Sequence[Row], shortest: int = SHORTEST) -> list[Asked]:
    """Return some rows, each content once: behind the question, or behind the first half of a text.

    Args:
        scene: the run.
        rows: to draw from.
        shortest: tokens of an end; rows of shorter ones are left out.
    """
    found: dict[bytes, Asked] = {}
    for place in scene.chance("participant", len(rows)).permutation(len(rows)):
        ids, learn = rows[place]
        learnt = np.flatnonzero(learn)
        cut = int(learnt[0]) if learnt[0] > len(ids) // 4 else int(learnt[len(learnt) // 2])
        end = ids[cut : cut + MOST_TOKENS].tolist()
        if len(end) >= shortest:
            found.setdefault(ids.tobytes(), Asked(ids[:cut], end))
        if len(found) == min(ROWS, scene.settings.limit):
            break
    return list(found.values())


def _scores(station: Station, params: Tensors, rows: Sequence[Asked]) -> np.ndarray:
    """Return (rows,): ROUGE-L of what the model writes after each beginning, and the end."""
    model, size = station.host.model, station.scene.settings.batch_size
    model.load(values_of(model, params))
    scores: list[float] = []
    for at in range(0, len(rows), size):
        some = rows[at : at + size]
        most = max(len(one.end) for one in some)
        answers = generate(model, [one.prompt for one in some], Sampling(most, 0.0), seed=station.scene.settings.seed)
        pairs = zip(some, answers, strict=True)
        scores += [rouge_l(one.end, answer.ids[: len(one.end)].tolist()) for one, (answer,) in pairs]
    return np.array(scores)


def _line(name: str, before: np.ndarray, inside: np.ndarray, outside: np.ndarray, numbers: JsonObject) -> list[str]:
    """Add what was found of rows to the numbers; return cells."""
    gains = [mean_of((values - before).tolist(), -1, 1) for values in (inside, outside)]
    difference = mean_of((inside - outside).tolist(), -1, 1)
    near = [share(int((values >= NEAR).sum()), len(values)) for values in (inside, outside)]
    numbers[name] = {
        "gain": gains[0].as_json(), "control": gains[1].as_json(), "difference": difference.as_json(),
        "near": near[0].as_json(), "near_control": near[1].as_json(),
    }  # fmt: skip
    copies = f"{near[0].value:.0%}, without it {near[1].value:.0%}"
    return [name, str(gains[0]), str(gains[1]), str(difference), copies]


def _check_control(near: JsonObject, victim: str) -> None:
    """Refuse where ends are written that the model was never trained on: raise CannotAudit."""
    if near["low"] > GUESSED:
        raise CannotAudit(
            f"The control failed: without the client '{victim}' the model ends {near['value']:.0%} of its rows as they "
            "end, so that what it ends with it may be guessed too: audit a run of longer answers."
        )


def fewer_steps(station: Station, names: Sequence[str], most: int) -> list[str]:
    """Return a sentence where clients make fewer steps in a repeated round than they did in the run."""
    clients = station.host.train_clients
    steps = max(station.plan.local.num_steps(len(clients.find(name).train)) for name in names)
    return [f"A client made up to {steps} steps in a round, and makes {most} here."] * (steps > most)


def _notes(numbers: JsonObject, count: int) -> list[str]:
    notes = [
        f"{numbers['rows']} rows of '{numbers['victim']}', whose beginnings the participant is told; {count} rounds, "
        "repeated from the start with all clients in each."
    ]
    if numbers["rounds"][f"round {count}"]["difference"]["low"] <= 0:
        notes.append("The difference is not above 0: nothing was read that comes from the presence of the client.")
    return notes
