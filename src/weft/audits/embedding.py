"""Which words a client's rows have, by the rows of the embedding that changed, where all parameters are trained."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from weft.audits.audit import Audit, Findings
from weft.audits.recall import ALIKE, above, chance_of, check_control, line, recalls, under_masks
from weft.audits.scene import Scene
from weft.audits.sent import Station
from weft.audits.settings import CannotAudit
from weft.core.types import Tensors
from weft.json_types import JsonObject

ROWS = 8


class Embedding(Audit):
    """Recall by the norms of the embedding's rows."""

    title: ClassVar[str] = "Words in an update: rows of the embedding"
    means: ClassVar[str] = (
        "Recall: the share of a row's own words among as many rows of the embedding as changed most; the control takes "
        "the update of another row."
    )
    defence: ClassVar[str] = "A LoRA that leaves the embedding alone, and differential privacy."
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def findings(self, scene: Scene) -> Findings:
        """Ask clients for updates, and look at one tensor of them."""
        station = Station(scene)
        vectors = station.host.model.base.get_input_embeddings().weight
        names = [name for name, value in station.host.model.params.items() if value is vectors]
        if not names or names[0] not in station.state.params:
            raise CannotAudit(
                "The embedding is not trained, or it stays with the client, so that no update has rows of it: nothing "
                "to audit; `span` reads other layers."
            )
        tied = station.host.model.base.config.tie_word_embeddings

        def score(delta: Tensors, _: int) -> Tensor:
            norms: Tensor = delta[names[0]].float().cpu().norm(dim=1)
            return norms

        sent = [station.one_step(row) for row in station.drawn(ROWS)]
        step, control = recalls(score, sent)
        check_control(control, chance_of(sent, station.host.model.base.get_input_embeddings().weight.shape[0]))
        numbers: JsonObject = {"one_step": step.as_json(), "control": control.as_json(), "tied": tied}
        cells = [line("one row, one step", step, sent), line("another row's update (control)", control, sent)]
        notes = above(step, control) + under_masks(scene)
        whole = [station.whole_round(name) for name in station.host.train_clients.names[:2]]
        if len(whole) == 2 and whole[0].tokens == whole[1].tokens:
            notes.append(ALIKE)
        elif len(whole) == 2:
            recall, _ = recalls(score, whole)
            numbers["round"] = recall.as_json()
            cells.append(line("a client's whole round", recall, whole))
        notes += ["Input and output share the table (tied), so that all rows change, and norms tell."] if tied else []
        return Findings(numbers, ["update of", "recall (95 %, Clopper-Pearson)", "distinct words"], cells, notes)
