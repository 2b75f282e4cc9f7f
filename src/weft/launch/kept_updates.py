"""Updates that a simulation keeps on disk, as they were sent: what a cheap way to forget a client takes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.core.exchange import Runtime
from weft.core.types import Message, Reply, Tensors, Update
from weft.runs.layout import path_component
from weft.runtimes.attacked import Around

FOLDER = "updates"
WEIGHT = "weight"


@dataclass(frozen=True)
class KeptUpdates(Around):
    """Carries messages as another runtime does, and writes every update to a file.

    A round that is begun again, after a kill too, overwrites its files; which of them were used, metrics.jsonl says.
    """

    folder: Path
    """The directory of the run."""

    def exchange(self, messages: Sequence[Message]) -> Iterator[Reply]:
        """Yield the replies."""
        for reply in self.inner.exchange(messages):
            if isinstance(reply, Update):
                self._keep(reply)
            yield reply

    def _keep(self, update: Update) -> None:
        from safetensors.torch import save_file

        file = file_of(self.folder, update.round + 1, update.client)
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{stream}/{name}": value.detach().cpu().clone().contiguous()
            for stream, values in update.streams.items()
            for name, value in values.items()
        }
        temporary = file.with_name(f".{file.name}.tmp")
        save_file(tensors, temporary, metadata={WEIGHT: repr(float(update.weight))})
        temporary.replace(file)


def keeping(runtime: Runtime, folder: Path | None) -> Runtime:
    """Return the runtime, or one that keeps updates below the directory of a run."""
    return runtime if folder is None else KeptUpdates(runtime, folder)


def file_of(folder: Path, round: int, client: str) -> Path:
    """Return the file of a client's update in a round, counted from 1."""
    return folder / FOLDER / f"round_{round:06d}" / f"{path_component(client)}.safetensors"


def read_update(folder: Path, round: int, client: str, stream: str) -> tuple[Tensors, float] | None:
    """Return a stream of a client's update in a round, counted from 1, and its weight; None: it was not kept."""
    from safetensors import safe_open

    file = file_of(folder, round, client)
    if not file.exists():
        return None
    with safe_open(file, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(f"{stream}/")]  # noqa: SIM118 - no mapping
        tensors = {name.removeprefix(f"{stream}/"): opened.get_tensor(name) for name in names}
        return tensors, float(opened.metadata()[WEIGHT])
